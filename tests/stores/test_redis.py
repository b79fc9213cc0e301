"""What is special to the redis store: what Redis forgets, being away, expiry, clusters."""

import asyncio
import gc
import json
import re
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import redis
from asgiref.sync import sync_to_async
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.test import override_settings
from pytest_django import Settings

from django_sse import apublish
from django_sse.access.owners import user_key
from django_sse.exceptions import GroupCancelled
from django_sse.groups.entries import Kind, NewEntry, closing_wire
from django_sse.groups.numbering import first_number
from django_sse.groups.replay import is_lost
from django_sse.stores import get_store
from django_sse.stores.redis import RedisStore
from django_sse.stores.redis.script import Call
from django_sse.stores.redis.servers import OneServer
from django_sse.testing.stores import (
    Bell,
    append,
    changes,
    close,
    event,
    keyed,
    newest,
    reopening,
    state,
    texts,
)
from django_sse.testing.threads import in_thread
from tests.clients import connected
from tests.live.servers import finish, start
from tests.ports import free_port
from tests.redis import RedisServer, serve

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("shared_redis"),
    pytest.mark.once,
]


class TimeLimitExceeded(BaseException):
    """Ends a task from outside, at any moment."""


APPENDING = {"appendonly": "yes", "appendfsync": "always"}
SECONDS = 30


@asynccontextmanager
async def store_on(
    server: RedisServer, query: str = "", **options: Any
) -> AsyncIterator[RedisStore]:
    store = RedisStore(url=server.url + query, **options)
    yield store
    await store.aclose()


@pytest.fixture
async def store(redis_server: RedisServer) -> AsyncIterator[RedisStore]:
    async with store_on(redis_server) as store:
        yield store


@pytest.fixture
def client(redis_server: RedisServer) -> Any:
    """Redis itself, without the store."""
    return redis.Redis.from_url(redis_server.url)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(SECONDS):
        while not await condition():
            await asyncio.sleep(0.01)


# Redis restarts


async def test_a_durable_redis_that_is_killed_goes_on_where_it_was() -> None:
    with serve(**APPENDING) as server:
        async with store_on(server, durable=True) as store:
            first, second = await append(store, event("news", "a"), event("news", "b"))
            assert first is not None
            assert second is not None
            before = await store.astates(["news", "empty"])
            _, cursor = await store.achanged(None, {"news"})
            server.kill()
            server.start()
            assert await store.astates(["news", "empty"]) == before
            assert texts(await store.aread("news", first - 1, 10)) == ["a", "b"]
            hints, cursor = await store.achanged(cursor, {"news"})
            assert hints == []
            assert await append(store, event("news", "c")) == [second + 1]
            assert [hint.head for hint in await changes(store, cursor, "news")] == [second + 1]


@override_settings(DJANGO_SSE={"CANCEL_TTL": 100, "GROUP_TTL": 0})
async def test_an_owner_who_was_ended_is_kept_no_longer_for_a_restart() -> None:
    with serve(**APPENDING) as server:
        async with store_on(server) as store:
            owner_key = user_key(7)
            await append(store, NewEntry(owner_key, closing_wire(None), Kind.END))
            ended = (await state(store, owner_key)).first
            server.kill()
            server.start()
            assert (await state(store, owner_key)).first == ended
            with redis.Redis.from_url(server.url) as client:
                for key in client.scan_iter(f"*{owner_key}*"):
                    assert 0 < client.pttl(key) <= 100_000, key


async def test_a_redis_that_forgot_everything_has_lost_every_position() -> None:
    with serve() as server:
        async with store_on(server) as store:
            [number] = await append(store, event("news", "a"))
            assert number is not None
            before = await store.astates(["news", "empty"])
            positions = [state.origin for state in before.values()] + [number]
            _, cursor = await store.achanged(None, before)
            server.kill()
            server.start()
            hints, cursor = await store.achanged(cursor, before)
            assert hints is None
            for now in (await store.astates(list(before))).values():
                assert all(is_lost(position, now) for position in positions)
                assert not is_lost(now.head, now)
            for group in before:
                [new] = await append(store, event(group, "b"))
                assert new is not None
                assert new > number
                now = await state(store, group)
                assert all(is_lost(position, now) for position in positions)
                assert not is_lost(now.origin, now)
                assert texts(await store.aread(group, 0, 10)) == ["b"]
            assert [hint.group for hint in await changes(store, cursor, "empty")] == ["empty"]


async def read_state(store: RedisStore) -> None:
    await state(store, "news")


async def publish(store: RedisStore) -> None:
    await append(store, event("news", "published"))


async def ask_for_a_new_run(store: RedisStore) -> None:
    await store.anew_run("news", 1)


@pytest.mark.parametrize("touch", [read_state, publish, ask_for_a_new_run])
async def test_a_redis_that_went_back_has_lost_every_position(
    touch: Callable[[RedisStore], Awaitable[None]],
) -> None:
    with serve() as server:
        async with store_on(server) as store:
            kept = await append(store, event("news", "kept"), event("news", "kept too"))
            redis.Redis.from_url(server.url).save()
            lost = await append(store, event("news", "lost"))
            last = lost[0]
            assert last is not None
            origin = (await state(store, "news")).origin
            _, cursor = await store.achanged(None, {"news"})
            server.kill()
            server.start()
            await touch(store)
            now = await state(store, "news")
            assert all(is_lost(number or 0, now) for number in (origin, *kept, *lost))
            assert "kept" not in texts(await store.aread("news", 0, 10))
            [number] = await append(store, event("news", "new"))
            assert number == now.head + 1
            assert number > last
            now = await state(store, "news")
            assert all(is_lost(number or 0, now) for number in (origin, *kept, *lost))
            hints, _ = await store.achanged(cursor, {"news"})
            assert hints is None


async def test_a_group_stays_cancelled_in_a_redis_that_went_back() -> None:
    with serve() as server:
        async with store_on(server) as store:
            await append(store, event("news", "a"), close("news"))
            redis.Redis.from_url(server.url).save()
            server.kill()
            server.start()
            with pytest.raises(GroupCancelled):
                await append(store, event("news", "b"))
            assert (await state(store, "news")).cancelled
            # Published in a transaction that has committed: it goes before a close of its own.
            late = [event("news", "late")]
            _, [hint] = await asyncio.to_thread(store._append, late, staged=True)
            assert [entry.wire for entry in hint.entries] == [late[0].wire, closing_wire("over")]
            await append(store, reopening("news"))
            await append(store, event("news", "c"))
            assert texts(await store.aread("news", 0, 10))[::2] == ["late", "c"]


async def test_a_new_run_that_one_hub_asks_for_is_told_to_the_others(store: RedisStore) -> None:
    [number] = await append(store, event("news", "a"))
    _, cursor = await store.achanged(None, {"news"})
    begun = await store.anew_run("news", (number or 0) + 1000)
    assert [hint.head for hint in await changes(store, cursor, "news")] == [begun.head]


async def test_flushing_all_is_noticed_without_a_restart(store: RedisStore, client: Any) -> None:
    [number] = await append(store, event("news", "a"))
    assert number is not None
    _, cursor = await store.achanged(None, {"news"})
    client.flushall()
    hints, cursor = await store.achanged(cursor, {"news"})
    assert hints is None
    assert is_lost(number, await state(store, "news"))
    [new] = await append(store, event("news", "b"))
    assert new is not None
    assert new > number
    assert is_lost(number, await state(store, "news"))
    assert [hint.head for hint in await changes(store, cursor, "news")] == [new]


async def test_an_evicted_group_begins_again_without_its_old_events(
    store: RedisStore, client: Any
) -> None:
    [number] = await append(store, event("news", "a"))
    assert number is not None
    client.delete("{sse:news}:group")
    assert is_lost(number, await state(store, "news"))
    [new] = await append(store, event("news", "b"))
    assert new is not None
    assert new > number
    assert texts(await store.aread("news", 0, 10)) == ["b"]
    assert is_lost(number, await state(store, "news"))


async def test_a_group_whose_events_were_evicted_goes_on_with_its_numbers(
    store: RedisStore, client: Any
) -> None:
    first, second = await append(store, event("news", "a"), event("news", "b"))
    assert first is not None
    assert second is not None
    client.delete("{sse:news}:events")
    now = await state(store, "news")
    assert is_lost(first, now)
    assert not is_lost(second, now)
    assert await append(store, event("news", "c")) == [second + 1]
    assert texts(await store.aread("news", 0, 10)) == ["c"]


# Redis is away


async def test_publishing_and_reading_fail_while_redis_is_away_and_work_once_it_is_back() -> None:
    with serve(**APPENDING) as server:
        async with store_on(server, durable=True) as store:
            await append(store, event("news", "a"))
            server.stop()
            for attempt in (
                append(store, event("news", "b")),
                state(store, "news"),
                store.aread("news", 0, 10),
                store.achanged(None, {"news"}),
            ):
                with pytest.raises(redis.ConnectionError, match=str(server.port)):
                    await attempt
            server.start()
            await append(store, event("news", "c"))
            assert texts(await store.aread("news", 0, 10)) == ["a", "c"]


async def test_connections_that_a_restart_has_cut_fail_nobody() -> None:
    with serve(**APPENDING) as server:
        async with store_on(server, durable=True) as store:
            everyone_ready = threading.Barrier(4)

            def publish_together(text: str) -> None:
                everyone_ready.wait(SECONDS)
                store.append([event("news", text)], lambda hints: None)

            async def publish_from_four_threads(text: str) -> None:
                await asyncio.gather(
                    *(in_thread(lambda: publish_together(text)) for _ in range(4)),
                    *(state(store, "news") for _ in range(4)),
                )

            await publish_from_four_threads("before")
            server.kill()
            server.start()
            await publish_from_four_threads("after")
            read = texts(await store.aread("news", 0, 10))
            assert read == ["before"] * 4 + ["after"] * 4


async def test_a_redis_that_hangs_is_not_waited_for_and_gets_no_event_twice() -> None:
    with serve() as server:
        client: Any = redis.Redis.from_url(server.url)
        async with store_on(server, "?socket_timeout=0.3") as store:
            await append(store, event("news", "before"))
            connections = client.info()["total_connections_received"]
            server.pause()
            with pytest.raises(redis.TimeoutError):
                await append(store, event("news", "unsure"))
            server.resume()
            # It was not tried again, on another connection.
            assert client.info()["total_connections_received"] == connections
            server.pause()
            with pytest.raises(redis.TimeoutError):
                await state(store, "news")
            server.resume()

            async def arrived() -> bool:
                return "unsure" in texts(await store.aread("news", 0, 10))

            # It was sent, so it comes into being.
            await until(arrived)
            [number] = await append(store, event("news", "after"))
            entries = await store.aread("news", 0, 10)
            assert texts(entries) == ["before", "unsure", "after"]
            assert entries[-1].number == number


async def test_a_script_that_redis_has_forgotten_is_loaded_again(
    store: RedisStore, client: Any
) -> None:
    await append(store, event("news", "a"))
    _, cursor = await store.achanged(None, {"news"})
    client.script_flush()
    await append(store, event("news", "b"))
    assert len(await changes(store, cursor, "news")) == 1
    client.script_flush()
    assert len(await changes(store, cursor, "news")) == 1
    assert texts(await store.aread("news", 0, 10)) == ["a", "b"]


# What is kept, and for how long


async def test_history_is_bounded_by_count_and_trimmed_in_bulk(
    store: RedisStore, client: Any
) -> None:
    with override_settings(DJANGO_SSE={"HISTORY_SIZE": 20}):
        for n in range(50):
            await append(store, event("news", str(n)))
            assert client.xlen("{sse:news}:events") <= 22
    kept = texts(await store.aread("news", 0, 100))
    assert kept == [str(n) for n in range(50 - len(kept), 50)]
    assert len(kept) >= 20
    now = await state(store, "news")
    assert now.oldest == now.head - len(kept) + 1


@pytest.mark.parametrize("evicted", ["newest", "keys"])
async def test_of_what_is_kept_of_keys_all_is_evicted_or_nothing(
    store: RedisStore, client: Any, evicted: str
) -> None:
    await append(store, *(keyed("prices", str(n), "1") for n in range(200)))
    client.delete(f"{{sse:prices}}:{evicted}")
    assert await newest(store, "prices") == {}
    await append(store, keyed("prices", "new", "1"))
    assert await newest(store, "prices") == {"new": "1"}
    assert client.hlen("{sse:prices}:newest") == client.zcard("{sse:prices}:keys") == 1


async def test_keys_that_are_too_many_are_forgotten_some_at_a_time(
    store: RedisStore, client: Any
) -> None:
    await append(store, *(keyed("prices", str(n), "1") for n in range(500)))
    with override_settings(DJANGO_SSE={"MAX_KEYS": 10}):
        await append(store, keyed("prices", "new", "1"))
        assert 10 < client.hlen("{sse:prices}:newest") < 500
        while client.hlen("{sse:prices}:newest") > 10:
            await append(store, keyed("prices", "new", "1"))
    assert list(await newest(store, "prices")) == [*map(str, range(491, 500)), "new"]


async def test_history_is_bounded_by_age(store: RedisStore, client: Any) -> None:
    count = 250
    await append(store, *(event("news", str(n)) for n in range(count)))
    # As if all but the last of them were 25 hours old.
    entries = client.xrange("{sse:news}:events")
    client.delete("{sse:news}:events")
    for stream_id, fields in entries:
        number, _, milliseconds = stream_id.decode().partition("-")
        age = 0 if stream_id == entries[-1][0] else 25 * 3600 * 1000
        client.xadd("{sse:news}:events", fields, id=f"{number}-{int(milliseconds) - age}")
    await append(store, event("news", "new"))
    # Each call drops some of them, so that none takes long.
    some = client.xlen("{sse:news}:events")
    assert 2 < some < count
    while client.xlen("{sse:news}:events") > 2:
        await state(store, "news")
        assert client.xlen("{sse:news}:events") < some
        some = client.xlen("{sse:news}:events")
    assert texts(await store.aread("news", 0, 10)) == [str(count - 1), "new"]
    now = await state(store, "news")
    assert now.oldest == now.head - 1


@pytest.mark.parametrize(
    ("conf", "group_ttl", "events_ttl"),
    [
        ({}, 7 * 24 * 3600, 24 * 3600),
        ({"GROUP_TTL": 3600}, 3600, 3600),
        ({"HISTORY_AGE": 0}, 7 * 24 * 3600, 7 * 24 * 3600),
        ({"GROUP_TTL": 0}, None, 24 * 3600),
        ({"GROUP_TTL": 0, "HISTORY_AGE": 0}, None, None),
        ({"GROUP_TTL": 3600.5, "HISTORY_AGE": 1800.5}, 3600.5, 1800.5),
    ],
)
async def test_groups_and_events_expire_after_the_last_change(
    store: RedisStore,
    client: Any,
    conf: dict[str, Any],
    group_ttl: float | None,
    events_ttl: float | None,
) -> None:
    # What was set before does not stay.
    for given in ({"GROUP_TTL": 9 * 24 * 3600, "HISTORY_AGE": 8 * 24 * 3600}, conf):
        with override_settings(DJANGO_SSE=given):
            await append(store, event("news", "a"))
    for key, seconds in (("group", group_ttl), ("events", events_ttl)):
        left = client.pttl(f"{{sse:news}}:{key}")
        if seconds is None:
            assert left == -1
        else:
            assert (seconds - SECONDS) * 1000 < left <= seconds * 1000


async def test_idle_groups_are_forgotten_and_begin_again_beyond_their_numbers(
    store: RedisStore, client: Any
) -> None:
    with override_settings(DJANGO_SSE={"GROUP_TTL": 0.05}):
        [before] = await append(store, event("news", "a"))

        async def forgotten() -> bool:
            return (await state(store, "news")).first == 0

        await until(forgotten)
        assert client.keys("*") == [b"sse:changed"]
    [after] = await append(store, event("news", "b"))
    assert before is not None
    assert after is not None
    assert after > before


def test_the_command_says_that_nothing_is_to_be_trimmed(
    redis_server: RedisServer, settings: Settings
) -> None:
    options = {"url": redis_server.url}
    settings.DJANGO_SSE = {"STORE": {"BACKEND": "redis", "OPTIONS": options}}
    output = StringIO()
    call_command("sse_trim", stdout=output)
    assert "expire by themselves" in output.getvalue()


async def test_changes_are_kept_for_an_hour_and_who_asks_later_compares_all(
    store: RedisStore, client: Any
) -> None:
    await append(store, event("old", "a"))
    _, cursor = await store.achanged(None, {"old", "news"})
    an_hour_ago = client.zscore("sse:changed", "old") - 3700 * 10**6
    client.zadd("sse:changed", {"old": an_hour_ago})
    cursor = cursor._replace(scores=(int(an_hour_ago),))
    # Nothing has changed since.
    assert await store.achanged(cursor, {"old", "news"}) == ([], cursor)
    await append(store, event("news", "b"))
    assert client.zrange("sse:changed", 0, -1) == [b"news"]
    hints, cursor = await store.achanged(cursor, {"old", "news"})
    assert hints is None
    assert await store.achanged(cursor, {"old", "news"}) == ([], cursor)


async def test_of_many_changed_groups_not_even_the_names_are_fetched(
    store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await append(store, event("news", "first"))
    _, cursor = await store.achanged(None, {"news", "quiet"})
    [number] = await append(store, event("news", "a"))
    await append(store, *(event(f"other-{n}", "b") for n in range(100)))
    replies: list[Any] = []
    whole = store._servers.arun

    async def note(calls: Any) -> list[Any]:
        replies.append(await whole(calls))
        return list(replies[-1])

    monkeypatch.setattr(store._servers, "arun", note)
    hints, _ = await store.achanged(cursor, {"news", "quiet"})
    assert {hint.group: hint.head for hint in hints or ()}["news"] == number
    [[_, _, names]], states = replies
    assert names == 101
    assert len(states) == 2


async def test_a_change_is_told_after_a_clock_that_went_back(
    store: RedisStore, client: Any
) -> None:
    client.zadd("sse:changed", {"sport": first_number() + 10**9})
    _, cursor = await store.achanged(None, {"news"})
    await append(store, event("news", "a"))
    assert len(await changes(store, cursor, "news")) == 1


async def test_reopening_a_group_never_published_to_creates_nothing(
    store: RedisStore, client: Any
) -> None:
    assert await append(store, reopening("news")) == [None]
    assert client.keys("*:group") == client.keys("*:events") == []


async def test_any_bytes_come_back_as_they_were(store: RedisStore) -> None:
    wires = [bytes(range(256)), "data: žluťoučký 🐎\n\n".encode(), b"x" * 100_000]
    await append(store, *(NewEntry("news", wire) for wire in wires))
    assert [entry.wire for entry in await store.aread("news", 0, 10)] == wires


async def test_stores_with_prefixes_of_their_own_share_a_redis(redis_server: RedisServer) -> None:
    async with store_on(redis_server, prefix="a") as a, store_on(redis_server, prefix="b") as b:
        _, cursor = await b.achanged(None, {"news"})
        await append(a, event("news", "x"))
        assert (await state(b, "news")).first == 0
        assert await changes(b, cursor, "news") == []


# Many at once


async def test_one_call_appends_to_many_groups_or_to_none(store: RedisStore) -> None:
    groups = [f"group-{n}" for n in range(300)]
    await append(store, close("group-7"), close("over"))
    entries = [
        reopening("group-7"),
        *(event(group, text) for text in "ab" for group in groups),
        close("group-8"),
    ]
    with pytest.raises(GroupCancelled, match="over"):
        await append(store, *entries, event("over", "x"))
    states = await store.astates(groups)
    assert [group for group in groups if states[group].first] == ["group-7"]
    numbers = await append(store, *entries)
    assert numbers[0] is None
    states = await store.astates(groups)
    for place, group in enumerate(groups, 1):
        last = [number for number in (numbers[place], numbers[place + 300]) if number]
        assert last[1] == last[0] + 1
        assert states[group].cancelled == (group == "group-8")
        assert texts(await store.aread(group, last[0] - 1, 2)) == ["a", "b"]


async def test_processes_append_without_losing_or_doubling_a_number(
    redis_server: RedisServer, store: RedisStore, tmp_path: Path
) -> None:
    chosen = {"STORE": {"BACKEND": "redis", "OPTIONS": {"url": redis_server.url}}}
    processes = [
        await start(tmp_path, "sse_push", "news", "-", LIVE_DJANGO_SSE=json.dumps(chosen))
        for _ in range(2)
    ]
    await asyncio.gather(
        *(
            finish(process, "".join(f"{name} {n}\n" for n in range(200)))
            for name, process in zip("ab", processes, strict=True)
        )
    )
    entries = await store.aread("news", 0, 1000)
    first = entries[0].number
    assert [entry.number for entry in entries] == list(range(first, first + 400))
    read = texts(entries)
    for name in "ab":
        assert [text for text in read if text[0] == name] == [f"{name} {n}" for n in range(200)]


# Connections


def connections_to(client: Any) -> int:
    # Without those of tests before, which are closed when they are collected.
    gc.collect()
    return len(client.client_list())


async def test_a_client_that_is_replaced_leaves_no_connection_open(
    redis_server: RedisServer, client: Any
) -> None:
    async with store_on(redis_server) as store:
        before = connections_to(client)
        everyone_ready = threading.Barrier(4)

        def publish_together() -> None:
            everyone_ready.wait(SECONDS)
            store.append([event("news", "a")], lambda hints: None)

        await asyncio.gather(*(in_thread(publish_together) for _ in range(4)))
        assert len(client.client_list()) > before
        # Nothing may depend on when they are collected.
        gc.disable()
        try:
            # As after a failover.
            servers = store._servers
            assert isinstance(servers, OneServer)
            servers._replace(servers._publisher)
            del servers
            await until(sync_to_async(lambda: len(client.client_list()) == before))
        finally:
            gc.enable()


async def test_a_publisher_that_is_interrupted_leaves_no_reply_to_another(
    store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a time limit of Celery, while it waits for Redis."""
    [first] = await append(store, event("news", "a"))
    read = redis.connection.Connection.read_response

    def interrupt(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(redis.connection.Connection, "read_response", read)
        raise TimeLimitExceeded

    monkeypatch.setattr(redis.connection.Connection, "read_response", interrupt)
    with pytest.raises(TimeLimitExceeded):
        await append(store, event("news", "in doubt"))
    assert first
    assert await append(store, event("news", "b")) == [first + 2]
    assert (await state(store, "news")).head == first + 2


async def test_each_event_loop_has_connections_that_end_with_it(
    store: RedisStore, client: Any
) -> None:
    await append(store, event("news", "a"))
    await state(store, "news")
    before = connections_to(client)

    def read_on_a_loop_of_its_own() -> None:
        assert texts(asyncio.run(store.aread("news", 0, 10))) == ["a"]

    for _ in range(3):
        await in_thread(read_on_a_loop_of_its_own)
    await until(sync_to_async(lambda: connections_to(client) == before))
    assert isinstance(store._servers, OneServer)
    assert len(store._servers._readers) == 2
    await asyncio.gather(*(state(store, "news") for _ in range(10)))


async def test_closing_lets_go_of_the_connections_and_reading_takes_new_ones(
    store: RedisStore, client: Any
) -> None:
    await append(store, event("news", "a"))
    before = connections_to(client)
    await asyncio.gather(*(state(store, "news") for _ in range(10)))
    assert connections_to(client) > before
    # What is under way meanwhile does not fail.
    reading = [asyncio.create_task(store.aread("news", 0, 10)) for _ in range(10)]
    await asyncio.sleep(0)
    await store.aclose()
    assert [texts(entries) for entries in await asyncio.gather(*reading)] == [["a"]] * 10
    await store.aclose()
    await until(sync_to_async(lambda: connections_to(client) == before))
    assert texts(await store.aread("news", 0, 10)) == ["a"]


async def test_who_is_cancelled_while_it_asks_redis_ends(store: RedisStore) -> None:
    async def ask_without_end() -> None:
        while True:
            await state(store, "news")

    for number in range(100):
        asking = asyncio.create_task(ask_without_end())
        await asyncio.sleep(number / 50_000)
        asking.cancel()
        done, _ = await asyncio.wait([asking], timeout=SECONDS)
        assert done


async def test_an_event_and_the_mark_of_its_change_are_one_call() -> None:
    with serve() as server:
        async with store_on(server) as store:
            await append(store, event("news", "a"))
            _, cursor = await store.achanged(None, {"news", "sport"})
            server.command("CONFIG", "RESETSTAT")
            await append(store, event("news", "b"), keyed("sport", "price", "c"))
            assert b"cmdstat_evalsha:calls=1," in server.command("INFO", "commandstats")
            hints, _ = await store.achanged(cursor, {"news", "sport"})
            assert {hint.group for hint in hints or []} == {"news", "sport"}


@asynccontextmanager
async def cluster_of_one() -> AsyncIterator[RedisServer]:
    # Without `cluster-port` it listens where the ports of clients are.
    with serve(**{"cluster-enabled": "yes", "cluster-port": str(free_port())}) as server:
        cluster: Any = redis.Redis.from_url(server.url)
        cluster.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)

        async def assigned() -> bool:
            return bool(cluster.execute_command("CLUSTER INFO")["cluster_state"] == "ok")

        await until(assigned)
        yield server


async def test_threads_that_find_out_together_that_a_server_is_of_a_cluster_lose_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, all_were_refused = OneServer.run, threading.Barrier(2)
    waited = threading.local()

    def run_together(server: OneServer, calls: Sequence[Call]) -> list[Any]:
        replies = run(server, calls)
        if not hasattr(waited, "once"):
            waited.once = all_were_refused.wait(20)
        return replies

    async with cluster_of_one() as server, store_on(server) as store:
        monkeypatch.setattr(OneServer, "run", run_together)
        publish = [partial(store.append, [event(group, "a")], Bell()) for group in ("a", "b")]
        numbers = await asyncio.gather(*map(in_thread, publish))
        assert all(number for [number] in numbers)
        assert [texts(await store.aread(group, 0, 10)) for group in ("a", "b")] == [["a"], ["a"]]


async def test_a_group_lives_in_one_slot_of_a_cluster() -> None:
    async with cluster_of_one() as server, store_on(server) as store:
        _, cursor = await store.achanged(None, {"news"})
        [number] = await append(store, event("news", "a"))
        assert await append(store, close("news")) == [(number or 0) + 1]
        await append(store, event("sport", "b"))
        assert texts(await store.aread("news", 0, 10))[0] == "a"
        assert [hint.cancelled for hint in await changes(store, cursor, "news")] == [True]
        assert all(now.first for now in (await store.astates(["news", "sport"])).values())


# The whole stack


def settings_for(server: RedisServer, **options: Any) -> dict[str, Any]:
    store = {"BACKEND": "redis", "OPTIONS": {"url": server.url, **options}}
    return {"STORE": store, "SYNC_INTERVAL": 0.1}


@pytest.mark.usefixtures("everything_ends")
async def test_a_stream_goes_on_when_a_durable_redis_restarts() -> None:
    with (
        serve(**APPENDING) as server,
        override_settings(DJANGO_SSE=settings_for(server, durable=True)),
    ):
        async with connected("news") as stream:
            await apublish("news", "before")
            await stream.until_events(1)
            server.kill()
            with pytest.raises(redis.ConnectionError):
                await apublish("news", "away")
            server.start()
            await apublish("news", "after")
            # Another process rings nobody here: it is found in the store.
            async with store_on(server, durable=True) as another_process:
                await append(another_process, event("news", "another"))
            assert await stream.until_events(3) == ["before", "after", "another"]


@pytest.mark.usefixtures("everything_ends")
@pytest.mark.parametrize("published", [True, False], ids=["published", "never published"])
@pytest.mark.parametrize("publish_again", [True, False], ids=["publish", "wait"])
async def test_a_stream_ends_in_a_reset_when_redis_has_forgotten(
    published: bool, publish_again: bool
) -> None:
    with serve() as server, override_settings(DJANGO_SSE=settings_for(server)):
        async with connected("news") as stream:
            if published:
                await apublish("news", "before")
                await stream.until_events(1)
            server.kill()
            server.start()
            if publish_again:
                await apublish("news", "after")
            assert await asyncio.wait_for(stream.stream.ended, SECONDS) == "reset"
            assert "after" not in stream.data


# Configuration


def test_without_redis_py_the_store_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("django_sse.stores.redis", "django_sse.stores.redis.store"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "redis", None)
    with (
        override_settings(DJANGO_SSE={"STORE": "redis"}),
        pytest.raises(ImproperlyConfigured, match=re.escape("pip install 'redis>=5.2'")),
    ):
        get_store()


async def test_a_failover_to_a_server_that_was_master_before_is_a_loss() -> None:
    """Its run_id is the old one, its data is not: what the other one took has been lost."""

    def follow(replica: Any, master: RedisServer) -> Callable[[], Awaitable[bool]]:
        replica.execute_command("REPLICAOF", "127.0.0.1", master.port)

        async def is_up() -> bool:
            return bool(replica.info("replication").get("master_link_status") == "up")

        return is_up

    async def has_replicated() -> bool:
        return bool(second.xlen("{sse:news}:events") == 1)

    with serve() as one, serve() as another:
        first: Any = redis.Redis.from_url(one.url)
        second: Any = redis.Redis.from_url(another.url)
        async with store_on(one) as store:
            await until(follow(second, one))
            await append(store, event("news", "1"))
            await until(has_replicated)
            second.execute_command("REPLICAOF", "NO", "ONE")
            # Acknowledged, and seen by a client.
            [seen] = await append(store, event("news", "2"))
            await until(follow(first, another))
            first.execute_command("REPLICAOF", "NO", "ONE")
            await append(store, event("news", "3"))
            assert seen is not None
            assert is_lost(seen, await state(store, "news"))
        first.close()
        second.close()


async def test_a_first_replica_and_a_backup_are_no_loss() -> None:
    with serve() as one, serve() as replica:
        async with store_on(one) as store:
            await append(store, event("news", "1"))
            before = await state(store, "news")
            follower: Any = redis.Redis.from_url(replica.url)
            follower.execute_command("REPLICAOF", "127.0.0.1", one.port)

            async def is_up() -> bool:
                return bool(follower.info("replication").get("master_link_status") == "up")

            await until(is_up)
            follower.close()
            assert await state(store, "news") == before
            assert texts(await store.aread("news", 0, 10)) == ["1"]


async def test_however_many_reads_come_at_once_they_share_a_few_connections(
    store: RedisStore, client: Any
) -> None:
    await append(store, *(event("news", str(n)) for n in range(20)))
    before = client.info("stats")["total_connections_received"]
    pages = await asyncio.gather(*(store.aread("news", 0, 20) for _ in range(400)))
    assert {len(page) for page in pages} == {20}
    assert client.info("stats")["total_connections_received"] - before <= 10
