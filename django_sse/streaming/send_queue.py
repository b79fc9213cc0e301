"""A stream's send queue: one chunk is being sent, the others wait, within a limit of bytes."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any, Final, Protocol

from django_sse.concurrency.tasks import go_on, must_propagate, start_eagerly
from django_sse.conf import conf
from django_sse.groups.replay import filling
from django_sse.logs import logger
from django_sse.stores.read_limits import READ_BYTES

CLIENT_GONE: Final = (OSError, RuntimeError)
"""What a server's ``send`` may raise for a client that has gone: an OSError, as ASGI says, or
uvloop's RuntimeError on uvicorn, if uvicorn has not noticed yet."""

# How many bytes fill one send, however few events that are. The server keeps a copy of them until
# the client reads.
SEND_BYTES: Final = READ_BYTES

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
"""Sends a message of the response, as ASGI has it."""

LastBytes = Callable[[], bytes]
_Begun = tuple[Coroutine[Any, Any, None], Any]


def body_message(chunk: bytes, *, more: bool = True) -> MutableMapping[str, Any]:
    """Return the message that sends a part of the body, as ASGI has it.

    Args:
        chunk: The part.
        more: Whether another one follows.
    """
    return {"type": "http.response.body", "body": chunk, "more_body": more}


class Sender(Protocol):
    """The part of a stream that its send queue uses."""

    def end(self, reason: str) -> None:
        """End the stream now."""


class SendQueue:
    """Sends the chunks of one stream, one after the other.

    A client is too slow when more than BACKLOG_BYTES wait for it. Its stream ends, and it resumes
    from its last id. So nothing is lost, and nothing piles up.

    Args:
        loop: The running loop.
        stream: The stream that the chunks belong to. The queue ends it after its last bytes, or
            when no more can be sent.
    """

    __slots__ = (
        "_backlog",
        "_ending",
        "_held",
        "_in_place",
        "_loop",
        "_send",
        "_sending",
        "_stream",
        "busy_since",
        "last_sent",
        "pending_bytes",
        "sent_bytes",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, stream: Sender) -> None:
        self._loop = loop
        self._stream: Sender | None = stream
        self._send: Send | None = None
        self._in_place = False
        self._sending: asyncio.Task[None] | None = None
        # By the loop's clock: since when a chunk is being sent, and when the last one was begun.
        self.busy_since: float | None = None
        self.last_sent = loop.time()
        # None until a chunk waits, or is held: to most streams that never happens.
        self._backlog: list[bytes] | None = None
        self._held: list[bytes] | None = None
        # The bytes that are being sent or wait, and those that were sent.
        self.pending_bytes = 0
        self.sent_bytes = 0
        # The reason to end, and what to send before that.
        self._ending: tuple[str, LastBytes] | None = None

    def connect(self, send: Send, *, in_place: bool = False) -> None:
        """Give the queue its connection.

        Before that, ``finish`` may be called, but ``push`` must not.

        Args:
            send: The ``send`` of the connection.
            in_place: Whether ``send`` is a coroutine function that needs no task unless it waits.
        """
        self._send = send
        self._in_place = in_place
        if self._ending:
            self._start(b"")

    async def idle(self) -> None:
        """Wait until all chunks that were pushed have been sent."""
        if self._sending:
            await asyncio.wait([self._sending])

    def push(self, chunk: bytes, now: float | None = None) -> None:
        """Send a chunk after those that were pushed before.

        Args:
            chunk: The chunk.
            now: The loop's time, in seconds, if the caller knows it.
        """
        if not chunk or self._stream is None:
            return
        if self.busy_since is not None:
            if self._backlog is None:
                self._backlog = []
            self._enqueue(self._backlog, chunk)
            return
        if not self._in_place:
            self._start(chunk)
            return
        self.last_sent = self._loop.time() if now is None else now
        assert self._send is not None
        # A coroutine, as `connect` was told.
        sending: Any = self._send(body_message(chunk))
        try:
            # It needs no task, unless the client makes it wait.
            awaited = sending.send(None)
        except StopIteration:
            self.sent_bytes += len(chunk)
        except BaseException as error:
            self._end(self._failed(error))
        else:
            self._start(chunk, (sending, awaited))

    def hold(self, chunk: bytes) -> None:
        """Keep a chunk until ``release``. It comes after all that is pushed until then."""
        self._held = self._held or []
        self._enqueue(self._held, chunk)

    def release(self) -> None:
        """Send the chunks that were held."""
        held, self._held = self._held, None
        if held:
            self._backlog = [*(self._backlog or ()), *held]
        if self._backlog and self.busy_since is None:
            self._start(b"")

    def finish(self, reason: str, last_bytes: LastBytes) -> None:
        """Send the last bytes after all chunks that were pushed, then end the stream."""
        self._held = None
        self._ending = (reason, last_bytes)
        if self._send and self.busy_since is None:
            self._start(b"")

    def discard(self) -> None:
        """Send nothing more: the stream has ended."""
        self._stream = self._ending = self._backlog = self._held = None
        if self._sending and self._sending is not asyncio.current_task():
            self._sending.cancel()

    def _enqueue(self, waiting: list[bytes], chunk: bytes) -> None:
        waiting.append(chunk)
        self.pending_bytes += len(chunk)
        if self.pending_bytes > conf().BACKLOG_BYTES:
            self._end("backlog full")

    def _start(self, chunk: bytes, begun: _Begun | None = None) -> None:
        """Send a chunk in a task. The arguments are those of ``_drain``."""
        # Set here, and not in the task: without eager start it begins later.
        self.busy_since = self.last_sent = self._loop.time()
        self.pending_bytes += len(chunk)
        task = start_eagerly(self._drain(chunk, begun), self._loop)
        if not task.done():
            self._sending = task

    async def _drain(self, chunk: bytes, begun: _Begun | None = None) -> None:
        """Send a chunk, and all that waits behind it.

        Args:
            chunk: The chunk.
            begun: What sends it and what that waits for, if it has begun.
        """
        assert self._send is not None
        reason = None
        try:
            while True:
                if chunk:
                    await (go_on(*begun) if begun else self._send(body_message(chunk)))
                    begun = None
                    self.pending_bytes -= len(chunk)
                    self.sent_bytes += len(chunk)
                if self._stream is None or reason:
                    break
                if self._backlog:
                    count = filling(map(len, self._backlog), SEND_BYTES)
                    chunk = b"".join(self._backlog[:count])
                    del self._backlog[:count]
                elif self._ending:
                    reason, last_bytes = self._ending
                    chunk = last_bytes()
                    self.pending_bytes += len(chunk)
                else:
                    break
                self.busy_since = self.last_sent = self._loop.time()
        except BaseException as error:
            reason = self._failed(error)
        self.busy_since = self._sending = None
        if reason:
            self._end(reason)

    def _failed(self, error: BaseException) -> str:
        """Return the reason to end the stream after an error of sending.

        Raises:
            BaseException: The error itself, if it must reach the event loop.
        """
        if isinstance(error, CLIENT_GONE):
            return "disconnected"
        if must_propagate(error):
            raise error
        logger.error("Sending to a stream failed, so the stream is ended.", exc_info=error)
        return "send failed"

    def _end(self, reason: str) -> None:
        if self._stream:
            self._stream.end(reason)
