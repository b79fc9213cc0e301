"""What waits to be sent to a client: one chunk is on its way, the others wait, bounded in bytes."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from django_sse.concurrency.tasks import must_propagate, start_eagerly
from django_sse.conf import conf
from django_sse.groups.replay import filling
from django_sse.logs import logger
from django_sse.stores.read_limits import READ_BYTES

CLIENT_GONE: Final = (OSError, RuntimeError)
"""What a server's ``send`` may raise for a client that has gone: an OSError, as ASGI says, or the
RuntimeError of uvloop below uvicorn, where that has not heard of it yet."""

# With how many bytes a send is full, however few events that are: the server has a copy of them for
# as long as its client does not read.
SEND_BYTES: Final = READ_BYTES

Send = Callable[[bytes], Awaitable[None]]
LastBytes = Callable[[], bytes]


class Sender(Protocol):
    """A stream, as far as its queue knows it."""

    def end(self, reason: str) -> None:
        """End now."""


class SendQueue:
    """Sends the chunks of one stream, one after the other.

    A client that lets more than BACKLOG_BYTES wait is too slow: its stream ends, and it resumes
    from its last id. So nothing is lost, and nothing piles up.

    Args:
        loop: The running loop.
        stream: Whose chunks they are. It is ended when no more can be sent, and after its last
            bytes.
    """

    __slots__ = (
        "_backlog",
        "_held",
        "_last",
        "_loop",
        "_pending_bytes",
        "_send",
        "_sending",
        "_stream",
        "busy_since",
        "last_sent",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, stream: Sender) -> None:
        self._loop = loop
        self._stream: Sender | None = stream
        self._send: Send | None = None
        self._sending: asyncio.Task[None] | None = None
        # The loop's times at which the chunk that is on its way was sent, and any chunk was last.
        self.busy_since: float | None = None
        self.last_sent = loop.time()
        self._backlog: list[bytes] = []
        self._held: list[bytes] = []
        # Of what is on its way, and of what waits.
        self._pending_bytes = 0
        # The reason to end, and what is sent before that.
        self._last: tuple[str, LastBytes] | None = None

    def connect(self, send: Send) -> None:
        """Give the queue its connection. Nothing is pushed before, but it may have its end."""
        self._send = send
        if self._last:
            self._start(b"")

    async def idle(self) -> None:
        """Wait until all that was pushed has gone out."""
        if self._sending:
            await asyncio.wait([self._sending])

    def push(self, chunk: bytes) -> None:
        """Send a chunk, after those that were pushed before."""
        if not chunk or self._stream is None:
            return
        if self.busy_since is not None:
            self._wait(self._backlog, chunk)
        else:
            self._pending_bytes += len(chunk)
            self._start(chunk)

    def hold(self, chunk: bytes) -> None:
        """Keep a chunk until ``release``: it comes after what is pushed until then."""
        self._wait(self._held, chunk)

    def release(self) -> None:
        """Send what was held."""
        self._backlog += self._held
        self._held.clear()
        if self._backlog and self.busy_since is None:
            self._start(b"")

    def finish(self, reason: str, last_bytes: LastBytes) -> None:
        """Send the last bytes after all that was pushed, then end the stream."""
        self._held.clear()
        self._last = (reason, last_bytes)
        if self._send and self.busy_since is None:
            self._start(b"")

    def discard(self) -> None:
        """Send nothing more: the stream has ended."""
        self._stream = self._last = None
        self._backlog.clear()
        self._held.clear()
        if self._sending and self._sending is not asyncio.current_task():
            self._sending.cancel()

    def _wait(self, backlog: list[bytes], chunk: bytes) -> None:
        backlog.append(chunk)
        self._pending_bytes += len(chunk)
        if self._pending_bytes > conf().BACKLOG_BYTES:
            self._end("backlog full")

    def _start(self, chunk: bytes) -> None:
        # From here on, and not only once the task has begun, which without eager start is later.
        self.busy_since = self.last_sent = self._loop.time()
        task = start_eagerly(self._drain(chunk))
        if not task.done():
            self._sending = task

    async def _drain(self, chunk: bytes) -> None:
        assert self._send is not None
        reason = None
        try:
            while True:
                if chunk:
                    await self._send(chunk)
                    self._pending_bytes -= len(chunk)
                if self._stream is None or reason:
                    break
                if self._backlog:
                    count = filling(map(len, self._backlog), SEND_BYTES)
                    chunk = b"".join(self._backlog[:count])
                    del self._backlog[:count]
                elif self._last:
                    reason, last_bytes = self._last
                    chunk = last_bytes()
                    self._pending_bytes += len(chunk)
                else:
                    break
                self.busy_since = self.last_sent = self._loop.time()
        except CLIENT_GONE:
            reason = "disconnected"
        except BaseException as error:
            if must_propagate(error):
                raise
            logger.exception("Sending to a stream failed; it is ended.")
            reason = "send failed"
        self.busy_since = self._sending = None
        if reason:
            self._end(reason)

    def _end(self, reason: str) -> None:
        if self._stream:
            self._stream.end(reason)
