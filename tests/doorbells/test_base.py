"""This process's hubs, and which doorbell reaches those of others."""

import asyncio
import os
from typing import Any

import pytest
from django.test import override_settings
from pytest_django import Settings

from django_sse.doorbells import doorbell_of
from django_sse.doorbells.base import Doorbell, listen, stop_listening
from django_sse.doorbells.datagrams import DatagramDoorbell
from django_sse.doorbells.layer import LayerDoorbell
from django_sse.doorbells.notifications import NotificationDoorbell
from django_sse.exceptions import InvalidGroup
from django_sse.groups.entries import Hint
from django_sse.stores.database import DatabaseStore
from django_sse.stores.memory import MemoryStore
from django_sse.stores.redis import RedisStore
from tests.doorbells.conftest import Ear, hint
from tests.postgresql import ALIAS, binaries


async def test_hubs_of_this_process_are_told_directly(ear: Ear) -> None:
    Doorbell().ring([hint(7), hint(8, group="jobs")])
    assert ear.heard == [hint(7), hint(8, group="jobs")]


async def test_a_hub_that_does_not_listen_any_more_is_not_told(ear: Ear) -> None:
    stop_listening(ear)
    Doorbell().ring([hint(7)])
    assert ear.heard == []


def test_a_hub_whose_loop_is_closed_is_not_told() -> None:
    ear = Ear(asyncio.new_event_loop())
    listen(ear)
    ear.loop.close()
    Doorbell().ring([hint(7)])
    assert ear.heard == []


async def test_a_forked_child_rings_no_hub_of_its_parent(ear: Ear) -> None:
    pid = os.fork()
    if not pid:
        Doorbell().ring([hint(7)])
        os._exit(len(ear.heard))
    _, status = await asyncio.to_thread(os.waitpid, pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    Doorbell().ring([hint(8)])
    assert ear.heard == [hint(8)]


# Which doorbell


def test_what_stays_in_its_process_is_told_to_no_other(settings: Settings) -> None:
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": "tests.layers.GatedLayer"}}
    assert type(doorbell_of(MemoryStore())) is Doorbell


@pytest.mark.parametrize(
    "layers",
    [
        {},
        {"other": {"BACKEND": "tests.layers.GatedLayer"}},
        {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}},
    ],
)
def test_without_a_layer_that_crosses_processes_they_ring_each_other(
    settings: Settings, layers: dict[str, Any]
) -> None:
    settings.CHANNEL_LAYERS = layers
    assert isinstance(doorbell_of(DatabaseStore()), DatagramDoorbell)


@pytest.mark.parametrize("name", ["GatedLayer", "OwnInMemoryLayer"])
def test_every_layer_but_the_in_memory_one_is_taken_to_cross_processes(
    settings: Settings, name: str
) -> None:
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": f"tests.layers.{name}"}}
    assert isinstance(doorbell_of(DatabaseStore()), LayerDoorbell)


@pytest.mark.skipif(not binaries(), reason="PostgreSQL is not installed")
def test_postgresql_rings_itself_unless_a_layer_does(settings: Settings) -> None:
    store = DatabaseStore(using=ALIAS)
    assert isinstance(doorbell_of(store), NotificationDoorbell)
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": "tests.layers.GatedLayer"}}
    assert isinstance(doorbell_of(store), LayerDoorbell)
    assert store.notifications is None


def test_redis_rings_itself_also_beside_a_layer(settings: Settings) -> None:
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": "tests.layers.GatedLayer"}}
    assert isinstance(doorbell_of(RedisStore()), NotificationDoorbell)


def test_a_layer_that_cannot_be_made_is_logged_and_done_without(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken = {"default": {"BACKEND": "tests.layers.NoSuchLayer"}}
    with override_settings(CHANNEL_LAYERS=broken):
        assert isinstance(doorbell_of(DatabaseStore()), DatagramDoorbell)
    assert "The channel layer cannot be used" in caplog.text


# Hints as text


@pytest.mark.parametrize(
    "hint", [Hint("news", 1_800_000_000_000_000, False), Hint("x" * 99, 0, cancelled=True)]
)
def test_a_text_carries_a_hint_without_its_entries(hint: Hint) -> None:
    assert Hint.decode(hint.encode()) == hint
    assert len(hint.encode()) <= 190


@pytest.mark.parametrize("text", ["", "news", "news x 0", "news 1 0 0", "news  1"])
def test_a_text_that_is_no_hint_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"unpack|invalid literal"):
        Hint.decode(text)


def test_a_text_with_a_bad_group_is_refused() -> None:
    with pytest.raises(InvalidGroup):
        Hint.decode("a/b/c 1 0")
