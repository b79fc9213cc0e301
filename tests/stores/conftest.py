"""The stores, each once for every test of the contract."""

from collections.abc import AsyncIterator, Iterator

import pytest
import redis
from asgiref.sync import sync_to_async
from django.db import connections

from django_sse.stores.base import EventStore
from django_sse.stores.database import DatabaseStore
from django_sse.stores.memory import MemoryStore
from django_sse.stores.redis import RedisStore
from tests.live.servers import unavailable
from tests.postgresql import ALIAS, binaries
from tests.redis import RedisServer, binary, serve

SQLITE = pytest.param("sqlite", marks=pytest.mark.django_db(transaction=True))
POSTGRESQL = pytest.param(
    ALIAS,
    marks=(
        pytest.mark.django_db(transaction=True, databases=["default", ALIAS])
        if binaries()
        else pytest.mark.skip(reason="PostgreSQL is not installed")
    ),
)
MEMORY = pytest.param("memory", marks=pytest.mark.django_db(transaction=True))
REDIS = pytest.param("redis", marks=pytest.mark.django_db(transaction=True))
DURABLE_REDIS = pytest.param("durable redis", marks=pytest.mark.django_db(transaction=True))


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
    with redis.Redis.from_url(shared_redis.url) as client:
        client.flushall()
    return shared_redis


def make_store(request: pytest.FixtureRequest) -> EventStore:
    if request.param == "memory":
        return MemoryStore()
    if request.param == "sqlite":
        return DatabaseStore()
    if request.param.endswith("redis"):
        server: RedisServer = request.getfixturevalue("redis_server")
        return RedisStore(url=server.url, durable=request.param == "durable redis")
    return DatabaseStore(using=ALIAS)


@pytest.fixture(params=[MEMORY, SQLITE, POSTGRESQL, REDIS, DURABLE_REDIS])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[EventStore]:
    """Every store there is."""
    store = make_store(request)
    request.getfixturevalue("transactional_db")
    yield store
    await store.aclose()
    await sync_to_async(connections.close_all)()


@pytest.fixture(params=[SQLITE, POSTGRESQL])
async def database_store(request: pytest.FixtureRequest) -> AsyncIterator[DatabaseStore]:
    """The database store on every database supported."""
    store = make_store(request)
    assert isinstance(store, DatabaseStore)
    request.getfixturevalue("transactional_db")
    yield store
    await store.aclose()
    await sync_to_async(connections.close_all)()
