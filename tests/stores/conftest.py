"""The database store on every database."""

from collections.abc import AsyncIterator

import pytest
from asgiref.sync import sync_to_async
from django.db import DEFAULT_DB_ALIAS, connections
from django.db.backends.sqlite3.features import DatabaseFeatures

from django_sse.stores.database import DatabaseStore
from tests import mysql, postgresql

SQLITE = pytest.param(DEFAULT_DB_ALIAS, marks=pytest.mark.django_db(transaction=True))
# SQLite before 3.35.
OLD_SQLITE = pytest.param(
    DEFAULT_DB_ALIAS, marks=pytest.mark.django_db(transaction=True), id="old sqlite"
)
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


@pytest.fixture(params=[SQLITE, OLD_SQLITE, POSTGRESQL, MYSQL])
async def database_store(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[DatabaseStore]:
    """The database store on every database supported."""
    if "old sqlite" in request.node.callspec.id:
        monkeypatch.setattr(DatabaseFeatures, "can_return_columns_from_insert", False)
    store = DatabaseStore(using=request.param)
    request.getfixturevalue("transactional_db")
    yield store
    await store.aclose()
    await sync_to_async(connections.close_all)()
