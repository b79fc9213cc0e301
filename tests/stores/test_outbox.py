"""The database store's outbox: an event exists if and only if its transaction was committed."""

import asyncio
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from threading import Event, Thread
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.conf import settings
from django.db import OperationalError, connections, transaction
from django.db.models import F
from django.test import override_settings
from django.test.utils import CaptureQueriesContext

from django_sse import apublish
from django_sse.access.owners import user_key
from django_sse.conf import SETTING
from django_sse.groups.entries import Hint
from django_sse.models import OutboxEvent
from django_sse.stores.clock import database_time
from django_sse.stores.database import DatabaseStore
from django_sse.testing.layers import connected, everything_ends
from django_sse.testing.stores import Bell, append, close, end, event, reopening, state, texts
from django_sse.testing.threads import in_thread


def silent(hints: Sequence[Hint]) -> None:
    """Ring nobody."""


async def test_in_a_transaction_nothing_but_the_outbox_is_written(
    database_store: DatabaseStore,
) -> None:
    store = database_store

    def queries_of_publish() -> list[str]:
        connection = connections[store.using]
        with transaction.atomic(using=store.using), CaptureQueriesContext(connection) as captured:
            store.append([event("news", "a"), event("sport", "b")], silent)
        return [query["sql"] for query in captured.captured_queries]

    queries = await sync_to_async(queries_of_publish)()
    written = [sql for sql in queries if sql.startswith(("INSERT", "UPDATE", "DELETE"))]
    assert len(written) == 1
    assert "django_sse_outboxevent" in written[0]
    assert not any("FOR UPDATE" in sql for sql in queries)


def words(captured: CaptureQueriesContext) -> list[str]:
    """The first word of each statement: each is a round trip to a server."""
    return [query["sql"].split()[0] for query in captured.captured_queries]


# So that no number happens to be one at which old events are dropped.
@override_settings(DJANGO_SSE={"HISTORY_SIZE": 10**15})
async def test_an_event_for_a_group_in_its_usual_state_takes_the_fewest_statements(
    database_store: DatabaseStore,
) -> None:
    store = database_store
    connection = connections[store.using]
    if connection.vendor == "mysql" or not connection.features.can_return_columns_from_insert:
        pytest.skip("What this database updates, it does not return.")
    await append(store, event("news", "a"))

    def statements_of_publish() -> list[str]:
        with CaptureQueriesContext(connections[store.using]) as captured:
            store.append([event("news", "b")], silent)
        return words(captured)

    inside = {"sqlite": ["UPDATE", "INSERT"], "postgresql": ["WITH"]}[connection.vendor]
    assert await sync_to_async(statements_of_publish)() == ["BEGIN", *inside, "COMMIT"]
    assert texts(await store.aread("news", 0, 10)) == ["a", "b"]


@override_settings(DJANGO_SSE={"HISTORY_SIZE": 10**15})
async def test_an_event_in_a_transaction_takes_the_fewest_statements(
    database_store: DatabaseStore,
) -> None:
    store = database_store
    vendor = connections[store.using].vendor
    if vendor == "mysql":
        pytest.skip("It would lock what a statement reads as it inserts.")
    await append(store, event("news", "a"), event("sport", "a"))

    def statements_of_publish() -> list[str]:
        captured = CaptureQueriesContext(connections[store.using])
        with captured, transaction.atomic(using=store.using):
            store.append([event("news", "b")], silent)
            store.append([event("news", "c"), event("sport", "b")], silent)
        return words(captured)

    statements = await sync_to_async(statements_of_publish)()
    assert statements[:4] == ["BEGIN", "INSERT", "INSERT", "COMMIT"]
    assert vendor != "postgresql" or statements[4] == "WITH"
    assert texts(await store.aread("news", 0, 10)) == ["a", "b", "c"]
    assert texts(await store.aread("sport", 0, 10)) == ["a", "b"]


async def test_what_a_transaction_publishes_to_a_group_is_numbered_together(
    database_store: DatabaseStore,
) -> None:
    store, rung = database_store, list[Hint]()
    await append(store, event("news", "0"))

    def commits_for(*texts: str) -> int:
        with CaptureQueriesContext(connections[store.using]) as captured:
            with transaction.atomic(using=store.using):
                for text in texts:
                    store.append([event("news", text)], rung.extend)
            return words(captured).count("COMMIT")

    with override_settings(DJANGO_SSE={"HISTORY_SIZE": 10**15}):
        one = await sync_to_async(commits_for)("1")
        assert await sync_to_async(commits_for)(*map(str, range(2, 12))) == one
    assert [len(hint.entries) for hint in rung] == [1, 10]
    assert texts(await store.aread("news", 0, 20)) == [str(n) for n in range(12)]


async def test_what_is_published_in_a_commit_hook_is_numbered_as_well(
    database_store: DatabaseStore,
) -> None:
    """In a transaction between the commit and the numbering of what was published before."""
    store, rung = database_store, list[Hint]()

    def publish(text: str) -> None:
        with transaction.atomic(using=store.using):
            store.append([event("news", text)], rung.extend)

    def publish_around() -> None:
        with transaction.atomic(using=store.using):
            transaction.on_commit(lambda: publish("b"), using=store.using)
            publish("a")
            transaction.on_commit(lambda: publish("c"), using=store.using)
        publish("d")

    await sync_to_async(publish_around)()
    assert texts(await store.aread("news", 0, 10)) == ["a", "b", "c", "d"]
    assert texts([entry for hint in rung for entry in hint.entries]) == ["a", "b", "c", "d"]
    assert not await OutboxEvent.objects.using(store.using).aexists()


async def test_an_event_is_numbered_once_although_the_answer_was_lost(
    database_store: DatabaseStore,
) -> None:
    """Of the statement that numbers it, after the commit."""
    store, rung, lost = database_store, list[Hint](), list[str]()
    if connections[store.using].vendor != "postgresql":
        pytest.skip("Elsewhere a transaction surrounds it.")
    await append(store, event("news", "a"))

    def lose_the_answer(execute: Any, sql: str, *rest: Any) -> Any:
        answer = execute(sql, *rest)
        if "pg_notify" in sql and not lost:
            lost.append(sql)
            connections[store.using].close()
            raise OperationalError("The connection was lost.")
        return answer

    def publish() -> None:
        losing = connections[store.using].execute_wrapper(lose_the_answer)
        with losing, transaction.atomic(using=store.using):
            store.append([event("news", "b")], rung.extend)

    await sync_to_async(publish)()
    assert lost
    assert texts(await store.aread("news", 0, 10)) == ["a", "b"]
    assert [hint.head for hint in rung] == [(await state(store, "news")).head]
    assert not await OutboxEvent.objects.using(store.using).aexists()


async def test_a_kick_that_is_committed_as_its_group_is_read_is_told_first(
    database_store: DatabaseStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right before the publisher takes what waits for the group."""
    store, rung = database_store, list[Hint]()
    if connections[store.using].vendor == "sqlite":
        pytest.skip("SQLite lets one transaction write at a time.")
    await append(store, event("room", "before"))
    take = store._statements.take_waiting

    def kick_and_publish() -> None:
        try:
            with transaction.atomic(using=store.using):
                store._stage([end(user_key(7), "over")])
                store._stage([event("room", "secret")])
        finally:
            connections.close_all()

    def take_late(groups: Sequence[str]) -> Any:
        if groups == ["room"]:
            monkeypatch.setattr(store._statements, "take_waiting", take)
            thread = Thread(target=kick_and_publish)
            thread.start()
            thread.join()
        return take(groups)

    def leave_one_behind() -> None:
        with transaction.atomic(using=store.using):
            store._stage([event("room", "waits")])

    await sync_to_async(leave_one_behind)()
    monkeypatch.setattr(store._statements, "take_waiting", take_late)
    await sync_to_async(store.append)([event("room", "chat")], rung.extend)
    assert [hint.group for hint in rung] == [user_key(7), "room"]
    assert texts(rung[1].entries) == ["waits", "secret", "chat"]


async def test_what_a_publisher_left_behind_is_numbered_by_the_next_to_look(
    database_store: DatabaseStore,
) -> None:
    store = database_store
    _, cursor = await store.achanged(None, {"news"})

    def commit_and_die() -> None:
        with transaction.atomic(using=store.using):
            # As publish does, but the commit hook never runs.
            store._stage([event("news", "a"), event("news", "b")])

    await sync_to_async(commit_and_die)()
    assert await store.aread("news", 0, 10) == []
    hints, _ = await store.achanged(cursor, {"news"})
    assert texts(await store.aread("news", 0, 10)) == ["a", "b"]
    [hint] = {hint for hint in hints or () if hint.group == "news" and hint.entries}
    assert texts(hint.entries) == ["a", "b"]
    assert not await OutboxEvent.objects.using(store.using).aexists()


async def test_an_end_that_a_publisher_left_behind_counts_from_when_it_was_ordered(
    database_store: DatabaseStore,
) -> None:
    """Who logs in afterwards is not ended by it, however late it is numbered."""
    store = database_store

    def commit_and_die() -> int:
        with transaction.atomic(using=store.using):
            store._stage([end(user_key(7), "over")])
        return database_time(store.using)

    committed = await sync_to_async(commit_and_die)()
    # Long ago: nobody looked at it since.
    two_minutes = 120_000_000
    await OutboxEvent.objects.using(store.using).aupdate(at=F("at") - two_minutes)
    await store.achanged(None, set())
    now = await state(store, user_key(7))
    assert now.cancelled
    assert 0 < now.first <= committed - two_minutes


async def test_an_end_of_just_now_counts_from_its_commit_also_on_a_first_look(
    database_store: DatabaseStore,
) -> None:
    store = database_store

    def order_and_commit() -> int:
        with transaction.atomic(using=store.using):
            store._stage([end(user_key(7), "over")])
            time.sleep(0.01)
            return database_time(store.using)

    began = await sync_to_async(order_and_commit)()
    await store.achanged(None, set())
    assert (await state(store, user_key(7))).first >= began


async def test_who_takes_what_waits_does_not_wait_for_open_transactions(
    database_store: DatabaseStore,
) -> None:
    store = database_store
    if connections[store.using].vendor == "sqlite":
        pytest.skip("SQLite lets one transaction write at a time.")
    staged, finish = Event(), Event()

    def publish_slowly() -> None:
        with transaction.atomic(using=store.using):
            store.append([event("sport", "slow")], silent)
            staged.set()
            assert finish.wait(30)

    def publish_three() -> None:
        with transaction.atomic(using=store.using):
            store.append([event("news", str(n)) for n in range(3)], silent)

    slow = asyncio.create_task(in_thread(publish_slowly))
    try:
        assert await asyncio.to_thread(staged.wait, 10)
        await asyncio.wait_for(in_thread(publish_three), 10)
        assert texts(await store.aread("news", 0, 10)) == ["0", "1", "2"]
        assert not slow.done()
    finally:
        finish.set()
        await slow


async def test_a_session_that_began_while_a_kick_was_being_committed_ends_as_well(
    database_store: DatabaseStore,
) -> None:
    store = database_store

    def kick_in_a_transaction() -> int:
        with transaction.atomic(using=store.using):
            store.append([end(user_key(7), "over")], silent)
            # Each of them later, by the clock of every database.
            time.sleep(0.01)
            began = database_time(store.using)
            time.sleep(0.01)
        return began

    began = await sync_to_async(kick_in_a_transaction)()
    now = await state(store, user_key(7))
    assert now.cancelled
    assert now.first > began


@pytest.mark.parametrize("is_left_behind", [False, True])
async def test_who_is_let_in_and_kicked_in_one_transaction_is_kicked(
    database_store: DatabaseStore, is_left_behind: bool
) -> None:
    store = database_store
    take = store._stage if is_left_behind else partial(store.append, ring=silent)

    def reopen_and_kick() -> None:
        with transaction.atomic(using=store.using):
            take([reopening(user_key(7))])
            take([end(user_key(7), "over")])

    await sync_to_async(reopen_and_kick)()
    await store.achanged(None, set())
    assert (await state(store, user_key(7))).cancelled


async def test_each_look_numbers_something_however_slow_the_database_is(
    database_store: DatabaseStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("django_sse.stores.database.store._NUMBERING_SECONDS", 0)
    store = database_store

    def leave_behind() -> None:
        with transaction.atomic(using=store.using):
            store._stage([event("a", "first"), event("b", "second")])

    await sync_to_async(leave_behind)()
    _, cursor = await store.achanged(None, set())
    assert (await state(store, "a")).head
    assert not (await state(store, "b")).head
    await store.achanged(cursor, set())
    assert (await state(store, "b")).head


async def test_who_publishes_between_a_commit_and_its_hook_tells_of_its_kick_first(
    database_store: DatabaseStore,
) -> None:
    """Otherwise who was kicked would get what the same transaction has published."""
    store, rung = database_store, list[Hint]()
    await append(store, event("room", "before"))

    def kick_and_publish() -> None:
        with transaction.atomic(using=store.using):
            # The commit hook has not run yet.
            store._stage([end(user_key(7), "over")])
            store._stage([event("room", "secret")])

    await sync_to_async(kick_and_publish)()
    await sync_to_async(store.append)([event("room", "chat")], rung.extend)
    assert [hint.group for hint in rung] == [user_key(7), "room"]
    assert rung[0].cancelled
    assert texts(rung[1].entries) == ["secret", "chat"]


async def test_who_publishes_in_a_transaction_of_their_own_tells_of_a_kick_first(
    database_store: DatabaseStore,
) -> None:
    """Which another publisher committed with an event, and left both behind."""
    store, rung = database_store, list[Hint]()
    await append(store, event("room", "before"))

    def kick_publish_and_die() -> None:
        with transaction.atomic(using=store.using):
            store._stage([end(user_key(7), "over")])
            store._stage([event("room", "secret")])

    def publish() -> None:
        with transaction.atomic(using=store.using):
            store.append([event("room", "chat")], rung.extend)

    await sync_to_async(kick_publish_and_die)()
    await sync_to_async(publish)()
    assert [hint.group for hint in rung] == [user_key(7), "room"]
    assert texts(rung[1].entries) == ["secret", "chat"]


async def test_what_waits_is_numbered_before_what_is_published_later(
    database_store: DatabaseStore,
) -> None:
    store = database_store

    def commit_and_die() -> None:
        with transaction.atomic(using=store.using):
            store._stage([event("news", "first")])

    await sync_to_async(commit_and_die)()
    await append(store, event("news", "second"))
    assert texts(await store.aread("news", 0, 10)) == ["first", "second"]


async def test_cancel_and_reopen_in_a_transaction_count_for_what_follows_in_it(
    database_store: DatabaseStore,
) -> None:
    store = database_store
    await append(store, close("news"))

    def reopen_and_publish() -> None:
        with transaction.atomic(using=store.using):
            store.append([reopening("news")], silent)
            store.append([event("news", "a")], silent)

    await sync_to_async(reopen_and_publish)()
    assert texts(await store.aread("news", 0, 10))[1:] == ["a"]
    assert not (await state(store, "news")).cancelled


async def test_a_publisher_rings_also_for_what_another_process_has_numbered(
    database_store: DatabaseStore,
) -> None:
    store = database_store

    def stage() -> Callable[[], Iterable[Sequence[Hint]]]:
        with transaction.atomic(using=store.using):
            return store._stage([event("news", "a")])

    commit_hook = await sync_to_async(stage)()
    # Another hub's sync comes between the commit and its hook.
    await store.achanged(None, {"news"})
    [[hint]] = await sync_to_async(lambda: list(commit_hook()))()
    assert (hint.group, hint.head) == ("news", (await state(store, "news")).head)
    assert hint.head > 0


class Undone(Exception):
    """Rolls back what it is raised in."""


class Transactions:
    """What a project may do in transactions; each returns what is then published."""

    def __init__(self, store: DatabaseStore) -> None:
        self.store = store
        self.bell = Bell()

    def publish(self, text: str) -> None:
        self.store.append([event("news", text)], self.bell)

    def atomic(self, **kwargs: Any) -> Any:
        return transaction.atomic(using=self.store.using, **kwargs)

    def inner_rollback(self) -> list[str]:
        with self.atomic():
            self.publish("before")
            with suppress(Undone), self.atomic():
                self.publish("undone")
                raise Undone
            self.publish("after")
        return ["before", "after"]

    def inner_commit_and_outer_rollback(self) -> list[str]:
        with suppress(Undone), self.atomic():
            with self.atomic():
                self.publish("undone")
            raise Undone
        return []

    def a_rollback_two_levels_down(self) -> list[str]:
        with self.atomic():
            with suppress(Undone), self.atomic():
                with self.atomic():
                    self.publish("undone, though its own savepoint was released")
                raise Undone
            with self.atomic(), self.atomic():
                self.publish("kept")
        return ["kept"]

    def a_savepoint_rolled_back_by_hand(self) -> list[str]:
        with self.atomic():
            self.publish("kept")
            # As it is called before Django 6.1.
            create = getattr(transaction, "savepoint_create", None) or transaction.savepoint
            savepoint = create(using=self.store.using)
            self.publish("undone")
            transaction.savepoint_rollback(savepoint, using=self.store.using)
        return ["kept"]

    def a_block_without_a_savepoint(self) -> list[str]:
        with suppress(Undone), self.atomic(), self.atomic(savepoint=False):
            self.publish("undone")
            raise Undone
        return []

    def a_rollback_that_was_asked_for(self) -> list[str]:
        with self.atomic():
            self.publish("undone")
            transaction.set_rollback(True, using=self.store.using)
        return []

    def a_durable_transaction(self) -> list[str]:
        with self.atomic(durable=True):
            self.publish("kept")
        return ["kept"]

    def a_durable_transaction_rolled_back(self) -> list[str]:
        with suppress(Undone), self.atomic(durable=True):
            self.publish("undone")
            raise Undone
        return []

    def an_error_of_another_commit_hook(self) -> list[str]:
        def fail() -> None:
            raise Undone

        with suppress(Undone), self.atomic():
            # It keeps the hooks behind it from being run.
            transaction.on_commit(fail, using=self.store.using)
            self.publish("committed all the same")
        return ["committed all the same"]


@pytest.mark.parametrize(
    "transact",
    [
        Transactions.inner_rollback,
        Transactions.inner_commit_and_outer_rollback,
        Transactions.a_rollback_two_levels_down,
        Transactions.a_savepoint_rolled_back_by_hand,
        Transactions.a_block_without_a_savepoint,
        Transactions.a_rollback_that_was_asked_for,
        Transactions.a_durable_transaction,
        Transactions.a_durable_transaction_rolled_back,
        Transactions.an_error_of_another_commit_hook,
    ],
)
async def test_an_event_exists_if_and_only_if_its_transaction_was_committed(
    database_store: DatabaseStore, transact: Callable[[Transactions], list[str]]
) -> None:
    committed = await sync_to_async(transact)(Transactions(database_store))
    _, cursor = await database_store.achanged(None, {"news"})
    await database_store.achanged(cursor, {"news"})
    assert texts(await database_store.aread("news", 0, 10)) == committed
    assert not await OutboxEvent.objects.using(database_store.using).aexists()


async def test_a_transaction_on_another_database_defers_nothing(
    database_store: DatabaseStore,
) -> None:
    store, bell = database_store, Bell()
    if store.using == "default":
        pytest.skip("It is about a store on a database beside the default one.")

    def publish_and_roll_back() -> list[int | None]:
        with transaction.atomic(using="default"):
            numbers = store.append([event("news", "a")], bell)
            transaction.set_rollback(True, using="default")
        return numbers

    [number] = await sync_to_async(publish_and_roll_back)()
    assert [hint.head for hint in bell.hints] == [number]
    assert texts(await store.aread("news", 0, 10)) == ["a"]


async def test_of_two_open_transactions_the_one_on_the_stores_database_counts(
    database_store: DatabaseStore,
) -> None:
    store, bell = database_store, Bell()
    if store.using == "default":
        pytest.skip("It is about a store on a database beside the default one.")

    def publish_twice() -> None:
        with transaction.atomic(using=store.using):
            with transaction.atomic(using="default"):
                assert store.append([event("news", "a")], bell) == [None]
            assert bell.hints == []
            assert store.states(["news"])["news"].head == 0

    await sync_to_async(publish_twice)()
    assert texts(await store.aread("news", 0, 10)) == ["a"]
    assert len(bell.hints) == 1


# Processes that are killed

KILLED = """
import os, pickle, signal, sys
try:
    import pymysql
except ImportError:
    pass
else:
    pymysql.install_as_MySQLdb()
given = pickle.load(sys.stdin.buffer)
from django.conf import settings
settings.configure(**given)
import django
django.setup()

from django.db import transaction
from django_sse import publish
from django_sse.stores import get_store
from django_sse.testing.stores import event

store = get_store()

def die(*args):
    os.kill(os.getpid(), signal.SIGKILL)

"""

BEFORE_THE_COMMIT = """
with transaction.atomic(using=store.using):
    publish("news", "1")
    die()
"""
BETWEEN_COMMIT_AND_NUMBERING = """
with transaction.atomic(using=store.using):
    transaction.on_commit(die, using=store.using)
    publish("news", "1")
    publish("news", "2")
"""
BETWEEN_NUMBERING_AND_DOORBELL = """
with transaction.atomic(using=store.using):
    store.append([event("news", "1"), event("news", "2")], die)
"""
BEFORE_THE_DOORBELL_OF_NO_TRANSACTION = """
store.append([event("news", "1"), event("news", "2")], die)
"""


def run_until_killed(code: str) -> None:
    """Run code in a process with this one's database and settings, which kills itself."""
    given = {
        "INSTALLED_APPS": ["django_sse"],
        "USE_TZ": settings.USE_TZ,
        "DATABASES": {alias: connections[alias].settings_dict for alias in connections},
        "CHANNEL_LAYERS": settings.CHANNEL_LAYERS,
        "DJANGO_SSE": getattr(settings, SETTING),
    }
    finished = subprocess.run(
        [sys.executable, "-c", KILLED + code],
        input=pickle.dumps(given),
        cwd=settings.BASE_DIR,
        capture_output=True,
        check=False,
    )
    assert finished.returncode == -signal.SIGKILL, finished.stderr.decode()


@pytest.mark.parametrize(
    ("code", "committed"),
    [
        (BEFORE_THE_COMMIT, []),
        (BETWEEN_COMMIT_AND_NUMBERING, ["1", "2"]),
        (BETWEEN_NUMBERING_AND_DOORBELL, ["1", "2"]),
        (BEFORE_THE_DOORBELL_OF_NO_TRANSACTION, ["1", "2"]),
    ],
    ids=["before commit", "before numbering", "before doorbell", "without a transaction"],
)
async def test_a_hub_delivers_what_a_killed_process_had_committed(
    database_store: DatabaseStore, code: str, committed: list[str]
) -> None:
    store = {"BACKEND": "database", "OPTIONS": {"using": database_store.using}}
    with override_settings(DJANGO_SSE={"STORE": store, "SYNC_INTERVAL": 0.2}):
        async with connected(2, "news") as clients:
            await asyncio.to_thread(run_until_killed, code)
            for client in clients:
                await client.until_events(1 + len(committed))
            await apublish("news", "later")
            for client in clients:
                await client.until("later")
                assert client.texts == ["ready", *committed, "later"]
        await everything_ends()
