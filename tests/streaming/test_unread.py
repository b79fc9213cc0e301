"""A client that does not read costs a bounded number of bytes in every phase of its stream."""

import asyncio
import gc
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast
from unittest.mock import ANY
from weakref import ref

import pytest
from channels.layers import InMemoryChannelLayer
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.test import override_settings
from django.urls import path

from django_sse import Event, aposition, apublish, apublish_many
from django_sse.asgi import get_asgi_application
from django_sse.conf import conf
from django_sse.decorators import event_generator, event_stream_headers
from django_sse.doorbells.layer import _ringer
from django_sse.groups.entries import Entry
from django_sse.groups.position import parse_position
from django_sse.stores import get_store
from django_sse.stores.base import EventStore
from django_sse.stores.database import DatabaseStore
from django_sse.streaming import subscription
from django_sse.streaming.hub import Hub, current_hub, open_streams
from django_sse.streaming.jitter import jittered_retry
from django_sse.streaming.limits import TooManyStreams
from django_sse.streaming.stream import Stream
from django_sse.testing.stores import append, event
from django_sse.views import EventStreamView
from tests.clients import connected
from tests.streams import get, reading, until

pytestmark = [
    # What it shows is the library's own.
    pytest.mark.once,
    pytest.mark.django_db(transaction=True),
    pytest.mark.urls(__name__),
    pytest.mark.usefixtures("everything_ends"),
]

EVENTS = 60
EVENT_BYTES = 250_000
HEARTBEAT = b":\n\n"


def text(number: int) -> str:
    return f"{number} {'x' * EVENT_BYTES}"


async def publish_all(group: str = "news") -> None:
    await apublish_many((group, text(number)) for number in range(EVENTS))


class Unread:
    """A client that has taken some bytes, and reads no more."""

    def __init__(self) -> None:
        self.bytes_taken = 0
        self.is_sending = False

    async def send(self, message: Any) -> None:
        assert not self.is_sending
        self.is_sending = True
        self.bytes_taken += len(message["body"])
        await asyncio.Event().wait()


def pending(client: Unread, stream: Stream) -> int:
    waiting = stream._queue._backlog or ()
    return client.bytes_taken + sum(map(len, waiting))


@asynccontextmanager
async def unread(*groups: str, after: str, **options: Any) -> AsyncIterator[tuple[Unread, Stream]]:
    stream = Stream(current_hub(), parse_position(after, groups), **options)
    client = Unread()
    await stream.open()
    stream.serve(client.send)
    try:
        yield client, stream
    finally:
        stream.end("test is over")


def unchanged(event: Event) -> Event:
    return event


def lengthened(event: Event) -> Event:
    return Event(event.text + "x" * EVENT_BYTES)


# What is pending


@pytest.mark.parametrize("filter_event", [None, unchanged])
async def test_a_replay_is_sent_in_pages_that_are_bounded_in_bytes(filter_event: Any) -> None:
    start = await aposition("news")
    await publish_all()
    async with unread("news", after=start, filter_event=filter_event) as (client, _):
        await until(lambda: client.is_sending)
        assert client.bytes_taken <= conf().BACKLOG_BYTES + EVENT_BYTES
    async with connected("news", after=start, filter_event=filter_event) as reads:
        assert await reads.until_events(EVENTS) == [text(number) for number in range(EVENTS)]


async def test_a_replay_is_bounded_by_what_a_filter_makes_of_it() -> None:
    start = await aposition("news")
    await apublish_many(("news", f"{number} ") for number in range(EVENTS))
    async with unread("news", after=start, filter_event=lengthened) as (client, _):
        await until(lambda: client.is_sending)
        assert client.bytes_taken <= conf().BACKLOG_BYTES + EVENT_BYTES
    async with connected("news", after=start, filter_event=lengthened) as reads:
        assert await reads.until_events(EVENTS) == [text(number) for number in range(EVENTS)]


@pytest.mark.parametrize("filter_event", [None, unchanged])
async def test_a_burst_that_is_too_large_to_wait_is_replayed_to_who_reads_and_to_nobody_else(
    filter_event: Any,
) -> None:
    start = await aposition("news")
    async with (
        unread("news", after=start, filter_event=filter_event) as (client, stream),
        connected("news", after=start, filter_event=filter_event) as reads,
    ):
        await publish_all()
        expected = [text(number) for number in range(EVENTS)]
        assert await reads.until_events(EVENTS) == expected
        assert client.is_sending
        assert pending(client, stream) <= conf().BACKLOG_BYTES + EVENT_BYTES
        # What follows does not wait for it, either, and is live for who has read.
        await publish_all()
        assert await reads.until_events(2 * EVENTS) == 2 * expected
        assert pending(client, stream) <= conf().BACKLOG_BYTES + EVENT_BYTES
        assert not reads.stream.ended.done()


async def test_who_reads_gets_all_of_a_burst_that_is_larger_than_the_history() -> None:
    count = 3 * conf().HISTORY_SIZE
    await apublish("news", "long ago")
    async with connected("news") as reads, connected("news", filter_event=unchanged) as filtered:
        await apublish_many(("news", f"{number} {'x' * 600}") for number in range(count))
        await apublish("news", "afterwards")
        for client in (reads, filtered):
            await client.until_events(count + 1)
            assert client.data[0].startswith("0 ")
            assert client.data[-1] == "afterwards"
            assert not client.stream.ended.done()


async def test_a_burst_is_held_for_a_moment_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscription, "_HOLD_SECONDS", 0.05)
    async with connected("news") as client:
        await publish_all()
        await client.until_events(EVENTS)
        client.events.clear()
        client.chunks.clear()
        [group] = current_hub()._subscriptions.values()
        await until(lambda: group.tail._bytes <= subscription.TAIL_BYTES)


async def test_what_is_being_sent_counts_among_what_waits() -> None:
    # A group's very first event is read from the store, maybe with many others at once, and then
    # they are taken bit by bit.
    await apublish("news", "the first")
    start = await aposition("news")
    with override_settings(DJANGO_SSE={"BACKLOG_BYTES": 10_000}):
        async with unread("news", after=start) as (client, stream):
            most = 0
            for _ in range(20):
                await apublish("news", "x" * 950)
                await asyncio.sleep(0)
                if not stream.ended.done():
                    most = max(most, pending(client, stream))
            await until(stream.ended.done)
            assert stream.ended.result() == "backlog full"
            assert most <= 10_000 + 1_000


async def test_a_hub_that_has_missed_doorbells_catches_up_on_large_events() -> None:
    async with connected("news") as client:
        # Nobody rings.
        await append(get_store(), *(event("news", text(number)) for number in range(12)))
        await apublish("news", "last")
        assert await client.until_events(13) == [*map(text, range(12)), "last"]


# What is kept while others hang


def bytes_of_entries() -> int:
    gc.collect()
    return sum(len(each.wire) for each in gc.get_objects() if type(each) is Entry)


@asynccontextmanager
async def hanging(name: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[asyncio.Event]:
    """A store that does not answer for the time being; set is what says that it was asked."""
    asked, goes_on = asyncio.Event(), asyncio.Event()
    method = getattr(DatabaseStore, name)

    async def hang(self: EventStore, *args: Any) -> Any:
        asked.set()
        await goes_on.wait()
        return await method(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(DatabaseStore, name, hang)
        try:
            yield asked
        finally:
            goes_on.set()


async def test_what_is_heard_while_the_store_hangs_is_bounded_and_nothing_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = bytes_of_entries()
    start = await aposition("news")
    stream = Stream(current_hub(), parse_position(start, ["news"]))
    async with hanging("astates", monkeypatch) as asked:
        opening = asyncio.create_task(stream.open())
        await asyncio.wait_for(asked.wait(), 10)
        await publish_all()
        await asyncio.sleep(0)
        assert bytes_of_entries() - before <= 2 * 1024 * 1024
    await opening
    stream.end("test is over")
    async with connected("news", after=start) as reads:
        assert len(await reads.until_events(EVENTS)) == EVENTS


class HangingLayer(InMemoryChannelLayer):  # type: ignore[misc]
    goes_on = threading.Event()

    async def group_send(self, group: str, message: Any) -> None:
        while not self.goes_on.is_set():
            await asyncio.sleep(0.01)


async def test_what_waits_for_a_layer_that_hangs_is_bounded() -> None:
    before = bytes_of_entries()
    layer = {"default": {"BACKEND": f"{__name__}.HangingLayer"}}
    with override_settings(CHANNEL_LAYERS=layer):
        try:
            await apublish_many(("other", text(number)) for number in range(4))
            for number in range(250):
                await apublish(f"group-{number}", "x" * 60_000)
            # What was handed to the thread that rings has come there.
            handed_over = asyncio.run_coroutine_threadsafe(asyncio.sleep(0), _ringer._thread.loop())
            await asyncio.wrap_future(handed_over)
            assert bytes_of_entries() - before <= 9 * 1024 * 1024
        finally:
            HangingLayer.goes_on.set()


# Heartbeats while the store is away


class Beating:
    """A client that counts what keeps its connection alive."""

    def __init__(self) -> None:
        self.received = b""

    async def send(self, message: Any) -> None:
        self.received += message["body"]

    @property
    def heartbeats(self) -> int:
        return self.received.count(HEARTBEAT)


@pytest.mark.parametrize("fails", [False, True], ids=["hangs", "fails"])
async def test_a_stream_that_cannot_be_replayed_yet_sends_heartbeats(
    fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("django_sse.streaming.hub._TICK_SECONDS", 0.05)
    start = await aposition("news")
    await apublish_many(("news", str(number)) for number in range(3))
    client = Beating()
    stream = Stream(current_hub(), parse_position(start, ["news"]), heartbeat=0.1)
    await stream.open()

    async def fail(self: EventStore, *args: Any) -> Any:
        raise OSError("The store is away.")

    with monkeypatch.context() as patch:
        async with hanging("aread", patch):
            if fails:
                patch.setattr(DatabaseStore, "aread", fail)
            stream.serve(client.send)
            await until(lambda: client.heartbeats > 3)
            assert client.received == HEARTBEAT * client.heartbeats
            patch.undo()
    await until(lambda: b"data: 2" in client.received)
    sent = client.received.replace(HEARTBEAT, b"")
    assert sent.count(b"data: ") == 3
    stream.end("test is over")


async def test_a_stream_that_is_dismissed_while_its_heartbeat_is_on_the_way_gets_its_farewell(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("django_sse.streaming.hub._TICK_SECONDS", 0.05)
    start = await aposition("news")
    await apublish("news", "a")
    received, goes_out = [], asyncio.Event()

    async def send(message: Any) -> None:
        received.append(message["body"])
        await goes_out.wait()

    stream = Stream(current_hub(), parse_position(start, ["news"]), heartbeat=0.1)
    await stream.open()
    async with hanging("aread", monkeypatch):
        stream.serve(send)
        await until(lambda: received == [HEARTBEAT])
        stream.end("max age", jittered_retry)
        goes_out.set()
        assert await asyncio.wait_for(stream.ended, 10) == "max age"
    assert received[1].startswith(b"retry: ")
    assert len(received) == 2


class News(EventStreamView):
    groups = ["news"]


class Waiting(EventStreamView):
    """Its first state never comes."""

    groups = ["news"]
    goes_on: asyncio.Event

    async def initial_events(self) -> AsyncGenerator[Event, None]:
        yield Event("first")
        await type(self).goes_on.wait()
        yield Event("second")


async def test_a_stream_that_waits_for_the_store_to_begin_sends_heartbeats(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("django_sse.http.response._CHECK_SECONDS", 0.05)
    with override_settings(DJANGO_SSE={"HEARTBEAT": 0.1}):
        response = await News.as_view()(get())
        async with hanging("astates", monkeypatch), reading(response) as reader:
            await until(lambda: reader.received.count(HEARTBEAT) > 3)
            assert not reader.last_event_id
            monkeypatch.undo()


async def test_a_client_that_leaves_while_the_store_fails_leaves_asyncio_no_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("django_sse.http.response._CHECK_SECONDS", 0.05)
    fails = asyncio.Event()

    async def fail(self: EventStore, *args: Any) -> Any:
        await fails.wait()
        raise ConnectionError("away")

    with override_settings(DJANGO_SSE={"HEARTBEAT": 0.1}):
        response = await News.as_view()(get())
        monkeypatch.setattr(DatabaseStore, "astates", fail)
        # Closed as it is, since nothing else holds it as Django does.
        chunks = cast("Any", response)._iterator
        assert await anext(chunks) == HEARTBEAT
        hub = current_hub()
        fails.set()
        # While the heartbeat is sent, nobody asks for more.
        await until(lambda: not hub._subscriptions)
        await asyncio.sleep(0)
        await chunks.aclose()
        del chunks, response
        gc.collect()
    assert "never retrieved" not in caplog.text


async def test_a_refused_response_is_gone_without_the_garbage_collector(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def refuse(self: Hub, stream: Stream, groups: Sequence[str]) -> None:
        raise TooManyStreams("MAX_STREAMS")

    monkeypatch.setattr(Hub, "join", refuse)
    gc.collect()
    gc.disable()
    try:
        response = cast("StreamingHttpResponse", await News.as_view()(get()))
        assert [chunk async for chunk in aiter(response)] == [ANY]
        refused = ref(response)
        del response
        await until(lambda: refused() is None)
    finally:
        gc.enable()


async def test_a_stream_whose_first_state_takes_long_sends_heartbeats(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("django_sse.http.response._CHECK_SECONDS", 0.05)
    Waiting.goes_on = asyncio.Event()
    with override_settings(DJANGO_SSE={"HEARTBEAT": 0.1}):
        async with reading(await Waiting.as_view()(get())) as reader:
            assert (await reader.next_event()).data == "first"
            await until(lambda: reader.received.count(HEARTBEAT) > 3)
            Waiting.goes_on.set()
            assert (await reader.next_event()).data == "second"
            await until(lambda: reader.last_event_id)


# Before the hand-off


class Endless(EventStreamView):
    """Its first state has no end."""

    groups = ["news"]

    async def initial_events(self) -> AsyncGenerator[Event, None]:
        async for _ in endless_texts():
            yield Event("x" * EVENT_BYTES)


closed: list[bool] = []


def is_closed() -> bool:
    # Django before 6.1 leaves the body of a request that is cut off to the garbage collector.
    gc.collect()
    return bool(closed)


async def endless_texts() -> AsyncIterator[str]:
    try:
        while True:
            yield "x" * EVENT_BYTES
    finally:
        closed.append(True)


@event_generator
async def generated(request: HttpRequest) -> AsyncIterator[str]:
    async for each in endless_texts():
        yield each


async def chunks() -> AsyncIterator[bytes]:
    async for each in endless_texts():
        yield f"data: {each}\n\n".encode()


@event_stream_headers
async def of_its_own(request: HttpRequest) -> HttpResponseBase:
    return StreamingHttpResponse(chunks())


async def encoded(request: HttpRequest) -> HttpResponseBase:
    response: HttpResponseBase = await of_its_own(request)
    response["Content-Encoding"] = "br"
    return response


@event_stream_headers
def synchronous(request: HttpRequest) -> HttpResponseBase:
    # Of which Django makes a list, before it sends anything.
    closed.append(True)
    return StreamingHttpResponse(b"data: x\n\n" for _ in range(100))


@event_generator
async def ticking(request: HttpRequest) -> AsyncIterator[str]:
    try:
        while True:
            yield "tick"
            await asyncio.sleep(0.01)
    finally:
        closed.append(True)


async def page(request: HttpRequest) -> HttpResponse:
    return HttpResponse(b"x" * EVENT_BYTES)


urlpatterns = [
    path("news/", News.as_view()),
    path("waiting/", Waiting.as_view()),
    path("endless/", Endless.as_view()),
    path("generated/", generated),
    path("of-its-own/", of_its_own),
    path("encoded/", encoded),
    path("synchronous/", synchronous),
    path("ticking/", ticking),
    path("page/", page),
]


class Served:
    """What a server is sent of one request by the whole application."""

    def __init__(self, path: str, *, reads_one_event: bool = False) -> None:
        self.body = b""
        self._reads_one_event = reads_one_event
        self.is_over = False
        self.reads = asyncio.Event()
        self.reads.set()
        self._asked = False
        self._left = asyncio.Event()
        scope: dict[str, Any] = {
            "type": "http",
            "http_version": "1.1",
            "method": "GET",
            "path": path,
        }
        scope |= {"query_string": b"", "headers": []}
        self.running = asyncio.create_task(get_asgi_application()(scope, self._receive, self._send))

    async def _receive(self) -> Any:
        if self._asked:
            await self._left.wait()
            return {"type": "http.disconnect"}
        self._asked = True
        return {"type": "http.request"}

    async def _send(self, message: Any) -> None:
        if message["type"] == "http.response.body":
            self.body += message.get("body", b"")
            self.is_over = not message.get("more_body", False)
        if self._reads_one_event and b"data: " in self.body:
            self.reads.clear()
        await self.reads.wait()

    async def leave(self) -> None:
        self._left.set()
        self.reads.set()
        await asyncio.wait_for(self.running, 10)


@pytest.fixture(autouse=True)
def nothing_is_closed_yet() -> None:
    closed.clear()
    Waiting.goes_on = asyncio.Event()


@pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume synchronous iterators")
@pytest.mark.parametrize(
    "name", ["endless", "generated", "of-its-own", "encoded", "synchronous", "ticking"]
)
async def test_a_client_that_does_not_read_is_given_up_before_the_hand_off_too(name: str) -> None:
    with override_settings(DJANGO_SSE={"SEND_TIMEOUT": 0.2}):
        served = Served(f"/{name}/", reads_one_event=True)
        # It returns, and what has filled the stream is closed.
        await asyncio.wait_for(served.running, 10)
        await until(is_closed)
        assert len(served.body) <= conf().BACKLOG_BYTES + EVENT_BYTES
        assert not open_streams()


@pytest.mark.parametrize("name", ["endless", "generated", "ticking", "page"])
async def test_who_reads_slowly_is_not_given_up(name: str) -> None:
    with override_settings(DJANGO_SSE={"SEND_TIMEOUT": 2}):
        served = Served(f"/{name}/")
        for _ in range(5):
            served.reads.clear()
            await asyncio.sleep(0.5)
            served.reads.set()
            await asyncio.sleep(0)
        assert name == "page" or not served.running.done()
        await served.leave()


async def test_a_page_is_sent_for_as_long_as_it_takes() -> None:
    with override_settings(DJANGO_SSE={"SEND_TIMEOUT": 0.05}):
        served = Served("/page/")
        served.reads.clear()
        await asyncio.sleep(0.3)
        assert not served.running.done()
        served.reads.set()
        await asyncio.wait_for(served.running, 10)
        assert len(served.body) == EVENT_BYTES


async def test_without_a_send_timeout_nobody_is_given_up_before_the_hand_off() -> None:
    with override_settings(DJANGO_SSE={"SEND_TIMEOUT": 0}):
        served = Served("/endless/", reads_one_event=True)
        await asyncio.sleep(0.3)
        assert not served.running.done()
        await served.leave()


@pytest.mark.parametrize("name", ["ticking", "generated", "waiting", "endless"])
async def test_a_stream_that_grows_too_old_is_ended_before_the_hand_off_too(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("django_sse.streaming.hub._TICK_SECONDS", 0.05)
    monkeypatch.setattr("django_sse.http.response._CHECK_SECONDS", 0.05)
    with override_settings(DJANGO_SSE={"MAX_AGE": 0.5}):
        served = Served(f"/{name}/")
        await asyncio.wait_for(served.running, 10)
    assert served.is_over
    *_, farewell, end = served.body.split(b"\n\n")
    assert farewell.startswith(b"retry: ")
    assert not end
    # It has not got all of the first state, so it comes back for that.
    assert b"\nid: " not in served.body
    assert not open_streams()
