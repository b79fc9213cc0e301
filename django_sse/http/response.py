"""Responses that are event streams, their headers, and the 204 that ends them for good."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from math import inf
from typing import Any, Final, Self

from django.core.exceptions import ImproperlyConfigured
from django.core.handlers.asgi import ASGIRequest
from django.http import HttpRequest, HttpResponse, HttpResponseNotFound, StreamingHttpResponse
from django.http.response import HttpResponseBase

from django_sse.concurrency.tasks import Turns
from django_sse.conf import conf
from django_sse.event import Event, refuse_reserved_name, with_id
from django_sse.exceptions import InvalidGroup
from django_sse.groups.entries import closing_wire
from django_sse.groups.position import TERMINAL_MARK, format_position
from django_sse.http.refusals import (
    REFUSED_STATUS,
    STORE_AWAY,
    is_refused_softly,
    refusals,
    retry_after,
)
from django_sse.http.stream_views import hand_off_of
from django_sse.logs import log_once, logger
from django_sse.servers.shutdown import call_at_shutdown
from django_sse.streaming.hub import current_hub
from django_sse.streaming.jitter import jittered_age, jittered_retry
from django_sse.streaming.limits import TooManyStreams
from django_sse.streaming.stream import HEARTBEAT, Phase, Stream

CONTENT_TYPE: Final = "text/event-stream; charset=utf-8"

# While a stream begins, whether a heartbeat is due or it has to end is looked at this often.
_LOOK_SECONDS: Final = 1.0


def stream_headers(request: HttpRequest) -> dict[str, str]:
    """Return the headers of an event stream, beside its content type.

    They keep caches from storing it, proxies and middleware from buffering or compressing it.
    """
    headers = {
        "Cache-Control": "no-cache, no-store, private, no-transform",
        # nginx buffers otherwise.
        "X-Accel-Buffering": "no",
        # Keeps GZipMiddleware and its like away.
        "Content-Encoding": "identity",
    }
    # HTTP/2 forbids it: RFC 9113, 8.2.2. WSGI servers set it themselves: PEP 3333.
    if isinstance(request, ASGIRequest) and request.scope.get("http_version") == "1.1":
        headers["Connection"] = "keep-alive"
    return headers


def no_store(response: HttpResponseBase) -> HttpResponseBase:
    """Keep caches from storing an answer that may be another one at the next attempt."""
    response["Cache-Control"] = "no-store"
    return response


def no_content() -> HttpResponseBase:
    """Return the 204 that tells EventSource to stop: WHATWG HTML, 9.2.3."""
    return no_store(HttpResponse(status=204))


def not_found(error: InvalidGroup) -> HttpResponseBase:
    """Return the 404 for a name that is no group's."""
    logger.info("Not Found: %s", error)
    return no_store(HttpResponseNotFound())


def last_event_id(request: HttpRequest) -> str:
    """Return the last event id that a client sends: the header, or else the query."""
    # Browsers send it as UTF-8 (WHATWG HTML, 9.2.3); Django decodes headers as latin-1.
    header = request.headers.get("Last-Event-ID", "").encode("latin-1", "replace")
    query = request.GET
    return (
        header.decode("utf-8", "replace")
        or query.get("lastEventId")
        or query.get("last_event_id")
        or ""
    )


class EventStreamResponse(StreamingHttpResponse):
    """A response that is an event stream.

    Raises:
        ImproperlyConfigured: The request came over WSGI, which would hold a worker for each stream.
    """

    def __init__(self, request: HttpRequest, chunks: AsyncIterator[bytes]) -> None:
        if not isinstance(request, ASGIRequest):
            raise ImproperlyConfigured(
                "An event stream was requested over WSGI. Serve the project over ASGI: "
                "django_sse.asgi.get_asgi_application in asgi.py and daphne, uvicorn, hypercorn "
                "or granian; for runserver, `daphne` first in INSTALLED_APPS and ASGI_APPLICATION."
            )
        super().__init__(chunks, content_type=CONTENT_TYPE, headers=stream_headers(request))


class HeadersResponse(EventStreamResponse):
    """The answer to HEAD: an event stream's headers, without the stream.

    It streams, so that no middleware gives it the length or the tag of an empty body.
    """

    def __init__(self, request: HttpRequest) -> None:
        super().__init__(request, _chunks())


def unavailable(
    request: HttpRequest, reason: str, error: BaseException | None = None
) -> HttpResponseBase:
    """Return what sends a client back that cannot be served now, and note that.

    Args:
        request: The request.
        reason: Why, for the log and the count.
        error: What has happened, for the log.
    """
    refusals.note(reason, error)
    if is_refused_softly(request.method, request.headers.get("Accept", "")):
        soft = EventStreamResponse(request, _chunks(jittered_retry()))
        soft[REFUSED_STATUS] = "503"
        return soft
    response = HttpResponse(status=503, headers={"Retry-After": str(retry_after())})
    # Django would log each one as an error, and mail it to the admins.
    response._has_been_logged = True  # type: ignore[attr-defined]
    return no_store(response)


async def _chunks(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


class GroupStreamResponse(EventStreamResponse):
    """A stream of Channels groups: its first bytes, then the hand-off to the ASGI wrapper.

    Args:
        request: The request.
        position: The number in each group that the stream starts after.
        retry: The browser's reconnection time, in seconds.
        reset: Whether the client is told that it has lost events.
        initial_events: The state as of now, for a client that does not know it.
        stream_options: The keyword arguments of ``Stream``.
    """

    def __init__(
        self,
        request: HttpRequest,
        position: Mapping[str, int],
        *,
        retry: float,
        reset: bool,
        initial_events: AsyncGenerator[Event, None] | None,
        stream_options: Mapping[str, Any],
    ) -> None:
        self._position = position
        self._retry = retry
        self._reset = reset
        self._initial_events = initial_events
        self._stream_options = stream_options
        self._hand_off = hand_off_of(request)
        self._contents_set = 0
        self._iterated_whole = False
        super().__init__(request, self._content())

    # A middleware that sets other content, or iterates it itself, wants to see every chunk.

    @property
    def streaming_content(self) -> Any:
        return super().streaming_content

    @streaming_content.setter
    def streaming_content(self, value: Any) -> None:
        self._contents_set += 1
        StreamingHttpResponse.streaming_content.fset(self, value)  # type: ignore[union-attr]

    def __aiter__(self) -> AsyncIterator[bytes]:
        self._iterated_whole = self._contents_set == 1
        return super().__aiter__()

    async def _content(self) -> AsyncGenerator[bytes, None]:
        stream = Stream(current_hub(), self._position, **self._stream_options)
        if self._hand_off:
            self._hand_off.call_on_close(lambda: stream.end("request ended"))
        handed_off = False
        last_chunk = b""
        is_complete = True
        try:
            heartbeat = self._stream_options.get("heartbeat") or inf
            loop = asyncio.get_running_loop()
            sent_at, cut_at = loop.time(), inf
            async with aclosing(_InOneTask(self._begin(stream), stream.ended)) as chunks:
                async for chunk in chunks:
                    if stream.ended.done():
                        return
                    now = loop.time()
                    if stream.phase is Phase.FINISHING:
                        # Who is only sent back may get what is left, if that takes a moment.
                        cut_at = min(cut_at, now if stream.is_barred else now + _LOOK_SECONDS)
                    if now >= cut_at and (last_chunk or not chunk):
                        is_complete = False
                        break
                    if chunk or now - sent_at >= heartbeat:
                        yield (last_chunk := chunk or HEARTBEAT)
                        sent_at = loop.time()
            if stream.ended.done():
                return
            if not is_complete:
                stream.leave_without_position()
                yield (last_chunk := HEARTBEAT)
            if self._hand_off and self._iterated_whole:
                handed_off = self._hand_off.take(stream, last_chunk)
            if not handed_off:
                self._log_staying()
                async for chunk in _in_request(stream):
                    yield chunk
        finally:
            if not handed_off:
                stream.end("request ended")

    async def _begin(self, stream: Stream) -> AsyncGenerator[bytes, None]:
        """Yield what a stream begins with, up to its position."""
        try:
            await stream.open()
        except Exception as error:
            # The status has gone out.
            reached = error.limit if isinstance(error, TooManyStreams) else None
            refusals.note(reached or STORE_AWAY, None if reached else error)
            yield jittered_retry()
            stream.end("refused")
            return
        first = Event(retry=round(self._retry * 1000)).encode()
        if self._reset:
            # Without an id: a client that leaves before the new state is told again.
            first += Event({}, event="reset").encode()
        # A client that leaves before its first event has a position, too.
        checkpoint = with_id(format_position(self._position), b"")
        if self._initial_events is None:
            yield first + checkpoint
            return
        yield first
        turns = Turns()
        async with aclosing(self._initial_events) as events:
            async for event in events:
                if chunk := stream.encode(event):
                    yield chunk
                # Neither the view nor the server need wait for anything here.
                await turns.give_way(len(chunk))
        yield checkpoint

    def _log_staying(self) -> None:
        if self._hand_off is None:
            log_once(
                "A stream stays in its request and keeps a thread and a database connection: "
                "wrap the project's ASGI application in django_sse.asgi.EventStreamApplication."
            )
        else:
            log_once(
                "A stream stays in its request and keeps a thread and a database connection: a "
                "middleware has replaced its response or content, or set an encoding."
            )


class GeneratorResponse(EventStreamResponse):
    """The stream of a view that is an async generator.

    It stays in its request, which the generator may need. When the generator returns, the client is
    left a terminal mark in its ``Last-Event-ID``, so that reconnecting is answered 204.
    """

    def __init__(self, request: HttpRequest, events: AsyncGenerator[Any, None]) -> None:
        self._hand_off = hand_off_of(request)
        self._events = events
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        super().__init__(request, self._content())

    async def _content(self) -> AsyncGenerator[bytes, None]:
        # One task from the generator's start to its end: what it opens, it can close.
        driving = asyncio.create_task(self._drive())
        stop_watching = call_at_shutdown(lambda: self._send_back(driving))
        driving.add_done_callback(lambda _: stop_watching())
        if (age := jittered_age()) < inf:
            growing_old = asyncio.get_running_loop().call_later(age, self._send_back, driving)
            driving.add_done_callback(lambda _: growing_old.cancel())
        driving.add_done_callback(lambda _: self._queue.put_nowait(None))
        if self._hand_off:
            self._hand_off.call_on_close(driving.cancel)
        try:
            yield Event(retry=round(conf().RETRY * 1000)).encode()
            while True:
                try:
                    async with asyncio.timeout(conf().HEARTBEAT):
                        chunk = await self._queue.get()
                except TimeoutError:
                    yield HEARTBEAT
                    continue
                if chunk is None:
                    return
                yield chunk
                self._queue.task_done()
        finally:
            driving.cancel()
            await asyncio.wait([driving])

    def _send_back(self, driving: asyncio.Task[None]) -> None:
        """End the stream so that its client comes back: it is too old, or the server shuts down."""
        if not driving.cancelling():
            self._queue.put_nowait(jittered_retry())
            driving.cancel()

    async def _drive(self) -> None:
        try:
            async with aclosing(self._events) as events:
                async for item in events:
                    event = item if isinstance(item, Event) else Event(item)
                    refuse_reserved_name(event)
                    await self._put(event.encode())
        except Exception:
            # Nothing of it reaches the client, which comes back as after a lost connection.
            logger.exception("A generator view failed; its stream is ended.")
        else:
            await self._put(with_id(TERMINAL_MARK, closing_wire("complete")))

    async def _put(self, chunk: bytes) -> None:
        """Hand on a chunk, and wait until it has gone out."""
        if chunk:
            self._queue.put_nowait(chunk)
            await self._queue.join()


class _InOneTask:
    """Yields some chunks, and empty ones while none comes; stops where the stream has ended.

    One task drives the generator from its start to its end: what it opens, it can close. It is no
    generator itself, which the garbage collector would close beside the one that iterates it.
    """

    def __init__(self, chunks: AsyncGenerator[bytes, None], ended: asyncio.Future[str]) -> None:
        self._chunks = chunks
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._is_out = False
        self._driving = asyncio.create_task(self._drive())
        self._driving.add_done_callback(lambda _: self._queue.put_nowait(None))
        ended.add_done_callback(lambda _: self._driving.cancel())

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if self._is_out:
            # Asked for more: it has gone out.
            self._is_out = False
            self._queue.task_done()
        try:
            async with asyncio.timeout(_LOOK_SECONDS):
                chunk = await self._queue.get()
        except TimeoutError:
            return b""
        if chunk is not None:
            self._is_out = True
            return chunk
        if not self._driving.cancelled():
            self._driving.result()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """End what drives the generator, which closes it."""
        self._driving.cancel()
        await asyncio.wait([self._driving])

    async def _drive(self) -> None:
        async with aclosing(self._chunks):
            async for chunk in self._chunks:
                self._queue.put_nowait(chunk)
                await self._queue.join()


async def _in_request(stream: Stream) -> AsyncGenerator[bytes, None]:
    queue: asyncio.Queue[bytes | None] = asyncio.Queue()

    async def send(chunk: bytes) -> None:
        queue.put_nowait(chunk)
        await queue.join()

    stream.ended.add_done_callback(lambda _: queue.put_nowait(None))
    stream.serve(send)
    while (chunk := await queue.get()) is not None:
        yield chunk
        # Resumed: the chunk has gone out.
        queue.task_done()
