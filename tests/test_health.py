"""The view that says whether events arrive."""

import asyncio
import json
from typing import Any
from unittest.mock import patch

import pytest
from channels.layers import InMemoryChannelLayer
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpResponse
from django.test import AsyncClient, Client, override_settings
from django.urls import path

from django_sse import health
from django_sse.concurrency import shared_answers
from django_sse.doorbells.socket_directory import SocketDirectory
from django_sse.health import HealthView
from django_sse.monitoring import counters
from django_sse.stores import get_store
from django_sse.stores.database import DatabaseStore
from tests import postgresql
from tests.layers import layer
from tests.streams import news, open_stream, respond

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("everything_ends")]

# Long where the check ends by itself, short where it hangs.
patient = HealthView.as_view(timeout=20)
impatient = HealthView.as_view(timeout=3)

urlpatterns = [path("health/", patient)]


class DeafLayer(InMemoryChannelLayer):  # type: ignore[misc]
    """Loses all that is sent. Being a subclass, it is taken for one that crosses processes."""

    async def group_send(self, group: str, message: dict[str, Any]) -> None:
        pass


class HangingLayer(InMemoryChannelLayer):  # type: ignore[misc]
    async def group_add(self, group: str, channel: str) -> None:
        await asyncio.sleep(3600)


@pytest.fixture(autouse=True)
def nothing_is_answered_yet() -> None:
    """No test gets the answer of another."""
    health._answer.cache_clear()


def said_by(answer: HttpResponse) -> tuple[int, Any]:
    return answer.status_code, json.loads(answer.content)


async def assert_healthy() -> None:
    status, said = said_by(await respond(patient))
    assert (status, said["status"]) == (200, "ok")
    assert 0 <= said["seconds"] < 20
    assert said.keys() == {"status", "seconds"}


async def failed(view: Any = patient) -> Any:
    status, said = said_by(await respond(view))
    assert (status, said["status"]) == (503, "failed")
    assert said.keys() == {"status", "failed", "seconds"}
    return said["failed"]


# It is healthy


async def test_it_is_healthy_without_a_stream_where_sockets_ring() -> None:
    await assert_healthy()


async def test_it_is_healthy_beside_streams() -> None:
    async with open_stream(news):
        await assert_healthy()


async def test_it_is_healthy_on_the_memory_store(memory_store: None) -> None:
    await assert_healthy()


@override_settings(CHANNEL_LAYERS=layer("tests.layers.OwnInMemoryLayer"))
async def test_it_is_healthy_where_a_layer_rings() -> None:
    # The layer stays on its loop, and this makes the doorbell ring there.
    async with open_stream(news):
        await assert_healthy()


@pytest.mark.skipif(not postgresql.binaries(), reason="PostgreSQL is not installed")
@pytest.mark.django_db(transaction=True, databases=["default", postgresql.ALIAS])
@override_settings(
    DJANGO_SSE={"STORE": {"BACKEND": "database", "OPTIONS": {"using": postgresql.ALIAS}}}
)
async def test_it_is_healthy_where_postgresql_rings() -> None:
    await assert_healthy()
    await get_store().aclose()


async def test_its_events_are_nobodys() -> None:
    before = counters().published
    await assert_healthy()
    assert counters().published == before
    assert not (await get_store().astates(["health"]))["health"].head


# It is not


@override_settings(CHANNEL_LAYERS=layer("tests.test_health.DeafLayer"))
async def test_a_layer_that_loses_everything_is_named() -> None:
    async with open_stream(news):
        assert await failed(impatient) == "doorbell"


@override_settings(CHANNEL_LAYERS=layer("tests.test_health.HangingLayer"))
async def test_a_layer_that_hangs_is_named_in_time() -> None:
    async with asyncio.timeout(20):
        assert await failed(impatient) == "doorbell"


async def test_sockets_that_ring_nobody_are_named() -> None:
    with patch.object(SocketDirectory, "send"):
        assert await failed(impatient) == "doorbell"


async def test_a_store_that_cannot_be_written_is_named_and_the_log_says_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with patch.object(DatabaseStore, "_append", side_effect=OSError("The disk of ada is full.")):
        answer = await respond(patient)
    assert said_by(answer)[1]["failed"] == "write"
    assert b"ada" not in answer.content
    assert "The disk of ada is full." in caplog.text


async def test_a_store_that_cannot_be_read_is_named() -> None:
    with patch.object(DatabaseStore, "aread", side_effect=OSError):
        assert await failed() == "read"


async def test_a_store_that_does_not_keep_what_is_written_is_named() -> None:
    with patch.object(DatabaseStore, "aread", return_value=[]):
        assert await failed() == "read"


# Whom it answers


async def test_it_checks_once_a_second_for_all_who_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_answers, "_SECONDS", 60)
    with patch.object(DatabaseStore, "aread", side_effect=OSError) as read:
        answers = [said_by(await respond(patient)) for _ in range(5)]
    assert answers == [answers[0]] * 5
    assert read.call_count == 1


@override_settings(ROOT_URLCONF=__name__)
async def test_no_answer_is_kept_by_a_cache() -> None:
    answer = await AsyncClient().get("/health/")
    assert answer.status_code == 200
    assert answer["Cache-Control"] == "no-store"
    assert (await AsyncClient().head("/health/")).status_code == 200
    assert (await AsyncClient().post("/health/")).status_code == 405


@override_settings(ROOT_URLCONF=__name__)
def test_it_works_under_wsgi() -> None:
    assert Client().get("/health/").status_code == 200
    health._answer.cache_clear()
    assert Client().get("/health/").status_code == 200


@pytest.mark.parametrize("timeout", [0, -1, True, "2", None, float("nan"), float("inf")])
def test_a_timeout_that_cannot_be_is_refused(timeout: Any) -> None:
    with pytest.raises(ImproperlyConfigured, match="timeout must be a number of seconds above 0"):
        HealthView.as_view(timeout=timeout)
