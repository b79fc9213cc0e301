"""Events with a key: whoever lags or comes back gets the newest of each key alone."""

import asyncio
import random
from collections.abc import Sequence
from typing import Any

import pytest

from django_sse import Event, InvalidEvent, aposition, apublish, apublish_many
from django_sse.access.owners import Owner, user_key
from django_sse.event import decode_block, key_of
from django_sse.views import EventStreamView
from tests.clients import Client, connected
from tests.streams import data, open_stream, until

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("everything_ends")]

prices = EventStreamView.as_view(groups=["prices"])


def of_keys(*keys: str) -> list[tuple[str, Event]]:
    """Events with these keys, whose data are numbered; "-" has no key."""
    return [
        ("prices", Event(f"{key}{number}", key=None if key == "-" else key))
        for number, key in enumerate(keys)
    ]


def block(client: Client) -> asyncio.Event:
    """Have a client take nothing until the event is set."""
    reads = asyncio.Event()
    send = client.send

    async def send_slowly(message: Any) -> None:
        await reads.wait()
        await send(message)

    client.stream._queue._send = send_slowly
    return reads


async def lagging(client: Client) -> asyncio.Event:
    """Publish an event that a client does not take until what is returned is set."""
    reads = block(client)
    await apublish("prices", "being sent", key="A")
    await until(lambda: client.stream.info.waiting_bytes)
    return reads


def test_a_key_is_a_field_that_clients_ignore() -> None:
    event = Event("1.50", event="price", key="AAPL")
    assert event.encode() == b"key: AAPL\nevent: price\ndata: 1.50\n\n"
    assert decode_block(event.encode()) == event
    assert key_of(event.encode()) == b"AAPL"
    assert key_of(Event("key: AAPL").encode()) is None


@pytest.mark.parametrize("key", ["A\nB", "A\rB", "A\0B"])
def test_a_key_that_would_break_the_stream_is_refused(key: str) -> None:
    with pytest.raises(InvalidEvent, match="key must not contain"):
        Event("1", key=key)


def test_a_key_without_data_is_refused() -> None:
    with pytest.raises(InvalidEvent, match="needs data"):
        Event(comment="hi", key="A")


async def test_a_key_is_said_once() -> None:
    with pytest.raises(InvalidEvent, match="not in both"):
        await apublish("prices", Event("1", key="A"), key="B")


async def test_of_events_that_are_published_together_the_newest_arrives() -> None:
    async with open_stream(prices) as reader:
        await apublish_many(of_keys("A", "-", "A", "B", "-", "A"))
        assert data(await reader.until("A5")) == ["-1", "B3", "-4", "A5"]


async def test_a_client_that_keeps_up_gets_each_value() -> None:
    async with open_stream(prices) as reader:
        for number in range(3):
            await apublish("prices", number, key="A")
            assert (await reader.next_event()).data == str(number)


async def test_a_client_that_lags_gets_the_newest_of_each_key() -> None:
    async with connected("prices") as client:
        reads = await lagging(client)
        for number in range(1, 101):
            await apublish("prices", f"A{number}", key="A")
            await apublish("prices", f"B{number}", key="B")
            if number % 50 == 0:
                await apublish("prices", f"whole {number}")
        waiting = client.stream.info.waiting_bytes
        reads.set()
        await client.until(lambda: client.data[-1:] == ["whole 100"])
        assert client.data == ["being sent", "whole 50", "A100", "B100", "whole 100"]
        # Nothing had piled up for it.
        assert waiting < 200


async def test_a_client_that_comes_back_gets_the_newest_of_each_key() -> None:
    async with open_stream(prices) as reader:
        await apublish("prices", "seen", key="A")
        await reader.next_event()
        position = reader.last_event_id
        for _ in range(3):
            await apublish_many(of_keys("A", "B", "-", "A"))
        # From the memory of the hub.
        async with open_stream(prices, last_event_id=position) as back:
            assert data(await back.until("A3")) == ["-2", "-2", "B1", "-2", "A3"]
    # From the store.
    async with open_stream(prices, last_event_id=position) as back:
        assert data(await back.until("A3")) == ["-2", "-2", "B1", "-2", "A3"]
        position = back.last_event_id
    async with open_stream(prices, last_event_id=position) as back:
        await apublish("prices", "new")
        assert (await back.next_event()).data == "new"


async def test_nothing_is_lost_where_a_page_of_the_store_overlaps_what_is_in_memory() -> None:
    async with connected("prices") as other:
        position = await aposition("prices")
        for first in range(0, 600, 10):
            await apublish_many(
                ("prices", Event(f"{n} {'x' * 4000}", key=f"key {n}"))
                for n in range(first, first + 10)
            )
        await other.until_events(600)
        async with connected("prices", after=position) as back:
            await back.until_events(600)
            assert [int(text.split()[0]) for text in back.data] == [*range(600)]


async def test_history_is_the_newest_of_each_key_that_is_kept() -> None:
    await apublish_many(of_keys("A", "A", "B", "A", "B"))
    async with open_stream(EventStreamView.as_view(groups=["prices"], history=100)) as reader:
        assert data(await reader.until("B4")) == ["A3", "B4"]


async def test_a_stream_of_several_groups_gets_the_newest_of_each_group() -> None:
    view = EventStreamView.as_view(groups=["prices", "sport"])
    async with open_stream(view) as reader:
        await apublish_many([*of_keys("A", "A"), ("sport", Event("match", key="A"))])
        assert sorted(data([await reader.next_event(), await reader.next_event()])) == [
            "A1",
            "match",
        ]


async def test_who_is_excluded_from_the_newest_gets_none_of_that_key() -> None:
    mine = Owner({user_key(7): None}, user_key(7))
    async with connected("prices", owner=mine) as client, connected("prices") as other:
        reads = await lagging(client)
        await apublish("prices", "of another", key="A")
        await apublish("prices", "mine", key="A", exclude=7)
        await apublish("prices", "last")
        reads.set()
        await client.until(lambda: client.data[-1:] == ["last"])
        await other.until(lambda: other.data[-1:] == ["last"])
        assert client.data == ["being sent", "last"]
        assert "mine" in other.data


@pytest.mark.parametrize("seed", range(8))
async def test_whatever_a_client_does_it_ends_with_the_newest_and_misses_nothing_else(
    seed: int,
) -> None:
    chance = random.Random(seed)
    whole: list[str] = []
    newest: dict[str, str] = {}
    got: list[str] = []
    position = await aposition("prices")

    async def publish_some() -> None:
        events: list[tuple[str, Event]] = []
        for _ in range(chance.randrange(1, 30)):
            key = chance.choice("ABC-")
            text = f"{key}{len(whole) + len(newest)}.{chance.random()}"
            events.append(("prices", Event(text, key=None if key == "-" else key)))
            if key == "-":
                whole.append(text)
            else:
                newest[key] = text
        await apublish_many(events)

    for turn in range(12):
        async with connected("prices", after=position) as client:
            reads = block(client)
            for _ in range(chance.randrange(4)):
                await publish_some()
                if chance.random() < 0.5:
                    reads.set()
                    await asyncio.sleep(chance.choice([0, 0.002]))
            reads.set()
            await publish_some()
            last = chance.random() < 0.5 or turn == 11
            if last:
                await apublish("prices", f"end {turn}")
                whole.append(f"end {turn}")
                await client.until(lambda end=f"end {turn}": client.data[-1:] == [end])  # type: ignore[misc]
        got += client.data
        position = client.decoder.last_event_id or position
    assert without_keys(got) == whole
    for key, text in newest.items():
        assert [value for value in got if value.startswith(key)][-1] == text
    numbered = [value for value in got if value[0] in "ABC"]
    assert len(numbered) == len(set(numbered))


def without_keys(values: Sequence[str]) -> list[str]:
    return [value for value in values if value[0] not in "ABC"]
