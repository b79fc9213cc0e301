"""Doorbells that Redis rings itself: on one server, behind Sentinels and in a cluster."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager

import pytest
import redis
from asgiref.sync import sync_to_async
from channels.layers import get_channel_layer
from django.conf import settings as django_settings
from django.db import transaction
from django.test import override_settings

from django_sse import apublish
from django_sse.access.owners import Owner, user_key
from django_sse.doorbells import doorbell_of
from django_sse.doorbells.base import (
    POLL_SECONDS_WITH_DOORBELL,
    POLL_SECONDS_WITHOUT_DOORBELL,
    Receiver,
)
from django_sse.doorbells.notifications import NotificationDoorbell
from django_sse.groups.entries import Entry, Hint, Kind, NewEntry, closing_wire
from django_sse.stores import get_store
from django_sse.stores.redis import RedisStore
from django_sse.stores.redis.doorbell_messages import decode, doorbell_secret, unsigned
from django_sse.stores.redis.keys import ClusterKeys, Keys
from django_sse.stores.redis.url import Address
from django_sse.streaming.hub import current_hub
from django_sse.testing.stores import append, event, reopening, state
from django_sse.testing.threads import in_thread
from tests.clients import connected
from tests.doorbells.conftest import Ear
from tests.layers import GatedLayer
from tests.redis import RedisCluster, RedisSentinels, RedisServer, serve
from tests.streams import until

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("everything_ends"),
    pytest.mark.once,
]

PLACES = ["redis_server", "valkey_server", "redis_sentinels", "redis_cluster"]


@pytest.fixture
def url(request: pytest.FixtureRequest) -> str:
    """Where the store is: a test that has no place of its own runs on one server."""
    return str(request.getfixturevalue(getattr(request, "param", "redis_server")).url)


@pytest.fixture
def redis_alone(url: str) -> Iterator[None]:
    """The store is in Redis, and is not asked for what is new."""
    store = {"BACKEND": "redis", "OPTIONS": {"url": url}}
    with override_settings(DJANGO_SSE={"STORE": store, "SYNC_INTERVAL": 3600}):
        yield


@pytest.fixture
async def elsewhere(url: str) -> AsyncIterator[RedisStore]:
    """The store as another process has it, which rings no hub of this one directly."""
    store = RedisStore(url=url)
    yield store
    await store.aclose()


everywhere = pytest.mark.parametrize("url", PLACES, indirect=True)
alone = pytest.mark.usefixtures("redis_alone")


def is_heard(receiver: Receiver) -> bool:
    return receiver.poll_seconds == POLL_SECONDS_WITH_DOORBELL


async def until_heard() -> None:
    receiver = current_hub()._receiver
    await until(lambda: is_heard(receiver))


async def until_deaf(receiver: Receiver) -> None:
    await until(lambda: receiver.poll_seconds == POLL_SECONDS_WITHOUT_DOORBELL)


@asynccontextmanager
async def following(store: RedisStore, *groups: str) -> AsyncIterator[tuple[Ear, Receiver]]:
    """An ear that follows groups, as the hub of another process than that which publishes."""
    ear = Ear(asyncio.get_running_loop())
    receiver = NotificationDoorbell(store.notifications).receiver(ear)
    await receiver.open()
    try:
        for group in groups:
            await receiver.enter(group)
        yield ear, receiver
    finally:
        await receiver.close()


@asynccontextmanager
async def receiving(store: RedisStore, *groups: str) -> AsyncIterator[tuple[Ear, Receiver]]:
    """Such an ear, once it hears."""
    async with following(store, *groups) as (ear, receiver):
        await until(lambda: is_heard(receiver))
        yield ear, receiver


# What arrives


@everywhere
@alone
async def test_what_another_process_publishes_arrives_without_asking_the_store(
    elsewhere: RedisStore,
) -> None:
    async with connected("news") as client:
        await until_heard()
        for number in range(20):
            await append(elsewhere, event("news", str(number)))
        assert await client.until_events(20) == [str(number) for number in range(20)]


@everywhere
async def test_who_enters_and_leaves_hears_of_what_it_follows_alone(elsewhere: RedisStore) -> None:
    groups = [f"news-{number}" for number in range(50)]
    async with receiving(elsewhere, "first") as (ear, receiver):
        await asyncio.gather(*map(receiver.enter, groups))
        await asyncio.gather(*map(receiver.leave, groups[1:]))
        await receiver.enter(groups[2])
        for group in (*groups, "other"):
            await append(elsewhere, event(group, "x"))
        await append(elsewhere, event("first", "last"))
        heard = {groups[0], groups[2], "first"}
        await until(lambda: {hint.group for hint in ear.heard} == heard)
        # What came on the way of those is not left out, but was never sent.
        assert len(ear.heard) == 3


@everywhere
@alone
async def test_a_kick_arrives_before_what_was_published_after_it(elsewhere: RedisStore) -> None:
    kicked = user_key(7)
    async with connected("news", owner=Owner(keys={kicked: None})) as client:
        await until_heard()
        end = NewEntry(kicked, closing_wire("kicked"), Kind.END)
        await append(elsewhere, end)
        await append(elsewhere, event("news", "secret"))
        await client.until(lambda: client.stream.ended.done())
        assert client.data == ['{"reason":"kicked"}']


@everywhere
async def test_what_has_no_number_is_told_as_well(elsewhere: RedisStore) -> None:
    """As that a user has changed, which no group's event says."""
    mark = user_key(7)
    async with receiving(elsewhere, "news") as (ear, _):
        hints = [Hint(mark, 0, cancelled=False), Hint("news", 7, cancelled=False)]
        # As in a process without a hub: the ear is another one's.
        await in_thread(lambda: NotificationDoorbell(elsewhere.notifications).ring(hints))
        await until(lambda: bool(ear.heard))
        # Numbering it has told of it.
        assert ear.heard == hints[:1]


@alone
async def test_a_transaction_rings_once_it_has_committed(url: str, elsewhere: RedisStore) -> None:
    def publish_in_transaction() -> None:
        with transaction.atomic():
            elsewhere.append([event("news", "committed")], lambda hints: None)
            published_meanwhile.extend(ear.heard)

    published_meanwhile: list[Hint] = []
    async with receiving(elsewhere, "news") as (ear, _):
        await sync_to_async(publish_in_transaction)()
        await until(lambda: bool(ear.heard))
        assert published_meanwhile == []
        assert [entry.wire for entry in ear.heard[0].entries] == [b"data: committed\n\n"]


@everywhere
async def test_a_doorbell_carries_the_events_of_a_call_and_whom_they_leave_out(
    elsewhere: RedisStore,
) -> None:
    excluded = user_key(3)
    async with receiving(elsewhere, "news") as (ear, _):
        numbers = await append(
            elsewhere,
            NewEntry("news", "event: grüße\ndata: 😀\n\n".encode()),
            NewEntry("news", b"data: b\ndata: c\n\n", exclude=excluded),
            NewEntry("news", closing_wire("over"), Kind.CLOSE),
        )
        await until(lambda: bool(ear.heard))
        first, second, third = (number or 0 for number in numbers)
        entries = (
            Entry(first, "event: grüße\ndata: 😀\n\n".encode()),
            Entry(second, b"data: b\ndata: c\n\n", exclude=excluded),
            Entry(third, closing_wire("over"), closes=True),
        )
        assert ear.heard == [Hint("news", third, cancelled=True, entries=entries)]
        await append(elsewhere, reopening("news"))
        await until(lambda: len(ear.heard) == 2)
        assert ear.heard[1] == Hint("news", third, cancelled=False)


@alone
async def test_a_large_event_is_read_from_the_store(elsewhere: RedisStore) -> None:
    async with connected("news") as client, receiving(elsewhere, "news") as (ear, _):
        await until_heard()
        await append(elsewhere, event("news", "x" * 100_000))
        assert await client.until_events(1) == ["x" * 100_000]
        await until(lambda: bool(ear.heard))
        assert ear.heard[0].entries == ()


@alone
async def test_a_publisher_without_a_secret_key_wakes_hubs(elsewhere: RedisStore) -> None:
    async with connected("news") as client, receiving(elsewhere, "news") as (ear, _):
        await until_heard()
        with override_settings(SECRET_KEY=""):
            await append(elsewhere, event("news", "x"))
        await until(lambda: bool(ear.heard))
        assert ear.heard[0].entries == ()
        assert await client.until_events(1) == ["x"]


async def test_neither_other_prefixes_nor_other_databases_are_heard(
    redis_server: RedisServer, elsewhere: RedisStore
) -> None:
    async with receiving(elsewhere, "news") as (ear, _):
        others = [
            RedisStore(url=redis_server.url.replace("/0", "/1")),
            RedisStore(url=redis_server.url, prefix="other"),
        ]
        for other in others:
            await append(other, event("news", "x"))
            await append(other, NewEntry(user_key(7), closing_wire("x"), Kind.END))
            await other.aclose()
        await append(elsewhere, event("news", "own"))
        await until(lambda: bool(ear.heard))
        assert [hint.entries[0].wire for hint in ear.heard] == [b"data: own\n\n"]


@alone
async def test_a_channel_layer_is_not_rung(elsewhere: RedisStore) -> None:
    layers = {"default": {"BACKEND": "tests.layers.GatedLayer"}}
    with override_settings(CHANNEL_LAYERS=layers):
        assert isinstance(doorbell_of(get_store()), NotificationDoorbell)
        await apublish("news", "x")
        layer = get_channel_layer()
        assert isinstance(layer, GatedLayer)
        assert layer.sent == []


async def test_a_url_may_ask_for_the_newer_protocol(
    redis_server: RedisServer, redis_cluster: RedisCluster
) -> None:
    for url in (redis_server.url, redis_cluster.url):
        store = RedisStore(url=f"{url}?protocol=3")
        async with receiving(store, "news") as (ear, _):
            await append(store, event("news", "x"))
            await until(lambda ear=ear: bool(ear.heard))  # type: ignore[misc]
        await store.aclose()


async def test_a_test_is_heard_by_its_own_subscriber_alone(
    redis_server: RedisServer, elsewhere: RedisStore
) -> None:
    def sent() -> int:
        return int(redis_server.command("PUBLISH", *told, "?a test")[1:])

    async with receiving(elsewhere, "news") as (_, receiver), receiving(elsewhere, "news"):
        subscriber = receiver._subscriber  # type: ignore[attr-defined]
        told = subscriber._subscribers[None].channels
        assert sent() == 1


async def test_whatever_goes_wrong_a_subscriber_goes_on(
    redis_cluster: RedisCluster, hurried: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = RedisStore(url=redis_cluster.url)
    ask = store._servers.homes
    answers = iter([ValueError("what no server should say"), None])

    async def homes(keys: Sequence[str]) -> list[Address | None]:
        if error := next(answers, None):
            raise error
        return await ask(keys)

    monkeypatch.setattr(store._servers, "homes", homes)
    async with receiving(store, "news") as (ear, _):
        await append(store, event("news", "x"))
        await until(lambda: bool(ear.heard))
    await store.aclose()


# What is believed


SIGNED = b"news 7 0\n\n7 0 \ndata: x\n\n"
CHANNEL = b"{sse:news}:doorbell:0"


def signed(channel: bytes, text: bytes) -> bytes:
    secret = doorbell_secret().encode()
    inner = hashlib.sha1(secret[:64] + channel + b"\n" + text).hexdigest().encode()
    return hashlib.sha1(secret[64:] + inner).hexdigest().encode() + b"\n" + text


def test_entries_count_only_if_they_are_signed_for_their_channel() -> None:
    entries = (Entry(7, b"data: x\n\n"),)
    hint = Hint("news", 7, cancelled=False)
    assert decode(CHANNEL, signed(CHANNEL, SIGNED)) == hint._replace(entries=entries)
    for forged in (
        b"\n" + SIGNED,
        b"0" * 40 + b"\n" + SIGNED,
        "é".encode() * 20 + b"\n" + SIGNED,
        signed(b"{sse:news}:doorbell:1", SIGNED),
        signed(CHANNEL, SIGNED).replace(b"data: x", b"data: y"),
    ):
        assert decode(CHANNEL, forged) == hint
    old_key = django_settings.SECRET_KEY
    message = signed(CHANNEL, SIGNED)
    with override_settings(SECRET_KEY="new"):
        assert decode(CHANNEL, message) == hint
    with override_settings(SECRET_KEY="new", SECRET_KEY_FALLBACKS=[old_key]):
        assert decode(CHANNEL, message).entries == entries
    # A number belongs to its event.
    moved = signed(CHANNEL, SIGNED).replace(b"7", b"8")
    assert decode(CHANNEL, moved).entries == ()


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"news 7 0",
        b"\n",
        b"\nnews",
        b"\nnews 7 0 0",
        b"\nnews x 0",
        b"\na/b/c 7 0",
        b"\n\xff 7 0",
        signed(CHANNEL, b"news 7 0\n\n7 0\ndata: x\n\n"),
        signed(CHANNEL, b"news 7 0\n\n7 0 \nid: 9\n\n"),
        signed(CHANNEL, b"news 7 0\n\nx 0 \ndata: x\n\n"),
    ],
)
def test_a_message_that_is_no_doorbell_is_refused(message: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        decode(CHANNEL, message)


def test_a_hint_without_entries_is_a_message() -> None:
    hint = Hint("news", 7, cancelled=True)
    assert decode(CHANNEL, unsigned(hint).encode()) == hint


@everywhere
async def test_garbage_is_ignored_and_the_next_doorbell_rings(
    elsewhere: RedisStore, caplog: pytest.LogCaptureFixture
) -> None:
    keys = elsewhere._keys
    call = elsewhere._ring
    async with receiving(elsewhere, "news") as (ear, receiver):
        shard, channel = keys.shard("news"), keys.channel("news")
        garbage = ["", "anything", "?another", "\n\n\n", "\0" * 1000, "x\nnews 9 0"]
        await elsewhere._arun(*(call(shard, channel, text) for text in garbage))
        await append(elsewhere, event("news", "x"))
        await until(lambda: len(ear.heard) == 2)
        # What is not signed wakes, and brings nothing.
        assert ear.heard[0] == Hint("news", 9, cancelled=False)
        assert ear.heard[1].entries
        assert is_heard(receiver)
    assert caplog.text.count("is not a doorbell") == 1


# Being deaf


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits long until they try again."""
    monkeypatch.setattr("django_sse.stores.notifications._RETEST_SECONDS", 0.1)
    monkeypatch.setattr("django_sse.stores.notifications._RECONNECT_SECONDS", 0.05)
    monkeypatch.setattr("django_sse.stores.notifications._DOUBT_SECONDS", 0.05)
    monkeypatch.setattr("django_sse.stores.redis.notifications._LOOK_SECONDS", 0.05)


@pytest.mark.parametrize("url", ["redis_server", "redis_cluster"], indirect=True)
@alone
async def test_lost_connections_are_made_again_and_nothing_is_missed(
    request: pytest.FixtureRequest,
    url: str,
    elsewhere: RedisStore,
    caplog: pytest.LogCaptureFixture,
) -> None:
    place = request.node.callspec.params["url"]
    servers = request.getfixturevalue(place)
    masters = servers.masters() if isinstance(servers, RedisCluster) else [servers]
    async with connected("news") as client:
        await until_heard()
        for master in masters:
            master.command("CLIENT", "KILL", "TYPE", "PUBSUB")
        await append(elsewhere, event("news", "meanwhile"))
        assert await client.until_events(1) == ["meanwhile"]
        await until_heard()
        await append(elsewhere, event("news", "afterwards"))
        assert await client.until_events(2) == ["meanwhile", "afterwards"]
    # Once for each server.
    assert caplog.text.count("hears nothing, so the store is polled") == len(masters)


@pytest.mark.parametrize("url", ["redis_cluster"], indirect=True)
async def test_a_master_that_is_lost_silences_no_other(
    redis_cluster: RedisCluster, elsewhere: RedisStore
) -> None:
    lost = slots_of(redis_cluster, "news")[1]
    others = (f"other-{number}" for number in range(1000))
    other = next(name for name in others if slots_of(redis_cluster, name)[1] is not lost)

    def serve_what_is_left(yes_or_no: str) -> None:
        for master in redis_cluster.masters():
            master.command("CONFIG", "SET", "cluster-require-full-coverage", yes_or_no)

    async with receiving(elsewhere, "news", other) as (ear, receiver):
        serve_what_is_left("no")
        replica = redis_cluster.replica_of(lost)
        replica.pause()
        lost.kill()
        try:
            await until_deaf(receiver)
            await append(elsewhere, event(other, "x"))
            await until(lambda: bool(ear.heard))
            assert not is_heard(receiver)
        finally:
            replica.resume()
            await asyncio.to_thread(redis_cluster.until_whole)
            serve_what_is_left("yes")


@alone
async def test_a_server_that_is_away_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    with serve() as server:
        store = {"BACKEND": "redis", "OPTIONS": {"url": server.url, "durable": True}}
        with override_settings(DJANGO_SSE={"STORE": store, "SYNC_INTERVAL": 3600}):
            async with connected("news") as client:
                await until_heard()
                server.stop()
                await until_deaf(current_hub()._receiver)
                server.start()
                await until_heard()
                other = RedisStore(url=server.url, durable=True)
                await append(other, event("news", "x"))
                await other.aclose()
                assert await client.until_events(1) == ["x"]
    assert caplog.text.count("hears nothing") == 1


async def test_a_connection_that_is_dead_without_an_error_is_noticed(
    elsewhere: RedisStore, hurried: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("django_sse.stores.notifications._TEST_SECONDS", 0.3)
    async with receiving(elsewhere, "news") as (_, receiver):
        subscriber = receiver._subscriber  # type: ignore[attr-defined]
        [server] = subscriber._subscribers.values()
        # As a firewall does that has forgotten the connection.
        monkeypatch.setattr(server._connection, "_take_reply", lambda *reply: None)
        await until_deaf(receiver)
        await until(lambda: is_heard(receiver))


async def test_a_doorbell_that_was_missed_is_a_reason_to_test_soon(
    elsewhere: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("django_sse.stores.notifications._DOUBT_SECONDS", 0.05)
    async with receiving(elsewhere, "news") as (_, receiver):
        monkeypatch.setattr("django_sse.stores.notifications._TEST_SECONDS", 0.3)
        subscriber = receiver._subscriber  # type: ignore[attr-defined]
        [server] = subscriber._subscribers.values()
        monkeypatch.setattr(server._connection, "_take_reply", lambda *reply: None)
        # The next test would be in a minute.
        await receiver.enter_again("news")
        await until_deaf(receiver)


@pytest.mark.parametrize(
    ("lacking", "told", "granted"),
    [
        ("resetchannels", "&{sse:* &sse:*", "&{sse:* &sse:*"),
        ("allchannels -subscribe", "+@pubsub", "+@pubsub"),
        ("allchannels -publish", "+@pubsub", "+@pubsub"),
    ],
)
async def test_a_user_who_may_not_publishes_and_the_log_says_what_to_allow(
    redis_server: RedisServer,
    hurried: None,
    lacking: str,
    told: str,
    granted: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def allow(*rules: str) -> None:
        assert redis_server.command("ACL", "SETUSER", "sse", *rules) == b"+OK\r\n"

    allow("reset", *f"on nopass ~{{sse:* ~sse:* +@all {lacking}".split())
    store = RedisStore(url=redis_server.url.replace("//", "//sse:x@"))
    async with following(store, "news") as (ear, receiver):
        await until(lambda: "hears nothing" in caplog.text)
        assert told in caplog.text
        [number] = await append(store, event("news", "x"))
        assert (await state(store, "news")).head == number
        allow(*granted.split())
        await until(lambda: is_heard(receiver))
        await append(store, event("news", "y"))
        await until(lambda: bool(ear.heard))
        assert caplog.text.count("hears nothing") == 1
    await store.aclose()
    redis_server.command("ACL", "DELUSER", "sse")


async def test_a_cluster_of_an_older_redis_is_polled(
    redis_cluster: RedisCluster,
    hurried: None,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = RedisStore(url=redis_cluster.url)
    with monkeypatch.context() as older:
        # What Redis 6.2 says to a command is what this one says to any that it does not know.
        older.setattr(ClusterKeys, "subscribing", "SSUBSCRIBE7")
        older.setattr(ClusterKeys, "publishing", "SPUBLISH7")
        async with following(store, "news"):
            await until(lambda: "hears nothing" in caplog.text)
            assert "Redis 7 or newer" in caplog.text
            [number] = await append(store, event("news", "x"))
            assert (await state(store, "news")).head == number
    await store.aclose()


def slots_of(cluster: RedisCluster, group: str) -> tuple[int, RedisServer, RedisServer]:
    """A group's slot, the master that has it, and another one."""
    keys = ClusterKeys("sse")
    slot = keys.slot(keys.of_group(group)[0])
    source = cluster.master_of(slot)
    return slot, source, next(master for master in cluster.masters() if master is not source)


@pytest.mark.parametrize("url", ["redis_cluster"], indirect=True)
@alone
async def test_a_slot_that_moves_is_followed(
    redis_cluster: RedisCluster, elsewhere: RedisStore, caplog: pytest.LogCaptureFixture
) -> None:
    async with connected("news") as client:
        await until_heard()
        await append(elsewhere, event("news", "before"))
        assert await client.until_events(1) == ["before"]
        slot, source, target = slots_of(redis_cluster, "news")
        await asyncio.to_thread(redis_cluster.move_slot, slot, target)
        await until(lambda: "hears nothing" in caplog.text)
        await append(elsewhere, event("news", "meanwhile"))
        await until_heard()
        assert await client.until_events(2) == ["before", "meanwhile"]
        await append(elsewhere, event("news", "after"))
        assert await client.until_events(3) == ["before", "meanwhile", "after"]
    assert caplog.text.count("hears nothing") == 1
    await asyncio.to_thread(redis_cluster.move_slot, slot, source)


@pytest.mark.parametrize("url", ["redis_cluster", "redis_sentinels"], indirect=True)
async def test_after_a_failover_the_new_master_is_heard(
    request: pytest.FixtureRequest,
    url: str,
    elsewhere: RedisStore,
    hurried: None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    servers: RedisCluster | RedisSentinels = request.getfixturevalue(
        request.node.callspec.params["url"]
    )
    async with receiving(elsewhere, "news") as (ear, receiver):
        master = (
            slots_of(servers, "news")[1] if isinstance(servers, RedisCluster) else servers.master
        )
        await asyncio.to_thread(servers.fail_over, master)
        # It may have been heard again since.
        await until(lambda: "hears nothing" in caplog.text)
        await until(lambda: is_heard(receiver))
        number = 0

        async def publish_until_heard() -> bool:
            nonlocal number
            number += 1
            try:
                await append(elsewhere, event("news", str(number)))
            except redis.RedisError:
                return False
            return bool(ear.heard)

        async with asyncio.timeout(30):
            while not await publish_until_heard():
                await asyncio.sleep(0.05)
        assert ear.heard[-1].entries


async def test_a_master_that_was_replaced_while_it_hung_is_not_listened_to(
    redis_sentinels: RedisSentinels, hurried: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("django_sse.stores.redis.discovery.SentinelDiscovery.holds_for", 0.1)
    store = RedisStore(url=redis_sentinels.url)
    async with receiving(store, "news") as (ear, _):
        old = redis_sentinels.master
        await asyncio.to_thread(redis_sentinels.replace, old)
        # Its connection is open, and it goes on as a master.

        async def is_heard_of() -> bool:
            try:
                await append(store, event("news", "x"))
                # As a hub does that polls.
                await store.astates(["news"])
            except redis.RedisError:
                return False
            return bool(ear.heard)

        async with asyncio.timeout(30):
            while not await is_heard_of():
                await asyncio.sleep(0.05)
        redis_sentinels.tell(old)
    await store.aclose()


# Names


def test_the_channels_of_a_cluster_are_in_the_slots_of_their_groups() -> None:
    keys = ClusterKeys("sse")
    for group in ("news", "tenant/news", user_key(7)):
        tag = keys.of_group(group)[0].partition("}")[0]
        assert keys.channel(group).startswith(f"{tag}}}")


def test_all_owners_of_a_shard_share_one_channel() -> None:
    assert Keys("sse", 3).channel(user_key(7)) == Keys("sse", 3).channel(user_key(8))
    keys = ClusterKeys("sse")
    channels = {keys.channel(user_key(number)) for number in range(1000)}
    assert channels == {keys.owners_channel(shard) for shard in keys.shards}


def test_each_group_prefix_and_database_has_channels_of_its_own() -> None:
    names = {
        keys.channel(group)
        for keys in (Keys("sse"), Keys("sse", 1), Keys("other"), ClusterKeys("sse"))
        for group in ("news", "doorbell", user_key(7))
    }
    assert len(names) == 12
