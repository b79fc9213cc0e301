"""Responses that are event streams, their headers, and the 204 that ends a stream for good."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, MutableMapping
from contextlib import aclosing
from contextvars import copy_context
from math import inf
from typing import Any, Final, Self
from weakref import finalize

from django.core.exceptions import ImproperlyConfigured
from django.core.handlers.asgi import ASGIRequest
from django.http import HttpRequest, HttpResponse, HttpResponseNotFound, StreamingHttpResponse
from django.http.response import HttpResponseBase

from django_sse.concurrency.tasks import Turns, start_eagerly
from django_sse.event import Event, with_id
from django_sse.exceptions import InvalidGroup
from django_sse.groups.position import format_position
from django_sse.http.refusals import (
    REFUSED_STATUS,
    STORE_AWAY,
    THROTTLED,
    is_refused_softly,
    retry_after,
    told,
)
from django_sse.http.stream_views import hand_off_of
from django_sse.logs import log_once, logger
from django_sse.streaming.hub import current_hub
from django_sse.streaming.jitter import first_retry, jittered_retry, jittered_seconds, retry_field
from django_sse.streaming.limits import TooManyStreams
from django_sse.streaming.stream import HEARTBEAT, Phase, StoreAwayError, Stream
from django_sse.streaming.tally import refusals

CONTENT_TYPE: Final = "text/event-stream; charset=utf-8"
PLAIN_TEXT: Final = "text/plain; charset=utf-8"

# While a stream begins, how often it checks whether a heartbeat is due, or whether it must end.
_CHECK_SECONDS: Final = 1.0

_OVER_WSGI: Final = (
    "An event stream was requested over WSGI. Serve the project over ASGI: use "
    "django_sse.asgi.get_asgi_application in asgi.py, and daphne, uvicorn, hypercorn or granian. "
    "For runserver, put `daphne` first in INSTALLED_APPS and set ASGI_APPLICATION."
)
_IN_TESTS: Final = (
    "In tests, replace LiveServerTestCase and StaticLiveServerTestCase by "
    "channels.testing.ChannelsLiveServerTestCase, and Client.get by "
    "django_sse.testing.open_stream(client, path)."
)


def stream_headers(request: HttpRequest) -> dict[str, str]:
    """Return the headers of an event stream, without its content type.

    They keep caches from storing the stream, and proxies and middleware from buffering or
    compressing it.
    """
    headers = {
        "Cache-Control": "no-cache, no-store, private, no-transform",
        # Without it, nginx buffers.
        "X-Accel-Buffering": "no",
        # Keeps GZipMiddleware and other compressing middleware away.
        "Content-Encoding": "identity",
    }
    # HTTP/2 forbids this header: RFC 9113, 8.2.2. WSGI servers set it themselves: PEP 3333.
    if isinstance(request, ASGIRequest) and request.scope.get("http_version") == "1.1":
        headers["Connection"] = "keep-alive"
    return headers


def no_store(response: HttpResponseBase) -> HttpResponseBase:
    """Keep caches from storing a response that may be different at the next attempt."""
    response["Cache-Control"] = "no-store"
    return response


def refused(status: int, why: str) -> HttpResponseBase:
    """Return the refusal of a request that a client sends again only if it is another one."""
    return no_store(HttpResponse(why, status=status, content_type=PLAIN_TEXT))


def no_content() -> HttpResponseBase:
    """Return the 204 that tells EventSource to stop: WHATWG HTML, 9.2.3."""
    return no_store(HttpResponse(status=204))


def not_found(error: InvalidGroup) -> HttpResponseBase:
    """Return the 404 for an invalid group name, and log the error."""
    logger.info("Not Found: %s", error)
    return no_store(HttpResponseNotFound(told(error), content_type=PLAIN_TEXT))


def last_event_id(request: HttpRequest) -> str:
    """Return the last event id that a client sent, from the header or else from the query."""
    # Browsers send it as UTF-8 (WHATWG HTML, 9.2.3), but Django decodes headers as latin-1.
    header: str = request.META.get("HTTP_LAST_EVENT_ID", "")
    if header:
        return header.encode("latin-1", "replace").decode("utf-8", "replace")
    return request.GET.get("lastEventId") or request.GET.get("last_event_id") or ""


class EventStreamResponse(StreamingHttpResponse):
    """A response that is an event stream.

    Raises:
        ImproperlyConfigured: The request came over WSGI, where each stream would hold a worker.
    """

    def __init__(self, request: HttpRequest, chunks: AsyncIterator[bytes]) -> None:
        if not isinstance(request, ASGIRequest):
            # A server answers 500 and says why to nobody, unless the project logs it.
            log_once(f"{_OVER_WSGI} {_IN_TESTS}", level=logging.ERROR)
            raise ImproperlyConfigured(f"{_OVER_WSGI} {_IN_TESTS}")
        super().__init__(chunks, content_type=CONTENT_TYPE, headers=stream_headers(request))


class HeadersResponse(EventStreamResponse):
    """The response to HEAD: an event stream's headers, without the stream.

    It is a streaming response, so that no middleware adds the length or the ETag of an empty body.
    """

    def __init__(self, request: HttpRequest) -> None:
        super().__init__(request, _chunks())


def unavailable(
    request: HttpRequest, reason: str, error: BaseException | None = None
) -> HttpResponseBase:
    """Return the response for a client that cannot be served now and should come back.

    Also counts and logs the refusal.

    Args:
        request: The request.
        reason: The reason, for the log and the count.
        error: The error that caused the refusal, for the log.
    """
    refusals.note(reason, error)
    why = told(error or reason)
    if is_refused_softly(request.method, request.headers.get("Accept", "")):
        comment = Event(comment=why).encode() if why else b""
        soft = EventStreamResponse(request, _chunks(comment + jittered_retry()))
        soft[REFUSED_STATUS] = "503"
        return soft
    headers = {"Retry-After": str(retry_after())}
    response = HttpResponse(why, PLAIN_TEXT, status=503, headers=headers)
    # Otherwise Django logs each one as an error, and mails it to the admins.
    response._has_been_logged = True  # type: ignore[attr-defined]
    return no_store(response)


def throttled(request: HttpRequest, seconds: float) -> HttpResponseBase:
    """Return the refusal of an EventSource that is to come back, but not before some seconds."""
    refusals.note(THROTTLED)
    soft = EventStreamResponse(request, _chunks(retry_field(seconds + jittered_seconds())))
    soft[REFUSED_STATUS] = "429"
    return soft


async def _chunks(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


def _sent_back(error: Exception) -> bytes:
    """Note why a stream cannot begin, and return the bytes that make its client come back later.

    It is too late for a 503, since the status has gone out.
    """
    reached = error.limit if isinstance(error, TooManyStreams) else None
    refusals.note(reached or STORE_AWAY, None if reached else error)
    return jittered_retry()


class HandedOffResponse(EventStreamResponse):
    """A stream that sends its first bytes, and is then handed off to the ASGI wrapper.

    Args:
        request: The request.
        position: The number in each group that the stream starts after. A generator has no groups.
        retry: The browser's reconnection time, in milliseconds: each is told up to twice that.
        reset: Whether to tell the client that it has lost events.
        newest_of_keys: Whether the client is sent the newest event of each key.
        initial_events: The current state, for a client that does not know it; otherwise None.
        release: Gives up the place that limits keep for the stream until it begins, if they do.
        stream_options: The keyword arguments of ``Stream``.
    """

    def __init__(
        self,
        request: HttpRequest,
        position: Mapping[str, int],
        *,
        retry: int,
        reset: bool = False,
        newest_of_keys: bool = False,
        initial_events: AsyncGenerator[Event, None] | None = None,
        release: Callable[[], None] | None = None,
        stream_options: Mapping[str, Any],
    ) -> None:
        self._position = position
        self._retry = retry
        self._reset = reset
        self._newest_of_keys = newest_of_keys
        self._initial_events = initial_events
        self.stays_because = ""
        """Why the stream needs its request and must not be handed off, if it does."""
        self._stream_options = stream_options
        self.is_sent_past_django = False
        """Whether a ticket has resumed the stream."""
        self._close_request = request.close
        self._place = finalize(self, release) if release else None
        self._hand_off = hand_off_of(request)
        self._contents_set = 0
        self._iterated_whole = False
        if self._hand_off:
            self._hand_off.is_unchanged = self._is_unchanged
            if self._place:
                # A middleware may send another response, and something may hold this one.
                self._hand_off.call_on_close(self._place)
        super().__init__(request, self._content())

    def give_up_place(self) -> None:
        """Have the stream not count any more, before it begins."""
        if self._place:
            self._place()

    # A middleware that sets other content, or iterates over it, wants to see every chunk. Then the
    # stream must stay in its request.

    @property
    def streaming_content(self) -> Any:
        return super().streaming_content

    @streaming_content.setter
    def streaming_content(self, value: Any) -> None:
        self._contents_set += 1
        StreamingHttpResponse.streaming_content.fset(self, value)  # type: ignore[union-attr]

    def _is_unchanged(self) -> bool:
        return self._contents_set == 1 and not self.stays_because and self._is_outermost()

    def _is_outermost(self) -> bool:
        """Whether Django sends this response, and not one of a middleware that reads this one.

        Django has the response that it sends close the request.
        """
        closers = getattr(self, "_resource_closers", ())
        return self.is_sent_past_django or self._close_request in closers

    def __aiter__(self) -> AsyncIterator[bytes]:
        self._iterated_whole = self._is_unchanged()
        return super().__aiter__()

    async def _content(self) -> AsyncGenerator[bytes, None]:
        stream = Stream(current_hub(), self._position, **self._stream_options)
        if self._hand_off:
            self._hand_off.begin(stream)
        # What it logs has the request's context.
        opening = start_eagerly(self._open(stream), asyncio.get_running_loop(), copy_context())
        handed_off = False
        last_chunk = b""
        is_complete = True
        try:
            heartbeat = self._stream_options.get("heartbeat") or inf
            loop = asyncio.get_running_loop()
            sent_at, cut_at = loop.time(), inf
            async with aclosing(self._beginning(stream, opening)) as chunks:
                async for chunk in chunks:
                    if stream.ended.done():
                        return
                    now = loop.time()
                    if stream.phase is Phase.FINISHING:
                        # A client that is only to reconnect may briefly get what is left.
                        cut_at = min(cut_at, now if stream.is_barred else now + _CHECK_SECONDS)
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
            if handed_off:
                stream.leave_request()
            else:
                self._log_staying()
                async for chunk in _in_request(stream):
                    yield chunk
        finally:
            opening.cancel()
            # The traceback of its error holds this frame.
            del opening
            if not handed_off:
                stream.end("request ended")

    def _beginning(
        self, stream: Stream, opening: asyncio.Task[None]
    ) -> "AsyncGenerator[bytes, None] | _InOneTask":
        """Return an iterator over the beginning of a stream, with empty chunks while it waits."""
        beginning = self._begin(stream, opening)
        waits = not opening.done() or self._newest_of_keys or self._initial_events
        return _InOneTask(beginning, stream.ended) if waits else beginning

    async def _begin(
        self, stream: Stream, opening: asyncio.Task[None]
    ) -> AsyncGenerator[bytes, None]:
        """Yield the beginning of a stream, up to its position."""
        try:
            await opening
        except Exception as error:
            # The traceback of the error holds this frame.
            del opening
            yield _sent_back(error)
            stream.end("refused")
            return
        if stream.dialect is not None:
            # Something, so that a server sends the headers.
            yield HEARTBEAT
            return
        first = first_retry(self._retry)
        if self._reset:
            stream.note_reset()
            # Without an id: a client that leaves before it has the new state gets the reset again.
            first += Event("{}", event="reset").encode()
        # This gives a position also to a client that leaves before its first event.
        checkpoint = with_id(format_position(self._position), b"") if self._position else b""
        if not (self._newest_of_keys or self._initial_events):
            yield first + checkpoint
            return
        yield first
        turns = Turns()
        if self._newest_of_keys:
            try:
                async with aclosing(stream.newest_of_keys()) as chunks:
                    async for chunk in chunks:
                        if chunk:
                            yield chunk
                        await turns.give_way(len(chunk))
            except StoreAwayError as error:
                yield _sent_back(error)
                stream.end("store away")
                return
        if self._initial_events:
            async with aclosing(self._initial_events) as events:
                async for event in events:
                    if chunk := stream.encode(event):
                        yield chunk
                    # Neither the view nor the server has to wait here, so let other tasks run.
                    await turns.give_way(len(chunk))
        yield checkpoint

    async def _open(self, stream: Stream) -> None:
        # It counts from here on by itself: nothing else runs in between.
        self.give_up_place()
        await stream.open()

    def _log_staying(self) -> None:
        if self._hand_off is None:
            why = "wrap the project's ASGI application in django_sse.asgi.EventStreamApplication"
        else:
            why = self.stays_because or (
                "a middleware has replaced its response or content, or set an encoding"
            )
        log_once(
            f"A stream stays in its request and keeps a thread and a database connection: {why}."
        )


class _InOneTask:
    """Yields the chunks of a generator, and empty ones while it waits, until the stream has ended.

    One task runs the generator from start to end, so that it can close what it opens. This class is
    not a generator itself, because the garbage collector could close a generator while another
    task iterates over it.
    """

    def __init__(self, chunks: AsyncGenerator[bytes, None], ended: asyncio.Future[str]) -> None:
        self._chunks = chunks
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._is_out = False
        self._driving = asyncio.create_task(self._drive())
        self._driving.add_done_callback(lambda _: self._queue.put_nowait(None))
        self._ended = ended
        ended.add_done_callback(self._stop)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if self._is_out:
            # The caller asks for more, so the last chunk has gone out.
            self._is_out = False
            self._queue.task_done()
        try:
            async with asyncio.timeout(_CHECK_SECONDS):
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
        """End the task that runs the generator, which closes the generator."""
        # The stream goes on after its beginning, and would keep all of this in memory.
        self._ended.remove_done_callback(self._stop)
        if not self._driving.done():
            self._driving.cancel()
            await asyncio.wait([self._driving])

    def _stop(self, ended: asyncio.Future[str]) -> None:
        self._driving.cancel()

    async def _drive(self) -> None:
        async with aclosing(self._chunks):
            async for chunk in self._chunks:
                self._queue.put_nowait(chunk)
                await self._queue.join()


async def _in_request(stream: Stream) -> AsyncGenerator[bytes, None]:
    queue: asyncio.Queue[bytes | None] = asyncio.Queue()

    async def send(message: MutableMapping[str, Any]) -> None:
        queue.put_nowait(message["body"])
        await queue.join()

    stream.ended.add_done_callback(lambda _: queue.put_nowait(None))
    stream.serve(send)
    while (chunk := await queue.get()) is not None:
        yield chunk
        # The caller asks for more, so the chunk has gone out.
        queue.task_done()
