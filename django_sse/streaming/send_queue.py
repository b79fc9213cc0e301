"""What waits to be sent to a client: one chunk is on its way, the others wait, bounded in bytes."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from django_sse.concurrency.tasks import is_order, start_eagerly
from django_sse.conf import conf
from django_sse.groups.replay import filling
from django_sse.logs import log_seldom, logger
from django_sse.stores.base import READ_BYTES

CLIENT_GONE: Final = (OSError, RuntimeError)
"""What a server's ``send`` may raise for a client that has gone: an OSError, as ASGI says, or the
RuntimeError of uvloop below uvicorn, where that has not heard of it yet."""

# With how many bytes a send is full, however few events that are: the server has a copy of them for
# as long as its client does not read.
SEND_BYTES: Final = READ_BYTES

Send = Callable[[bytes], Awaitable[None]]
LastBytes = Callable[[], bytes]


class SendQueue:
    """Sends the chunks of one stream, one after the other.

    A client that lets more than BACKLOG_BYTES wait is too slow: its stream ends, and it resumes
    from its last id. So nothing is lost, and nothing piles up.

    Args:
        loop: The running loop.
        end: Called with the reason when nothing more can be sent, or the last bytes have gone out.
    """

    __slots__ = (
        "_backlog",
        "_end",
        "_held",
        "_last",
        "_loop",
        "_pending_bytes",
        "_send",
        "_sending",
        "busy_since",
        "last_sent",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, end: Callable[[str], None]) -> None:
        self._loop = loop
        self._end: Callable[[str], None] | None = end
        self._send: Send | None = None
        self._sending: asyncio.Task[None] | None = None
        # The loop's times at which the chunk that is on its way was sent, and any chunk was last.
        self.busy_since: float | None = None
        self.last_sent = loop.time()
        self._backlog: list[bytes] = []
        self._held: list[bytes] = []
        # Of what is on its way, what waits for that, and what is held.
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
        if not chunk or self._end is None:
            return
        if self.busy_since is not None:
            self._backlog.append(chunk)
            self._count(chunk)
        else:
            self._pending_bytes += len(chunk)
            self._start(chunk)

    def hold(self, chunk: bytes) -> None:
        """Keep a chunk that is to be sent after what the stream has yet to catch up with."""
        self._held.append(chunk)
        self._count(chunk)

    def release(self) -> None:
        """Push what was held."""
        held, self._held = b"".join(self._held), []
        self._pending_bytes -= len(held)
        self.push(held)

    def finish(self, reason: str, last_bytes: LastBytes) -> None:
        """Send the last bytes after all that was pushed, then end the stream."""
        self._last = (reason, last_bytes)
        if self._send and self.busy_since is None:
            self._start(b"")

    def discard(self) -> None:
        """Send nothing more: the stream has ended."""
        self._end = self._last = None
        self._backlog.clear()
        self._held.clear()
        if self._sending and self._sending is not asyncio.current_task():
            self._sending.cancel()

    def _count(self, chunk: bytes) -> None:
        self._pending_bytes += len(chunk)
        if self._pending_bytes > conf().BACKLOG_BYTES and self._end:
            self._end("backlog full")

    def _start(self, chunk: bytes) -> None:
        # From here on, and not only once the task has begun, which without eager start is later.
        self.busy_since = self._loop.time()
        task = start_eagerly(self._drain(chunk))
        if not task.done():
            self._sending = task

    async def _drain(self, chunk: bytes) -> None:
        reason = None
        while True:
            if chunk:
                await self._send_now(chunk)
            if reason or self._end is None:
                break
            if self._backlog:
                count = filling(map(len, self._backlog), SEND_BYTES)
                chunk = b"".join(self._backlog[:count])
                del self._backlog[:count]
            elif self._last:
                reason, last_bytes = self._last
                chunk = self._farewell(last_bytes)
            else:
                break
        self.busy_since = self._sending = None
        if reason and self._end:
            self._end(reason)

    def _farewell(self, last_bytes: LastBytes) -> bytes:
        try:
            chunk = last_bytes()
        except Exception as error:
            log_seldom(
                "A stream ends without a word to its client.",
                level=logging.ERROR,
                exc_info=error,
            )
            return b""
        self._pending_bytes += len(chunk)
        return chunk

    async def _send_now(self, chunk: bytes) -> None:
        assert self._send is not None
        self.busy_since = self.last_sent = self._loop.time()
        try:
            await self._send(chunk)
        except CLIENT_GONE:
            self._fail("disconnected")
        except BaseException as error:
            if is_order(error):
                raise
            logger.exception("Sending to a stream failed; it is ended.")
            self._fail("send failed")
        self._pending_bytes -= len(chunk)

    def _fail(self, reason: str) -> None:
        if self._end:
            self._end(reason)
