"""What every store has to do."""

import asyncio
import threading
from collections.abc import Sequence
from functools import partial

import pytest
from asgiref.sync import sync_to_async
from django.db import connections, transaction

from django_sse.exceptions import GroupCancelled
from django_sse.replay import is_lost
from django_sse.stores.base import (
    Cursor,
    Entry,
    EventStore,
    GroupState,
    Hint,
    Kind,
    NewEntry,
    closing_wire,
    first_number,
)
from django_sse.stores.database import DatabaseStore
from tests.threads import in_thread


def event(group: str, text: str) -> NewEntry:
    return NewEntry(group, f"data: {text}\n\n".encode())


def close(group: str) -> NewEntry:
    return NewEntry(group, closing_wire("over"), Kind.CLOSE)


def reopening(group: str) -> NewEntry:
    return NewEntry(group, b"", Kind.REOPEN)


def texts(entries: Sequence[Entry]) -> list[str]:
    return [entry.wire.decode().removeprefix("data: ").strip() for entry in entries]


class Bell:
    """Remembers what was rung."""

    def __init__(self) -> None:
        self.hints: list[Hint] = []

    def __call__(self, hints: Sequence[Hint]) -> None:
        self.hints += hints


async def append(store: EventStore, *entries: NewEntry) -> list[int | None]:
    return await store.aappend(entries, Bell())


async def changes(store: EventStore, cursor: Cursor, group: str) -> list[Hint]:
    hints, _ = await store.achanged(cursor, {group})
    return list(hints or ())


async def state(store: EventStore, group: str) -> GroupState:
    return (await store.astates([group]))[group]


async def test_a_group_never_published_to_is_empty_and_reading_creates_nothing(
    store: EventStore,
) -> None:
    assert await store.aread("news", 0, 10) == []
    now = await state(store, "news")
    assert now == GroupState(0, now.origin, now.origin + 1, cancelled=False, origin=now.origin)
    _, cursor = await store.achanged(None, {"news"})
    assert await changes(store, cursor, "news") == []


async def test_numbers_begin_at_the_clock_and_are_contiguous(store: EventStore) -> None:
    before = first_number()
    first, second = await append(store, event("news", "a"), event("news", "b"))
    [third] = await append(store, event("news", "c"))
    assert first is not None
    assert before <= first <= first_number()
    assert (second, third) == (first + 1, first + 2)
    now = await state(store, "news")
    assert now == GroupState(first, first + 2, first, cancelled=False, origin=now.origin)
    assert texts(await store.aread("news", 0, 10)) == ["a", "b", "c"]


async def test_reading_goes_on_after_a_number_and_stops_at_the_limit(store: EventStore) -> None:
    numbers = await append(store, *(event("news", str(n)) for n in range(5)))
    assert numbers[1] is not None
    assert texts(await store.aread("news", numbers[1], 2)) == ["2", "3"]
    assert numbers[4] is not None
    assert await store.aread("news", numbers[4], 2) == []


async def test_groups_have_numbers_of_their_own(store: EventStore) -> None:
    numbers = await append(store, event("a", "1"), event("b", "1"), event("a", "2"))
    assert numbers[0] is not None
    assert numbers[2] == numbers[0] + 1
    assert texts(await store.aread("b", 0, 10)) == ["1"]


async def test_group_names_are_told_apart_byte_for_byte(store: EventStore) -> None:
    await append(store, event("News", "x"))
    assert (await state(store, "news")).first == 0


async def test_the_bell_is_rung_with_what_is_new(store: EventStore) -> None:
    bell = Bell()
    [number] = await store.aappend([event("news", "x")], bell)
    assert number is not None
    assert bell.hints == [
        Hint("news", number, cancelled=False, entries=(Entry(number, b"data: x\n\n"),))
    ]


async def test_cancelling_appends_one_close_and_refuses_events(store: EventStore) -> None:
    await append(store, event("news", "x"), close("news"))
    assert await append(store, close("news")) == [None]
    with pytest.raises(GroupCancelled, match="reopen"):
        await append(store, event("news", "y"))
    entries = await store.aread("news", 0, 10)
    assert [entry.closes for entry in entries] == [False, True]
    assert entries[1].wire == closing_wire("over")
    now = await state(store, "news")
    assert now.cancelled
    assert now.head == entries[1].number


async def test_one_refused_event_refuses_the_whole_call(store: EventStore) -> None:
    await append(store, close("over"))
    with pytest.raises(GroupCancelled):
        await append(store, event("news", "x"), event("over", "y"))
    assert (await state(store, "news")).first == 0


async def test_reopening_goes_on_with_numbers_and_history(store: EventStore) -> None:
    numbers = await append(store, event("news", "a"), close("news"))
    assert await append(store, reopening("news")) == [None]
    [number] = await append(store, event("news", "b"))
    assert numbers[1] is not None
    assert number == numbers[1] + 1
    assert not (await state(store, "news")).cancelled
    assert [entry.closes for entry in await store.aread("news", 0, 10)] == [False, True, False]


async def test_changes_are_told_once_the_cursor_was_made(store: EventStore) -> None:
    _, cursor = await store.achanged(None, {"news"})
    numbers = await append(store, event("news", "a"), event("news", "b"))
    hints, cursor = await store.achanged(cursor, {"news"})
    heads = {hint.group: (hint.head, hint.cancelled) for hint in hints or ()}
    assert heads == {"news": (numbers[1], False)}
    await append(store, close("news"))
    assert [hint.cancelled for hint in await changes(store, cursor, "news")] == [True]


async def test_changes_are_told_of_the_groups_that_were_asked_for(store: EventStore) -> None:
    _, cursor = await store.achanged(None, {"news"})
    await append(store, event("news", "a"), event("sport", "b"))
    assert [hint.group for hint in await changes(store, cursor, "news")] == ["news"]


async def test_a_new_run_of_numbers_leaves_every_earlier_position_behind(
    store: EventStore,
) -> None:
    """As a hub asks for that has seen numbers which the store has forgotten since."""
    [first] = await append(store, event("news", "a"))
    assert first is not None
    seen = first + 1000
    begun = await store.anew_run("news", seen)
    assert begun == await state(store, "news")
    assert begun.head > seen
    assert all(is_lost(number, begun) for number in (begun.origin, first - 1, first, seen))
    assert not is_lost(begun.head, begun)
    assert await append(store, event("news", "b")) == [begun.head + 1]
    assert texts(await store.aread("news", 0, 10)) == ["b"]
    now = await state(store, "news")
    assert all(is_lost(number, now) for number in (begun.origin, first - 1, first, seen))


async def test_of_several_hubs_that_ask_for_a_new_run_one_is_enough(store: EventStore) -> None:
    [first] = await append(store, event("news", "a"))
    assert first is not None
    begun = await store.anew_run("news", first + 1000)
    assert await store.anew_run("news", first + 1000) == begun


async def test_a_group_that_is_not_behind_keeps_its_numbers(store: EventStore) -> None:
    [first] = await append(store, event("news", "a"))
    assert first is not None
    before = await state(store, "news")
    assert await store.anew_run("news", first) == before
    assert texts(await store.aread("news", 0, 10)) == ["a"]


async def test_a_transaction_publishes_with_its_commit(store: EventStore) -> None:
    bell = Bell()

    def publish_in_transaction() -> None:
        with transaction.atomic(using=store.using):
            assert store.append([event("news", "a"), event("news", "b")], bell) == [None, None]
            assert bell.hints == []
            assert store.states(["news"])["news"].first == 0

    await sync_to_async(publish_in_transaction)()
    assert texts(await store.aread("news", 0, 10)) == ["a", "b"]
    assert [hint.group for hint in bell.hints] == ["news"]


async def test_a_transaction_that_is_rolled_back_leaves_nothing(store: EventStore) -> None:
    bell = Bell()

    def publish_and_fail() -> None:
        with transaction.atomic(using=store.using):
            store.append([event("news", "a")], bell)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await sync_to_async(publish_and_fail)()
    _, cursor = await store.achanged(None, {"news"})
    await store.achanged(cursor, {"news"})
    assert await store.aread("news", 0, 10) == []
    assert bell.hints == []


async def test_a_transaction_is_refused_events_for_a_cancelled_group(store: EventStore) -> None:
    await append(store, close("news"))

    def publish_in_transaction() -> None:
        with transaction.atomic(using=store.using):
            with pytest.raises(GroupCancelled):
                store.append([event("news", "a")], Bell())
            store.append([event("other", "b")], Bell())

    await sync_to_async(publish_in_transaction)()
    assert [entry.closes for entry in await store.aread("news", 0, 10)] == [True]
    assert texts(await store.aread("other", 0, 10)) == ["b"]


async def test_an_event_committed_after_a_cancel_comes_before_a_close_of_its_own(
    store: EventStore,
) -> None:
    if isinstance(store, DatabaseStore) and connections[store.using].vendor == "sqlite":
        pytest.skip("SQLite lets one transaction write at a time.")
    staged, cancelled = threading.Event(), threading.Event()

    def publish_slowly() -> None:
        with transaction.atomic(using=store.using):
            store.append([event("news", "late")], Bell())
            staged.set()
            assert cancelled.wait(10)

    publishing = asyncio.create_task(in_thread(publish_slowly))
    while not staged.is_set():
        if publishing.done():
            await publishing
        await asyncio.sleep(0.01)
    await append(store, close("news"))
    cancelled.set()
    await publishing
    entries = await store.aread("news", 0, 10)
    assert [entry.closes for entry in entries] == [True, False, True]
    assert entries[2].wire == closing_wire("over")
    assert (await state(store, "news")).cancelled


async def test_threads_append_without_losing_or_doubling_a_number(store: EventStore) -> None:
    def append_twenty(name: str) -> list[int | None]:
        numbers: list[int | None] = []
        for n in range(20):
            numbers += store.append([event("news", f"{name} {n}")], Bell())
        return numbers

    by_thread = await asyncio.gather(*(in_thread(partial(append_twenty, name)) for name in "abcd"))
    numbers = sorted(number for numbers in by_thread for number in numbers if number)
    assert numbers == list(range(numbers[0], numbers[0] + 80))
    read = texts(await store.aread("news", 0, 100))
    for name in "abcd":
        assert [text for text in read if text.startswith(name)] == [
            f"{name} {n}" for n in range(20)
        ]
