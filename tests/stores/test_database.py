"""What is special to the database store: locks, trimming, its one connection."""

import asyncio
import random
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from functools import partial
from io import StringIO
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.core.management import call_command
from django.db import Error, InterfaceError, OperationalError, connections, transaction
from django.db.models import F
from django.test import override_settings
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from pytest_django import Settings

from django_sse.access.owners import user_key
from django_sse.groups.entries import GroupState, Hint, Kind
from django_sse.models import EventGroup, OutboxEvent, StoredEvent
from django_sse.stores import get_store
from django_sse.stores.clock import database_time
from django_sse.stores.database import DatabaseStore
from django_sse.testing.stores import append, end, event, state, texts
from django_sse.testing.threads import in_thread
from django_sse.views import EventStreamView
from tests.clients import connected
from tests.streams import get


def silent(hints: Sequence[Hint]) -> None:
    """Ring nobody."""


@pytest.mark.parametrize("groups", [["news"], ["a", "b", "c"]])
async def test_four_threads_publish_in_transactions_after_a_read(
    database_store: DatabaseStore, groups: list[str]
) -> None:
    store = database_store
    everyone_ready = threading.Barrier(4)

    def publish_eighty_times(name: int) -> None:
        shuffled = random.Random(name)
        everyone_ready.wait(10)
        for n in range(80):
            with transaction.atomic(using=store.using):
                EventGroup.objects.using(store.using).count()
                # Each thread in an order of its own: locking the groups here would deadlock.
                for group in shuffled.sample(groups, len(groups)):
                    store.append([event(group, f"{name} {n}")], silent)

    await asyncio.gather(*(in_thread(partial(publish_eighty_times, name)) for name in range(4)))
    for group in groups:
        read = texts(await store.aread(group, 0, 1000))
        assert len(read) == 320
        for name in range(4):
            in_order = [text for text in read if text.startswith(f"{name} ")]
            assert in_order == [f"{name} {n}" for n in range(80)]


async def test_a_long_transaction_stalls_no_other_publisher(database_store: DatabaseStore) -> None:
    store = database_store
    if connections[store.using].vendor == "sqlite":
        pytest.skip("SQLite lets one transaction write at a time.")
    staged, finish = threading.Event(), threading.Event()

    def publish_slowly() -> None:
        with transaction.atomic(using=store.using):
            store.append([event("news", "slow")], silent)
            staged.set()
            assert finish.wait(30)

    slow = asyncio.create_task(in_thread(publish_slowly))
    assert await asyncio.to_thread(staged.wait, 10)
    await asyncio.wait_for(append(store, event("news", "fast")), 10)
    assert not slow.done()
    finish.set()
    await slow
    assert texts(await store.aread("news", 0, 10)) == ["fast", "slow"]


async def test_a_publisher_that_hangs_holds_up_no_hub(database_store: DatabaseStore) -> None:
    store = database_store
    if connections[store.using].vendor == "sqlite":
        pytest.skip("SQLite lets one transaction write at a time.")
    await append(store, event("news", "a"), event("sport", "b"))
    _, cursor = await store.achanged(None, {"news", "sport"})
    locked, finish = threading.Event(), threading.Event()

    def commit_and_die() -> None:
        with transaction.atomic(using=store.using):
            store._stage([event("news", "waits"), event("sport", "does not wait")])

    def hang() -> None:
        with transaction.atomic(using=store.using):
            store._statements.lock(["news"])
            locked.set()
            assert finish.wait(60)

    await in_thread(commit_and_die)
    hanging = asyncio.create_task(in_thread(hang))
    assert await asyncio.to_thread(locked.wait, 10)
    _, cursor = await asyncio.wait_for(store.achanged(cursor, {"news", "sport"}), 30)
    assert texts(await asyncio.wait_for(store.aread("sport", 0, 10), 30)) == ["b", "does not wait"]
    assert texts(await store.aread("news", 0, 10)) == ["a"]
    assert not hanging.done()
    finish.set()
    await hanging
    await store.achanged(cursor, {"news", "sport"})
    assert texts(await store.aread("news", 0, 10)) == ["a", "waits"]


async def test_of_many_changed_groups_only_the_own_ones_are_fetched(
    database_store: DatabaseStore,
) -> None:
    store = database_store
    _, cursor = await store.achanged(None, {"news"})
    [number] = await append(store, event("news", "a"))

    def changed() -> tuple[Any, list[str]]:
        with CaptureQueriesContext(connections[store.using]) as queries:
            hints, _ = store._changed(cursor, {"news"})
        own = [q["sql"] for q in queries if " IN (" in q["sql"] and "producer" in q["sql"]]
        return hints, own

    hints, own = await in_thread(changed)
    assert [(hint.group, hint.head) for hint in hints] == [("news", number)]
    assert not own
    await append(store, *(event(f"other-{n}", "b") for n in range(100)))
    hints, own = await in_thread(changed)
    assert [(hint.group, hint.head) for hint in hints] == [("news", number)]
    assert len(own) == 1


async def test_history_is_bounded_by_count_and_trimmed_in_bulk(
    database_store: DatabaseStore,
) -> None:
    store = database_store
    with override_settings(DJANGO_SSE={"HISTORY_SIZE": 20}):
        for n in range(50):
            await append(store, event("news", str(n)))
            assert await StoredEvent.objects.using(store.using).acount() < 20 + 2 + 1
    kept = texts(await store.aread("news", 0, 100))
    assert kept == [str(n) for n in range(50 - len(kept), 50)]
    assert len(kept) >= 20
    now = await state(store, "news")
    assert now.oldest == now.head - len(kept) + 1


@pytest.mark.parametrize("size", range(1, 10))
async def test_a_history_of_any_size_is_kept_whole(
    database_store: DatabaseStore, size: int
) -> None:
    store = database_store
    with override_settings(DJANGO_SSE={"HISTORY_SIZE": size}):
        for n in range(25):
            await append(store, event("news", str(n)))
            kept = texts(await store.aread("news", 0, 100))
            assert len(kept) == min(size, n + 1)
            assert kept == [str(number) for number in range(n + 1 - len(kept), n + 1)]


async def test_history_is_bounded_by_age(database_store: DatabaseStore) -> None:
    store = database_store
    await append(store, *(event("news", str(n)) for n in range(3)))
    await append(store, event("sport", "new"))
    stored = StoredEvent.objects.using(store.using)
    old = await sync_to_async(database_time)(store.using) - 25 * 3600 * 1_000_000
    last = (await state(store, "news")).head
    await stored.filter(group="news", number__lt=last).aupdate(created=old)
    await store.atrim()
    assert texts(await store.aread("news", 0, 10)) == ["2"]
    assert texts(await store.aread("sport", 0, 10)) == ["new"]


async def test_idle_groups_are_forgotten_and_begin_again_beyond_their_numbers(
    database_store: DatabaseStore,
) -> None:
    store = database_store
    [before] = await append(store, event("news", "a"))
    await append(store, event("sport", "b"))
    idle = await sync_to_async(database_time)(store.using) - 8 * 24 * 3600 * 1_000_000
    await EventGroup.objects.using(store.using).filter(name="news").aupdate(changed=idle)
    await store.atrim()
    assert await state(store, "news") == GroupState()
    assert texts(await store.aread("sport", 0, 10)) == ["b"]
    [after] = await append(store, event("news", "c"))
    assert before is not None
    assert after is not None
    assert after > before


# Trimming, wherever something is published or visited


async def age(store: DatabaseStore, seconds: float) -> None:
    """Let everything that is kept be older."""
    older = int(seconds * 1_000_000)
    await StoredEvent.objects.using(store.using).aupdate(created=F("created") - older)
    await EventGroup.objects.using(store.using).aupdate(changed=F("changed") - older)
    # As when the process has not trimmed for long.
    store.trim_due = 0.0


async def count_of(store: DatabaseStore, group: str) -> int:
    return await StoredEvent.objects.using(store.using).filter(group=group).acount()


async def test_a_site_that_only_publishes_keeps_no_more_than_its_history(
    database_store: DatabaseStore,
) -> None:
    store = database_store
    await append(store, *(event("news", str(n)) for n in range(3)))
    await age(store, 25 * 3600)
    await append(store, event("sport", "new"))
    assert await count_of(store, "news") == 0
    assert texts(await store.aread("sport", 0, 10)) == ["new"]
    # Groups as well, in their time.
    await age(store, 8 * 24 * 3600)
    await append(store, event("sport", "newer"))
    assert await state(store, "news") == GroupState()


async def test_nothing_is_dropped_in_a_transaction_of_the_project(
    database_store: DatabaseStore,
) -> None:
    store = database_store
    await append(store, event("news", "old"))
    await age(store, 25 * 3600)

    def publish_in_transaction() -> None:
        with transaction.atomic(using=store.using):
            store.append([event("sport", "new")], silent)
            assert StoredEvent.objects.using(store.using).filter(group="news").exists()

    await in_thread(publish_in_transaction)
    assert await count_of(store, "news") == 0


@pytest.fixture
def in_small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("django_sse.stores.database.trimming._TRIM_EVENTS", 10)
    monkeypatch.setattr("django_sse.stores.database.store._PUBLISHER_SECONDS", 0)
    monkeypatch.setattr("django_sse.stores.database.store._PUBLISHER_PAUSE", 0)


@pytest.mark.usefixtures("in_small_steps")
async def test_who_publishes_drops_for_a_moment_only_and_the_next_ones_the_rest(
    database_store: DatabaseStore,
) -> None:
    store = database_store
    await append(store, *(event(f"group-{n}", "old") for n in range(4)))
    await age(store, 25 * 3600)
    left = []
    for _ in range(4):
        await append(store, event("sport", "new"))
        left.append(
            await StoredEvent.objects.using(store.using).filter(group__startswith="group").acount()
        )
    assert left == [3, 2, 1, 0]


@pytest.mark.usefixtures("in_small_steps")
async def test_a_large_group_is_forgotten_in_steps(database_store: DatabaseStore) -> None:
    store = database_store
    await append(store, *(event("news", str(n)) for n in range(25)))
    await age(store, 8 * 24 * 3600)
    left = []
    for _ in range(3):
        await append(store, event("sport", "new"))
        left.append((await count_of(store, "news"), bool((await state(store, "news")).first)))
    assert left == [(15, True), (5, True), (0, False)]


async def test_what_somebody_has_locked_keeps_nothing_else_from_being_dropped(
    database_store: DatabaseStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("django_sse.stores.database.trimming._TRIM_EVENTS", 10)
    monkeypatch.setattr("django_sse.stores.database.store._PUBLISHER_SECONDS", 60)
    store = database_store
    if connections[store.using].vendor == "sqlite":
        pytest.skip("SQLite lets one transaction write at a time.")
    # More of them than one step looks at, and older.
    await append(store, *(event("locked", str(n)) for n in range(20)))
    await age(store, 3600)
    await append(store, event("news", "old"))
    await age(store, 25 * 3600)
    locked, finish = threading.Event(), threading.Event()

    def hold() -> None:
        with transaction.atomic(using=store.using):
            list(EventGroup.objects.using(store.using).select_for_update().filter(name="locked"))
            locked.set()
            finish.wait(60)

    holding = asyncio.create_task(in_thread(hold))
    assert await asyncio.to_thread(locked.wait, 60)
    await append(store, event("sport", "new"))
    assert await count_of(store, "news") == 0
    assert await count_of(store, "locked") == 20
    finish.set()
    await holding
    await store.atrim()
    assert await count_of(store, "locked") == 0


async def test_a_group_that_is_published_to_as_it_is_about_to_be_dropped_is_kept(
    database_store: DatabaseStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = database_store
    await append(store, event("news", "old"))
    await age(store, 8 * 24 * 3600)
    look = store._trimming._groups_to_trim

    def look_and_be_late(passed: set[str]) -> list[str]:
        names = look(passed)
        if names:
            store._append([event("news", "new")])
        return names

    monkeypatch.setattr(store._trimming, "_groups_to_trim", look_and_be_late)
    await in_thread(lambda: store._trimming.run(0))
    assert texts(await store.aread("news", 0, 10)) == ["new"]
    assert (await state(store, "news")).first


async def test_the_command_waits_for_who_writes_to_the_database(
    database_store: DatabaseStore,
) -> None:
    store = database_store
    await append(store, *(event("news", str(n)) for n in range(3)))
    await age(store, 25 * 3600)
    locked, finish = threading.Event(), threading.Event()

    def hold() -> None:
        with transaction.atomic(using=store.using):
            EventGroup.objects.using(store.using).filter(name="news").update(head=F("head"))
            locked.set()
            finish.wait(60)

    holding = asyncio.create_task(in_thread(hold))
    assert await asyncio.to_thread(locked.wait, 60)
    trimming = asyncio.create_task(in_thread(store.trim))
    done, _ = await asyncio.wait([trimming], timeout=0.5)
    assert not done
    finish.set()
    await holding
    assert (await trimming).events == 3


async def test_a_file_that_others_write_to_is_trimmed_all_the_same(
    database_store: DatabaseStore,
) -> None:
    store = database_store
    await append(store, *(event(f"group-{n}", "old") for n in range(50)))
    await age(store, 25 * 3600)
    stopped = threading.Event()

    def write() -> None:
        while not stopped.wait(0.005):
            with transaction.atomic(using=store.using):
                EventGroup.objects.using(store.using).filter(name="other").update(head=F("head"))
                time.sleep(0.005)

    writing = asyncio.create_task(in_thread(write))
    async with asyncio.timeout(60):
        await store.atrim()
    stopped.set()
    await writing
    assert await StoredEvent.objects.using(store.using).acount() == 0


async def test_a_younger_event_outlives_an_older_one_behind_it(
    database_store: DatabaseStore,
) -> None:
    """As where the database's clock was set back."""
    store = database_store
    await append(store, *(event("news", str(n)) for n in range(4)))
    last = (await state(store, "news")).head
    stored = StoredEvent.objects.using(store.using).filter(number__in=[last - 3, last - 1])
    await stored.aupdate(created=F("created") - 25 * 3600 * 1_000_000)
    await store.atrim()
    assert texts(await store.aread("news", 0, 10)) == ["1", "2", "3"]


async def test_what_cannot_be_dropped_harms_nothing_that_is_published(
    database_store: DatabaseStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: object) -> int:
        raise OperationalError("The disk is full.")

    store = database_store
    monkeypatch.setattr(store._trimming, "_groups_to_trim", fail)
    store.trim_due = 0.0
    await append(store, event("news", "a"))
    assert texts(await store.aread("news", 0, 10)) == ["a"]
    assert "could not be dropped" in caplog.text


@pytest.mark.usefixtures("everything_ends")
async def test_visits_drop_what_is_too_old_however_short_they_are(
    database_store: DatabaseStore,
) -> None:
    options = {"BACKEND": "database", "OPTIONS": {"using": database_store.using}}
    with override_settings(DJANGO_SSE={"STORE": options}):
        store = get_store()
        assert isinstance(store, DatabaseStore)
        await append(store, event("news", "old"))
        await age(store, 25 * 3600)
        async with asyncio.timeout(30):
            while await count_of(store, "news"):
                async with connected("sport"):
                    pass


async def test_what_was_found_to_trim_is_trimmed_without_looking_again(
    database_store: DatabaseStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look passes by all that was deleted since the last vacuum, and takes a publisher's time."""
    store, looks = database_store, 0
    look = store._trimming._groups_to_trim

    def count_looks(skipped: Any) -> list[str]:
        nonlocal looks
        looks += 1
        return look(skipped)

    monkeypatch.setattr(store._trimming, "_groups_to_trim", count_looks)
    groups = ["news", "sport", "weather"]
    # More of one group than groups that are found at a time.
    await append(store, *(event("news", str(n)) for n in range(200)))
    await append(store, *(event(group, "a") for group in groups[1:]))
    await age(store, 25 * 3600)
    for _ in groups:
        _, more = await in_thread(lambda: store._trimming.run(0))
        assert more
    assert [await count_of(store, group) for group in groups] == [0, 0, 0]
    assert looks == 1


async def test_the_command_says_what_it_has_dropped(database_store: DatabaseStore) -> None:
    store = database_store
    await append(store, *(event("news", str(n)) for n in range(3)), event("sport", "a"))
    await age(store, 25 * 3600)
    stored = StoredEvent.objects.using(store.using)
    await stored.filter(group="sport").aupdate(created=F("created") + 25 * 3600 * 1_000_000)
    groups = EventGroup.objects.using(store.using)
    await groups.filter(name="sport").aupdate(changed=F("changed") - 7 * 24 * 3600 * 1_000_000)
    output = StringIO()

    def trim() -> None:
        options = {"BACKEND": "database", "OPTIONS": {"using": store.using}}
        with override_settings(DJANGO_SSE={"STORE": options}):
            call_command("sse_trim", stdout=output)

    await sync_to_async(trim)()
    assert output.getvalue() == "Dropped 4 events and 1 groups.\n"


# Time


class Host:
    """The clock of a host, which is another one than the database's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead = 0
        now = timezone.now
        monkeypatch.setattr(timezone, "now", lambda: now() + timedelta(seconds=self.ahead))
        monkeypatch.setattr(
            "django_sse.groups.numbering.time_ns", lambda: time.time_ns() + self.ahead * 10**9
        )


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(monkeypatch)


async def test_what_a_host_publishes_whose_clock_is_behind_is_found_at_once(
    database_store: DatabaseStore, host: Host
) -> None:
    store = database_store
    _, cursor = await store.achanged(None, {"news"})
    host.ahead = -3600
    [number] = await append(store, event("news", "from afar"))
    host.ahead = 0
    hints, _ = await store.achanged(cursor, {"news"})
    assert (number, False) in [(hint.head, hint.cancelled) for hint in hints or ()]


@pytest.mark.parametrize("hours", [1, -1])
async def test_a_host_whose_clock_is_set_drops_nothing(
    database_store: DatabaseStore, host: Host, hours: int
) -> None:
    """As by an hour where a project has ``USE_TZ = False``, in spring."""
    store = database_store
    with override_settings(DJANGO_SSE={"HISTORY_AGE": 1800, "CANCEL_TTL": 1800}):
        await append(store, event("news", "a"), end(user_key(7), "kicked"))
        host.ahead = hours * 3600
        await store.atrim()
        assert texts(await store.aread("news", 0, 10)) == ["a"]
        assert (await state(store, user_key(7))).cancelled


async def test_after_a_jump_of_the_databases_clock_everything_is_looked_at(
    database_store: DatabaseStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = database_store
    await append(store, event("news", "a"))
    _, cursor = await store.achanged(None, {"news"})

    def an_hour_before(alias: str) -> int:
        return database_time(alias) - 3600 * 1_000_000

    await append(store, event("news", "b"))
    monkeypatch.setattr("django_sse.stores.database.tables.database_time", an_hour_before)
    hints, cursor = await store.achanged(cursor, {"news"})
    assert hints is None
    await append(store, event("news", "c"))
    hints, _ = await store.achanged(cursor, {"news"})
    assert [hint.group for hint in hints or ()] == ["news"]


async def test_an_unchanged_sqlite_file_is_not_queried(
    database_store: DatabaseStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A connection that is opened anew has to look once.
    monkeypatch.setattr("django_sse.stores.database.connection._REOPEN_SECONDS", 3600)
    store = database_store
    if connections[store.using].vendor != "sqlite":
        pytest.skip("PRAGMA data_version is SQLite's.")
    _, cursor = await store.achanged(None, {"news"})

    def queries(captured: list[str]) -> None:
        connections[store.using].execute_wrappers.append(
            lambda execute, sql, *rest: captured.append(sql) or execute(sql, *rest)  # type: ignore[func-returns-value]
        )

    captured: list[str] = []
    await store._in_reader(lambda: queries(captured))
    hints, cursor = await store.achanged(cursor, {"news"})
    assert hints == []
    assert captured == ["PRAGMA data_version"]
    [number] = await append(store, event("news", "a"))
    hints, _ = await store.achanged(cursor, {"news"})
    assert Hint("news", number or 0, cancelled=False) in list(hints or ())


async def test_reading_goes_on_after_the_connection_was_lost(
    database_store: DatabaseStore,
) -> None:
    store = database_store
    await append(store, event("news", "a"))
    assert texts(await store.aread("news", 0, 10)) == ["a"]

    await store._in_reader(lambda: spoil(store.using, END_ONESELF))
    assert texts(await store.aread("news", 0, 10)) == ["a"]


END_ONESELF = {
    "postgresql": "SELECT pg_terminate_backend(pg_backend_pid())",
    "mysql": "KILL CONNECTION_ID()",
}
# As every connection to a server is that was the master before a failover.
TAKE_NO_WRITES = {
    "postgresql": "SET default_transaction_read_only = on",
    "mysql": "SET SESSION TRANSACTION READ ONLY",
}


def spoil(alias: str, statements: dict[str, str]) -> None:
    connection = connections[alias]
    if connection.vendor == "sqlite":
        pytest.skip("A file has no server.")
    with suppress(OperationalError), connection.cursor() as cursor:
        cursor.execute(statements[connection.vendor])


@pytest.mark.parametrize("statements", [END_ONESELF, TAKE_NO_WRITES], ids=["lost", "read-only"])
async def test_publishing_goes_on_where_the_connection_leads_nowhere(
    database_store: DatabaseStore, statements: dict[str, str]
) -> None:
    store = database_store

    def publish_twice() -> list[int | None]:
        # As in a worker, or under `apublish`: nobody closes the connection between the two.
        numbers = store.append([event("news", "a")], silent)
        spoil(store.using, statements)
        return numbers + store.append([event("news", "b")], silent)

    first, second = await in_thread(publish_twice)
    assert second == (first or 0) + 1
    assert texts(await store.aread("news", 0, 10)) == ["a", "b"]

    def publish_in_transaction() -> None:
        with transaction.atomic(using=store.using):
            connections[store.using].ensure_connection()
            spoil(store.using, END_ONESELF)
            store.append([event("news", "lost with its transaction")], silent)

    with pytest.raises((OperationalError, InterfaceError)):
        await in_thread(publish_in_transaction)
    assert texts(await store.aread("news", 0, 10)) == ["a", "b"]


@pytest.mark.parametrize("statements", [END_ONESELF, TAKE_NO_WRITES], ids=["lost", "read-only"])
async def test_a_hub_goes_on_where_the_connection_leads_nowhere(
    database_store: DatabaseStore, statements: dict[str, str]
) -> None:
    store = database_store
    _, cursor = await store.achanged(None, {"news"})
    [number] = await append(store, event("news", "a"))
    await store._in_reader(lambda: spoil(store.using, statements))
    # Also what has to be written: a publisher that died has left it behind.
    await sync_to_async(OutboxEvent.objects.using(store.using).create)(
        group="news", kind=Kind.EVENT, wire=b"data: b\n\n"
    )
    hints, _ = await store.achanged(cursor, {"news"})
    assert Hint("news", (number or 0) + 1, cancelled=False) in [
        hint._replace(entries=()) for hint in hints or ()
    ]
    assert (await state(store, "news")).head == (number or 0) + 1


async def test_an_event_whose_commit_may_have_been_made_is_not_doubled(
    database_store: DatabaseStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = database_store

    def publish_and_lose_the_answer() -> None:
        store.append([event("news", "a")], silent)
        connection: Any = connections[store.using]
        commit = connection._commit

        def commit_and_lose() -> None:
            commit()
            spoil(store.using, END_ONESELF)
            raise OperationalError("The connection was lost.")

        with monkeypatch.context() as patch:
            patch.setattr(connection, "_commit", commit_and_lose)
            with pytest.raises(OperationalError):
                store.append([event("news", "b")], silent)
        store.append([event("news", "c")], silent)

    await in_thread(publish_and_lose_the_answer)
    assert texts(await store.aread("news", 0, 10)) == ["a", "b", "c"]


async def test_closing_lets_go_of_the_thread_and_reading_takes_a_new_one(
    database_store: DatabaseStore,
) -> None:
    store = database_store
    # Those of other stores of this process may not have ended yet.
    before = threading.enumerate()

    def readers() -> list[str]:
        names = [thread.name for thread in threading.enumerate() if thread not in before]
        return [name for name in names if name.startswith("django-sse-store")]

    await append(store, event("news", "a"))
    await asyncio.gather(*(store.aread("news", 0, 10) for _ in range(20)))
    assert len(readers()) == 1
    await store.aclose()
    while readers():
        await asyncio.sleep(0.01)
    assert texts(await store.aread("news", 0, 10)) == ["a"]


async def test_more_events_than_a_statement_can_name_are_numbered(
    database_store: DatabaseStore,
) -> None:
    store = database_store

    def publish_many() -> None:
        with transaction.atomic(using=store.using):
            store.append([event("news", str(n)) for n in range(2000)], silent)
            store.append([event(f"group-{n}", str(n)) for n in range(600)], silent)
        store.append([event("news", str(n)) for n in range(2000, 4000)], silent)

    def bound_variables() -> None:
        # SQLite's bound was 999 for long; where it is higher, the batches are as small.
        connection = connections[store.using]
        connection.ensure_connection()
        if connection.vendor == "sqlite":
            connection.connection.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, 999)

    await sync_to_async(bound_variables)()
    with override_settings(DJANGO_SSE={"HISTORY_SIZE": 5000}):
        await sync_to_async(publish_many)()
        assert texts(await store.aread("news", 0, 5000)) == [str(n) for n in range(4000)]
    assert not await OutboxEvent.objects.using(store.using).aexists()
    assert texts(await store.aread("group-599", 0, 5)) == ["599"]


async def test_the_driver_may_bind_parameters_on_the_server(
    database_store: DatabaseStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which then has to know the types of them."""
    store = database_store
    if connections[store.using].vendor != "postgresql":
        pytest.skip("It is an option of Django for psycopg.")
    options = connections[store.using].settings_dict["OPTIONS"]
    monkeypatch.setitem(options, "server_side_binding", True)

    def publish() -> None:
        store.append([event("news", "a")], silent)
        store.append([event("news", "b")], silent)
        store.append([event("news", "c"), event("news", "d")], silent)
        with transaction.atomic(using=store.using):
            store.append([event("news", "e"), event("sport", "e")], silent)

    await in_thread(publish)
    assert texts(await store.aread("news", 0, 10)) == ["a", "b", "c", "d", "e"]
    assert texts(await store.aread("sport", 0, 10)) == ["e"]


async def test_publishing_without_autocommit_is_refused(database_store: DatabaseStore) -> None:
    store = database_store

    def publish() -> None:
        transaction.set_autocommit(False, using=store.using)
        try:
            store.append([event("news", "phantom")], silent)
        finally:
            transaction.rollback(using=store.using)
            transaction.set_autocommit(True, using=store.using)

    with pytest.raises(transaction.TransactionManagementError, match="autocommit"):
        await sync_to_async(publish)()
    assert await store.aread("news", 0, 10) == []


async def test_a_long_write_on_sqlite_holds_up_no_read(database_store: DatabaseStore) -> None:
    store = database_store
    if connections[store.using].vendor != "sqlite":
        pytest.skip("Other databases let several transactions write at a time.")
    _, cursor = await store.achanged(None, {"news"})

    def commit_and_die() -> None:
        with transaction.atomic(using=store.using):
            store._stage([event("news", "waiting")])

    await sync_to_async(commit_and_die)()
    writing, done = threading.Event(), threading.Event()

    def write_slowly() -> None:
        with transaction.atomic(using=store.using):
            EventGroup.objects.using(store.using).update(cancelled=False)
            writing.set()
            assert done.wait(30)

    writer = asyncio.create_task(in_thread(write_slowly))
    assert await asyncio.to_thread(writing.wait, 10)
    _, cursor = await asyncio.wait_for(store.achanged(cursor, {"news"}), 3)
    await asyncio.wait_for(store.atrim(), 3)
    done.set()
    await writer
    await store.achanged(cursor, {"news"})
    assert texts(await store.aread("news", 0, 10)) == ["waiting"]


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
async def test_publishing_at_higher_isolation_levels_begins_again_where_it_must(
    database_store: DatabaseStore, level: str
) -> None:
    store = database_store
    if connections[store.using].vendor == "sqlite":
        pytest.skip("SQLite has no isolation levels.")
    set_level = {
        "postgresql": f"SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL {level}",
        "mysql": f"SET SESSION TRANSACTION ISOLATION LEVEL {level}",
    }

    def publish_twenty(name: int) -> None:
        connection = connections[store.using]
        with connection.cursor() as cursor:
            cursor.execute(set_level[connection.vendor])
        for n in range(20):
            store.append([event("news", f"{name} {n}")], silent)

    await asyncio.gather(*(in_thread(partial(publish_twenty, name)) for name in range(4)))
    assert len(await store.aread("news", 0, 100)) == 80


async def test_publishing_waits_for_a_lock_longer_than_mysql_does(
    database_store: DatabaseStore,
) -> None:
    store = database_store
    if connections[store.using].vendor != "mysql":
        pytest.skip("Other databases set no bound to it by themselves.")
    await append(store, event("news", "a"))
    locked, begun_again = threading.Event(), threading.Event()

    def hold_the_lock() -> None:
        with transaction.atomic(using=store.using):
            EventGroup.objects.using(store.using).select_for_update().get(name="news")
            locked.set()
            assert begun_again.wait(30)

    def publish() -> None:
        waits = 0

        def watch(execute: Any, sql: str, *rest: Any) -> Any:
            nonlocal waits
            waits += "FOR UPDATE" in sql
            if waits == 2:
                begun_again.set()
            return execute(sql, *rest)

        with connections[store.using].cursor() as cursor:
            cursor.execute("SET SESSION innodb_lock_wait_timeout = 1")
        with connections[store.using].execute_wrapper(watch):
            store.append([event("news", "b")], silent)

    holding = asyncio.create_task(in_thread(hold_the_lock))
    assert await asyncio.to_thread(locked.wait, 10)
    await in_thread(publish)
    await holding
    assert texts(await store.aread("news", 0, 10)) == ["a", "b"]


@asynccontextmanager
async def without_tables(using: str) -> AsyncIterator[None]:
    """Give the store's tables other names for a while."""
    models = (EventGroup, StoredEvent, OutboxEvent)

    def rename(before: str, after: str) -> None:
        with connections[using].schema_editor() as editor:
            for model in models:
                table = model._meta.db_table
                editor.alter_db_table(model, f"{before}{table}", f"{after}{table}")

    await in_thread(partial(rename, "", "renamed_"))
    try:
        yield
    finally:
        await in_thread(partial(rename, "renamed_", ""))


async def test_who_has_made_no_tables_is_told_to_migrate(
    database_store: DatabaseStore, settings: Settings
) -> None:
    store = database_store
    alias = "" if store.using == "default" else f" --database {store.using}"
    wanted = f"in the database {store.using!r}: run `python manage.py migrate{alias}`."
    async with without_tables(store.using):
        with pytest.raises(Error) as failed:
            await store.astates(["news"])
        assert wanted in failed.value.__notes__[0]
        with pytest.raises(Error) as failed:
            await sync_to_async(store.append)([event("news", "a")], silent)
        assert wanted in failed.value.__notes__[0]
        # Also in the first answer, where it is a developer who asks.
        options = {"using": store.using}
        settings.DJANGO_SSE = {"STORE": {"BACKEND": "database", "OPTIONS": options}}
        settings.DEBUG = True
        answer = await EventStreamView.as_view(groups=["news"])(get())
        await get_store().aclose()
        assert answer.status_code == 503
        assert wanted in answer.content.decode()
