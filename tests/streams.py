"""Streams of views, read in this process: as a client sees them, without a server."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Self, cast

from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.test import AsyncRequestFactory

from django_sse import apublish
from django_sse.event import Decoder, Event
from django_sse.views import EventStreamView

View = Callable[..., Any]

# Generous: nothing takes nearly as long, unless it never comes.
TIMEOUT = 10.0


async def until(condition: Callable[[], object]) -> None:
    """Wait until something has become true."""
    async with asyncio.timeout(TIMEOUT):
        while not condition():
            await asyncio.sleep(0.002)


def get(
    path: str = "/",
    *,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    http_version: str = "1.1",
) -> HttpRequest:
    """Return a request as a server makes it."""
    # The factory would take it for a header.
    request = AsyncRequestFactory().generic(method, path, headers=headers)
    request.scope = {**request.scope, "http_version": http_version}
    return request


class EventReader:
    """Reads a response as an EventSource does."""

    def __init__(self, response: HttpResponseBase) -> None:
        assert isinstance(response, StreamingHttpResponse), response
        self.response = response
        self.received = b""
        self.ended = False
        self._decoder = Decoder()
        self._events: asyncio.Queue[Event | None] = asyncio.Queue()
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        try:
            async for chunk in cast("AsyncIterator[bytes]", self.response):
                self.received += chunk
                for event in self._decoder.feed(chunk):
                    self._events.put_nowait(event)
        finally:
            self.ended = True
            self._events.put_nowait(None)

    @property
    def text(self) -> str:
        """All that was received."""
        return self.received.decode()

    @property
    def last_event_id(self) -> str:
        """What this client would send as ``Last-Event-ID``."""
        return self._decoder.last_event_id

    @property
    def reconnection_time(self) -> int | None:
        """The milliseconds that this client would wait before it reconnects."""
        return self._decoder.reconnection_time

    async def opened(self) -> Self:
        """Wait for the first bytes: from then on nothing new is missed."""
        await until(lambda: self.received or self.ended)
        return self

    async def next_event(self) -> Event:
        """Return the next event, which has to come."""
        async with asyncio.timeout(TIMEOUT):
            event = await self._events.get()
        assert event is not None, "The stream has ended."
        return event

    async def until(self, data: str) -> list[Event]:
        """Return the events up to the one with these data, which has to come."""
        events = [await self.next_event()]
        while events[-1].data != data:
            events.append(await self.next_event())
        return events

    async def rest(self) -> list[Event]:
        """Return the events up to the end of the stream, which has to come.

        Raises what the response has raised.
        """
        async with asyncio.timeout(TIMEOUT):
            await asyncio.wait([self._reading])
        await self._reading
        events = []
        while event := self._events.get_nowait():
            events.append(event)
        return events

    async def close(self) -> None:
        """Leave, as a client that disconnects."""
        self._reading.cancel()
        await asyncio.wait([self._reading])


@asynccontextmanager
async def reading(response: HttpResponseBase) -> AsyncIterator[EventReader]:
    """Read a response, and leave it at the end of the block."""
    reader = EventReader(response)
    try:
        yield await reader.opened()
    finally:
        await reader.close()


@asynccontextmanager
async def open_stream(
    view: View,
    path: str = "/",
    *,
    headers: Mapping[str, str] | None = None,
    last_event_id: str | None = None,
    **kwargs: Any,
) -> AsyncIterator[EventReader]:
    """Read a view's stream, given the URL's keyword arguments."""
    headers = dict(headers or {})
    if last_event_id is not None:
        headers["Last-Event-ID"] = last_event_id
    async with reading(await view(get(path, headers=headers), **kwargs)) as reader:
        yield reader


# The streams of most tests


class News(EventStreamView):
    groups = ["news"]


class Requested(EventStreamView):
    """The groups that a request names."""

    async def get_groups(self) -> list[str]:
        return self.request.GET.getlist("group")


news = News.as_view()
requested = Requested.as_view()


async def publish_numbers(group: str, *numbers: int) -> list[str]:
    """Publish an event for each number and return their ids."""
    return [(await apublish(group, number)).id or "" for number in numbers]


async def goes_on(reader: EventReader) -> None:
    """A stream of the group ``news`` gets what is published now."""
    await apublish("news", "going on")
    assert (await reader.next_event()).data == "going on"


def data(events: Iterable[Event]) -> list[str]:
    return [event.data for event in events]


async def respond(view: Any, url: str = "/", **options: Any) -> HttpResponse:
    """Return an answer that is no stream."""
    kwargs = options.pop("kwargs", {})
    answer = await view(get(url, **options), **kwargs)
    assert isinstance(answer, HttpResponse)
    return answer
