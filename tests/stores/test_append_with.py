"""Events, and what is written with them, are one transaction of the database store."""

import asyncio
import random
import threading
from collections.abc import Sequence
from functools import partial

import pytest
from asgiref.sync import sync_to_async
from django.db import connections, transaction

from django_sse.contrib.http_publish.idempotency import AnsweredError, KeyedRequest
from django_sse.exceptions import GroupCancelled
from django_sse.groups.entries import Hint, Kind, NewEntry
from django_sse.models import PublishRequest
from django_sse.stores.database import DatabaseStore
from django_sse.testing.stores import event, texts
from django_sse.testing.threads import in_thread

# What it shows is the databases'.
pytestmark = pytest.mark.once


def silent(hints: Sequence[Hint]) -> None:
    """Ring nobody."""


def keyed(store: DatabaseStore, key: str = "key") -> KeyedRequest:
    return KeyedRequest(store.using, "publisher", key, b"body", 3600)


def publish(
    store: DatabaseStore, entries: list[NewEntry], key: str = "key"
) -> Sequence[int | None]:
    request = keyed(store, key)
    return store.append_with(
        entries, silent, request.claim, lambda numbers: request.remember(str(numbers))
    )


async def rows(store: DatabaseStore) -> int:
    return await PublishRequest.objects.using(store.using).acount()


async def test_it_appends_and_remembers_and_then_rings(database_store: DatabaseStore) -> None:
    store = database_store
    rung: list[Hint] = []
    request = keyed(store)

    def remember(numbers: Sequence[int | None]) -> None:
        assert not rung
        assert all(numbers)
        request.remember("done")

    entries = [event("a", "1"), event("b", "2"), event("a", "3")]
    await sync_to_async(store.append_with)(entries, rung.extend, request.claim, remember)
    assert {hint.group for hint in rung} == {"a", "b"}
    assert texts(await store.aread("a", 0, 10)) == ["1", "3"]
    with pytest.raises(AnsweredError) as answered:
        await sync_to_async(publish)(store, entries)
    assert answered.value.answer == "done"
    assert texts(await store.aread("b", 0, 10)) == ["2"]


async def test_if_it_cannot_remember_nothing_is_appended(database_store: DatabaseStore) -> None:
    store = database_store

    def fail(numbers: object) -> None:
        raise ValueError

    with pytest.raises(ValueError, match=r"^$"):
        await sync_to_async(store.append_with)([event("a", "1")], silent, keyed(store).claim, fail)
    assert await store.aread("a", 0, 10) == []
    assert await rows(store) == 0
    await sync_to_async(publish)(store, [event("a", "2")])
    assert texts(await store.aread("a", 0, 10)) == ["2"]


async def test_what_is_refused_is_not_remembered(database_store: DatabaseStore) -> None:
    store = database_store
    await sync_to_async(store.append)([NewEntry("b", b"data: over\n\n", Kind.CLOSE)], silent)
    with pytest.raises(GroupCancelled):
        await sync_to_async(publish)(store, [event("a", "1"), event("b", "1")])
    assert await store.aread("a", 0, 10) == []
    assert await rows(store) == 0


async def test_in_a_transaction_of_the_project_all_of_it_is_rolled_back(
    database_store: DatabaseStore,
) -> None:
    store = database_store

    def in_transaction(key: str, *, rolls_back: bool) -> Sequence[int | None]:
        with transaction.atomic(using=store.using):
            numbers = publish(store, [event("a", key)], key)
            transaction.set_rollback(rolls_back, using=store.using)
            return numbers

    assert await sync_to_async(in_transaction)("gone", rolls_back=True) == [None]
    assert await rows(store) == 0
    assert await sync_to_async(in_transaction)("kept", rolls_back=False) == [None]
    assert texts(await store.aread("a", 0, 10)) == ["kept"]
    assert await rows(store) == 1


@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
async def test_of_four_threads_with_the_same_keys_one_publishes_each(
    database_store: DatabaseStore, level: str
) -> None:
    store, groups = database_store, ["a", "b", "c"]
    vendor = connections[store.using].vendor
    if vendor == "sqlite" and level != "SERIALIZABLE":
        pytest.skip("SQLite has one isolation level.")
    set_level = {
        "postgresql": f"SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL {level}",
        "mysql": f"SET SESSION TRANSACTION ISOLATION LEVEL {level}",
        "sqlite": "SELECT 1",
    }
    everyone_ready = threading.Barrier(4)
    published: list[str] = []

    def publish_forty_times(name: int) -> None:
        shuffled = random.Random(name)
        with connections[store.using].cursor() as cursor:
            cursor.execute(set_level[vendor])
        everyone_ready.wait(10)
        for n in range(40):
            # Each thread locks groups, in an order of its own.
            entries = [event(group, str(n)) for group in shuffled.sample(groups, 3)]
            try:
                publish(store, entries, str(n))
                published.append(str(n))
            except AnsweredError:
                pass

    await asyncio.gather(*(in_thread(partial(publish_forty_times, name)) for name in range(4)))
    assert sorted(published, key=int) == [str(n) for n in range(40)]
    for group in groups:
        assert sorted(texts(await store.aread(group, 0, 1000)), key=int) == sorted(
            published, key=int
        )
