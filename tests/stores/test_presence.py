"""Who is present is kept by every store, and each join and leave is told once."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from pytest_django import Settings

from django_sse.stores.base import EventStore
from django_sse.stores.redis import RedisStore
from django_sse.streaming import presence
from tests.attendants import Tab, kill, process, told, until_there, until_without
from tests.redis import RedisServer
from tests.stores.conftest import MYSQL, POSTGRESQL, SQLITE
from tests.streams import until

# What it shows is the stores'.
pytestmark = pytest.mark.once

Scene = Callable[[EventStore], Awaitable[None]]


@pytest.fixture(autouse=True)
def quick(settings: Settings) -> None:
    """Members leave soon, and processes are taken for dead soon."""
    settings.DJANGO_SSE = {"PRESENCE_GRACE": 0.1, "PRODUCER_TTL": 1.5}


@pytest.fixture
async def redis_store(redis_server: RedisServer) -> AsyncIterator[RedisStore]:
    store = RedisStore(url=redis_server.url)
    yield store
    await store.aclose()


async def race(store: EventStore) -> None:
    """Fifty tabs of a member open and close in two processes, while another member stays."""
    first, second = process(store), process(store)
    first.enter(stays := Tab("bob"))
    await until_there(store, "bob")
    for _ in range(2):
        tabs = [Tab("ada") for _ in range(25)]
        for number, tab in enumerate(tabs):
            (first, second)[number % 2].enter(tab)
            if number % 5 == 0:
                await asyncio.sleep(0.01)
        await until_there(store, "ada", "bob")
        for number, tab in enumerate(tabs):
            (first, second)[number % 2].leave(tab)
        await until_there(store, "bob")
    first.leave(stays)
    await first.idle()
    await second.idle()
    assert await told(store) == [
        ("join", "bob", 1),
        *[("join", "ada", 2), ("leave", "ada", 1)] * 2,
        ("leave", "bob", 0),
    ]


async def death(store: EventStore) -> None:
    """One process is killed, and three others notice."""
    killed, *others = (process(store) for _ in range(4))
    for user in ("ada", "bob", ""):
        killed.enter(Tab(user))
    tabs = [Tab("ada"), Tab("cyd"), Tab("dan")]
    for other, tab in zip(others, tabs, strict=True):
        other.enter(tab)
    await until_there(store, "ada", "bob", "cyd", "dan", "")
    kill(killed)
    await until_without(store, killed)
    for other, tab in zip(others, tabs, strict=True):
        other.leave(tab)
        await other.idle()
    events = await told(store)
    assert Counter(event[:2] for event in events) == Counter(
        (event, member) for event in ("join", "leave") for member in ("ada", "bob", "cyd", "dan")
    )
    assert events[-1] == ("leave", "dan", 0)


@pytest.mark.parametrize("database_store", [SQLITE, POSTGRESQL, MYSQL], indirect=True)
@pytest.mark.parametrize("scene", [race, death])
async def test_each_join_and_leave_is_told_once_by_databases(
    scene: Scene, database_store: EventStore
) -> None:
    await scene(database_store)


@pytest.mark.parametrize("scene", [race, death])
async def test_each_join_and_leave_is_told_once_by_redis(
    scene: Scene, redis_store: RedisStore
) -> None:
    await scene(redis_store)


async def test_members_stay_while_redis_is_away_and_none_joins_twice(
    redis_server: RedisServer, redis_store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence, "_PAUSE_SECONDS", 0.1)
    first, second = process(redis_store), process(redis_store)
    first.enter(ada := Tab("ada"))
    second.enter(bob := Tab("bob"))
    await until_there(redis_store, "ada", "bob")
    redis_server.pause()
    try:
        # Longer than a process may be silent.
        loop = asyncio.get_running_loop()
        await until(lambda: loop.time() - max(first._looked_at, second._looked_at) > 3)
        second.enter(cyd := Tab("cyd"))
    finally:
        redis_server.resume()
    await until_there(redis_store, "ada", "bob", "cyd")
    for attendants, tab in ((first, ada), (second, bob), (second, cyd)):
        attendants.leave(tab)
    await first.idle()
    await second.idle()
    assert Counter(event[:2] for event in await told(redis_store)) == Counter(
        (event, member) for event in ("join", "leave") for member in ("ada", "bob", "cyd")
    )
