"""Refusals that a browser survives, as the view and as the ASGI wrapper answer them."""

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
from asgiref.sync import markcoroutinefunction
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.test import AsyncClient
from django.urls import path
from pytest_django import Settings

from django_sse import apublish
from django_sse.asgi import EventStreamApplication, get_asgi_application
from django_sse.hub import open_streams
from django_sse.refusals import Refusals, refusals
from django_sse.views import EventStreamView
from tests.clients import connected
from tests.streams import get, open_stream
from tests.test_asgi import Request, streaming

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


news = News.as_view()

urlpatterns = [
    path("news/", news),
    path("failing/", Failing.as_view()),
    path("denied/", Denied.as_view()),
    path("page/", page),
    path("not-implemented/", not_implemented),
]

pytestmark = [pytest.mark.urls(__name__), pytest.mark.usefixtures("memory_store", "fresh")]


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was refused so far."""
    monkeypatch.setattr(refusals, "counts", type(refusals.counts)())
    monkeypatch.setattr(refusals, "_logged", {})


# As the view answers


def down(**keys: Any) -> dict[str, Any]:
    return {"STORE": "tests.test_views.DownStore", "RETRY": 10, **keys}


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
    settings.DJANGO_SSE = down(RETRY=1000)
    times = {(await news(get()))["Retry-After"] for _ in range(10)}
    assert len(times) > 1
    # Never at once, whatever the setting says.
    settings.DJANGO_SSE = down(RETRY=0)
    assert {(await news(get()))["Retry-After"] for _ in range(10)} == {"1"}


async def test_refusing_softly_can_be_turned_off(settings: Settings) -> None:
    settings.DJANGO_SSE = down(REFUSE_SOFTLY=False)
    assert_unavailable(await news(get(headers=EVENT_SOURCE)))
    settings.DJANGO_SSE = {
        "STORE": "memory",
        "RETRY": 10,
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
    settings.DJANGO_SSE = {"STORE": "memory", "RETRY": 10, "MAX_STREAMS_PER_GROUP": 1}
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
    monkeypatch.setattr("django_sse.refusals.time.monotonic", lambda: now)
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
    start = "Clients are refused and sent back: "
    assert all(record.getMessage().startswith(start) for record in caplog.records)
    return [
        record.getMessage().removeprefix(start).partition(" this was last")[0]
        for record in caplog.records
    ]


# As the ASGI wrapper answers what others have refused


async def ask(url: str, application: Any = None, **headers: str) -> Request:
    """Return a whole answer, with the headers of an EventSource on another origin."""
    given = {"host": "testserver", "accept": "text/event-stream", "origin": APP, **headers}
    request = Request(
        application or get_asgi_application(),
        url,
        headers=[(name.encode(), value.encode()) for name, value in given.items()],
        server=("testserver", 80),
    )
    await request.start()
    await request.rest()
    return request


def assert_sent_back(answer: Request) -> None:
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert "no-store" in answer.headers["cache-control"]
    assert answer.decoder.reconnection_time
    assert 3000 <= answer.decoder.reconnection_time <= 6000
    assert refusals.counts == {"server error": 1}


@pytest.mark.parametrize("url", ["/failing/", "/page/", "/not-implemented/"])
@pytest.mark.parametrize("debug", [True, False])
async def test_a_5xx_of_djangos_sends_an_event_source_back(
    url: str, debug: bool, settings: Settings
) -> None:
    settings.DEBUG = debug
    settings.DEBUG_PROPAGATE_EXCEPTIONS = False
    answer = await ask(url)
    assert_sent_back(answer)
    assert "content-length" not in answer.headers
    assert "allow" not in answer.headers


@pytest.mark.parametrize("status", [500, 501, 502, 503, 504, 599])
async def test_any_5xx_is_one_and_nothing_of_its_body_goes_out(status: int) -> None:
    received: list[Any] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
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


@pytest.mark.parametrize(
    ("url", "status"), [("/denied/", 403), ("/nowhere/", 404), ("/failing", 301)]
)
async def test_what_is_final_stays_so(url: str, status: int, settings: Settings) -> None:
    settings.MIDDLEWARE = ["django.middleware.common.CommonMiddleware"]
    assert (await ask(url)).status == status
    assert not refusals.counts


@pytest.mark.parametrize("accept", ["*/*", "text/html"])
async def test_other_clients_get_djangos_own_answer(accept: str, settings: Settings) -> None:
    settings.DEBUG_PROPAGATE_EXCEPTIONS = False
    answer = await ask("/page/", accept=accept)
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


async def test_a_middlewares_5xx_sends_an_event_source_back_with_its_other_headers(
    settings: Settings,
) -> None:
    settings.MIDDLEWARE = [f"{__name__}.maintenance"]
    answer = await ask("/news/")
    assert_sent_back(answer)
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
    answer = await ask("/news/")
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "Origin" in answer.headers["vary"]
