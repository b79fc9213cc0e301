"""PostgreSQL that goes back: to a standby which lacks the last events, or to a backup."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from django.core.management import call_command
from django.db import Error, connections, transaction
from django.test import override_settings

from django_sse import publish
from django_sse.doorbells.base import POLL_SECONDS_WITH_DOORBELL
from django_sse.stores import get_store
from django_sse.stores.database import DatabaseStore
from django_sse.streaming.hub import current_hub
from django_sse.testing.stores import event
from django_sse.testing.threads import in_thread
from tests import pgbouncer
from tests.clients import connected
from tests.live.network import Network
from tests.live.servers import unavailable
from tests.postgresql import ALIAS, PostgreSQLPair, PostgreSQLServer, binaries, serve_pair
from tests.stores.test_database import silent
from tests.streams import data, news, open_stream, until

pytestmark = [
    pytest.mark.skipif(not binaries(), reason="PostgreSQL is not installed"),
    pytest.mark.django_db(transaction=True, databases=["default", ALIAS, pgbouncer.ALIAS]),
    pytest.mark.usefixtures("everything_ends"),
    # What it shows is of PostgreSQL, and of what libpq does.
    pytest.mark.once,
]


TABLES = [
    f"django_sse_{name}" for name in ("eventgroup", "storedevent", "newestevent", "outboxevent")
]


@pytest.fixture(scope="module")
def servers() -> Iterator[PostgreSQLPair]:
    directory = binaries()
    assert directory
    with serve_pair(directory) as pair:
        yield pair


@pytest.fixture
def pair(servers: PostgreSQLPair, transactional_db: None) -> Iterator[PostgreSQLPair]:
    """The project's database is on whichever of two servers is the primary."""
    yield from database_of(servers, synchronous=False)


@pytest.fixture
def synchronous_pair(servers: PostgreSQLPair, transactional_db: None) -> Iterator[PostgreSQLPair]:
    """As ``pair``, and a commit waits for the standby."""
    yield from database_of(servers, synchronous=True)


def database_of(servers: PostgreSQLPair, *, synchronous: bool) -> Iterator[PostgreSQLPair]:
    servers.synchronous = synchronous
    if servers.has_standby:
        servers.wait_for_standby(synchronous)
    else:
        servers.follow()
    with on(servers.database):
        if servers.primary.execute("SELECT to_regclass('django_sse_eventgroup')") == (None,):
            call_command("migrate", "django_sse", database=ALIAS, verbosity=0)
        servers.primary.execute(f"TRUNCATE {', '.join(TABLES)}")
        yield servers


@contextmanager
def on(database: dict[str, Any], *, alias: str = ALIAS) -> Iterator[None]:
    """New connections of the alias go to this database."""
    connections[alias].close()
    with patched(connections.settings[alias], **database):
        try:
            yield
        finally:
            connections[alias].close()


@asynccontextmanager
async def stored(**options: Any) -> AsyncIterator[None]:
    """The project's store is in this database."""
    store = {"BACKEND": "database", "OPTIONS": {"using": ALIAS, **options}}
    with override_settings(DJANGO_SSE={"STORE": store, "HISTORY_SIZE": 100_000, "RETRY": 100}):
        yield
        await get_store().aclose()


async def publish_elsewhere(*texts: str, **options: Any) -> None:
    """Publish as another process does: nobody rings here, and no hub has looked before."""
    store = DatabaseStore(using=ALIAS, **options)
    await in_thread(lambda: store.append([event("news", text) for text in texts], silent))


async def fail_over(pair: PostgreSQLPair) -> None:
    await asyncio.to_thread(pair.fail_over)


async def came_back(last_event_id: str) -> list[str]:
    """What a client gets that comes back, up to what is published then."""
    async with open_stream(news, last_event_id=last_event_id) as client:
        await publish_elsewhere("now")
        events = await client.until("now")
    return [one.event or one.data for one in events]


@pytest.mark.parametrize("stays", [True, False])
async def test_numbers_of_events_that_a_failover_has_lost_are_not_given_again(
    pair: PostgreSQLPair, stays: bool
) -> None:
    async with stored():
        async with open_stream(news) as client:
            await publish_elsewhere("1", "2", "3")
            await client.until("3")
            kept = client.last_event_id
            await asyncio.to_thread(pair.cut_off)
            await publish_elsewhere("4", "5", "6")
            await client.until("6")
            if not stays:
                # No hub is left that knows the lost numbers.
                await client.close()
            await fail_over(pair)
            # As many numbers, and more.
            await publish_elsewhere("four", "five", "six", "seven")
            if stays:
                assert data(await client.rest()) == []
        for last_event_id in (client.last_event_id, kept):
            assert await came_back(last_event_id) == ["reset", "now"]
        # Who begins now goes on without one.
        async with open_stream(news) as client:
            await publish_elsewhere("eight")
            assert data(await client.until("eight")) == ["eight"]
            assert await came_back(client.last_event_id) == ["now"]


def append(store: DatabaseStore, *groups: str) -> None:
    store.append([event(group, "a") for group in groups], silent)


def append_in_transaction(store: DatabaseStore, group: str) -> None:
    with transaction.atomic(using=ALIAS):
        append(store, group)


async def test_whatever_is_published_first_has_a_number_of_its_own(pair: PostgreSQLPair) -> None:
    groups = ["alone", "several", "others", "staged"]
    store = DatabaseStore(using=ALIAS)
    await in_thread(lambda: append(store, *groups))
    await asyncio.to_thread(pair.cut_off)
    await in_thread(lambda: append(store, *groups, *groups))
    lost = await store.astates(groups)
    await fail_over(pair)
    await in_thread(lambda: append(store, "alone"))
    await in_thread(lambda: append(store, "several", "others"))
    await in_thread(lambda: append_in_transaction(store, "staged"))
    for group, state in (await store.astates(groups)).items():
        assert state.oldest == state.head > lost[group].head + 1000
    await store.aclose()


async def test_a_client_that_is_ahead_is_told_without_a_new_event(pair: PostgreSQLPair) -> None:
    async with stored(), open_stream(news) as client:
        await publish_elsewhere("1")
        await client.until("1")
        await asyncio.to_thread(pair.cut_off)
        await publish_elsewhere("2")
        await client.until("2")
        await fail_over(pair)
        assert data(await client.rest()) == []
        assert await came_back(client.last_event_id) == ["reset", "now"]


@contextmanager
def publishing(names: list[str], pause: float = 0.005) -> Iterator[tuple[list[str], list[str]]]:
    """Threads publish all the time: what was acknowledged, and what is in doubt."""
    acknowledged: list[str] = []
    in_doubt: list[str] = []
    done = threading.Event()

    def publish_all_the_time(name: str) -> None:
        number = 0
        while not done.is_set():
            time.sleep(pause)
            number += 1
            text = f"{name} {number}"
            try:
                publish("news", text)
            except Error:
                in_doubt.append(text)
                # As Django does after a request.
                connections[ALIAS].close()
            else:
                acknowledged.append(text)
        connections.close_all()

    threads = [threading.Thread(target=publish_all_the_time, args=[name]) for name in names]
    for thread in threads:
        thread.start()
    try:
        yield acknowledged, in_doubt
    finally:
        done.set()
        for thread in threads:
            thread.join()


async def nothing_is_lost(pair: PostgreSQLPair, *, failovers: int) -> None:
    """Under load, all that was acknowledged arrives once and in order on a stream that stays."""
    async with connected("news") as stream:
        with publishing(["a", "b"]) as (acknowledged, in_doubt):
            for number in range(failovers):
                if number:
                    await asyncio.to_thread(pair.follow)
                before = len(stream.events)
                await stream.until(lambda count=before + 20: len(stream.events) > count)  # type: ignore[misc]
                await fail_over(pair)
                now = len(acknowledged)
                await until(lambda now=now: len(acknowledged) > now + 20)  # type: ignore[misc]
        await stream.until(lambda: {*acknowledged} <= {*stream.data})
        assert len({*stream.data}) == len(stream.data)
        assert {*stream.data} <= {*acknowledged, *in_doubt}
        for name in "ab":
            mine = [int(text.split()[1]) for text in stream.data if text.startswith(name)]
            assert mine == sorted(mine)
        assert not stream.stream.ended.done()


async def test_a_synchronous_failover_loses_and_doubles_nothing_under_load(
    synchronous_pair: PostgreSQLPair,
) -> None:
    async with stored(durable=True):
        await nothing_is_lost(synchronous_pair, failovers=2)


async def test_listeners_follow_to_the_new_primary(
    synchronous_pair: PostgreSQLPair, caplog: pytest.LogCaptureFixture
) -> None:
    # Nobody looks: what arrives was told by NOTIFY.
    store = {"BACKEND": "database", "OPTIONS": {"using": ALIAS, "durable": True}}
    with override_settings(DJANGO_SSE={"STORE": store, "SYNC_INTERVAL": 3600}):
        async with connected("news") as client:
            await until(client_hears)
            caplog.clear()
            await fail_over(synchronous_pair)
            # The client may hear again before anybody looks.
            await until(lambda: "hears nothing" in caplog.text)
            await until(client_hears)
            await publish_elsewhere("after", durable=True)
            assert await client.until_events(1) == ["after"]
        await get_store().aclose()


def client_hears() -> bool:
    return current_hub()._receiver.poll_seconds == POLL_SECONDS_WITH_DOORBELL


@pytest.fixture
def pooled_pair(synchronous_pair: PostgreSQLPair) -> Iterator[PostgreSQLPair]:
    """The project has a pool, which looks whether its connections still work."""
    pool = {"min_size": 4, "max_size": 4, "timeout": 10}
    options = {**synchronous_pair.database["OPTIONS"], "pool": pool}
    with on({"OPTIONS": options, "CONN_HEALTH_CHECKS": True}):
        yield synchronous_pair
        cast("Any", connections[ALIAS]).close_pool()


async def test_djangos_own_pool_goes_on_at_the_new_primary(pooled_pair: PostgreSQLPair) -> None:
    async with stored(durable=True):
        await nothing_is_lost(pooled_pair, failovers=1)


@pytest.fixture
def network(synchronous_pair: PostgreSQLPair) -> Iterator[Network]:
    """The project reaches the primary through PgBouncer and a name, but for what listens."""
    if not pgbouncer.binary():
        unavailable("PgBouncer is not installed")
    with (
        Network.to(synchronous_pair.primary.port) as network,
        pgbouncer.serve(network.port) as port,
        on(synchronous_pair.database, alias=pgbouncer.ALIAS),
        on({"PORT": str(port), "HOST": "127.0.0.1", "OPTIONS": {}}),
    ):
        yield network


async def test_behind_pgbouncer_all_but_listen_goes_on_at_the_new_primary(
    synchronous_pair: PostgreSQLPair, network: Network
) -> None:
    async with (
        stored(durable=True, listen_alias=pgbouncer.ALIAS),
        connected("news") as client,
    ):
        await until(client_hears)
        with publishing(["a", "b"]) as (acknowledged, _):
            await client.until(lambda: len(client.events) > 20)
            await fail_over(synchronous_pair)
            network.lead_to(synchronous_pair.primary.port)
            now = len(acknowledged)
            await until(lambda: len(acknowledged) > now + 20)
        await client.until(lambda: {*acknowledged} <= {*client.data})
        assert len({*client.data}) == len(client.data)
        await until(client_hears)


def restore_over(server: PostgreSQLServer, path: Path) -> None:
    server.restore("postgres", path, "--clean", "--if-exists")


def restore_data(server: PostgreSQLServer, path: Path) -> None:
    """Into the tables that are there."""
    server.execute(f"TRUNCATE {', '.join(TABLES)}")
    server.restore("postgres", path, "--data-only", *(f"--table={table}" for table in TABLES))


RESTORES = [restore_over, restore_data]


@pytest.mark.parametrize("how", RESTORES)
@pytest.mark.parametrize("is_running", [True, False])
async def test_after_a_restore_nobody_skips_events_with_numbers_that_she_has_seen(
    pair: PostgreSQLPair,
    tmp_path: Path,
    how: Callable[[PostgreSQLServer, Path], None],
    is_running: bool,
) -> None:
    # PostgreSQL's programs run as another user.
    backup = pair.primary.data.parent / f"{tmp_path.name}.dump"
    async with stored():
        async with open_stream(news) as client:
            await publish_elsewhere("before")
            await client.until("before")
            before = client.last_event_id
            await asyncio.to_thread(pair.primary.dump, "postgres", backup)
            await publish_elsewhere(*(f"lost {number}" for number in range(8)))
            await client.until("lost 7")
            lost = client.last_event_id
            if not is_running:
                await client.close()
            await asyncio.to_thread(how, pair.primary, backup)
            # Numbers are overtaken before any hub has looked.
            await publish_elsewhere(*(f"new {number}" for number in range(15)))
            if is_running:
                assert not [text for text in data(await client.rest()) if "new" in text]
        for last_event_id in (lost, before):
            assert await came_back(last_event_id) == ["reset", "now"]


@pytest.fixture
def role(pair: PostgreSQLPair) -> Iterator[None]:
    """The project's role may not ask what tells one server from another."""
    functions = "FUNCTION pg_control_system, pg_walfile_name"
    pair.primary.execute(f"REVOKE EXECUTE ON {functions} FROM PUBLIC")
    pair.primary.execute("DROP ROLE IF EXISTS plain")
    pair.primary.execute("CREATE ROLE plain LOGIN IN ROLE pg_read_all_data, pg_write_all_data")
    with on({"USER": "plain"}):
        yield
    pair.primary.execute(f"GRANT EXECUTE ON {functions} TO PUBLIC")


@pytest.mark.usefixtures("role")
async def test_a_role_that_may_not_ask_publishes_nevertheless_and_the_log_says_what_to_do(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with stored(), open_stream(news) as client:
        await publish_elsewhere("1", "2")
        assert data(await client.until("2")) == ["1", "2"]
        assert "sse_reset" in caplog.text


async def test_a_standby_is_read_on(pair: PostgreSQLPair) -> None:
    store = DatabaseStore(using=ALIAS)
    await publish_elsewhere("1")
    _, cursor = await store.achanged(None, {"news"})
    await store.aclose()
    with patched(connections.settings[ALIAS], OPTIONS={"target_session_attrs": "standby"}):
        async with asyncio.timeout(30):
            while len(await store.aread("news", 0, 10)) != 1:
                await asyncio.sleep(0.01)
        hints, cursor = await store.achanged(cursor, {"news"})
        hints, _ = await store.achanged(cursor, {"news"})
        assert [hint.group for hint in hints or ()] == ["news"]
        await store.aclose()


@contextmanager
def patched(settings: Any, **changes: Any) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in changes.items():
            patch.setitem(settings, name, value)
        yield
