"""A database that is the master no more: hubs go on at the one that its name leads to by then."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connections
from pytest_django import Settings

from django_sse.groups.entries import Hint
from django_sse.stores import get_store
from django_sse.stores.database import DatabaseStore
from django_sse.stores.database.connection import _is_read_only
from django_sse.testing.stores import event
from django_sse.testing.threads import in_thread
from tests import mysql, postgresql
from tests.clients import connected
from tests.live.network import Network
from tests.stores.conftest import MYSQL, POSTGRESQL
from tests.stores.test_database import silent

SERVERS: dict[str, Any] = {postgresql.ALIAS: postgresql, mysql.ALIAS: mysql}
DEMOTE = {
    postgresql.ALIAS: [
        "ALTER SYSTEM SET default_transaction_read_only = on",
        "SELECT pg_reload_conf()",
    ],
    mysql.ALIAS: ["SET GLOBAL read_only = 1"],
}
PROMOTE = {
    postgresql.ALIAS: [
        "ALTER SYSTEM RESET default_transaction_read_only",
        "SELECT pg_reload_conf()",
    ],
    mysql.ALIAS: ["SET GLOBAL read_only = 0"],
}
# What those may do who write to a replica nevertheless.
WRITE = {postgresql.ALIAS: "SET default_transaction_read_only = off", mysql.ALIAS: "SELECT 1"}


@pytest.fixture(params=[POSTGRESQL, MYSQL])
def alias(request: pytest.FixtureRequest, settings: Settings) -> str:
    options = {"using": request.param}
    settings.DJANGO_SSE = {
        "STORE": {"BACKEND": "database", "OPTIONS": options},
        "SYNC_INTERVAL": 0.1,
    }
    return str(request.param)


@contextmanager
def at_port(alias: str, port: int) -> Iterator[None]:
    """Where new connections of the alias go to."""
    settings = connections.settings[alias]
    before = settings["PORT"]
    settings["PORT"] = port
    try:
        yield
    finally:
        settings["PORT"] = before


def execute(alias: str, port: int, *statements: str, **settings: Any) -> None:
    connection = connections[alias].copy()
    connection.settings_dict |= {"PORT": port, **settings}
    try:
        with connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
    finally:
        connection.close()


@pytest.fixture
def port(alias: str) -> Iterator[int]:
    """The port of the master, which is it again after the test."""
    port = int(connections.settings[alias]["PORT"])
    yield port
    execute(alias, port, *PROMOTE[alias])
    # PostgreSQL tells its sessions a moment later; this one clears the tables.
    while _is_read_only(connections[alias]):
        time.sleep(0.01)


@pytest.fixture
def new_port(alias: str) -> Iterator[int]:
    """The port of a server with the same tables."""
    name = connections.settings[alias]["NAME"]
    server = SERVERS[alias]
    with server.serve(server.binaries()) as port:
        unnamed = "postgres" if alias == postgresql.ALIAS else ""
        execute(alias, port, f"CREATE DATABASE {name}", NAME=unnamed)
        with at_port(alias, port):
            connections[alias].close()
            call_command("migrate", database=alias, verbosity=0)
            connections[alias].close()
        yield port


def publish_unheard(alias: str, text: str) -> int | None:
    """As another process does."""
    with connections[alias].cursor() as cursor:
        cursor.execute(WRITE[alias])
    return DatabaseStore(using=alias).append([event("news", text)], silent)[0]


async def test_a_hub_goes_on_at_the_new_master(
    alias: str, port: int, new_port: int, everything_ends: None
) -> None:
    with Network.to(port) as network, at_port(alias, network.port):
        async with connected("news") as client:
            await get_store().achanged(None, {"news"})
            await in_thread(lambda: execute(alias, port, *DEMOTE[alias]))
            network.lead_to(new_port)
            await in_thread(lambda: publish_unheard(alias, "at the new master"))
            assert await client.until_events(1) == ["at the new master"]
        await get_store().aclose()


async def test_a_replica_that_is_read_on_purpose_is_read_on_with_one_connection(
    alias: str, port: int, everything_ends: None
) -> None:
    store = get_store()
    assert isinstance(store, DatabaseStore)
    await in_thread(lambda: execute(alias, port, *DEMOTE[alias]))
    _, cursor = await store.achanged(None, {"news"})
    used = await store._in_reader(lambda: connections[alias].connection)
    for text in ("one", "two"):
        number = await in_thread(lambda text=text: publish_unheard(alias, text))  # type: ignore[misc]
        hints, cursor = await store.achanged(cursor, {"news"})
        assert Hint("news", number or 0, cancelled=False) in list(hints or ())
    assert await store._in_reader(lambda: connections[alias].connection) is used
