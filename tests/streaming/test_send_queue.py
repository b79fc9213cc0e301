"""The queue of what is to be sent to a client: in order, one at a time, bounded, and to its end."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from pytest_django import Settings

from django_sse.streaming.send_queue import SendQueue
from tests.streams import until


class Stream:
    """What a queue knows of its stream: it ends."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.queue = SendQueue(asyncio.get_running_loop(), self)

    def end(self, reason: str) -> None:
        self.reasons.append(reason)
        self.queue.discard()


class Connection:
    """A client that takes chunks while it reads."""

    def __init__(self) -> None:
        self.taken: list[bytes] = []
        self.reads = asyncio.Event()
        self.reads.set()
        self.error: BaseException | None = None
        self.is_sending = False

    async def send(self, message: Any) -> None:
        assert not self.is_sending, "two chunks are on their way at once"
        self.is_sending = True
        await self.reads.wait()
        self.is_sending = False
        if self.error:
            raise self.error
        self.taken.append(message["body"])


@pytest.fixture
async def stream() -> AsyncIterator[Stream]:
    stream = Stream()
    yield stream
    stream.queue.discard()


@pytest.fixture(params=[False, True], ids=["in a task", "in place"])
def connection(stream: Stream, request: pytest.FixtureRequest) -> Connection:
    connection = Connection()
    stream.queue.connect(connection.send, in_place=request.param)
    return connection


async def test_what_waits_goes_out_as_one_chunk_in_order(
    stream: Stream, connection: Connection
) -> None:
    connection.reads.clear()
    for chunk in (b"1", b"2", b"", b"3"):
        stream.queue.push(chunk)
    connection.reads.set()
    await stream.queue.idle()
    assert connection.taken == [b"1", b"23"]
    assert stream.queue.busy_since is None


async def test_what_is_held_goes_out_when_it_is_released(
    stream: Stream, connection: Connection
) -> None:
    stream.queue.hold(b"message")
    stream.queue.push(b"replayed 1 ")
    await stream.queue.idle()
    stream.queue.push(b"replayed 2 ")
    stream.queue.release()
    stream.queue.push(b" new")
    await until(lambda: b"new" in b"".join(connection.taken))
    assert connection.taken[0] == b"replayed 1 "
    assert b"".join(connection.taken) == b"replayed 1 replayed 2 message new"


async def test_what_is_held_does_not_hold_what_was_pushed_before(
    stream: Stream, connection: Connection
) -> None:
    connection.reads.clear()
    for chunk in (b"1", b"2"):
        stream.queue.push(chunk)
    stream.queue.hold(b"message")
    connection.reads.set()
    await stream.queue.idle()
    assert connection.taken == [b"1", b"2"]
    stream.queue.push(b"3")
    stream.queue.release()
    await until(lambda: len(connection.taken) == 4)
    assert connection.taken == [b"1", b"2", b"3", b"message"]


async def test_what_is_held_alone_is_sent_at_the_release(
    stream: Stream, connection: Connection
) -> None:
    stream.queue.hold(b"message")
    stream.queue.release()
    await until(lambda: connection.taken == [b"message"])


@pytest.mark.parametrize("wait", [SendQueue.push, SendQueue.hold])
async def test_more_than_may_wait_ends_the_stream(
    wait: Callable[[SendQueue, bytes], None],
    stream: Stream,
    connection: Connection,
    settings: Settings,
) -> None:
    settings.DJANGO_SSE = {"BACKLOG_BYTES": 10}
    connection.reads.clear()
    stream.queue.push(b"12345")
    await until(lambda: connection.is_sending)
    wait(stream.queue, b"67890")
    assert stream.reasons == []
    wait(stream.queue, b"1")
    assert stream.reasons == ["backlog full"]


async def test_what_has_gone_out_makes_room(
    stream: Stream, connection: Connection, settings: Settings
) -> None:
    settings.DJANGO_SSE = {"BACKLOG_BYTES": 10}
    for _ in range(10):
        connection.reads.clear()
        stream.queue.push(b"12345")
        stream.queue.push(b"67890")
        connection.reads.set()
        await stream.queue.idle()
    assert stream.reasons == []
    assert b"".join(connection.taken) == b"1234567890" * 10


async def test_the_last_bytes_come_after_the_others_and_are_made_then(
    stream: Stream, connection: Connection
) -> None:
    connection.reads.clear()
    stream.queue.push(b"1")
    stream.queue.push(b"2")
    stream.queue.finish("over", lambda: b"after %d" % len(connection.taken))
    assert stream.reasons == []
    connection.reads.set()
    await until(lambda: stream.reasons)
    assert stream.reasons == ["over"]
    assert connection.taken == [b"1", b"2", b"after 2"]


async def test_an_idle_queue_ends_at_once(stream: Stream, connection: Connection) -> None:
    stream.queue.finish("over", lambda: b"bye")
    await until(lambda: stream.reasons)
    assert (connection.taken, stream.reasons) == ([b"bye"], ["over"])


async def test_a_queue_may_have_its_end_before_its_connection(stream: Stream) -> None:
    connection = Connection()
    stream.queue.finish("sent back", lambda: b"come back")
    stream.queue.finish("shut", lambda: b"stay away")
    assert stream.reasons == []
    stream.queue.connect(connection.send)
    await until(lambda: stream.reasons)
    assert (connection.taken, stream.reasons) == ([b"stay away"], ["shut"])


async def test_what_is_held_is_dropped_at_the_end(stream: Stream, connection: Connection) -> None:
    stream.queue.hold(b"message")
    stream.queue.finish("over", lambda: b"bye")
    await until(lambda: stream.reasons)
    assert connection.taken == [b"bye"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ConnectionResetError("gone"), "disconnected"),
        (RuntimeError("gone, as uvloop says"), "disconnected"),
        (ValueError("broken"), "send failed"),
        (MemoryError("broken"), "send failed"),
    ],
    ids=repr,
)
async def test_a_send_that_fails_ends_the_stream_and_sends_nothing_more(
    error: BaseException, reason: str, stream: Stream, connection: Connection
) -> None:
    connection.reads.clear()
    stream.queue.push(b"1")
    stream.queue.push(b"2")
    connection.error = error
    connection.reads.set()
    await until(lambda: stream.reasons)
    assert (connection.taken, stream.reasons) == ([], [reason])


async def test_last_bytes_that_cannot_be_made_end_the_stream_all_the_same(
    stream: Stream, connection: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> bytes:
        raise MemoryError

    stream.queue.push(b"1")
    stream.queue.finish("over", broken)
    await until(lambda: stream.reasons)
    assert (connection.taken, stream.reasons) == ([b"1"], ["send failed"])
    assert "Sending to a stream failed" in caplog.text


async def test_after_its_end_nothing_is_sent(stream: Stream, connection: Connection) -> None:
    connection.reads.clear()
    stream.queue.push(b"1")
    stream.queue.push(b"2")
    await until(lambda: connection.is_sending)
    stream.queue.discard()
    stream.queue.push(b"3")
    connection.reads.set()
    await stream.queue.idle()
    assert (connection.taken, stream.reasons) == ([], [])
