"""Doorbells that PostgreSQL rings itself."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import pytest
from django.db import connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.test import override_settings
from django.test.utils import CaptureQueriesContext

from django_sse.access.owners import user_key
from django_sse.doorbells.base import (
    POLL_SECONDS_WITH_DOORBELL,
    POLL_SECONDS_WITHOUT_DOORBELL,
    Receiver,
)
from django_sse.doorbells.notifications import NotificationDoorbell
from django_sse.groups.entries import Hint, NewEntry
from django_sse.stores import get_store
from django_sse.stores.database import DatabaseStore
from django_sse.stores.postgresql_notify import PostgreSQLNotifications, _NotificationReader
from django_sse.streaming.hub import current_hub
from django_sse.testing.threads import in_thread
from tests import pgbouncer
from tests.clients import connected
from tests.doorbells.conftest import Ear
from tests.failures import Panic
from tests.live.servers import unavailable
from tests.postgresql import ALIAS, binaries
from tests.streams import until

pytestmark = [
    pytest.mark.skipif(not binaries(), reason="PostgreSQL is not installed"),
    pytest.mark.django_db(transaction=True, databases=["default", ALIAS, pgbouncer.ALIAS]),
    pytest.mark.usefixtures("everything_ends"),
]

STORE: dict[str, Any] = {"BACKEND": "database", "OPTIONS": {"using": ALIAS}}


@pytest.fixture
def postgresql_alone() -> Iterator[None]:
    """The store is on PostgreSQL, and is not asked for what is new."""
    with override_settings(DJANGO_SSE={"STORE": STORE, "SYNC_INTERVAL": 3600}):
        yield


@pytest.fixture
def connects_anew(transactional_db: None) -> Iterator[None]:
    """The test ends its own connection, too, which is used to clean up after it."""
    yield
    connections[ALIAS].close()


@pytest.fixture
async def store() -> AsyncIterator[DatabaseStore]:
    store = DatabaseStore(using=ALIAS)
    yield store
    await store.aclose()


def publish_elsewhere(*texts: str) -> None:
    """Publish as another process does: nobody rings the hubs of this one."""
    entries = [NewEntry("news", f"data: {text}\n\n".encode()) for text in texts]
    get_store().append(entries, lambda hints: None)


async def open_receiver(store: DatabaseStore, ear: Ear) -> Receiver:
    assert store.notifications
    receiver = NotificationDoorbell(store.notifications).receiver(ear)
    await receiver.open()
    return receiver


async def until_heard() -> None:
    receiver = current_hub()._receiver
    await until(lambda: receiver.poll_seconds == POLL_SECONDS_WITH_DOORBELL)


@pytest.mark.usefixtures("postgresql_alone")
async def test_what_another_process_publishes_arrives_without_asking_the_store() -> None:
    async with connected("news") as client:
        await until_heard()
        for number in range(20):
            await in_thread(lambda number=number: publish_elsewhere(str(number)))  # type: ignore[misc]
        assert await client.until_events(20) == [str(number) for number in range(20)]


async def test_what_has_no_number_is_told_as_well(store: DatabaseStore) -> None:
    """As that a user has changed, which no group's event says."""
    ear = Ear(asyncio.get_running_loop())
    receiver = await open_receiver(store, ear)
    try:
        await until(lambda: receiver.poll_seconds == POLL_SECONDS_WITH_DOORBELL)
        mark = user_key(7)
        hints = [Hint(mark, 0, cancelled=False), Hint("news", 7, cancelled=False)]
        assert store.notifications
        doorbell = NotificationDoorbell(store.notifications)
        # As in a process without a hub: the ear is another one's.
        await in_thread(lambda: doorbell.ring(hints))
        await until(lambda: mark in [hint.group for hint in ear.heard])
        # Numbering it has told of it.
        assert "news" not in [hint.group for hint in ear.heard]
    finally:
        await receiver.close()


@pytest.mark.usefixtures("postgresql_alone")
async def test_a_transaction_notifies_nobody_until_it_has_committed() -> None:
    captured: list[str] = []

    def publish_in_transaction() -> None:
        with transaction.atomic(using=ALIAS):
            with CaptureQueriesContext(connections[ALIAS]) as queries:
                publish_elsewhere("committed")
            captured.extend(query["sql"] for query in queries)

    async with connected("news") as client:
        await until_heard()
        await in_thread(publish_in_transaction)
        assert await client.until_events(1) == ["committed"]
    assert captured
    assert not any("notify" in sql.lower() for sql in captured)


@pytest.mark.usefixtures("connects_anew", "postgresql_alone")
async def test_a_connection_that_was_lost_is_made_again_and_nothing_is_missed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def lose_all_connections() -> None:
        with connections[ALIAS].cursor() as cursor:
            cursor.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid != pg_backend_pid()"
            )
        publish_elsewhere("meanwhile")

    async with connected("news") as client:
        await until_heard()
        await in_thread(lose_all_connections)
        assert await client.until_events(1) == ["meanwhile"]
        await until_heard()
        await in_thread(lambda: publish_elsewhere("afterwards"))
        assert await client.until_events(2) == ["meanwhile", "afterwards"]
    assert f"LISTEN on the database alias '{ALIAS}' hears nothing" in caplog.text


async def test_a_connection_lost_while_it_is_tested_is_made_again_at_once(
    ear: Ear, store: DatabaseStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So that no test could be in time.
    monkeypatch.setattr("django_sse.stores.notifications._TEST_SECONDS", 3600)
    notifications = store.notifications
    assert notifications
    tests: list[object] = []
    notify = notifications._notify

    def lose_the_first_test(texts: Sequence[str]) -> None:
        tests.append(texts)
        if len(tests) > 1:
            notify(texts)
            return
        with connections[ALIAS].cursor() as cursor:
            cursor.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'"
            )

    monkeypatch.setattr(notifications, "_notify", lose_the_first_test)
    receiver = await open_receiver(store, ear)
    await until(lambda: receiver.poll_seconds == POLL_SECONDS_WITH_DOORBELL)
    assert len(tests) == 2
    await receiver.close()


@pytest.mark.parametrize("where", ["connect", "_take"])
async def test_a_driver_that_panics_is_connected_anew(
    where: str, ear: Ear, store: DatabaseStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("django_sse.stores.notifications._RECONNECT_SECONDS", 0.01)
    owner = PostgreSQLNotifications if where == "connect" else _NotificationReader
    whole = getattr(owner, where)
    calls: list[None] = []

    def panic_once(*args: Any) -> Any:
        calls.append(None)
        if len(calls) == 1:
            raise Panic
        return whole(*args)

    monkeypatch.setattr(owner, where, panic_once)
    receiver = await open_receiver(store, ear)
    await until(lambda: receiver.poll_seconds == POLL_SECONDS_WITH_DOORBELL)
    assert len(calls) > 1
    await receiver.close()


async def test_a_notification_carries_where_a_group_stands_and_no_event(
    ear: Ear, store: DatabaseStore
) -> None:
    receiver = await open_receiver(store, ear)
    await until(lambda: receiver.poll_seconds == POLL_SECONDS_WITH_DOORBELL)
    [number] = await store.aappend([NewEntry("news", b"data: x\n\n")], lambda hints: None)
    await until(lambda: ear.heard)
    assert ear.heard == [Hint("news", number or 0, cancelled=False)]
    await receiver.close()


async def test_a_notification_that_is_no_doorbell_is_ignored_and_the_next_one_rings(
    ear: Ear, store: DatabaseStore, caplog: pytest.LogCaptureFixture
) -> None:
    def notify() -> None:
        with connections[ALIAS].cursor() as cursor:
            cursor.execute("NOTIFY django_sse, 'anything'")
            cursor.execute("NOTIFY django_sse, 'news 1 0'")

    receiver = await open_receiver(store, ear)
    await until(lambda: receiver.poll_seconds == POLL_SECONDS_WITH_DOORBELL)
    await in_thread(notify)
    await until(lambda: ear.heard)
    assert ear.heard == [Hint("news", 1, cancelled=False)]
    assert "not a doorbell" in caplog.text
    await receiver.close()


async def test_what_others_test_themselves_by_makes_no_hub_deaf(
    ear: Ear, store: DatabaseStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    notifications = store.notifications
    assert notifications
    notify = notifications._notify
    monkeypatch.setattr(notifications, "_notify", lambda texts: notify([*texts, "?another"]))
    monkeypatch.setattr("django_sse.stores.notifications._TEST_SECONDS", 1)
    monkeypatch.setattr("django_sse.stores.notifications._RETEST_SECONDS", 0.1)
    receiver = await open_receiver(store, ear)
    await until(lambda: receiver.poll_seconds == POLL_SECONDS_WITH_DOORBELL)
    await receiver.close()


async def test_a_flood_of_notifications_that_are_no_doorbells_does_not_flood_the_log(
    ear: Ear, store: DatabaseStore, caplog: pytest.LogCaptureFixture
) -> None:
    def notify() -> None:
        with connections[ALIAS].cursor() as cursor:
            cursor.execute(
                "SELECT pg_notify('django_sse', n::text) FROM generate_series(1, 1000) n"
            )
            cursor.execute("NOTIFY django_sse, 'news 1 0'")

    receiver = await open_receiver(store, ear)
    await until(lambda: receiver.poll_seconds == POLL_SECONDS_WITH_DOORBELL)
    await in_thread(notify)
    await until(lambda: ear.heard)
    assert caplog.text.count("not a doorbell") == 1
    await receiver.close()


@pytest.fixture
def database_of_bytes(store: DatabaseStore) -> Iterator[None]:
    """The alias leads to a database that takes any bytes for text."""
    name = connections[ALIAS].settings_dict["NAME"]
    with connections[ALIAS].cursor() as cursor:
        cursor.execute(
            "CREATE DATABASE bytes ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' "
            "TEMPLATE template0"
        )
    connections[ALIAS].settings_dict["NAME"] = "bytes"
    yield
    connections[ALIAS].close()
    connections[ALIAS].settings_dict["NAME"] = name
    with connections[ALIAS].cursor() as cursor:
        cursor.execute("DROP DATABASE bytes WITH (FORCE)")


@pytest.mark.usefixtures("database_of_bytes")
async def test_a_notification_that_is_no_text_does_not_end_the_listening(
    ear: Ear, store: DatabaseStore, caplog: pytest.LogCaptureFixture
) -> None:
    def notify() -> None:
        with connections[ALIAS].cursor() as cursor:
            cursor.execute(r"SELECT pg_notify('django_sse', E'\xff\xfe')")
            cursor.execute("NOTIFY django_sse, 'news 1 0'")

    await store._in_reader(lambda: connections[ALIAS].close())
    receiver = await open_receiver(store, ear)
    await until(lambda: receiver.poll_seconds == POLL_SECONDS_WITH_DOORBELL)
    await in_thread(notify)
    await until(lambda: ear.heard)
    assert ear.heard == [Hint("news", 1, cancelled=False)]
    assert "hears nothing" not in caplog.text
    await receiver.close()


async def test_a_receiver_that_is_closed_leaves_no_connection(
    ear: Ear, store: DatabaseStore
) -> None:
    async def until_listening(expected: int) -> None:
        def connections_listening() -> int:
            with connections[ALIAS].cursor() as cursor:
                cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'")
                [count] = cursor.fetchone()
            return int(count)

        async with asyncio.timeout(30):
            while await in_thread(connections_listening) != expected:
                await asyncio.sleep(0.05)

    receiver = await open_receiver(store, ear)
    await until(lambda: receiver.poll_seconds == POLL_SECONDS_WITH_DOORBELL)
    # The server may not have ended those of another test yet.
    await until_listening(1)
    await receiver.close()
    await until_listening(0)


@pytest.fixture
def pooler() -> Iterator[None]:
    """A PgBouncer behind its alias."""
    if not pgbouncer.binary():
        unavailable("PgBouncer is not installed")
    with pgbouncer.serve(int(connections[ALIAS].settings_dict["PORT"])) as port:
        connections[pgbouncer.ALIAS].settings_dict["PORT"] = port
        yield


@pytest.mark.usefixtures("pooler")
async def test_through_a_transaction_pooler_nothing_is_heard_which_is_said_and_polled(
    ear: Ear, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("django_sse.stores.notifications._TEST_SECONDS", 1)
    store = DatabaseStore(using=ALIAS, listen_alias=pgbouncer.ALIAS)
    receiver = await open_receiver(store, ear)
    await until(lambda: "hears nothing" in caplog.text)
    assert "listen_alias" in caplog.text
    assert receiver.poll_seconds == POLL_SECONDS_WITHOUT_DOORBELL
    await receiver.close()
    await store.aclose()


@pytest.mark.usefixtures("pooler")
async def test_listening_may_go_round_a_pooler(ear: Ear) -> None:
    store = DatabaseStore(using=pgbouncer.ALIAS, listen_alias=ALIAS)
    receiver = await open_receiver(store, ear)
    await until(lambda: receiver.poll_seconds == POLL_SECONDS_WITH_DOORBELL)
    await receiver.close()
    await store.aclose()


async def test_a_listener_that_cannot_connect_says_so_once_and_tries_again(
    ear: Ear,
    store: DatabaseStore,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("django_sse.stores.notifications._RECONNECT_SECONDS", 0.01)
    settings_dict = connections[ALIAS].settings_dict
    port = settings_dict["PORT"]
    tries: list[int] = []
    notifications = store.notifications
    assert notifications
    connect = notifications.connect

    def count_and_connect() -> BaseDatabaseWrapper:
        tries.append(1)
        return connect()

    def use_port(port: int) -> None:
        connections[ALIAS].close()
        connections[ALIAS].settings_dict["PORT"] = port

    monkeypatch.setattr(notifications, "connect", count_and_connect)
    await store._in_reader(lambda: use_port(1))
    receiver = await open_receiver(store, ear)
    await until(lambda: len(tries) > 2)
    assert caplog.text.count("hears nothing") == 1
    await store._in_reader(lambda: use_port(port))
    await until(lambda: receiver.poll_seconds == POLL_SECONDS_WITH_DOORBELL)
    await receiver.close()
