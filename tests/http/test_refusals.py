"""Refusals that a browser survives, as the view and as the ASGI wrapper answer them."""

import asyncio
import gc
import logging
import re
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import pytest
from asgiref.sync import markcoroutinefunction
from django.core.exceptions import PermissionDenied
from django.core.signals import request_finished
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.test import AsyncClient
from django.urls import clear_url_caches, path, register_converter
from django.urls.converters import StringConverter
from django.views.decorators.cache import never_cache
from pytest_django import Settings

from django_sse import apublish
from django_sse.asgi import EventStreamApplication, get_asgi_application
from django_sse.decorators import (
    event_generator,
    event_stream,
    event_stream_headers,
    no_content_when_cancelled,
)
from django_sse.http.stream_views import SCOPE_KEY
from django_sse.streaming.hub import open_streams
from django_sse.streaming.tally import Refusals, refusals
from django_sse.views import EventStreamView
from tests.clients import connected
from tests.http.test_asgi import Request, streaming
from tests.streams import get, open_stream, until

APP = "https://app.example.com"
EVENT_SOURCE = {"Accept": "text/event-stream"}


class News(EventStreamView):
    groups = ["news"]


class Failing(EventStreamView):
    """A view with a mistake in it."""

    async def get_groups(self) -> list[str]:
        raise RuntimeError("a secret of the server")


class Denied(EventStreamView):
    groups = ["news"]

    async def authorize(self, groups: Sequence[str]) -> None:
        raise PermissionDenied


async def page(request: HttpRequest) -> HttpResponse:
    raise RuntimeError("a secret of the server")


async def not_implemented(request: HttpRequest) -> HttpResponse:
    return HttpResponse("not yet", status=501)


def sync_page(request: HttpRequest) -> HttpResponse:
    raise RuntimeError("a secret of the server")


@event_stream("news")
async def guarded(request: HttpRequest) -> None:
    raise RuntimeError("a secret of the server")


@event_generator
async def generator(request: HttpRequest) -> AsyncIterator[str]:
    yield "hi"


class Careless:
    """A view that calls another one, which its URL does not show."""

    async def __call__(self, request: HttpRequest) -> HttpResponse:
        return cast("HttpResponse", await Failing.as_view()(request))


markcoroutinefunction(careless := Careless())


class Broken(StringConverter):
    def to_python(self, value: str) -> str:
        raise RuntimeError("a secret of the server")


register_converter(Broken, "broken")


class Endless:
    """A 5xx whose body has no end, and does not wait for anything."""

    def __init__(self) -> None:
        self.chunks = 0
        self.ended = False
        self.closed = threading.Event()

    async def body(self) -> AsyncIterator[bytes]:
        try:
            while True:
                self.chunks += 1
                yield b"secret"
        finally:
            self.ended = True

    async def __call__(self, request: HttpRequest) -> HttpResponseBase:
        response = StreamingHttpResponse(self.body(), status=503)
        response._resource_closers.append(self.closed.set)  # type: ignore[attr-defined]
        return response


news = News.as_view()
failing = Failing.as_view()

# Of streams, however it is said that they are.
STREAMS: dict[str, Any] = {
    "failing": failing,
    "guarded": guarded,
    "own": event_stream_headers(page),
    "own-sync": event_stream_headers(sync_page),
    "cancelled": no_content_when_cancelled("news")(page),
    "not-implemented": event_stream_headers(not_implemented),
    "decorated": never_cache(failing),
    "careless": careless,
}
PAGES: dict[str, Any] = {"page": page, "sync-page": sync_page, "pages-own": not_implemented}

urlpatterns = [
    path("news/", news),
    path("generator/", generator),
    path("denied/", Denied.as_view()),
    path("broken/<broken:value>/", news),
    *(path(f"{name}/", view) for name, view in {**STREAMS, **PAGES}.items()),
]

pytestmark = [pytest.mark.urls(__name__), pytest.mark.usefixtures("memory_store", "fresh")]


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was refused so far."""
    monkeypatch.setattr(refusals, "counts", type(refusals.counts)())
    monkeypatch.setattr(refusals, "_logged", {})


# As the view answers


def down(**keys: Any) -> dict[str, Any]:
    return {"STORE": "tests.http.test_response.DownStore", "RETRY": 10_000, **keys}


@pytest.mark.parametrize(
    "accept",
    [
        "text/event-stream",
        "Text/Event-Stream",
        "text/event-stream;q=0.9, */*;q=0.1",
        "application/json,text/event-stream",
    ],
)
async def test_an_event_source_is_sent_back(accept: str, settings: Settings) -> None:
    settings.DJANGO_SSE = down()
    async with open_stream(news, headers={"Accept": accept}) as stream:
        assert await stream.rest() == []
        assert stream.response.status_code == 200
        assert stream.response["Refused-Status"] == "503"
        assert stream.response["Content-Type"] == "text/event-stream; charset=utf-8"
        assert "no-store" in stream.response["Cache-Control"]
        assert 10_000 <= (stream.reconnection_time or 0) <= 20_000
    assert refusals.counts == {"store away": 1}


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("accept", ["*/*", "text/html", "", "text/event-streams", None])
async def test_other_clients_get_503(method: str, accept: str | None, settings: Settings) -> None:
    settings.DJANGO_SSE = down()
    headers = {} if accept is None else {"Accept": accept}
    assert_unavailable(await news(get(method=method, headers=headers)))
    assert refusals.counts == {"store away": 1}


def assert_unavailable(response: HttpResponseBase) -> None:
    assert response.status_code == 503
    assert response["Cache-Control"] == "no-store"
    assert 10 <= int(response["Retry-After"]) <= 20
    assert not response.streaming


async def test_a_head_that_asks_as_an_event_source_does_gets_503(settings: Settings) -> None:
    settings.DJANGO_SSE = down()
    assert_unavailable(await news(get(method="HEAD", headers=EVENT_SOURCE)))


async def test_clients_come_back_at_different_times(settings: Settings) -> None:
    settings.DJANGO_SSE = down(RETRY=1_000_000)
    times = {(await news(get()))["Retry-After"] for _ in range(10)}
    assert len(times) > 1
    # Never at once, whatever the setting says.
    settings.DJANGO_SSE = down(RETRY=100)
    assert {(await news(get()))["Retry-After"] for _ in range(10)} == {"1"}


async def test_refusing_softly_can_be_turned_off(settings: Settings) -> None:
    settings.DJANGO_SSE = down(REFUSE_SOFTLY=False)
    assert_unavailable(await news(get(headers=EVENT_SOURCE)))
    settings.DJANGO_SSE = {
        "STORE": "memory",
        "RETRY": 10_000,
        "MAX_STREAMS": 1,
        "REFUSE_SOFTLY": False,
    }
    async with connected("news"):
        assert_unavailable(await news(get(headers=EVENT_SOURCE)))
        assert open_streams() == 1
    assert refusals.counts == {"store away": 1, "MAX_STREAMS": 1}


async def test_a_limit_that_is_reached_is_told_to_every_client_in_its_way(
    settings: Settings,
) -> None:
    settings.DJANGO_SSE = {"STORE": "memory", "RETRY": 10_000, "MAX_STREAMS_PER_GROUP": 1}
    async with connected("news"):
        assert_unavailable(await news(get()))
        async with open_stream(news, headers=EVENT_SOURCE) as stream:
            assert await stream.rest() == []
            assert 10_000 <= (stream.reconnection_time or 0) <= 20_000
    assert refusals.counts == {"MAX_STREAMS_PER_GROUP": 2}


async def test_a_limit_that_is_reached_after_the_view_is_told_by_the_stream(
    settings: Settings,
) -> None:
    settings.DJANGO_SSE = {"STORE": "memory", "MAX_STREAMS": 1}
    late = await news(get(headers=EVENT_SOURCE))
    async with connected("news"):
        assert isinstance(late, StreamingHttpResponse)
        [chunk] = [chunk async for chunk in late]
        assert chunk.startswith(b"retry: ")
    assert refusals.counts == {"MAX_STREAMS": 1}


async def test_a_503_is_not_an_error_in_djangos_log(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """With DEBUG off, Django mails each of those to the admins."""
    settings.DJANGO_SSE = down()
    assert (await AsyncClient().get("/news/")).status_code == 503
    assert [record.name for record in caplog.records] == ["django_sse"]
    assert caplog.records[0].levelno == logging.WARNING


# Counting and logging


def test_refusals_are_counted_by_reason_and_logged_once_in_a_while(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("django_sse.logs.time.monotonic", lambda: now)
    noted = Refusals()
    for _ in range(500):
        noted.note("MAX_STREAMS")
    for _ in range(3):
        noted.note("store away", ConnectionError("The store is down."))
    now += 9.9
    noted.note("MAX_STREAMS")
    assert messages(caplog) == ["MAX_STREAMS (1 since", "store away (1 since"]
    now += 0.1
    noted.note("MAX_STREAMS")
    assert messages(caplog)[2:] == ["MAX_STREAMS (501 since"]
    now += 10
    noted.note("MAX_STREAMS")
    assert messages(caplog)[3:] == ["MAX_STREAMS (1 since"]
    assert noted.counts == {"MAX_STREAMS": 503, "store away": 3}
    assert caplog.text.count("The store is down.") == 1


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    start = "Clients are refused and told to come back: "
    assert all(record.getMessage().startswith(start) for record in caplog.records)
    return [
        record.getMessage().removeprefix(start).partition(" this was last")[0]
        for record in caplog.records
    ]


# As the ASGI wrapper answers what others have refused


def request_of(url: str, application: Any = None, *, root: str = "", **headers: str) -> Request:
    """Return a request with the headers of an EventSource, which is not sent yet."""
    given = {"host": "testserver", "accept": "text/event-stream", **headers}
    return Request(
        application or get_asgi_application(),
        url,
        headers=[(name.encode(), value.encode()) for name, value in given.items()],
        server=("testserver", 80),
        root_path=root,
    )


async def ask(url: str, application: Any = None, **headers: str) -> Request:
    """Return a whole answer to an EventSource."""
    request = request_of(url, application, **headers)
    await request.start()
    await request.rest()
    return request


def assert_sent_back(answer: Request, status: int) -> None:
    assert answer.status == 200
    assert answer.headers["refused-status"] == str(status)
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert "no-store" in answer.headers["cache-control"]
    assert answer.decoder.reconnection_time
    assert 3000 <= answer.decoder.reconnection_time <= 6000
    assert refusals.counts == {"server error": 1}


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("debug", [True, False])
async def test_a_5xx_of_a_streams_view_sends_an_event_source_back(
    name: str, debug: bool, settings: Settings
) -> None:
    settings.DEBUG = debug
    settings.DEBUG_PROPAGATE_EXCEPTIONS = False
    answer = await ask(f"/{name}/")
    assert_sent_back(answer, 501 if name == "not-implemented" else 500)
    assert "content-length" not in answer.headers
    assert "allow" not in answer.headers
    # What a developer is told; nobody else is.
    raises = name != "not-implemented"
    told = rb": RuntimeError at /.*/\n: a secret of the server\n\nretry: \d+\n\n"
    assert bool(re.fullmatch(told, answer.body)) == (debug and raises)
    assert (b"secret" in answer.body) == (debug and raises)


@pytest.mark.parametrize("name", PAGES)
async def test_a_5xx_of_any_other_view_goes_out_as_it_is(name: str, settings: Settings) -> None:
    settings.DEBUG_PROPAGATE_EXCEPTIONS = False
    settings.DJANGO_SSE = {"STORE": "memory", "ALLOWED_ORIGINS": ["*"]}
    answer = await ask(f"/{name}/", origin=APP)
    assert answer.status == (501 if name == "pages-own" else 500)
    assert answer.headers["content-type"].startswith("text/html")
    assert not {"access-control-allow-origin", "refused-status"} & answer.headers.keys()
    assert not refusals.counts


@pytest.mark.parametrize("status", [500, 501, 502, 503, 504, 599])
async def test_any_5xx_is_one_and_nothing_of_its_body_goes_out(status: int) -> None:
    received: list[Any] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        scope[SCOPE_KEY].is_for_stream = True
        await send({"type": "http.response.start", "status": status, "headers": []})
        for more_body in (True, True, False):
            await send({"type": "http.response.body", "body": b"secret", "more_body": more_body})

    async def send(message: Any) -> None:
        received.append(message)

    scope: Any = {
        "type": "http",
        "method": "GET",
        "headers": [(b"Accept", b"text/event-stream")],
    }
    receive: Any = None
    await EventStreamApplication(application)(scope, receive, send)
    start, body = received
    assert start["status"] == 200
    assert body["body"].startswith(b"retry: ")
    assert not body.get("more_body", False)


@pytest.mark.parametrize(("url", "status"), [("/denied/", 403), ("/nowhere/", 404), ("/news", 301)])
async def test_what_is_final_stays_so(url: str, status: int, settings: Settings) -> None:
    settings.MIDDLEWARE = ["django.middleware.common.CommonMiddleware"]
    assert (await ask(url)).status == status
    assert not refusals.counts


@pytest.mark.parametrize("accept", ["*/*", "text/html"])
async def test_other_clients_get_djangos_own_answer(accept: str, settings: Settings) -> None:
    settings.DEBUG_PROPAGATE_EXCEPTIONS = False
    answer = await ask("/failing/", accept=accept)
    assert answer.status == 500
    assert answer.headers["content-type"].startswith("text/html")
    assert not refusals.counts


async def test_a_post_gets_djangos_own_answer() -> None:
    request = Request(
        get_asgi_application(),
        "/not-implemented/",
        method="POST",
        headers=[(b"host", b"testserver"), (b"accept", b"text/event-stream")],
    )
    await request.start()
    assert request.status == 501
    await request.communicator.wait(10)


async def test_a_5xx_goes_out_where_refusing_softly_is_turned_off(settings: Settings) -> None:
    settings.DJANGO_SSE = {"STORE": "memory", "REFUSE_SOFTLY": False}
    assert (await ask("/not-implemented/")).status == 501
    assert not refusals.counts


async def test_a_stream_is_not_touched() -> None:
    headers = [(b"host", b"testserver"), (b"accept", b"text/event-stream")]
    async with streaming(get_asgi_application(), "/news/", headers=headers) as request:
        await apublish("news", "hi")
        assert [event.text for event in await request.next_events()] == ["hi"]
    assert not refusals.counts


GetResponse = Callable[[HttpRequest], Awaitable[HttpResponseBase]]


def maintenance(get_response: GetResponse) -> GetResponse:
    """Answers in the view's place, with headers of all kinds."""

    async def middleware(request: HttpRequest) -> HttpResponseBase:
        response = HttpResponse("down for maintenance", status=503)
        response.set_cookie("seen", "yes")
        response["Vary"] = "Cookie"
        response["Retry-After"] = "3600"
        response["Content-Encoding"] = "x-own"
        response["ETag"] = '"1"'
        response["Cache-Control"] = "max-age=600"
        response["Access-Control-Allow-Origin"] = "*"
        response["Access-Control-Expose-Headers"] = "X-Request-ID"
        response["X-Request-ID"] = "7"
        return response

    markcoroutinefunction(middleware)
    return middleware


maintenance.async_capable = True  # type: ignore[attr-defined]


@pytest.mark.parametrize("url", ["/news/", "/generator/", "/own/", "/own-sync/", "/decorated/"])
async def test_a_middlewares_5xx_sends_an_event_source_back_with_its_other_headers(
    url: str, settings: Settings
) -> None:
    settings.MIDDLEWARE = [f"{__name__}.maintenance"]
    answer = await ask(url)
    assert_sent_back(answer, 503)
    assert answer.headers["set-cookie"].startswith("seen=yes")
    assert answer.headers["x-request-id"] == "7"
    assert answer.headers["vary"] == "Cookie"
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.headers["access-control-expose-headers"] == "X-Request-ID"
    assert not {"content-encoding", "etag", "retry-after"} & answer.headers.keys()


@pytest.mark.parametrize("credentials", [True, False])
async def test_a_page_of_another_origin_may_read_it(credentials: bool, settings: Settings) -> None:
    settings.MIDDLEWARE = [f"{__name__}.maintenance"]
    settings.DJANGO_SSE = {
        "STORE": "memory",
        "ALLOWED_ORIGINS": [APP],
        "ALLOW_CREDENTIALS": credentials,
    }
    request = Request(
        get_asgi_application(),
        headers=[(b"accept", b"text/event-stream"), (b"origin", APP.encode())],
    )
    await request.communicator.send_input({"type": "http.request"})
    headers = (await request.communicator.receive_output(10))["headers"]
    await request.communicator.wait(10)
    assert [value for name, value in headers if name == b"access-control-allow-origin"] == [
        APP.encode()
    ]
    allowed = [value for name, value in headers if name == b"access-control-allow-credentials"]
    assert allowed == ([b"true"] if credentials else [])
    assert {value for name, value in headers if name.lower() == b"vary"} == {b"Cookie", b"Origin"}


async def test_what_others_allow_an_origin_of_theirs_is_kept(settings: Settings) -> None:
    settings.MIDDLEWARE = [f"{__name__}.maintenance"]
    settings.DJANGO_SSE = {"STORE": "memory", "ALLOWED_ORIGINS": ["https://other.example.com"]}
    answer = await ask("/news/", origin=APP)
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "Origin" in answer.headers["vary"]


@pytest.mark.parametrize("url", ["/page/", "/pages-own/", "/nowhere/", "/broken/value/", "/news"])
async def test_a_middlewares_5xx_of_another_url_goes_out_as_it_is(
    url: str, settings: Settings
) -> None:
    settings.MIDDLEWARE = [f"{__name__}.maintenance"]
    answer = await ask(url)
    assert answer.status == 503
    assert not refusals.counts


@pytest.mark.parametrize(
    ("root", "url", "status"),
    [("/app", "/app/news/", 200), ("/app", "/app/page/", 503), ("/news", "/news/page/", 503)],
)
async def test_a_url_may_be_below_a_root(
    root: str, url: str, status: int, settings: Settings
) -> None:
    settings.MIDDLEWARE = [f"{__name__}.maintenance"]
    request = request_of(url, root=root)
    await request.start()
    await request.rest()
    assert request.status == status


def of_other_urls(get_response: GetResponse) -> GetResponse:
    """Chooses the URLs, and fails behind the view."""

    async def middleware(request: HttpRequest) -> HttpResponseBase:
        urls: Any = (path("page/", news), path("news/", page))
        request.urlconf = urls
        response = await get_response(request)
        return response if response.status_code >= 500 else HttpResponse(status=502)

    markcoroutinefunction(middleware)
    return middleware


of_other_urls.async_capable = True  # type: ignore[attr-defined]


@pytest.mark.parametrize(("url", "status"), [("/page/", 200), ("/news/", 500)])
async def test_urls_are_those_that_a_middleware_has_chosen(
    url: str, status: int, settings: Settings
) -> None:
    settings.MIDDLEWARE = [f"{__name__}.of_other_urls"]
    settings.DEBUG_PROPAGATE_EXCEPTIONS = False
    assert (await ask(url)).status == status


async def test_a_5xx_of_an_application_that_is_not_django_goes_out_as_it_is() -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 500, "headers": []})
        await send({"type": "http.response.body", "body": b"the application's own"})

    answer = await ask("/api/", EventStreamApplication(application))
    assert answer.status == 500
    assert answer.body == b"the application's own"


@contextmanager
def finished_requests() -> Iterator[list[object]]:
    finished: list[object] = []

    def note(sender: object, **kwargs: Any) -> None:
        finished.append(sender)

    request_finished.connect(note)
    try:
        yield finished
    finally:
        request_finished.disconnect(note)


@pytest.mark.parametrize("leaves", [True, False])
async def test_a_body_without_an_end_is_closed_once_its_client_is_sent_back(
    leaves: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless = Endless()
    monkeypatch.setattr(
        f"{__name__}.urlpatterns", [path("endless/", event_stream_headers(endless.__call__))]
    )
    clear_url_caches()
    with finished_requests() as finished:
        request = request_of("/endless/")
        await request.start()
        if leaves:
            await request.communicator.send_input({"type": "http.disconnect"})
        # The event loop has to go on, or this waits for ever.
        await request.rest()
        assert_sent_back(request, 503)
        assert b"secret" not in request.body
        assert await asyncio.to_thread(endless.closed.wait, 10)
        # What a response was made of that did not come to its end, Django leaves to it.
        gc.collect()
        await until(lambda: endless.ended)
        assert len(finished) == 1
    clear_url_caches()


async def test_others_go_on_while_a_body_without_an_end_is_dropped() -> None:
    """Also where the application does not listen whether its client is there."""
    dropped = 0

    async def application(scope: Any, receive: Any, send: Any) -> None:
        nonlocal dropped
        scope[SCOPE_KEY].is_for_stream = True
        await send({"type": "http.response.start", "status": 500, "headers": []})
        while True:
            dropped += 1
            await send({"type": "http.response.body", "body": b"x", "more_body": True})

    request = request_of("/news/", EventStreamApplication(application))
    await request.start()
    while not request.ended:
        await request.read()
    before = dropped
    await until(lambda: dropped > before + 100)
    await request.cancel()


async def test_who_waits_for_its_client_is_told_that_it_has_gone() -> None:
    received: list[Any] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        scope[SCOPE_KEY].is_for_stream = True
        received.append(await receive())
        waiting = asyncio.ensure_future(receive())
        await asyncio.sleep(0)
        await send({"type": "http.response.start", "status": 500, "headers": []})
        # It was told, and is told again.
        received.extend([await waiting, await receive()])

    await ask("/news/", EventStreamApplication(application))
    assert [message["type"] for message in received] == ["http.request", *["http.disconnect"] * 2]


async def test_a_server_that_runs_out_of_time_itself_is_heard() -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        await receive()

    async def receive() -> Any:
        raise TimeoutError("of the server")

    scope: Any = {"type": "http", "method": "GET", "headers": [(b"accept", b"text/event-stream")]}
    send: Any = None
    with pytest.raises(TimeoutError, match="of the server"):
        await EventStreamApplication(application)(scope, receive, send)
