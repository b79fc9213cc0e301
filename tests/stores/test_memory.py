"""What is special to the memory store: how much memory it takes, and that it waits for nothing."""

import asyncio
import threading
import tracemalloc
from collections.abc import Sequence

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.db import transaction
from django.test import override_settings

from django_sse.groups.entries import Hint
from django_sse.stores.memory import MemoryStore, _Group
from django_sse.testing.stores import append, event, state, texts


async def test_groups_that_are_idle_keep_nothing_for_longer_than_their_history() -> None:
    store = MemoryStore()
    size = 1_000_000
    tracemalloc.start()
    try:
        with override_settings(DJANGO_SSE={"HISTORY_AGE": 0.2, "GROUP_TTL": 0}):
            await append(store, *(event(f"idle-{n}", "a" * size) for n in range(5)))
            assert tracemalloc.get_traced_memory()[0] > 5 * size
            async with asyncio.timeout(10):
                while tracemalloc.get_traced_memory()[0] > size:
                    await asyncio.sleep(0.05)
                    await append(store, event("news", "b"))
    finally:
        tracemalloc.stop()
    # The group itself goes on where it was.
    assert (await state(store, "idle-0")).first


@override_settings(DJANGO_SSE={"HISTORY_AGE": 0})
async def test_nothing_is_left_of_groups_that_have_expired(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("django_sse.stores.memory._CHANGES", 10)
    store = MemoryStore()
    groups = 5_000
    tracemalloc.start()
    try:
        for number in range(groups):
            await append(store, event(f"short-{number}", "a" * 1_000))
        assert tracemalloc.get_traced_memory()[0] > groups * 1_000
        with override_settings(DJANGO_SSE={"HISTORY_AGE": 0, "GROUP_TTL": 0.1}):
            async with asyncio.timeout(20):
                # The dict of the groups stays as large as it was. Their places among what is yet
                # to be looked at would take three times as much.
                while tracemalloc.get_traced_memory()[0] > groups * 110:
                    await asyncio.sleep(0.1)
                    await store.atrim()
    finally:
        tracemalloc.stop()


@override_settings(DJANGO_SSE={"HISTORY_AGE": 3600})
async def test_what_a_producer_has_kept_is_dropped_soon_after_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, keeps_all = 1.0, True
    monkeypatch.setattr("django_sse.stores.memory.monotonic", lambda: now)
    monkeypatch.setattr(_Group, "keeps_all", property(lambda self: keeps_all))
    store = MemoryStore()
    await append(store, event("answer", "a"))
    now = 7200.0
    await store.atrim()
    assert store._groups["answer"].entries
    keeps_all, now = False, 7201.0
    await store.atrim()
    assert not store._groups["answer"].entries


async def test_more_changes_than_are_remembered_are_told_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("django_sse.stores.memory._CHANGES", 3)
    store, groups = MemoryStore(), ["news", "sport", "idle"]
    await append(store, event("idle", "a"))
    _, cursor = await store.achanged(None, groups)
    for _ in range(3):
        await append(store, event("news", "a"))
    hints, after_three = await store.achanged(cursor, groups)
    assert [hint.group for hint in hints] == ["news"]
    for group in ("sport", "news", "news", "news"):
        await append(store, event(group, "a"))
    hints, _ = await store.achanged(after_three, groups)
    assert sorted(hint.group for hint in hints) == ["news", "sport"]
    hints, last = await store.achanged(cursor, groups)
    assert sorted(hint.group for hint in hints) == ["news", "sport"]
    assert await store.achanged(last, groups) == ([], last)


async def test_publishing_from_async_code_takes_no_thread() -> None:
    rung_in = list[threading.Thread]()

    def ring(hints: Sequence[Hint]) -> None:
        rung_in.append(threading.current_thread())

    assert await MemoryStore().aappend([event("news", "a")], ring) != [None]
    assert rung_in == [threading.current_thread()]


async def test_who_publishes_without_end_holds_up_no_other_task() -> None:
    store = MemoryStore()

    async def publish_without_end() -> None:
        while True:
            await append(store, event("news", "a"))

    publishing = asyncio.create_task(publish_without_end())
    async with asyncio.timeout(30):
        while (await state(store, "news")).head == 0:
            await asyncio.sleep(0)
    publishing.cancel()


@pytest.mark.django_db(transaction=True)
async def test_a_transaction_in_the_thread_of_synchronous_code_is_waited_for() -> None:
    """Also if async code has opened it there by hand."""
    store, atomic = MemoryStore(), transaction.atomic()
    await sync_to_async(atomic.__enter__)()
    assert await append(store, event("news", "a")) == [None]
    assert await store.aread("news", 0, 10) == []
    await sync_to_async(atomic.__exit__)(None, None, None)
    assert texts(await store.aread("news", 0, 10)) == ["a"]
    assert await append(store, event("news", "b")) != [None]


@pytest.mark.django_db(transaction=True)
async def test_who_publishes_without_autocommit_is_refused() -> None:
    store = MemoryStore()
    await sync_to_async(transaction.set_autocommit)(False)
    try:
        with pytest.raises(transaction.TransactionManagementError, match="autocommit"):
            await append(store, event("news", "phantom"))
    finally:
        await sync_to_async(transaction.rollback)()
        await sync_to_async(transaction.set_autocommit)(True)
    assert await store.aread("news", 0, 10) == []


@pytest.mark.django_db(transaction=True)
def test_a_transaction_around_async_code_is_waited_for() -> None:
    store = MemoryStore()
    with transaction.atomic():
        assert async_to_sync(append)(store, event("news", "a")) == [None]
        assert store.states(["news"])["news"].head == 0
    assert store.states(["news"])["news"].head
