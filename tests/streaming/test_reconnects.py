"""Very many clients that come back at once, as after a deployment."""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

import pytest
from django.test import override_settings
from django.urls import path

from django_sse import aposition, apublish, apublish_many
from django_sse.asgi import get_asgi_application
from django_sse.event import Decoder
from django_sse.groups.entries import Entry, GroupState, Hint
from django_sse.stores import get_store
from django_sse.stores.database import DatabaseStore
from django_sse.stores.memory import MemoryStore
from django_sse.streaming.hub import current_hub
from django_sse.testing.stores import event
from django_sse.views import EventStreamView
from tests.clients import connected
from tests.queries import queries_for_events
from tests.streams import until

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.urls(__name__),
    pytest.mark.usefixtures("everything_ends"),
    pytest.mark.timeout(300),
    # What it counts is the library's own.
    pytest.mark.once,
]

CLIENTS = 1000
MISSED = 50
# Who comes while the store is asked shares the next question: how many there are is up to the load.
HANDFUL = CLIENTS // 40

urlpatterns = [path("news/", EventStreamView.as_view(groups=["news"]))]
application = get_asgi_application()


class Reconnecting:
    """A client that comes back with its last id; it counts what it is sent."""

    def __init__(self, last_event_id: str) -> None:
        self.decoder = Decoder()
        self.data: list[str] = []
        self._gone = asyncio.Event()
        self._requested = False
        self._header = (b"last-event-id", last_event_id.encode())

    async def run(self) -> None:
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": "GET",
            "path": "/news/",
            "query_string": b"",
            "headers": [self._header],
        }
        await application(scope, self._receive, self._send)

    def leave(self) -> None:
        self._gone.set()

    async def _receive(self) -> dict[str, Any]:
        if not self._requested:
            self._requested = True
            return {"type": "http.request"}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self.data += [event.text for event in self.decoder.feed(message.get("body", b""))]


async def all_are_caught_up(positions: list[str]) -> None:
    expected = [str(number) for number in range(MISSED)]
    clients = [Reconnecting(position) for position in positions]
    async with asyncio.TaskGroup() as tasks:
        with queries_for_events() as queries:
            for client in clients:
                tasks.create_task(client.run())
            async with asyncio.timeout(250):
                while not all(client.data for client in clients):
                    await asyncio.sleep(0.1)
        await apublish("news", "live")
        await until(lambda: all(client.data[-1] == "live" for client in clients))
        for client in clients:
            client.leave()
    for client in clients:
        assert client.data == [*expected[MISSED + 1 - len(client.data) :], "live"]
    assert len(queries) <= HANDFUL, queries


@override_settings(DJANGO_SSE={"SYNC_INTERVAL": 3600})
async def test_a_new_process_catches_them_up_with_a_handful_of_queries() -> None:
    await apublish("news", "long ago")
    start = await aposition("news")
    await apublish_many(("news", str(number)) for number in range(MISSED))
    await all_are_caught_up([start] * CLIENTS)


@override_settings(DJANGO_SSE={"SYNC_INTERVAL": 3600})
async def test_those_that_left_at_different_times_share_the_same_queries() -> None:
    await apublish("news", "long ago")
    start = await aposition("news")
    published = await apublish_many(("news", str(number)) for number in range(MISSED))
    positions = [start, *(one.id or "" for one in published[:-1])]
    async with connected("news"):
        await all_are_caught_up(positions * 10)


PAGES = 40


@override_settings(DJANGO_SSE={"SYNC_INTERVAL": 3600})
async def test_those_that_are_far_behind_together_share_what_they_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reads = 0
    aread = DatabaseStore.aread
    all_are_there = asyncio.Event()

    async def counted(store: DatabaseStore, group: str, after: int, limit: int) -> list[Entry]:
        nonlocal reads
        reads += 1
        await all_are_there.wait()
        return await aread(store, group, after, limit)

    monkeypatch.setattr("django_sse.streaming.store_reader.READ_SECONDS", 60)
    await apublish("news", "long ago")
    start = await aposition("news")
    # As much as the hub keeps in memory, and as much again.
    count = 900
    async with connected("news"):
        await apublish_many(("news", f"{number} {'x' * 1200}") for number in range(count))
        monkeypatch.setattr(DatabaseStore, "aread", counted)
        async with AsyncExitStack() as stack:
            clients = [
                await stack.enter_async_context(connected("news", after=start)) for _ in range(200)
            ]
            all_are_there.set()
            for client in clients:
                await client.until_events(count)
    assert reads <= PAGES


class OneByOne(MemoryStore):
    """A store that takes its time, and reads one thing after the other, as a database does."""

    def __init__(self) -> None:
        super().__init__()
        self.turn = asyncio.Lock()

    async def astates(self, groups: Sequence[str]) -> dict[str, GroupState]:
        async with self.turn:
            await asyncio.sleep(0.01)
            return await super().astates(groups)

    async def aread(self, group: str, after: int, limit: int) -> list[Entry]:
        async with self.turn:
            await asyncio.sleep(0.01)
            return await super().aread(group, after, limit)


@override_settings(DJANGO_SSE={"STORE": f"{__name__}.OneByOne", "SYNC_INTERVAL": 3600})
async def test_who_connects_does_not_wait_for_what_thousands_of_groups_have_missed() -> None:
    groups = [f"group-{number}" for number in range(500)]
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(group)) for group in groups]
        await get_store().aappend([event(group, "new") for group in groups], lambda _: None)
        states = await get_store().astates(groups)
        hints = [Hint(group, states[group].head, cancelled=False) for group in groups]
        # As another process rings, which sends nothing but numbers.
        current_hub().hear_soon(hints)
        await until(lambda: any(client.events for client in clients))
        async with connected("sport"):
            assert not all(client.events for client in clients)
        for client in clients:
            await client.until_events(1)
