"""The stores, each once for every test of the contract."""

from collections.abc import AsyncIterator

import pytest
from asgiref.sync import sync_to_async
from django.db import connections

from django_sse.stores.base import EventStore
from django_sse.stores.database import DatabaseStore
from django_sse.stores.memory import MemoryStore
from tests import mysql, postgresql

SQLITE = pytest.param("sqlite", marks=pytest.mark.django_db(transaction=True))
POSTGRESQL = pytest.param(
    postgresql.ALIAS,
    marks=(
        pytest.mark.django_db(transaction=True, databases=["default", postgresql.ALIAS])
        if postgresql.binaries()
        else pytest.mark.skip(reason="PostgreSQL is not installed")
    ),
)
MYSQL = pytest.param(
    mysql.ALIAS,
    marks=(
        pytest.mark.django_db(transaction=True, databases=["default", mysql.ALIAS])
        if mysql.binaries()
        else pytest.mark.skip(reason="MariaDB is not installed")
    ),
)
MEMORY = pytest.param("memory", marks=pytest.mark.django_db(transaction=True))


def make_store(request: pytest.FixtureRequest) -> EventStore:
    if request.param == "memory":
        return MemoryStore()
    if request.param == "sqlite":
        return DatabaseStore()
    return DatabaseStore(using=request.param)


@pytest.fixture(params=[MEMORY, SQLITE, POSTGRESQL, MYSQL])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[EventStore]:
    """Every store there is."""
    store = make_store(request)
    request.getfixturevalue("transactional_db")
    yield store
    await store.aclose()
    await sync_to_async(connections.close_all)()


@pytest.fixture(params=[SQLITE, POSTGRESQL, MYSQL])
async def database_store(request: pytest.FixtureRequest) -> AsyncIterator[DatabaseStore]:
    """The database store on every database supported."""
    store = make_store(request)
    assert isinstance(store, DatabaseStore)
    request.getfixturevalue("transactional_db")
    yield store
    await store.aclose()
    await sync_to_async(connections.close_all)()
