"""The response that is a stream: its methods and headers, a store that is down, its request."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import DEFAULT_DB_ALIAS, connections
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.test import AsyncClient, Client, RequestFactory
from django.urls import path
from pytest_django import Settings

from django_sse import Event, acancel, apublish
from django_sse.decorators import event_generator
from django_sse.groups.entries import GroupState
from django_sse.stores.memory import MemoryStore
from django_sse.streaming.hub import open_streams
from django_sse.streaming.jitter import retry_field
from django_sse.streaming.permission_rechecks import PermissionRechecks
from django_sse.views import EventStreamView
from tests.streams import (
    News,
    Requested,
    data,
    get,
    news,
    open_stream,
    publish_numbers,
    reading,
    requested,
    respond,
    until,
)


async def plain(request: HttpRequest) -> HttpResponse:
    return HttpResponse()


pytestmark = [pytest.mark.urls(__name__), pytest.mark.usefixtures("memory_store")]

urlpatterns = [path("news/", news), path("plain/", plain)]


# HTTP


async def test_head_is_answered_with_the_headers_alone() -> None:
    answer = await news(get(method="HEAD"))
    assert (answer.status_code, [chunk async for chunk in answer]) == (200, [])
    async with open_stream(news) as stream:
        assert answer.headers == stream.response.headers


async def test_head_has_what_a_view_adds_to_the_answer_to_get() -> None:
    class Marked(EventStreamView):
        groups = ["news"]

        async def get(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
            response = await super().get(request, *args, **kwargs)
            response["X-Stream"] = "1"
            response.set_cookie("seen", "1")
            return response

    view = Marked.as_view()
    answer = await view(get(method="HEAD"))
    assert (answer["X-Stream"], answer.cookies["seen"].value) == ("1", "1")
    assert [chunk async for chunk in answer] == []
    async with open_stream(view) as stream:
        assert answer.headers == stream.response.headers
        assert answer.cookies == stream.response.cookies


async def test_head_is_given_no_length_by_a_middleware(settings: Settings) -> None:
    settings.MIDDLEWARE = [
        "django.middleware.http.ConditionalGetMiddleware",
        "django.middleware.gzip.GZipMiddleware",
        "django.middleware.common.CommonMiddleware",
    ]
    settings.ROOT_URLCONF = __name__
    head, answer = await AsyncClient().head("/news/"), await AsyncClient().get("/news/")
    assert head.headers == answer.headers
    assert not {"content-length", "etag"} & {name.lower() for name in head.headers}
    answer.close()


async def test_head_is_answered_204_where_the_stream_is_over() -> None:
    await acancel("news")
    assert (await respond(news, method="HEAD")).status_code == 204


async def test_options_lists_the_methods() -> None:
    answer = await respond(news, method="OPTIONS")
    assert answer.status_code == 200
    assert set(answer["Allow"].split(", ")) == {"GET", "HEAD", "OPTIONS"}


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "TRACE", "PROPFIND"])
async def test_other_methods_are_not_allowed(method: str) -> None:
    answer = await respond(news, method=method)
    assert answer.status_code == 405
    assert set(answer["Allow"].split(", ")) == {"GET", "HEAD", "OPTIONS"}


@pytest.mark.parametrize(
    ("http_version", "connection"), [("1.1", "keep-alive"), ("1.0", None), ("2", None), ("3", None)]
)
async def test_the_headers_keep_caches_and_proxies_away(
    http_version: str, connection: str | None
) -> None:
    async with reading(await news(get(http_version=http_version))) as stream:
        headers = stream.response.headers
        assert stream.response.status_code == 200
        assert headers["Content-Type"] == "text/event-stream; charset=utf-8"
        assert headers["Cache-Control"] == "no-cache, no-store, private, no-transform"
        assert headers["X-Accel-Buffering"] == "no"
        assert headers["Content-Encoding"] == "identity"
        # HTTP/2 forbids it.
        assert headers.get("Connection") == connection


async def test_middleware_does_not_compress_a_stream(settings: Settings) -> None:
    settings.MIDDLEWARE = ["django.middleware.gzip.GZipMiddleware"]
    answer = await AsyncClient().get("/news/", headers={"Accept-Encoding": "gzip"})
    assert answer["Content-Encoding"] == "identity"
    async with reading(answer) as stream:
        assert stream.text.startswith("retry: ")
        await apublish("news", "x" * 1000)
        assert (await stream.next_event()).data == "x" * 1000


@pytest.mark.parametrize(("retry", "milliseconds"), [(None, 3000), (100, 100), (60_000, 60_000)])
async def test_a_view_says_when_browsers_reconnect(retry: int | None, milliseconds: int) -> None:
    async with open_stream(News.as_view(retry=retry)) as stream:
        assert stream.reconnection_time == milliseconds


async def test_the_setting_says_when_browsers_reconnect(settings: Settings) -> None:
    settings.DJANGO_SSE = {"STORE": "memory", "RETRY": 7000}
    async with open_stream(news) as stream:
        assert stream.reconnection_time == 7000


@event_generator(retry=200)
async def generated(request: HttpRequest) -> AsyncIterator[Event]:
    yield Event("first")


@pytest.mark.jittered
@pytest.mark.parametrize(
    ("view", "least"), [(news, 3000), (News.as_view(retry=100), 100), (generated, 200)]
)
async def test_clients_of_a_server_that_crashes_come_back_at_different_times(
    view: Any, least: int
) -> None:
    # A browser waits for as long as it was told when its stream began.
    times = set()
    for _ in range(10):
        async with open_stream(view) as stream:
            times.add(stream.reconnection_time or 0)
    assert len(times) > 1
    assert all(least <= milliseconds <= 2 * least for milliseconds in times)


def test_a_time_to_come_back_is_one_that_timers_hold() -> None:
    assert retry_field(1.5) == b"retry: 1500\n\n"
    assert retry_field(10**7) == b"retry: 2147483647\n\n"


@pytest.mark.jittered
async def test_nobody_is_told_to_wait_for_longer_than_timers_can(settings: Settings) -> None:
    settings.DJANGO_SSE = {"STORE": "memory", "RETRY": 2**31 - 1, "MAX_AGE": 1}
    async with open_stream(news) as stream:
        assert stream.reconnection_time == 2**31 - 1
        await stream.rest()
        assert stream.text.count(f"retry: {2**31 - 1}\n") == 2


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("retry", 3, r"a whole number of milliseconds .* 3 seconds are 3000\), or None, not 3\."),
        ("retry", 0.5, "a whole number of milliseconds"),
        ("retry", "3000", "a whole number of milliseconds"),
        ("retry", 0, "a whole number of milliseconds"),
        ("heartbeat", -1, "a finite number of seconds, or 0 for off, or None, not -1"),
        ("heartbeat", "15", "a finite number of seconds"),
        ("heartbeat", False, "a finite number of seconds"),
        ("history", None, "a whole number from 0, not None"),
        ("history", -1, "a whole number from 0"),
        ("history", True, "a whole number from 0"),
        ("replay_events", -1, "a whole number from 0, or None"),
        ("replay_events", 1.5, "a whole number from 0, or None"),
        ("replay_age", -1, "a finite number of seconds above 0, or None"),
        # Off everywhere else, where it bounds nothing.
        ("replay_age", 0, r"a finite .* above 0, or None \(`replay_events = 0` replays nothing\)"),
    ],
)
def test_a_number_that_the_view_does_not_take_is_refused_before_a_client_comes(
    name: str, value: Any, wanted: str
) -> None:
    with pytest.raises(ImproperlyConfigured, match=rf"News\.{name} must be {wanted}"):
        News.as_view(**{name: value})
    with pytest.raises(ImproperlyConfigured, match=rf"Wrong\.{name} must be {wanted}"):
        type("Wrong", (News,), {name: value}).as_view()  # type: ignore[attr-defined]


async def test_a_number_may_be_a_property() -> None:
    class Asking(News):
        @property
        def retry(self) -> int:  # type: ignore[override]
            return int(self.request.GET["retry"])

    async with open_stream(Asking.as_view(), "/?retry=700") as stream:
        assert stream.reconnection_time == 700


async def test_who_may_go_on_is_not_asked_where_that_is_off(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("django_sse.streaming.hub._TICK_SECONDS", 0.01)
    settings.DJANGO_SSE = {"STORE": "memory", "HEARTBEAT": 0.01, "RECHECK_INTERVAL": 0}

    class Asked(News):
        async def still_allowed(self) -> bool:
            return False

    rounds = 0
    seconds_to_next = PermissionRechecks._seconds_to_next

    def counted(rechecks: PermissionRechecks, *args: Any) -> float:
        nonlocal rounds
        rounds += 1
        return seconds_to_next(rechecks, *args)

    monkeypatch.setattr(PermissionRechecks, "_seconds_to_next", counted)
    async with open_stream(Asked.as_view()) as stream:
        await until(lambda: stream.text.count("\n\n:") > 5)
        await apublish("news", "still there")
        assert (await stream.next_event()).data == "still there"
    # Nor does the hub look for somebody to ask again and again.
    assert rounds <= 1


@pytest.mark.parametrize("heartbeat", [0, None])
async def test_a_heartbeat_of_0_is_never(
    heartbeat: float | None, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("django_sse.streaming.hub._TICK_SECONDS", 0.01)
    settings.DJANGO_SSE = {"STORE": "memory", "HEARTBEAT": 0.01 if heartbeat == 0 else 0}
    async with (
        open_stream(News.as_view(heartbeat=heartbeat)) as silent,
        open_stream(News.as_view(heartbeat=0.01)) as beating,
    ):
        await until(lambda: beating.text.count("\n\n:\n\n:\n\n:\n\n"))
        assert "\n:" not in silent.text


async def test_heartbeats_come_as_the_setting_says_and_only_in_silence(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("django_sse.streaming.hub._TICK_SECONDS", 0.01)
    settings.DJANGO_SSE = {"STORE": "memory", "HEARTBEAT": 0.01}
    async with open_stream(news) as stream, open_stream(News.as_view(heartbeat=3600)) as patient:
        await until(lambda: stream.text.endswith("\n\n:\n\n:\n\n"))
        await apublish("news", "hi")
        assert (await stream.next_event()).data == "hi"
        assert (await patient.next_event()).data == "hi"
        assert "\n:" not in patient.text


async def test_a_stream_that_is_too_old_sends_its_client_back(settings: Settings) -> None:
    settings.DJANGO_SSE = {"STORE": "memory", "MAX_AGE": 1, "RETRY": 1000}
    times = set()
    for _ in range(3):
        async with open_stream(news) as stream:
            await publish_numbers("news", 1)
            assert data(await stream.rest()) == ["1"]
            times.add(stream.reconnection_time or 0)
    assert len(times) > 1
    assert all(1000 <= milliseconds <= 2000 for milliseconds in times)
    await publish_numbers("news", 2)
    async with open_stream(news, last_event_id=stream.last_event_id) as stream:
        assert (await stream.next_event()).data == "2"
        # Each connect says how long to wait after a loss that nobody has planned.
        assert stream.reconnection_time == 1000


def test_wsgi_is_refused_at_once_with_what_to_do() -> None:
    with pytest.raises(ImproperlyConfigured, match=r"over WSGI\. Serve the project over ASGI"):
        Client().get("/news/")


async def test_a_wsgi_request_is_refused_with_what_to_do() -> None:
    with pytest.raises(ImproperlyConfigured, match=r"django_sse\.asgi\.get_asgi_application"):
        await news(RequestFactory().get("/"))


async def test_a_project_with_atomic_requests_can_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(connections.settings[DEFAULT_DB_ALIAS], "ATOMIC_REQUESTS", True)
    client = AsyncClient()
    with pytest.raises(RuntimeError, match="ATOMIC_REQUESTS with async views"):
        await client.get("/plain/")
    async with reading(await client.get("/news/")) as stream:
        await apublish("news", "hi")
        assert (await stream.next_event()).data == "hi"


async def test_a_database_that_was_added_since_has_atomic_requests_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    added = {**connections.settings[DEFAULT_DB_ALIAS], "ATOMIC_REQUESTS": True}
    monkeypatch.setitem(connections.settings, "tenant_1", added)
    with pytest.raises(RuntimeError, match="ATOMIC_REQUESTS with async views"):
        await AsyncClient().get("/plain/")
    async with reading(await AsyncClient().get("/news/")) as stream:
        await apublish("news", "hi")
        assert (await stream.next_event()).data == "hi"


# A store that is down


class DownStore(MemoryStore):
    """A store that answers some questions before it is down."""

    answers = 0

    async def astates(self, groups: Sequence[str]) -> dict[str, GroupState]:
        if self.answers == 0:
            raise ConnectionError("The store is down.")
        self.answers -= 1
        return await super().astates(groups)


@pytest.mark.parametrize("answers", [0, 1])
async def test_a_store_that_is_down_sends_clients_back_at_different_times(
    answers: int,
    settings: Settings,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("django_sse.logs.SELDOM_SECONDS", 0)
    # While the request is answered, and when the hub follows the group.
    times = set()
    for _ in range(5):
        settings.DJANGO_SSE = {
            "STORE": f"{__name__}.{'DownStore' if answers == 0 else 'SoonDownStore'}",
            "RETRY": 10_000,
        }
        async with open_stream(news, headers={"Accept": "text/event-stream"}) as stream:
            assert await stream.rest() == []
            # Not a 5xx: a browser would never come back.
            assert stream.response.status_code == 200
            assert stream.response["Content-Type"] == "text/event-stream; charset=utf-8"
            assert stream.text == f"retry: {stream.reconnection_time}\n\n"
            times.add(stream.reconnection_time)
    assert all(time is not None and 10_000 <= time <= 20_000 for time in times)
    assert len(times) > 1
    assert "Clients are refused and told to come back: store away" in caplog.text
    assert "The store is down." in caplog.text


class SoonDownStore(DownStore):
    """A store that is down from the second question on."""

    answers = 1


# Without the ASGI wrapper


async def test_a_stream_that_stays_in_its_request_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for _ in range(2):
        async with open_stream(news) as stream:
            await apublish("news", "hi")
            await stream.next_event()
    [record] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "wrap the project's ASGI application" in record.message


async def test_a_client_that_leaves_takes_its_stream_with_it() -> None:
    async with open_stream(news) as leaving, open_stream(news) as staying:
        assert open_streams() == 2
        await leaving.close()
        assert open_streams() == 1
        await apublish("news", "hi")
        assert (await staying.next_event()).data == "hi"


async def test_a_client_that_leaves_while_the_state_is_read_takes_its_stream_with_it() -> None:
    reads = asyncio.Event()
    closed = asyncio.Event()

    class Endless(EventStreamView):
        groups = ["news"]

        async def initial_events(self) -> AsyncGenerator[Event, None]:
            try:
                yield Event("first")
                reads.set()
                await asyncio.Event().wait()
            finally:
                closed.set()

    async with open_stream(Endless.as_view()) as stream:
        await reads.wait()
        assert open_streams() == 1
        await stream.close()
        assert open_streams() == 0
        assert closed.is_set()


# What a request is told where DEBUG is on


@pytest.fixture
def debug(settings: Settings) -> None:
    settings.DEBUG = True


@pytest.mark.usefixtures("debug")
async def test_a_name_that_is_no_groups_is_told() -> None:
    answer = await respond(requested, "/?group=<b>x</b>")
    assert answer.status_code == 404
    assert "InvalidGroup: '<b>x</b>' is not a group name" in answer.content.decode()
    assert answer["Content-Type"] == "text/plain; charset=utf-8"


@pytest.mark.usefixtures("debug")
@pytest.mark.parametrize("url", ["/", "/?group=a"])
async def test_a_request_without_a_group_is_told(url: str) -> None:
    class AllowsNone(Requested):
        async def authorize(self, groups: Sequence[str]) -> list[str]:
            return []

    answer = await respond(AllowsNone.as_view(), url)
    assert answer.status_code == 403
    assert "AllowsNone has no group for this request" in answer.content.decode()
    assert answer["Content-Type"] == "text/plain; charset=utf-8"


async def test_nothing_is_told_where_debug_is_off(settings: Settings) -> None:
    for url in ("/?group=<b>x</b>", "/"):
        assert (await respond(requested, url)).content == b""
    settings.DJANGO_SSE = {"STORE": "tests.http.test_response.DownStore"}
    assert (await respond(requested, "/?group=a")).content == b""


@pytest.mark.usefixtures("debug")
async def test_why_the_store_is_away_is_told(settings: Settings) -> None:
    settings.DJANGO_SSE = {"STORE": "tests.http.test_response.DownStore"}
    answer = await respond(requested, "/?group=a")
    assert answer.status_code == 503
    assert b"ConnectionError: The store is down" in answer.content
    headers = {"Accept": "text/event-stream"}
    async with open_stream(requested, "/?group=a", headers=headers) as stream:
        assert await stream.rest() == []
        assert stream.text.startswith(": ConnectionError: The store is down")
        assert stream.reconnection_time
