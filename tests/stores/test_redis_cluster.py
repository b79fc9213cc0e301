"""The redis store on a Redis Cluster: where the keys are, what moves, and what fails alone."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from traceback import format_exception
from typing import Any

import pytest
import redis
from asgiref.sync import sync_to_async
from django.test import override_settings
from redis.crc import key_slot

from django_sse import Event, PartlyPublished, acancel, aposition, apublish_many, publish
from django_sse.broadcasts import _publish_now
from django_sse.exceptions import GroupCancelled
from django_sse.groups.numbering import HeadMoved
from django_sse.stores import get_store
from django_sse.stores.redis import RedisStore, routing, script
from django_sse.stores.redis import store as redis_store
from django_sse.stores.redis.discovery import ClusterDiscovery
from django_sse.stores.redis.keys import ClusterKeys
from django_sse.stores.redis.url import Address, place_in
from django_sse.streaming.roster import log_of
from django_sse.testing.stores import (
    append,
    append_events,
    begin,
    close,
    event,
    expecting,
    produced,
    state,
    texts,
)
from django_sse.testing.threads import in_thread
from tests.clients import connected
from tests.live.nginx import make_certificate
from tests.live.servers import unavailable
from tests.ports import free_port
from tests.redis import (
    RedisCluster,
    RedisSentinels,
    RedisServer,
    binary,
    serve,
    serve_cluster,
)

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("everything_ends"),
    pytest.mark.once,
]

KEYS = ClusterKeys("sse")
SECONDS = 30


@contextmanager
def published_to(url: str, **options: Any) -> Iterator[None]:
    """The project's store is at this address, and a hub compares itself with it all the time."""
    store = {"BACKEND": "redis", "OPTIONS": {"url": url, **options}}
    # A history that a stream which waits for Redis does not fall behind.
    conf = {"STORE": store, "SYNC_INTERVAL": 0.1, "HISTORY_SIZE": 100_000}
    with override_settings(DJANGO_SSE=conf):
        yield


@asynccontextmanager
async def store_on(
    cluster: RedisCluster, query: str = "", **options: Any
) -> AsyncIterator[RedisStore]:
    store = RedisStore(url=cluster.url + query, **options)
    yield store
    await store.aclose()


def slot_of(group: str) -> int:
    """The slot of a group, where the prefix is the default."""
    return KEYS.slot(KEYS.of_group(group)[0])


def group_on(cluster: RedisCluster, master: RedisServer, *others: str) -> str:
    """The name of a group that a master has, other than these, and in another slot than theirs."""
    taken = {slot_of(other) for other in others}
    names = (f"news-{number}" for number in range(10_000))
    ranges = next(n for n in cluster.nodes(master) if "myself" in n[2])[8:]
    bounds = [
        (int(r.partition("-")[0]), int(r.partition("-")[2] or r)) for r in ranges if "[" not in r
    ]
    return next(
        name
        for name in names
        if slot_of(name) not in taken
        and any(first <= slot_of(name) <= last for first, last in bounds)
    )


class Publishing:
    """Publishes to a group in a thread, again and again, and notes what it was told of each."""

    def __init__(self, group: str) -> None:
        self.group = group
        self.acknowledged: list[str] = []
        self.tried = 0
        self._done = threading.Event()
        self._task = asyncio.create_task(in_thread(self._publish))

    def _publish(self) -> None:
        while not self._done.is_set():
            # So that the machine has time for the stream, too.
            time.sleep(0.005)
            self.tried += 1
            text = f"{self.group} {self.tried}"
            try:
                publish(self.group, text)
            except redis.RedisError:
                continue
            self.acknowledged.append(text)

    async def more(self, count: int = 20) -> None:
        """Wait until some more events are acknowledged."""
        enough = len(self.acknowledged) + count
        async with asyncio.timeout(SECONDS):
            while len(self.acknowledged) < enough:
                await asyncio.sleep(0.01)

    def wait_for_more(self, count: int = 20) -> None:
        """Do what ``more`` does, in a thread."""
        enough = len(self.acknowledged) + count
        deadline = time.monotonic() + SECONDS
        while len(self.acknowledged) < enough and time.monotonic() < deadline:
            time.sleep(0.01)

    async def stop(self) -> None:
        self._done.set()
        await self._task


@asynccontextmanager
async def publishing(*groups: str) -> AsyncIterator[list[Publishing]]:
    publishers = [Publishing(group) for group in groups]
    try:
        yield publishers
    finally:
        for publisher in publishers:
            await publisher.stop()


async def until_running_for_a_while(*servers: RedisServer) -> None:
    """Wait until servers run for longer than their clocks may differ."""
    async with asyncio.timeout(SECONDS):
        for server in servers:
            while True:
                with redis.Redis(port=server.port) as client:
                    if client.info("server")["uptime_in_seconds"] >= 4:
                        break
                await asyncio.sleep(0.1)


# Keys and calls


def test_the_groups_of_a_cluster_are_spread_evenly_over_its_slots() -> None:
    slots = sorted(KEYS.slots)
    assert len(slots) == len(KEYS.shards)
    for third in range(3):
        part = [s for s in slots if 16384 * third // 3 <= s < 16384 * (third + 1) // 3]
        assert 9 <= len(part) <= 12
    counts = Counter(KEYS.shard(f"user.{number}") for number in range(3200))
    assert set(counts) == set(KEYS.shards)
    assert max(counts.values()) < 200


@pytest.mark.parametrize("group", ["news", "tenant/news", "~" + "0" * 32, "n" * 99])
def test_all_keys_of_a_group_are_in_the_slot_of_its_changes(group: str) -> None:
    shard = KEYS.shard(group)
    keys = [*KEYS.of_group(group), KEYS.changes(shard), KEYS.producing(shard)]
    assert len({key_slot(key.encode()) for key in keys}) == 1
    assert {KEYS.slot(key) for key in keys} == {key_slot(keys[0].encode())}
    # One step tells who is there and writes it to their log.
    assert KEYS.shard(log_of(group)) == shard


async def test_many_changes_in_one_shard_are_no_reason_to_ask_for_groups_of_others(
    redis_cluster: RedisCluster,
) -> None:
    async with store_on(redis_cluster) as store:
        beside = next(f"n-{n}" for n in range(99) if KEYS.shard(f"n-{n}") == KEYS.shard("news"))
        asked = {"news", beside, "quiet"}
        assert KEYS.shard("quiet") != KEYS.shard("news")
        everywhere = {KEYS.shard(f"first-{n}"): f"first-{n}" for n in range(1000)}
        await append(store, *(event(name, "x") for name in everywhere.values()))
        _, cursor = await store.achanged(None, asked)
        numbered = (f"other-{n}" for n in range(10_000))
        others = [name for name in numbered if KEYS.shard(name) == KEYS.shard("news")][:50]
        [number, *_] = await append(store, *(event(name, "x") for name in ("news", *others)))
        hints, _ = await store.achanged(cursor, asked)
        heads = {hint.group: hint.head for hint in hints or ()}
        assert heads.keys() == {"news", beside}
        assert heads["news"] == number


async def test_a_comparison_costs_one_call_for_each_shard(redis_cluster: RedisCluster) -> None:
    async with store_on(redis_cluster) as store:
        await append(store, event("news", "a"))
        _, cursor = await store.achanged(None, {"news"})

        def calls() -> int:
            total = 0
            for server in redis_cluster.masters():
                with redis.Redis(port=server.port) as client:
                    stats: Any = client.info("commandstats")
                    total += stats.get("cmdstat_evalsha", {}).get("calls", 0)
            return total

        before = await sync_to_async(calls)()
        assert await store.achanged(cursor, {"news"}) == ([], cursor)
        assert await sync_to_async(calls)() - before == len(KEYS.shards)


async def test_many_groups_are_published_to_by_one_pipeline_for_each_server(
    redis_cluster: RedisCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []
    send = script.send

    def note(connection: Any, commands: Any) -> None:
        sent.append(connection.port)
        send(connection, commands)

    async with store_on(redis_cluster) as store:
        # All servers know the script from now on.
        await append(store, *(event(f"first-{number}", "x") for number in range(300)))
        monkeypatch.setattr(routing, "send", note)
        many = [event(f"news-{number}", str(number)) for number in range(300)]
        await append(store, *many)
        ports = {server.port for server in redis_cluster.masters()}
        # One asks whether all of them are accepted, and one appends.
        assert Counter(sent) == dict.fromkeys(ports, 2)
        sent.clear()
        await append(store, event("news", "second"))
        assert len(sent) == 1


# What is refused, and what fails alone


async def test_what_one_server_refuses_no_other_takes(redis_cluster: RedisCluster) -> None:
    one, another, third = redis_cluster.masters()
    here, there = group_on(redis_cluster, one), group_on(redis_cluster, another)
    elsewhere = group_on(redis_cluster, third)
    async with store_on(redis_cluster) as store:
        await append(store, close(there))
        with pytest.raises(GroupCancelled, match=there):
            await append(store, event(here, "x"), event(there, "y"))
        with pytest.raises(HeadMoved):
            await append(store, event(here, "x"), expecting(elsewhere, 7))
        with pytest.raises(GroupCancelled):
            await append(store, event(here, "x"), begin(there, 1 << 30))
        with pytest.raises(GroupCancelled):
            await append(store, event(here, "x"), produced(there, "y", 1 << 30))
        assert await store.aread(here, 0, 10) == []


@contextmanager
def refusing_writes(server: RedisServer) -> Iterator[None]:
    server.command("CONFIG", "SET", "min-replicas-to-write", 5)
    try:
        yield
    finally:
        server.command("CONFIG", "SET", "min-replicas-to-write", 0)


async def test_an_error_says_what_was_published_and_streams_get_it(
    redis_cluster: RedisCluster,
) -> None:
    one, another, *_ = redis_cluster.masters()
    here, there = group_on(redis_cluster, one), group_on(redis_cluster, another)
    with published_to(redis_cluster.url):
        async with connected(here) as stream:
            with refusing_writes(another), pytest.raises(PartlyPublished) as raised:
                await apublish_many(
                    [(there, "lost"), (here, "kept"), (there, "lost"), (here, "too")]
                )
            assert raised.value.published == (here,)
            assert raised.value.failed == (there,)
            assert "NOREPLICAS" in str(raised.value.__cause__)
            assert await stream.until_events(2) == ["kept", "too"]
        assert await get_store().aread(there, 0, 10) == []
        with refusing_writes(another), pytest.raises(redis.ResponseError, match="NOREPLICAS"):
            await apublish_many([(there, "alone")])


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """What refuses an entry has happened right after the servers were asked."""
    monkeypatch.setattr(redis_store, "_can_be_refused", lambda entry: False)


async def test_a_group_that_is_cancelled_in_that_moment_is_told_of(
    redis_cluster: RedisCluster, unchecked: None
) -> None:
    one, another, _ = redis_cluster.masters()
    here, there = group_on(redis_cluster, one), group_on(redis_cluster, another)
    with published_to(redis_cluster.url):
        await acancel(there)
        with pytest.raises(PartlyPublished) as raised:
            await apublish_many([(here, "a"), (there, "b")])
        assert (raised.value.published, raised.value.failed) == ((here,), (there,))
        assert isinstance(raised.value.__cause__, GroupCancelled)
        # A broadcast leaves out what is cancelled, and does not publish the others again.
        await sync_to_async(_publish_now)([(there, Event("c")), (here, Event("d"))])
        assert texts(await get_store().aread(here, 0, 10)) == ["a", "d"]
        await get_store().aclose()


async def test_what_expects_a_head_goes_before_what_follows_from_it(
    redis_cluster: RedisCluster, unchecked: None
) -> None:
    one, another, _ = redis_cluster.masters()
    here, there = group_on(redis_cluster, one), group_on(redis_cluster, another)
    async with store_on(redis_cluster) as store:
        with pytest.raises(HeadMoved):
            await append(store, event(there, "told"), expecting(here, 7), event(here, "x"))
        assert await store.aread(there, 0, 10) == []
        head = (await state(store, here)).head
        numbers = await append(store, event(there, "told"), expecting(here, head), event(here, "x"))
        assert [bool(number) for number in numbers] == [True, False, True]


# What moves


async def test_a_slot_that_moves_while_a_publisher_runs_costs_no_event_and_no_reset(
    redis_cluster: RedisCluster,
) -> None:
    one, another, third = redis_cluster.masters()
    group = group_on(redis_cluster, one)
    await until_running_for_a_while(one, another, third)
    with published_to(redis_cluster.url):
        async with connected(group) as stream, publishing(group) as [publisher]:
            await publisher.more()
            for target in (another, third, one):
                await asyncio.to_thread(redis_cluster.move_slot, slot_of(group), target)
                await publisher.more()
            await publisher.stop()
            count = len(publisher.acknowledged)
            await stream.until(lambda: len(stream.events) >= count or stream.stream.ended.done())
            # Each was taken, as its server says where it has gone.
            assert publisher.tried == len(publisher.acknowledged)
            assert stream.data == publisher.acknowledged
            assert not stream.stream.ended.done()
        assert texts(await get_store().aread(group, 0, 100_000)) == publisher.acknowledged


async def test_a_group_whose_keys_are_on_two_servers_is_waited_for(
    redis_cluster: RedisCluster,
) -> None:
    one, another, *_ = redis_cluster.masters()
    group = group_on(redis_cluster, one)
    await until_running_for_a_while(one, another)
    async with store_on(redis_cluster) as store:
        [first] = await append_events(store, event(group, "a"))
        tasks: list[Any] = []
        loop = asyncio.get_running_loop()

        def ask() -> None:
            # In every step, of which one has half of the keys here and half there.
            asking: list[Any] = [append(store, event(group, "x")), state(store, group)]
            tasks.extend(asyncio.run_coroutine_threadsafe(each, loop) for each in asking)
            time.sleep(0.05)

        await asyncio.to_thread(redis_cluster.move_slot, slot_of(group), another, ask)
        await asyncio.gather(*map(asyncio.wrap_future, tasks))
        count = len(tasks) // 2
        assert count >= 3
        read = await store.aread(group, 0, 100)
        assert texts(read) == ["a", *["x"] * count]
        assert [entry.number for entry in read] == [first + n for n in range(count + 1)]


async def test_a_group_that_is_new_while_its_slot_moves_is_refused_after_a_while(
    redis_cluster: RedisCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis cannot tell where it belongs: none of its keys is here or there."""
    monkeypatch.setattr(routing, "_FOLLOWING_SECONDS", 0.2)
    one, another, *_ = redis_cluster.masters()
    group = group_on(redis_cluster, one)
    refusals: list[BaseException] = []
    async with store_on(redis_cluster) as store:

        def publish_meanwhile() -> None:
            with pytest.raises(redis.exceptions.TryAgainError) as raised:
                store.append([event(group, "too early")], lambda hints: None)
            refusals.append(raised.value)

        move = redis_cluster.move_slot
        await in_thread(lambda: move(slot_of(group), another, publish_meanwhile))
        assert len(refusals) == 1
        assert await store.aread(group, 0, 10) == []
        await append(store, event(group, "a"))
        assert texts(await store.aread(group, 0, 10)) == ["a"]


async def test_a_slot_that_moves_to_a_server_that_began_later_is_taken_for_lost(
    redis_cluster: RedisCluster,
) -> None:
    """This server may have had newer events, and have forgotten them."""
    one, another, *_ = redis_cluster.masters()
    group = group_on(redis_cluster, one)
    async with store_on(redis_cluster) as store:
        await append(store, event(group, "a"))
        # As if it were of an hour ago.
        _, events = KEYS.of_group(group)
        with redis.Redis(port=one.port) as client:
            [(stream_id, fields)] = client.xrange(events)
            number, _, milliseconds = stream_id.decode().partition("-")
            client.delete(events)
            client.xadd(events, fields, id=f"{number}-{int(milliseconds) - 3_600_000}")
        before = await state(store, group)
        await asyncio.to_thread(redis_cluster.move_slot, slot_of(group), another)
        after = await state(store, group)
        assert after.head > before.head
        assert await store.aread(group, 0, 10) == []


# Masters that are lost


class Following:
    """A client that comes back whenever its stream ends.

    ``stretches`` are what it got up to each reset.
    """

    def __init__(self, group: str) -> None:
        self.stretches: list[list[str]] = [[]]
        self._group = group
        self._after: str | None = None
        self._task = asyncio.create_task(self._follow())

    @property
    def texts(self) -> list[str]:
        return [text for stretch in self.stretches for text in stretch]

    @property
    def is_connected(self) -> bool:
        return self._after is not None

    async def _follow(self) -> None:
        while True:
            try:
                after = self._after or await aposition(self._group)
            except redis.RedisError:
                await asyncio.sleep(0.1)
                continue
            self._after = after
            async with connected(self._group, after=after) as client:
                ended = client.stream.ended
                while not ended.done():
                    client.changed.clear()
                    await client.changed.wait()
                    self.stretches[-1] += [e.text for e in client.events if e.text]
                    self._after = next((e.id for e in client.events[::-1] if e.id), self._after)
                    client.events.clear()
                if ended.result() == "reset":
                    self._after = None
                    self.stretches.append([])

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(SECONDS):
            while not condition():
                assert not self._task.done()
                await asyncio.sleep(0.01)

    async def stop(self) -> None:
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task


@asynccontextmanager
async def following(*groups: str) -> AsyncIterator[list[Following]]:
    followers = [Following(group) for group in groups]
    try:
        for follower in followers:
            await follower.until(lambda follower=follower: follower.is_connected)  # type: ignore[misc]
        yield followers
    finally:
        for follower in followers:
            await follower.stop()


def assert_nothing_is_missed(publisher: Publishing, follower: Following) -> None:
    """Each event comes once and in order, and what is missing is where the client was reset."""
    order = [f"{publisher.group} {number + 1}" for number in range(publisher.tried)]
    place = {text: number for number, text in enumerate(order)}
    got = [place[text] for text in follower.texts]
    assert got == sorted(set(got))
    acknowledged = {place[text] for text in publisher.acknowledged}
    for stretch in follower.stretches:
        if stretch:
            first, last = place[stretch[0]], place[stretch[-1]]
            expected = {number for number in acknowledged if first <= number <= last}
            assert expected <= {place[text] for text in stretch}
    # The first stretch begins with the first event, and the last one ends with the last one.
    assert follower.stretches[0][:1] == publisher.acknowledged[:1]
    assert follower.texts[-1] == publisher.acknowledged[-1]


@pytest.fixture
def promoted_cluster() -> Iterator[RedisCluster]:
    """A cluster for one test alone: a server that was promoted takes over no slot without a
    reset."""
    if not binary():
        unavailable("redis-server is not installed")
    with serve_cluster() as cluster:
        yield cluster


async def test_a_master_of_a_cluster_that_is_killed_costs_what_it_forgot_and_a_reset(
    promoted_cluster: RedisCluster,
) -> None:
    one, another, _ = promoted_cluster.masters()
    lost, kept = group_on(promoted_cluster, one), group_on(promoted_cluster, another)
    with published_to(promoted_cluster.url):
        async with (
            following(lost, kept) as followers,
            publishing(lost, kept) as publishers,
        ):
            for publisher in publishers:
                await publisher.more()
            forgotten = publishers[0].wait_for_more
            await asyncio.to_thread(promoted_cluster.fail_over, one, forgotten)
            for publisher in publishers:
                await publisher.more(50)
            # Published after the reset.
            await followers[0].until(lambda: len(followers[0].stretches) > 1)
            await publishers[0].more()
            for publisher, follower in zip(publishers, followers, strict=True):
                await publisher.stop()
                last = publisher.acknowledged[-1]
                await follower.until(lambda f=follower, t=last: t in f.texts[-1:])  # type: ignore[misc]
                assert_nothing_is_missed(publisher, follower)
            # Those of the other masters go on.
            assert len(followers[1].stretches) == 1
        history = texts(await get_store().aread(lost, 0, 100_000))
        assert history[-1] == publishers[0].acknowledged[-1]
        assert len({*publishers[0].acknowledged} - {*history}) >= 20


async def test_a_cluster_is_found_whichever_master_is_lost(
    promoted_cluster: RedisCluster,
) -> None:
    place = place_in(promoted_cluster.url)
    assert place
    discovery = ClusterDiscovery(place, KEYS.slots)
    known = await discovery.aowners([])
    for lost in promoted_cluster.masters():
        replica = promoted_cluster.replica_of(lost)
        replica.pause()
        lost.kill()
        try:
            # That of the lost master is its own until the others know better.
            assert (await discovery.aowners(known.values())).keys() == known.keys()
            found = await in_thread(lambda: discovery.owners(known.values()))
            assert found.keys() == known.keys()
        finally:
            replica.resume()
            await asyncio.to_thread(promoted_cluster.until_whole)


async def test_a_failover_of_sentinels_costs_what_the_master_forgot_and_a_reset(
    redis_sentinels: RedisSentinels,
) -> None:
    await asyncio.to_thread(redis_sentinels.until_whole)
    with published_to(redis_sentinels.url):
        async with following("news") as [follower], publishing("news") as [publisher]:
            await publisher.more()
            await asyncio.to_thread(
                redis_sentinels.fail_over, redis_sentinels.master, publisher.wait_for_more
            )
            await follower.until(lambda: len(follower.stretches) > 1)
            await publisher.more(50)
            await publisher.stop()
            last = publisher.acknowledged[-1]
            await follower.until(lambda: last in follower.texts[-1:])
            assert_nothing_is_missed(publisher, follower)


async def test_a_master_that_goes_on_after_a_failover_is_left_before_it_knows(
    redis_sentinels: RedisSentinels,
) -> None:
    await asyncio.to_thread(redis_sentinels.until_whole)
    old = redis_sentinels.master
    try:
        with published_to(redis_sentinels.url):
            async with following("news") as [follower], publishing("news") as [publisher]:
                await publisher.more()
                await asyncio.to_thread(redis_sentinels.replace, old)
                await follower.until(lambda: len(follower.stretches) > 1)
                await publisher.more()
                await publisher.stop()
                last = publisher.acknowledged[-1]
                await follower.until(lambda: last in follower.texts[-1:])
                assert_nothing_is_missed(publisher, follower)
                assert b"role:master" in old.command("INFO", "replication")
            assert texts(await get_store().aread("news", 0, 100_000))[-1] == last
    finally:
        redis_sentinels.tell(old)


@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_server_that_is_left_while_it_is_read_keeps_no_connection(
    redis_server: RedisServer, cancelled: bool
) -> None:
    readers = routing._Readers({"socket_timeout": 10}, tls=False)
    asking = asyncio.create_task(
        readers.ask(Address("127.0.0.1", redis_server.port), [("BLPOP", "slow", 5)])
    )
    while b"cmd=blpop" not in redis_server.command("CLIENT", "LIST"):
        await asyncio.sleep(0.01)
    await readers.drop_all_but([])
    if cancelled:
        asking.cancel()
        with suppress(asyncio.CancelledError):
            await asking
    else:
        redis_server.command("RPUSH", "slow", "done")
        assert [list(reply) for reply in await asking] == [[b"slow", b"done"]]
    while b"cmd=blpop" in redis_server.command("CLIENT", "LIST"):
        await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    "url", ["redis+cluster://127.0.0.1:1", "redis+sentinel://127.0.0.1:1/main"]
)
async def test_however_many_wait_while_no_server_is_found_few_look_for_one(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = RedisStore(url=url)
    servers = store._servers
    assert isinstance(servers, routing.RoutedServers)
    looks: list[float] = []
    aowners = servers._discovery.aowners

    async def note(known: Any) -> Any:
        looks.append(time.monotonic())
        await asyncio.sleep(0.01)
        return await aowners(known)

    monkeypatch.setattr(servers._discovery, "aowners", note)
    reading = [store.aread("news", 0, 10) for _ in range(200)]
    failures = await asyncio.gather(*reading, return_exceptions=True)
    assert {type(failure) for failure in failures} == {redis.ConnectionError}
    assert len(looks) <= 2
    await store.aclose()


# TLS, users and passwords

ADD_USER = ("ACL", "SETUSER", "events", "on", ">pa55word", "~*", "+@all")


@contextmanager
def serve_securely(directory: Path) -> Iterator[int]:
    """Run a cluster of one server with a user. Returns the port where it speaks TLS."""
    make_certificate(directory)
    tls_port = free_port()
    tls = {
        "tls-port": str(tls_port),
        "tls-cert-file": f"{directory}/certificate.pem",
        "tls-key-file": f"{directory}/key.pem",
        "tls-ca-cert-file": f"{directory}/certificate.pem",
        "tls-auth-clients": "no",
        # It says where it speaks TLS to who asks by TLS.
        "tls-cluster": "yes",
    }
    cluster = {"cluster-enabled": "yes", "cluster-port": str(free_port())}
    with serve(**tls, **cluster) as server:
        server.command(*ADD_USER)
        server.command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        while b"cluster_state:ok" not in server.command("CLUSTER", "INFO"):
            time.sleep(0.02)
        yield tls_port


async def test_a_cluster_with_tls_and_users_and_no_error_shows_the_password(
    tmp_path: Path,
) -> None:
    with serve_securely(tmp_path) as port:
        # redis-py asks for 127.0.0.1, which is not in the certificate.
        trusting = f"?ssl_ca_certs={tmp_path}/certificate.pem&ssl_check_hostname=no"
        where = f"localhost:{port}/0{trusting}"
        store = RedisStore(url=f"rediss+cluster://events:pa55word@{where}")
        assert store.check() == []
        await append(store, event("news", "a"), event("sport", "b"))
        assert texts(await store.aread("news", 0, 10)) == ["a"]
        await store.aclose()
        for url in (
            f"rediss+cluster://events:another-pa55word@{where}",
            f"rediss+cluster://events:pa55word@localhost:{port}",
            f"redis+cluster://events:pa55word@localhost:{port}",
        ):
            store = RedisStore(url=url)
            assert store.check() == []
            for attempt in (append(store, event("news", "a")), store.aread("news", 0, 10)):
                with pytest.raises(redis.ConnectionError, match=f"localhost:{port}") as raised:
                    await attempt
                assert "pa55word" not in "".join(format_exception(raised.value))
            assert "pa55word" not in store.address
            await store.aclose()


async def test_sentinels_have_a_password_of_their_own(tmp_path: Path) -> None:
    with serve() as server:
        server.command(*ADD_USER)
        (tmp_path / "sentinel.conf").write_text(f"sentinel monitor main 127.0.0.1 {server.port} 1")
        sentinel = RedisServer(tmp_path, None, "sentinel.conf", "--sentinel")
        sentinel.start()
        sentinel.command("ACL", "SETUSER", "asking", "on", ">pa55word2", "+@all")
        sentinel.command("ACL", "SETUSER", "default", "off")
        try:
            address = f"127.0.0.1:{sentinel.port}/main/0"
            who = "sentinel_username=asking&sentinel_password=pa55word2"
            store = RedisStore(url=f"redis+sentinel://events:pa55word@{address}?{who}")
            assert store.check() == []
            await append(store, event("news", "a"))
            assert texts(await store.aread("news", 0, 10)) == ["a"]
            with redis.Redis(port=server.port) as client:
                users = {one["user"] for one in client.client_list() if one["cmd"] == "evalsha"}
            assert users == {"events"}
            await store.aclose()
            store = RedisStore(url=f"redis+sentinel://events:pa55word@{address}")
            with pytest.raises(redis.ConnectionError, match="No Sentinel knows a master") as raised:
                await store.aread("news", 0, 10)
            assert "pa55word" not in "".join(format_exception(raised.value))
            await store.aclose()
        finally:
            sentinel.kill()
