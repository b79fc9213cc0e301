"""The hand-off, seen from the server's side of the ASGI interface."""

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from contextvars import copy_context
from typing import Any, ClassVar

import pytest
from asgiref.sync import markcoroutinefunction
from asgiref.testing import ApplicationCommunicator
from django.core.asgi import get_asgi_application as get_django_application
from django.core.signals import request_finished
from django.http import HttpRequest, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.test import override_settings
from django.urls import path
from pytest_django import Settings

from django_sse import Event, acancel, apublish
from django_sse.asgi import EventStreamApplication, get_asgi_application
from django_sse.decorators import event_generator
from django_sse.event import Decoder
from django_sse.producing import start_producing
from django_sse.stores import get_store
from django_sse.streaming.hub import open_streams
from django_sse.views import EventStreamView
from tests.streams import until

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.urls(__name__),
    pytest.mark.usefixtures("everything_ends"),
]


class News(EventStreamView):
    groups = ["news"]


@event_generator
async def forever(request: HttpRequest) -> AsyncIterator[Event]:
    try:
        while True:
            yield Event("tick")
            await asyncio.sleep(0.01)
    finally:
        forever_ended.set()


forever_ended = asyncio.Event()


class Board(News):
    """Its state is long, and costs no wait."""

    rows: ClassVar[int]
    closed: ClassVar[asyncio.Event]

    async def initial_events(self) -> AsyncGenerator[Event, None]:
        try:
            for row in range(self.rows):
                yield Event({"row": row})
        finally:
            self.closed.set()

    def filter_event(self, event: Event) -> Event | None:
        return None if self.request.GET.get("hide") else event


class Slow(News):
    """It takes its time to let a client in."""

    asked: ClassVar[asyncio.Event]
    answers: ClassVar[asyncio.Event]

    async def authorize(self, groups: Sequence[str]) -> None:
        self.asked.set()
        await self.answers.wait()


async def slow_generator(request: HttpRequest) -> HttpResponseBase:
    Slow.asked.set()
    await Slow.answers.wait()
    response: HttpResponseBase = await forever(request)
    return response


async def stranger(request: HttpRequest) -> HttpResponseBase:
    """An event stream of the project's own."""

    async def chunks() -> AsyncIterator[bytes]:
        yield b"retry: 10\n\n"
        # Django before 6.1 goes on with it after its task was cancelled.
        await asyncio.sleep(1)

    return StreamingHttpResponse(chunks(), content_type="text/event-stream")


urlpatterns = [
    path("news/", News.as_view()),
    path("board/", Board.as_view()),
    path("forever/", forever),
    path("slow/", Slow.as_view()),
    path("slow-generator/", slow_generator),
    path("stranger/", stranger),
]


class Request:
    """A client of an ASGI application, as a server presents it."""

    def __init__(self, application: Any, path: str = "/news/", **scope: Any) -> None:
        communicator: type[Any] = ApplicationCommunicator
        self.communicator = communicator(
            application,
            {
                "type": "http",
                "http_version": "1.1",
                "method": "GET",
                "path": path,
                "query_string": b"",
                "headers": [],
                **scope,
            },
        )
        self.decoder = Decoder()
        self.headers: dict[str, str] = {}
        self.body = b""
        self.status = 0
        self.ended = False

    async def start(self) -> None:
        await self.communicator.send_input({"type": "http.request"})
        message = await self.communicator.receive_output(10)
        self.status = message["status"]
        self.headers = {name.decode().lower(): value.decode() for name, value in message["headers"]}

    async def read(self) -> list[Event]:
        return self._take(await self.communicator.receive_output(10))

    def _take(self, message: Any) -> list[Event]:
        self.ended = not message.get("more_body", False)
        self.body += message.get("body", b"")
        return self.decoder.feed(message.get("body", b""))

    async def next_events(self) -> list[Event]:
        while not (events := await self.read()):
            assert not self.ended
        return events

    async def rest(self) -> list[Event]:
        """Read up to the end of the answer, and wait for that of its request."""
        events = []
        while not self.ended:
            events += await self.read()
        await self.communicator.wait(10)
        return events

    async def cancel(self) -> None:
        self.communicator.stop(exceptions=False)
        # Django before 6.1 goes on listening in a task of its own.
        await self.communicator.send_input({"type": "http.disconnect"})

    async def cut_off(self) -> None:
        """Cancel it, as a server does that does not wait for its streams; take what comes."""
        self.communicator.stop(exceptions=False)
        await asyncio.wait([self.communicator.future])
        while not self.communicator.output_queue.empty():
            self._take(self.communicator.output_queue.get_nowait())
        # Django before 6.1 goes on listening in a task of its own.
        self.communicator.input_queue.put_nowait({"type": "http.disconnect"})

    async def disconnect(self) -> None:
        await self.communicator.send_input({"type": "http.disconnect"})
        await self.communicator.wait(10)


@asynccontextmanager
async def streaming(application: Any, path: str = "/news/", **scope: Any) -> AsyncIterator[Request]:
    """A stream whose first bytes have arrived."""
    request = Request(application, path, **scope)
    await request.start()
    assert request.status == 200
    while not request.decoder.reconnection_time:
        await request.read()
    try:
        yield request
    finally:
        if not request.ended:
            await request.disconnect()


async def test_django_has_finished_the_request_while_the_stream_goes_on() -> None:
    finished = threading.Event()

    def note(**kwargs: Any) -> None:
        finished.set()

    request_finished.connect(note)
    try:
        async with streaming(get_asgi_application()) as request:
            assert await asyncio.to_thread(finished.wait, 10)
            await apublish("news", "after the request")
            assert [event.text for event in await request.next_events()] == ["after the request"]
    finally:
        request_finished.disconnect(note)


async def test_what_django_sets_in_its_context_is_gone_while_the_stream_goes_on() -> None:
    contexts = []

    async def watched(scope: Any, receive: Any, send: Any) -> None:
        async def watched_receive() -> Any:
            contexts.append(dict(copy_context()))
            return await receive()

        contexts.append(dict(copy_context()))
        await get_asgi_application()(scope, watched_receive, send)

    async with streaming(watched):
        # The request, Django's wait for a disconnect, and the stream's.
        await until(lambda: len(contexts) == 4)
        before, _, of_django, of_stream = contexts
        assert of_django != before
        assert of_stream == before


@pytest.fixture
def board() -> None:
    Board.closed = asyncio.Event()


@pytest.mark.usefixtures("board")
@pytest.mark.parametrize("query", [b"", b"hide=1"], ids=["sent", "hidden"])
async def test_a_long_state_lets_others_have_their_turns(query: bytes) -> None:
    Board.rows = 20_000
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while not Board.closed.is_set():
            turns += 1
            await asyncio.sleep(0)

    async with streaming(get_asgi_application(), "/board/", query_string=query):
        await take_turns()
    assert turns > 10


@pytest.mark.usefixtures("board")
@pytest.mark.parametrize("query", [b"", b"hide=1"], ids=["sent", "hidden"])
async def test_a_state_without_an_end_stops_when_its_client_leaves(query: bytes) -> None:
    Board.rows = 10**12
    async with streaming(get_asgi_application(), "/board/", query_string=query) as request:
        await request.disconnect()
        await asyncio.wait_for(Board.closed.wait(), 10)
    assert open_streams() == 0


async def test_the_headers_are_those_of_a_stream_and_identity_does_not_go_out() -> None:
    async with streaming(get_asgi_application()) as request:
        assert request.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert request.headers["cache-control"] == "no-cache, no-store, private, no-transform"
        assert request.headers["x-accel-buffering"] == "no"
        assert request.headers["connection"] == "keep-alive"
        assert "content-encoding" not in request.headers


async def test_http_2_has_no_connection_header() -> None:
    async with streaming(get_asgi_application(), http_version="2") as request:
        assert "connection" not in request.headers


async def test_the_body_ends_after_a_cancel() -> None:
    async with streaming(get_asgi_application()) as request:
        await acancel("news", reason="over")
        [close] = await request.next_events()
        assert close.event == "close"
        await request.read()
        assert request.ended
        await request.communicator.wait(10)


async def test_a_server_that_cannot_send_the_end_any_more_is_not_an_error() -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        async def closed_at_the_end(message: Any) -> None:
            if message.get("more_body") is False:
                raise RuntimeError("the handler is closed")
            await send(message)

        await get_asgi_application()(scope, receive, closed_at_the_end)

    request = Request(application)
    await request.start()
    while not request.decoder.reconnection_time:
        await request.read()
    await acancel("news")
    assert [event.event for event in await request.next_events()] == ["close"]
    await request.communicator.wait(10)


async def test_a_client_that_leaves_is_forgotten() -> None:
    async with streaming(get_asgi_application()):
        assert open_streams() == 1
    assert open_streams() == 0


async def test_a_server_that_cancels_its_task_leaves_no_stream_behind() -> None:
    request = Request(get_asgi_application())
    await request.start()
    await request.read()
    while not open_streams():
        await asyncio.sleep(0.01)
    await request.cancel()
    while open_streams():
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("path", ["/slow/", "/slow-generator/"])
async def test_a_server_that_cancels_its_task_before_the_view_answers_leaves_no_stream_behind(
    path: str,
) -> None:
    Slow.asked, Slow.answers = asyncio.Event(), asyncio.Event()
    request = Request(get_asgi_application(), path)
    before = asyncio.all_tasks()
    await request.communicator.send_input({"type": "http.request"})
    await Slow.asked.wait()
    await request.cut_off()
    # Django before 6.1 goes on with the view all the same.
    Slow.answers.set()
    async with asyncio.timeout(10):
        while asyncio.all_tasks() - before or open_streams():
            await asyncio.sleep(0.01)


async def test_a_client_whose_stream_the_server_cuts_off_is_sent_back() -> None:
    async with streaming(get_asgi_application()) as request:
        assert request.decoder.reconnection_time == 3000
        while not open_streams():
            await asyncio.sleep(0.01)
        await request.cut_off()
        assert request.ended
        assert 3000 < request.decoder.reconnection_time <= 6000


async def test_a_client_is_sent_back_although_django_swallows_the_cut() -> None:
    """At the end of the request."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await get_django_application()(scope, receive, send)
        task = asyncio.current_task()
        assert task
        task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0)

    request = Request(EventStreamApplication(application))
    await request.start()
    with suppress(asyncio.CancelledError):
        await request.rest()
    assert request.ended
    assert 3000 < (request.decoder.reconnection_time or 0) <= 6000
    assert not open_streams()


async def test_a_stream_that_is_cut_off_after_its_close_says_nothing_more() -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        task = asyncio.current_task()
        assert task

        async def cut_off_after_close(message: Any) -> None:
            await send(message)
            if b"event: close" in message.get("body", b""):
                task.cancel()

        await get_asgi_application()(scope, receive, cut_off_after_close)

    request = Request(application)
    await request.start()
    while not request.decoder.last_event_id:
        await request.read()
    await acancel("news")
    with suppress(asyncio.CancelledError):
        await request.rest()
    assert request.ended
    assert request.decoder.reconnection_time == 3000


async def test_a_response_that_is_not_the_librarys_is_cut_off_as_it_is() -> None:
    request = Request(get_asgi_application(), "/stranger/")
    await request.start()
    while request.decoder.reconnection_time is None:
        await request.read()
    await request.cut_off()
    assert not request.ended
    assert request.decoder.reconnection_time == 10


async def test_a_disconnect_that_django_has_consumed_is_remembered() -> None:
    """It comes between the status and the hand-off, so Django's own listener takes it."""
    request = Request(get_asgi_application())
    await request.communicator.send_input({"type": "http.request"})
    await request.communicator.send_input({"type": "http.disconnect"})
    await request.communicator.wait(10)


async def test_other_protocols_pass_through_untouched() -> None:
    seen: list[Any] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        seen.extend([scope, receive, send])

    arguments: list[Any] = [{"type": "websocket"}, object(), object()]
    await EventStreamApplication(application)(*arguments)
    assert all(given is passed for given, passed in zip(arguments, seen, strict=True))


class Lifespan:
    """A server that starts an application and shuts it down."""

    def __init__(self, application: Any) -> None:
        self.received: asyncio.Queue[Any] = asyncio.Queue()
        self.sent: list[str] = []
        self.running = asyncio.create_task(
            EventStreamApplication(application)({"type": "lifespan"}, self.received.get, self.send)
        )

    async def send(self, message: Any) -> None:
        self.sent.append(message["type"])

    async def say(self, what: str) -> None:
        """Say that something begins, and wait until it is complete."""
        self.received.put_nowait({"type": f"lifespan.{what}"})
        await until(lambda: self.sent[-1:] == [f"lifespan.{what}.complete"])


async def refusing(scope: Any, receive: Any, send: Any) -> None:
    raise ValueError("Django can only handle ASGI/HTTP connections, not lifespan.")


async def of_project(scope: Any, receive: Any, send: Any) -> None:
    for what in ("startup", "shutdown"):
        assert (await receive())["type"] == f"lifespan.{what}"
        await send({"type": f"lifespan.{what}.complete"})


@pytest.mark.parametrize("application", [refusing, of_project])
async def test_producers_may_finish_their_work_before_the_shutdown(application: Any) -> None:
    goes_on = asyncio.Event()

    async def answer() -> AsyncIterator[str]:
        await goes_on.wait()
        yield "the last word"

    server = Lifespan(application)
    await server.say("startup")
    await start_producing(answer(), group="news")
    shutdown = asyncio.create_task(server.say("shutdown"))
    await asyncio.sleep(0.05)
    assert not shutdown.done()
    goes_on.set()
    await shutdown
    await server.running
    assert await ends_with("news") == (b"the last word", b"complete")


async def test_producers_that_take_too_long_are_interrupted(settings: Settings) -> None:
    settings.DJANGO_SSE = {"PRODUCER_GRACE": 0.1}

    async def answer() -> AsyncIterator[str]:
        yield "the last word"
        await asyncio.Event().wait()

    server = Lifespan(refusing)
    await server.say("startup")
    await start_producing(answer(), group="news")
    await server.say("shutdown")
    assert await ends_with("news") == (b"the last word", b"interrupted")


async def test_a_generator_that_hangs_as_it_closes_does_not_keep_the_server(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.DJANGO_SSE = {"PRODUCER_GRACE": 0}
    monkeypatch.setattr("django_sse.producing._FAREWELL_SECONDS", 0.05)
    ends = asyncio.Event()

    async def answer() -> AsyncIterator[str]:
        try:
            yield "a word"
            await asyncio.Event().wait()
        finally:
            await ends.wait()

    server = Lifespan(refusing)
    await server.say("startup")
    await start_producing(answer(), group="news")
    await server.say("shutdown")
    ends.set()


async def ends_with(group: str) -> tuple[bytes, bytes]:
    """Return the last event of a group, and why it was closed."""
    event, close = await get_store().aread(group, 0, 10)
    return event.wire.removeprefix(b"data: ").strip(), close.wire.split(b'"')[-2]


async def test_a_lifespan_that_fails_is_the_projects() -> None:
    async def failing(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        raise OSError("no database")

    server = Lifespan(failing)
    server.received.put_nowait({"type": "lifespan.startup"})
    with pytest.raises(OSError, match="no database"):
        await server.running
    assert server.sent == []


async def test_wrapping_twice_hands_off_once() -> None:
    async with streaming(EventStreamApplication(get_asgi_application())) as request:
        await apublish("news", "x")
        assert [event.text for event in await request.next_events()] == ["x"]


async def test_other_responses_go_out_as_django_made_them() -> None:
    request = Request(get_asgi_application(), "/nowhere/")
    await request.start()
    assert request.status == 404
    await request.rest()


GetResponse = Callable[[HttpRequest], Awaitable[HttpResponseBase]]


def upper_middleware(get_response: GetResponse) -> GetResponse:
    """Replaces a response's content with content of its own."""

    async def middleware(request: HttpRequest) -> HttpResponseBase:
        response = await get_response(request)
        assert isinstance(response, StreamingHttpResponse)
        content = response.streaming_content

        async def changed() -> AsyncIterator[bytes]:
            async for chunk in content:  # type: ignore[union-attr]
                yield chunk.replace(b"quiet", b"LOUD")

        response.streaming_content = changed()
        return response

    markcoroutinefunction(middleware)
    return middleware


def rewrapping_middleware(get_response: GetResponse) -> GetResponse:
    """Puts a response of its own in the view's place."""

    async def middleware(request: HttpRequest) -> HttpResponseBase:
        response = await get_response(request)
        assert isinstance(response, StreamingHttpResponse)
        wrapped = StreamingHttpResponse(response.streaming_content, headers=response.headers)
        wrapped["X-Wrapped"] = "yes"
        return wrapped

    markcoroutinefunction(middleware)
    return middleware


def encoding_middleware(get_response: GetResponse) -> GetResponse:
    """Sets an encoding."""

    async def middleware(request: HttpRequest) -> HttpResponseBase:
        response = await get_response(request)
        response["Content-Encoding"] = "x-own"
        return response

    markcoroutinefunction(middleware)
    return middleware


def reading_middleware(get_response: GetResponse) -> GetResponse:
    """Puts a response of its own in the view's place, which reads the response itself."""

    async def middleware(request: HttpRequest) -> HttpResponseBase:
        response = await get_response(request)
        assert isinstance(response, StreamingHttpResponse)

        async def changed() -> AsyncIterator[bytes]:
            async for chunk in response:
                yield chunk.replace(b"quiet", b"LOUD")

        return StreamingHttpResponse(changed(), headers=response.headers)

    markcoroutinefunction(middleware)
    return middleware


for _middleware in (
    upper_middleware,
    rewrapping_middleware,
    encoding_middleware,
    reading_middleware,
):
    _middleware.async_capable = True  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("middleware", "expected"),
    [
        ("upper_middleware", "LOUD"),
        ("rewrapping_middleware", "quiet"),
        ("encoding_middleware", "quiet"),
        ("reading_middleware", "LOUD"),
    ],
)
async def test_a_stream_that_a_middleware_changes_stays_in_its_request(
    middleware: str, expected: str, caplog: pytest.LogCaptureFixture
) -> None:
    with override_settings(MIDDLEWARE=[f"{__name__}.{middleware}"]):
        async with streaming(get_asgi_application()) as request:
            await apublish("news", "quiet")
            assert [event.text for event in await request.next_events()] == [expected]
    assert "a middleware has replaced its response" in caplog.text


async def test_without_the_wrapper_the_stream_works_and_says_what_it_costs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with streaming(get_django_application()) as request:
        await apublish("news", "x")
        assert [event.text for event in await request.next_events()] == ["x"]
    assert "wrap the project's ASGI application" in caplog.text


async def test_gzip_middleware_leaves_streams_alone() -> None:
    accepts = [(b"accept-encoding", b"gzip")]
    with override_settings(MIDDLEWARE=["django.middleware.gzip.GZipMiddleware"]):
        async with streaming(get_asgi_application(), headers=accepts) as request:
            assert "content-encoding" not in request.headers
            await apublish("news", "x" * 500)
            assert [event.text for event in await request.next_events()] == ["x" * 500]


async def test_a_generator_view_is_closed_when_its_client_leaves() -> None:
    forever_ended.clear()
    async with streaming(get_asgi_application(), "/forever/") as request:
        assert (await request.next_events())[0].text == "tick"
    await asyncio.wait_for(forever_ended.wait(), 10)


async def test_a_generator_view_is_closed_when_the_server_cancels_its_task() -> None:
    forever_ended.clear()
    request = Request(get_asgi_application(), "/forever/")
    await request.start()
    await request.next_events()
    await request.cut_off()
    await asyncio.wait_for(forever_ended.wait(), 10)
    assert request.ended
    assert 3000 < (request.decoder.reconnection_time or 0) <= 6000
    assert request.decoder.last_event_id == ""
