"""A view with ``newest_of_keys``: who knows nothing gets the newest event of each key first."""

import asyncio
import re
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from pytest_django import Settings

from django_sse import Event, acancel, apublish, apublish_many, areopen
from django_sse.groups.entries import Entry
from django_sse.stores.memory import MemoryStore
from django_sse.views import EventStreamView
from tests.streams import data, open_stream, until

pytestmark = pytest.mark.usefixtures("memory_store")

prices = EventStreamView.as_view(groups=["prices"], newest_of_keys=True)


@pytest.fixture
def short_history(memory_store: None, settings: Settings) -> None:
    settings.DJANGO_SSE = {"STORE": "memory", "HISTORY_SIZE": 2}


async def quote(symbol: str, price: str) -> str:
    published = await apublish("prices", f"{symbol} {price}", key=symbol)
    assert published.id
    return published.id


def hold_reads_of(
    held: str, monkeypatch: pytest.MonkeyPatch
) -> tuple[asyncio.Event, asyncio.Event]:
    """Have the store hold back what it has read of a group.

    Returns:
        An event that is set once it has read, and one that lets it answer.
    """
    is_reading, goes_on = asyncio.Event(), asyncio.Event()
    read = MemoryStore.anewest

    async def read_slowly(self: MemoryStore, group: str, after: int, limit: int) -> list[Entry]:
        page = await read(self, group, after, limit)
        if group == held:
            is_reading.set()
            await goes_on.wait()
        return page

    monkeypatch.setattr(MemoryStore, "anewest", read_slowly)
    return is_reading, goes_on


async def publish_quotes() -> str:
    """Publish what only the newest of count, more than the history keeps. Return the last id."""
    for price in ("1", "2", "3"):
        await quote("A", price)
    await quote("B", "1")
    last = await quote("A", "4")
    for _ in range(2):
        last = (await apublish("prices", "no key")).id or ""
    return last


@pytest.mark.usefixtures("short_history")
async def test_a_new_client_gets_the_newest_of_each_key_without_ids() -> None:
    last = await publish_quotes()
    async with open_stream(prices) as stream:
        await until(lambda: stream.last_event_id)
        assert stream.text == (
            f"retry: 3000\n\nkey: B\ndata: B 1\n\nkey: A\ndata: A 4\n\nid: {last}\n\n"
        )
        await quote("B", "2")
        assert (await stream.until("B 2"))[-1].id


@pytest.mark.usefixtures("short_history")
async def test_a_client_that_lost_events_gets_them_after_the_reset() -> None:
    first = await quote("A", "0")
    await publish_quotes()
    async with open_stream(prices, last_event_id=first) as stream:
        await until(lambda: "A 4" in stream.text)
        events = re.findall(r"(?:event|data): .*", stream.text)
        assert events == ["event: reset", "data: {}", "data: B 1", "data: A 4"]


async def test_a_client_that_comes_back_gets_what_it_missed_alone() -> None:
    await quote("A", "1")
    seen = await quote("B", "1")
    await quote("A", "2")
    async with open_stream(prices, last_event_id=seen) as stream:
        assert data(await stream.until("A 2")) == ["A 2"]


async def test_a_view_that_does_not_ask_sends_none() -> None:
    await quote("A", "1")
    async with open_stream(EventStreamView.as_view(groups=["prices"])) as stream:
        await quote("A", "2")
        assert data(await stream.until("A 2")) == ["A 2"]


@pytest.mark.usefixtures("short_history")
async def test_with_a_history_a_key_comes_once() -> None:
    await publish_quotes()
    await quote("C", "1")
    await quote("B", "2")
    view = EventStreamView.as_view(groups=["prices"], newest_of_keys=True, history=2)
    async with open_stream(view) as stream:
        events = await stream.until("B 2")
        assert [(event.text, bool(event.id)) for event in events] == [
            ("A 4", False),
            ("C 1", True),
            ("B 2", True),
        ]


async def test_the_state_of_the_views_own_comes_after_them() -> None:
    class Both(EventStreamView):
        groups = ["prices"]
        newest_of_keys = True

        async def initial_events(self) -> AsyncGenerator[Event, None]:
            yield Event("state")

    await quote("A", "1")
    async with open_stream(Both.as_view()) as stream:
        assert data(await stream.until("state")) == ["A 1", "state"]


async def test_who_is_left_out_of_the_newest_gets_no_older_one() -> None:
    class OfUser(EventStreamView):
        groups = ["prices"]
        newest_of_keys = True

        async def get_owner(self) -> Any:
            return "7"

        def filter_event(self, event: Event) -> Event | None:
            return None if event.text == "C 1" else event

    await apublish_many([("prices", Event(f"{key} 1", key=key)) for key in "ABC"])
    await apublish("prices", "A of 7", key="A", exclude="7")
    await quote("D", "1")
    async with open_stream(OfUser.as_view()) as stream:
        assert data(await stream.until("D 1")) == ["B 1", "D 1"]


async def test_a_reopened_group_still_has_them() -> None:
    await quote("A", "1")
    await acancel("prices")
    await areopen("prices")
    async with open_stream(prices) as stream:
        assert data(await stream.until("A 1")) == ["A 1"]


async def test_each_of_many_keys_comes_once_while_they_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is published while the keys are read comes once, with an id, and after them."""
    keys = [f"K{number}" for number in range(900)]
    await apublish_many([("prices", Event(f"{key} 1", key=key)) for key in keys])
    read = MemoryStore.anewest
    reads = 0

    async def and_publish(self: MemoryStore, group: str, after: int, limit: int) -> list[Entry]:
        nonlocal reads
        reads += 1
        # Of one that is read now, and of one on a later page.
        for key in ("K0", "K700"):
            await quote(key, str(reads + 1))
        return await read(self, group, after, limit)

    monkeypatch.setattr(MemoryStore, "anewest", and_publish)
    async with open_stream(prices) as stream:
        await until(lambda: stream.last_event_id and f"K700 {reads + 1}" in stream.text)
        await apublish("prices", "end")
        events = await stream.until("end")
    newest: dict[str, str] = {}
    for event in events[:-1]:
        key, value = event.text.split()
        assert value > newest.get(key, "0"), "An older event came later."
        assert (event.id is None) == (value == "1")
        newest[key] = value
    assert reads > 1
    assert newest == dict.fromkeys(keys, "1") | dict.fromkeys(("K0", "K700"), str(reads + 1))


async def test_a_client_that_asks_while_the_store_reads_for_another_gets_what_is_newer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Clients share a read of the store, but none that began before their own position."""
    await quote("A", "1")
    is_reading, goes_on = hold_reads_of("prices", monkeypatch)
    async with open_stream(prices) as first:
        reading = asyncio.create_task(first.until("A 2"))
        await asyncio.wait_for(is_reading.wait(), 10)
        await quote("A", "2")
        async with open_stream(prices) as second:
            waiting = asyncio.create_task(second.until("A 2"))
            await asyncio.sleep(0)
            goes_on.set()
            assert data(await waiting) == ["A 2"]
        assert data(await reading) == ["A 1", "A 2"]


async def test_a_group_that_is_read_slowly_holds_up_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await quote("A", "1")
    is_reading, goes_on = hold_reads_of("slow", monkeypatch)
    await apublish("slow", "S 1", key="S")
    slow = EventStreamView.as_view(groups=["slow"], newest_of_keys=True)
    async with open_stream(slow) as waiting:
        reading = asyncio.create_task(waiting.until("S 1"))
        await asyncio.wait_for(is_reading.wait(), 10)
        async with open_stream(prices) as stream:
            assert data(await stream.until("A 1")) == ["A 1"]
        goes_on.set()
        assert data(await reading) == ["S 1"]


async def test_a_store_that_is_away_sends_the_client_back(monkeypatch: pytest.MonkeyPatch) -> None:
    await quote("A", "1")

    async def away(*_: Any) -> list[Entry]:
        raise ConnectionError("The store is away.")

    with monkeypatch.context() as patches:
        patches.setattr(MemoryStore, "anewest", away)
        async with open_stream(prices) as stream:
            await stream.rest()
            assert re.fullmatch(r"retry: 3000\n\nretry: \d+\n\n", stream.text)
    async with open_stream(prices) as stream:
        assert data(await stream.until("A 1")) == ["A 1"]
