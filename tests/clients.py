"""Clients of streams in this process, below HTTP: what they make of the bytes sent to them."""

import asyncio
from collections.abc import AsyncIterator, Callable, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

from django_sse import Event, aposition
from django_sse.event import Decoder
from django_sse.groups.position import parse_position
from django_sse.streaming.hub import current_hub
from django_sse.streaming.stream import Stream


class Client:
    """What a browser makes of the bytes that one stream sends."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.events: list[Event] = []
        self.chunks: list[bytes] = []
        self.decoder = Decoder()
        self.changed = asyncio.Event()

    async def send(self, message: MutableMapping[str, Any]) -> None:
        chunk = message["body"]
        self.chunks.append(chunk)
        self.events += self.decoder.feed(chunk)
        self.changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    async def until_events(self, count: int) -> list[Any]:
        await self.until(lambda: len(self.events) >= count)
        return self.data

    @property
    def data(self) -> list[Any]:
        return [event.text for event in self.events]


@asynccontextmanager
async def connected(
    *groups: str, after: str | None = None, **options: Any
) -> AsyncIterator[Client]:
    """A client that is connected from where the groups stand, or after an id."""
    start = parse_position(await aposition(*groups) if after is None else after, groups)
    stream = Stream(current_hub(), start, **options)
    client = Client(stream)
    stream.ended.add_done_callback(lambda _: client.changed.set())
    await stream.open()
    stream.serve(client.send)
    try:
        yield client
    finally:
        stream.end("test is over")


class AsyncClients:
    """Many clients of the same groups."""

    def __init__(self, count: int, *groups: str) -> None:
        self._contexts = [connected(*groups) for _ in range(count)]

    async def __aenter__(self) -> list[Client]:
        return [await context.__aenter__() for context in self._contexts]

    async def __aexit__(self, *exc_info: Any) -> None:
        for context in self._contexts:
            await context.__aexit__(*exc_info)
