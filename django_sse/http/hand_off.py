"""The hand-off: a stream goes on after Django has finished its request.

Django runs the view and every middleware, and sends the status, the headers and the stream's first
bytes. Then it finishes, which releases the request's thread and database connection. The hand-off
holds back the end of the body, and the stream goes on with the server's own ``send``.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from contextlib import aclosing
from contextvars import Context
from functools import partial
from inspect import iscoroutinefunction
from typing import Any, Final, cast

from django.http import StreamingHttpResponse

from django_sse.concurrency.forks import in_child
from django_sse.concurrency.loops import ByLoop
from django_sse.concurrency.tasks import limited
from django_sse.conf import conf
from django_sse.http.compression import GzipSender, accepts_gzip
from django_sse.logs import logger
from django_sse.servers.backpressure import Brake, brake_for
from django_sse.servers.dead_peers import bound_silence
from django_sse.servers.own_send import needs_no_task
from django_sse.streaming.jitter import jittered_retry
from django_sse.streaming.send_queue import CLIENT_GONE, body_message
from django_sse.streaming.stream import Phase, Stream

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

# How long sending the end of a stream may take if the client does not read.
_FAREWELL_SECONDS: Final = 1.0
# How long a server that cuts streams off must wait, so that it still writes what it was given.
# Daphne goes on as soon as the first stream is over, so this must be enough for all.
_LINGER_SECONDS: Final = 0.5

# What is called at the end of a stream needs no more than an empty context.
_contexts: Final[ByLoop[Context]] = ByLoop()
in_child(_contexts.clear)


class HandOff:
    """Stands between Django and the server for one request, and takes over its stream."""

    __slots__ = (
        "_begun",
        "_brake",
        "_closed",
        "_disconnected",
        "_ended",
        "_given_up",
        "_in_place",
        "_is_event_stream",
        "_last_body",
        "_may_hand_off",
        "_on_close",
        "_over",
        "_receive",
        "_receiving",
        "_scope",
        "_send",
        "_stream",
        "cookie",
        "is_for_stream",
        "is_unchanged",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.is_for_stream = False
        """Whether the request has reached a view that is an event stream."""
        self.cookie: bytes | None = None
        """The ``Set-Cookie`` of the response, if the stream may be handed off."""
        self.is_unchanged: Callable[[], bool] = _always
        """Whether the response still has the content that its view has given it. Asked once, as the
        response begins."""
        # Until the response has begun.
        self._scope: Scope | None = scope
        self._receive = receive
        self._send = send
        # The request's stream, and again the same once it is taken over.
        self._begun: Stream | None = None
        self._stream: Stream | None = None
        # Whether the response is an event stream, and whether this stream may be handed off.
        self._is_event_stream = False
        self._may_hand_off = False
        self._receiving: asyncio.Timeout | None = None
        self._given_up = False
        self._last_body = b""
        self._ended = False
        self._over = False
        self._disconnected = False
        self._closed = False
        self._on_close: tuple[Callable[[], object], ...] = ()
        self._brake: Brake | None = None
        self._in_place = needs_no_task(send)

    def begin(self, stream: Stream) -> None:
        """Take note of the request's stream, which ends with the request unless it is taken
        over."""
        if self._closed:
            stream.end("request ended")
            return
        if self._begun:
            # A middleware has read some of another response, and sends this one.
            self.call_on_close(partial(self._begun.end, "request ended"))
        self._begun = stream

    async def receive(self) -> Message:
        """Pass on what the server receives, and remember a disconnect."""
        try:
            async with asyncio.timeout(0 if self._given_up else None) as self._receiving:
                message = await self._receive()
        except TimeoutError:
            if not self._given_up:
                raise
            return {"type": "http.disconnect"}
        finally:
            self._receiving = None
        if message["type"] == "http.disconnect":
            self._disconnected = True
            self._release()
        return message

    async def send(self, message: Message) -> None:
        """Pass on what Django sends, except for the end of a body that goes on."""
        if self._over:
            # Django before 6.1 goes on after the server has cancelled its task. A dropped body may
            # be endless and never wait, so let other tasks run.
            await asyncio.sleep(0)
            return
        if message["type"] == "http.response.start":
            message = self._seen_start(message)
        elif message["type"] == "http.response.body":
            body = message.get("body", b"")
            self._last_body = body or self._last_body
            if not message.get("more_body", False):
                if not self._stream:
                    self._over = True
                    self._release()
                else:
                    self._ended = True
                    if not body:
                        return
                    message = {**message, "more_body": True}
        if not self._is_event_stream:
            await self._send(message)
            return
        try:
            await limited(self._send(message), conf().SEND_TIMEOUT or None)
        except TimeoutError:
            self._give_up()

    async def respond(self, response: StreamingHttpResponse) -> None:
        """Send a response as Django does, for a request that Django does not see."""
        headers = [
            (name.encode("ascii"), value.encode("latin-1")) for name, value in response.items()
        ]
        start = {"type": "http.response.start", "status": response.status_code, "headers": headers}
        await self.send(start)
        async with aclosing(cast("AsyncGenerator[bytes, None]", aiter(response))) as chunks:
            # Django would hear that the client has gone. Nobody does here before the stream is
            # taken over, so what was given up must end.
            while not self._given_up and (chunk := await anext(chunks, None)) is not None:
                await self.send(body_message(chunk))
        await self.send(body_message(b"", more=False))

    def _give_up(self) -> None:
        """Tell Django that the client has gone, since it does not read and blocks the request."""
        logger.info("A client did not read its stream, so the stream is ended.")
        self._over = self._given_up = True
        self._stop_receiving()

    def take(self, stream: Stream, last_chunk: bytes) -> bool:
        """Take over a stream if its last chunk went out as the body of an event stream.

        Otherwise a middleware has set an encoding or replaced the response.

        Returns:
            Whether the stream is taken over.
        """
        if self._may_hand_off and self._last_body == last_chunk:
            self._stream, self._last_body = stream, b""
        return self._stream is not None

    def call_on_close(self, callback: Callable[[], object]) -> None:
        """Call back when the request is over, however it ends, or at once if it already is."""
        if self._closed:
            callback()
        else:
            self._on_close += (callback,)

    async def serve(self) -> None:
        """Serve the stream that was taken over, if there is one, until it ends."""
        stream = self._stream
        if self._given_up and not self._disconnected:
            await self._send_end()
        if stream is None or not self._ended:
            return
        if self._disconnected:
            stream.end("disconnected")
            return
        if (task := asyncio.current_task()) and task.cancelling():
            # The server has cut the stream off. Django, or its TaskGroup before Python 3.13, loses
            # that if it happens at the end of the request.
            raise asyncio.CancelledError
        # Only a coroutine can be begun outside of a task, and Granian's `send` returns none.
        wraps = self._in_place and not iscoroutinefunction(self._send)
        send = self._send_in_coroutine if wraps else self._send
        stream.serve(send, in_place=self._in_place)
        try:
            async with asyncio.timeout(None) as self._receiving:
                # Streams share one context. Each would keep its own until its end.
                context = _contexts.of(stream.ended.get_loop(), Context)
                stream.ended.add_done_callback(self._stop_receiving, context=context)
                while (await self._receive())["type"] != "http.disconnect":
                    pass
            self._disconnected = True
        except TimeoutError:
            if not stream.ended.done():
                raise
        finally:
            self._receiving = None
        if self._disconnected:
            self._release()
            stream.end("disconnected")
        else:
            await self._send_end()

    async def send_back(self) -> None:
        """End a stream that the server cuts off, so that its client reconnects.

        Daphne cuts off all streams when it shuts down, other servers do so after a timeout.
        """
        # Leave alone a response that is not the library's, or is in the middle of an event.
        is_whole = self._stream or self._last_body.endswith(b"\n\n")
        is_own = self._may_hand_off and self._begun and is_whole
        if not is_own or self._over or self._disconnected:
            return
        # A stream that has sent its own last bytes sends nothing more.
        has_its_end = self._stream and self._stream.phase in (Phase.FINISHING, Phase.ENDED)
        self.close()
        await self._send_end(b"" if has_its_end else jittered_retry())
        await asyncio.sleep(_LINGER_SECONDS)

    def close(self) -> None:
        """Release what the request still holds.

        This is needed because Django before 6.1 does not run the ``finally`` of a response whose
        ASGI task is cancelled, and goes on with a view that has not answered yet.
        """
        self._closed = True
        self._release()
        begun, callbacks = self._begun, self._on_close
        # Not even a circle of references is left.
        self._begun, self._stream, self._on_close = None, None, ()
        if begun:
            callbacks = (partial(begun.end, "request ended"), *callbacks)
        for callback in callbacks:
            try:
                callback()
            except Exception:
                logger.exception("The resources of a request could not be released.")

    def _seen_start(self, message: Message) -> Message:
        scope, self._scope = self._scope or {}, None
        headers = [(name.lower(), value) for name, value in message.get("headers", ())]
        types = [value for name, value in headers if name == b"content-type"]
        self._is_event_stream = any(value.startswith(b"text/event-stream") for value in types)
        if not self._is_event_stream:
            return message
        identity = (b"content-encoding", b"identity")
        kept = [header for header in headers if header != identity]
        names = {name for name, _ in kept}
        encoded = b"content-encoding" in names
        self._may_hand_off = message["status"] == 200 and not encoded
        # A middleware may refuse the client by a stream of its own, which has no such header.
        is_own = identity in headers and self.is_unchanged()
        if self._may_hand_off and self.cookie and is_own:
            kept.append((b"set-cookie", self.cookie))
        self.cookie, self.is_unchanged = None, _always
        bound_silence(scope.get("client"))
        if brake := brake_for(self._send):
            self._brake, self._send = brake, brake.send
        # "identity" has kept compressing middleware away. RFC 9110, 8.4.1: it should not be sent.
        compresses = conf().COMPRESS and identity in headers and not encoded
        # A project's own response may say how long its plain body is.
        if compresses and b"content-length" not in names:
            kept.append((b"vary", b"Accept-Encoding"))
            if accepts_gzip(scope.get("headers", ())):
                kept.append((b"content-encoding", b"gzip"))
                # HEAD has no body to compress.
                if scope.get("method") != "HEAD":
                    self._send = GzipSender(self._send).send
        return {**message, "headers": kept}

    async def _send_in_coroutine(self, message: Message) -> None:
        await self._send(message)

    async def _send_end(self, last_chunk: bytes = b"") -> None:
        self._over = True
        self._release()
        try:
            async with asyncio.timeout(_FAREWELL_SECONDS):
                await self._send(body_message(last_chunk, more=False))
        except CLIENT_GONE:
            # Or a timeout. Without the end of the body, the server drops the connection.
            logger.info("A client did not take the end of its stream.")

    def _stop_receiving(self, _: object = None) -> None:
        if self._receiving:
            self._receiving.reschedule(0)

    def _release(self) -> None:
        if self._brake:
            self._brake.release()


def _always() -> bool:
    return True
