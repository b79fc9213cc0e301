"""The redis store when its address has come to lead to another server, and the connections lead to
the old one, which is open and no master any more."""

import asyncio
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from channels.layers import channel_layers
from django.test import override_settings

from django_sse import apublish, publish
from django_sse.stores import get_store
from django_sse.stores.redis import RedisStore
from django_sse.testing.stores import append, event, state, texts
from django_sse.testing.threads import in_thread
from tests.clients import connected
from tests.live.servers import unavailable
from tests.ports import free_port
from tests.redis import RedisPair, RedisServer, binary, serve, serve_pair

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("everything_ends"),
    pytest.mark.once,
]

APPENDING = {"appendonly": "yes", "appendfsync": "always"}


@pytest.fixture(scope="module")
def running_pair() -> Iterator[RedisPair]:
    if not binary():
        unavailable("redis-server is not installed")
    with serve_pair(**APPENDING) as pair:
        yield pair


@pytest.fixture
def pair(running_pair: RedisPair) -> RedisPair:
    """A master and its replica, without data."""
    running_pair.master.command("FLUSHALL")
    return running_pair


@contextmanager
def published_to(url: str, **options: Any) -> Iterator[None]:
    """The project's store is at this address, and a hub compares itself with it all the time."""
    store = {"BACKEND": "redis", "OPTIONS": {"url": url, **options}}
    # A history that a stream which waits for Redis does not fall behind.
    conf = {"STORE": store, "SYNC_INTERVAL": 0.1, "HISTORY_SIZE": 100_000}
    with override_settings(DJANGO_SSE=conf):
        yield


async def publish_elsewhere(server: RedisServer, *texts: str, **options: Any) -> None:
    """Publish as another process does, which has found the new master: nobody rings here."""
    store = RedisStore(url=server.url, **options)
    await append(store, *(event("news", text) for text in texts))
    await store.aclose()


async def test_a_failover_fails_no_publisher_and_no_stream_misses_or_repeats_an_event(
    pair: RedisPair,
) -> None:
    with published_to(pair.url, durable=True):
        async with connected("news") as stream:
            published = [0]

            async def publish_one() -> None:
                await apublish("news", str(published[-1] + 1))
                published.append(published[-1] + 1)

            for _ in range(4):
                await publish_one()
                await asyncio.to_thread(pair.fail_over)
                # At once, on the connection to the old master.
                await publish_one()
                await publish_elsewhere(pair.master, f"another {published[-1]}", durable=True)
            await publish_one()
            told = await stream.until_events(13)
            assert [text for text in told if "another" not in text] == [
                str(number) for number in published[1:]
            ]
            assert told[2::3] == [f"another {number}" for number in (2, 4, 6, 8)]
            assert not stream.stream.ended.done()


async def test_publishing_while_redis_fails_over_loses_and_doubles_nothing(pair: RedisPair) -> None:
    with published_to(pair.url, durable=True):
        async with connected("news") as stream:
            acknowledged: list[str] = []
            refused: list[str] = []
            done = threading.Event()

            def publish_all_the_time(name: int) -> None:
                number = 0
                while not done.is_set():
                    # So that the machine has time for the stream, too.
                    time.sleep(0.005)
                    number += 1
                    text = f"{name} {number}"
                    # Until the address leads to the new master.
                    try:
                        publish("news", text)
                    except redis.ReadOnlyError:
                        refused.append(text)
                    else:
                        acknowledged.append(text)

            publishing = [
                asyncio.create_task(in_thread(lambda name=name: publish_all_the_time(name)))  # type: ignore[misc]
                for name in range(3)
            ]
            try:
                for _ in range(4):
                    await stream.until_events(len(stream.events) + 50)
                    await asyncio.to_thread(pair.fail_over)
                await stream.until_events(len(stream.events) + 50)
            finally:
                done.set()
            await asyncio.gather(*publishing)
            await stream.until_events(len(acknowledged))
            assert sorted(stream.data) == sorted(acknowledged)
            assert not {*refused} & {*stream.data}
            for name in range(3):
                mine = [text for text in stream.data if text.startswith(f"{name} ")]
                assert mine == [text for text in acknowledged if text.startswith(f"{name} ")]


@pytest.mark.parametrize("durable", [True, False])
async def test_a_stream_that_only_listens_leaves_an_old_master_that_hears_nothing(
    pair: RedisPair, durable: bool
) -> None:
    with published_to(pair.url, durable=durable):
        async with connected("news") as stream:
            await asyncio.to_thread(pair.fail_over)
            # It answers all questions as it would have done then.
            pair.replica.command("REPLICAOF", "127.0.0.1", free_port())
            await publish_elsewhere(pair.master, "after", durable=durable)
            if durable:
                assert await stream.until_events(1) == ["after"]
            else:
                assert await asyncio.wait_for(stream.stream.ended, 30) == "reset"
    pair.replica.command("REPLICAOF", "127.0.0.1", pair.master.port)


async def test_what_an_old_master_still_took_is_lost_and_its_streams_are_told(
    pair: RedisPair,
) -> None:
    with published_to(pair.url):
        async with connected("news") as stream:
            await apublish("news", "before")

            def publish_to_the_old_master() -> None:
                # The connection to it is still open.
                for _ in range(5):
                    publish("news", "lost")

            await in_thread(lambda: pair.lose_master(publish_to_the_old_master))
            await apublish("news", "after")
            assert await asyncio.wait_for(stream.stream.ended, 30) == "reset"
            assert texts(await get_store().aread("news", 0, 1000))[-1] == "after"


@pytest.mark.parametrize("threads", [1, 4])
async def test_all_connections_are_made_anew_and_not_only_one(
    pair: RedisPair, threads: int
) -> None:
    store = RedisStore(url=pair.url, durable=True)
    together = threading.Barrier(threads)

    def publish_together() -> None:
        together.wait(30)
        store.append([event("news", "x")], lambda hints: None)

    async def publish_in_threads() -> None:
        await asyncio.gather(
            *(in_thread(publish_together) for _ in range(threads)),
            *(state(store, "news") for _ in range(threads)),
            *(store.aread("news", 0, 10) for _ in range(threads)),
        )

    await publish_in_threads()
    await asyncio.to_thread(pair.fail_over)
    await publish_in_threads()
    assert len(await store.aread("news", 0, 100)) == 2 * threads
    await store.aclose()


class Answering(socketserver.StreamRequestHandler):
    """Answers alike to whatever is asked of the data."""

    def handle(self) -> None:
        while line := self.rfile.readline():
            words = []
            for _ in range(int(line[1:])):
                size = int(self.rfile.readline()[1:])
                words.append(self.rfile.read(size + 2)[:-2])
            server: Any = self.server
            asks = words[0] in (b"EVALSHA", b"XRANGE")
            self.wfile.write(server.answer if asks else b"+OK\r\n")


@contextmanager
def answering(path: Path, answer: bytes) -> Iterator[Any]:
    server: Any = socketserver.ThreadingUnixStreamServer(str(path), Answering)
    server.answer = answer
    server.daemon_threads = True
    with server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


REFUSALS = [
    "READONLY You can't write against a read only replica.",
    "LOADING Redis is loading the dataset in memory",
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
    "CLUSTERDOWN The cluster is down",
    "UNBLOCKED force unblock from blocking operation, instance state changed",
    "NOREPLICAS Not enough good replicas to write.",
    "MISCONF Redis is configured to save RDB snapshots, but it is unable to persist to disk.",
    "MOVED 3999 127.0.0.1:6381",
    "ASK 3999 127.0.0.1:6381",
    "TRYAGAIN Multiple keys request during rehashing of slot",
    # Before Redis 7.
    "ERR Error running script (call to f_0): @user_script:1: -READONLY You can't write against a "
    "read only replica. ",
]


async def read_state(store: RedisStore) -> None:
    await state(store, "news")


async def read_state_in_a_thread(store: RedisStore) -> None:
    await in_thread(lambda: store.states(["news"]))


async def read_events(store: RedisStore) -> None:
    await store.aread("news", 0, 10)


async def publish_one(store: RedisStore) -> None:
    await append(store, event("news", "x"))


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.split(" ", 1)[0])
@pytest.mark.parametrize(
    "touch",
    [publish_one, read_state, read_state_in_a_thread, read_events],
    ids=lambda f: f.__name__,
)
async def test_who_was_refused_by_the_wrong_server_connects_anew(
    tmp_path: Path, refusal: str, touch: Callable[[RedisStore], Any]
) -> None:
    address = tmp_path / "redis"
    with serve(unixsocket=str(tmp_path / "right")) as server:
        store = RedisStore(url=f"unix://{address}")
        with answering(tmp_path / "wrong", f"-{refusal}\r\n".encode()):
            address.symlink_to(tmp_path / "wrong")
            # More than one connection.
            failures = await asyncio.gather(
                *(touch(store) for _ in range(3)), return_exceptions=True
            )
            assert all(isinstance(failure, redis.RedisError) for failure in failures)
            address.unlink()
            address.symlink_to(tmp_path / "right")
            await touch(store)
            await touch(store)
            await store.aclose()
        published = redis.Redis.from_url(server.url).xlen("{sse:news}:events")
        assert published == (2 if touch is publish_one else 0)


async def test_one_that_loads_ends_the_connections_of_all(tmp_path: Path) -> None:
    address = tmp_path / "redis"
    address.symlink_to(tmp_path / "wrong")
    store = RedisStore(url=f"unix://{address}")
    together = threading.Barrier(4)

    def read_together() -> None:
        together.wait(30)
        assert store.states(["news"])["news"].head == 7

    with (
        serve(unixsocket=str(tmp_path / "right")),
        answering(tmp_path / "wrong", b"*6\r\n:7\r\n:7\r\n:7\r\n:0\r\n:0\r\n:0\r\n") as wrong,
    ):
        await asyncio.gather(*(in_thread(read_together) for _ in range(4)))
        wrong.answer = b"-LOADING Redis is loading the dataset in memory\r\n"
        with pytest.raises(redis.exceptions.BusyLoadingError):
            await read_state_in_a_thread(store)
        address.unlink()
        address.symlink_to(tmp_path / "right")
        for _ in range(4):
            await read_state_in_a_thread(store)


@pytest.mark.parametrize(
    ("layer", "close"),
    [("core.RedisChannelLayer", "close_pools"), ("pubsub.RedisPubSubChannelLayer", "flush")],
)
async def test_a_channel_layer_that_stays_with_the_old_master_loses_nothing(
    pair: RedisPair, layer: str, close: str
) -> None:
    config = {"hosts": [{"address": pair.url}]}
    layers = {"default": {"BACKEND": f"channels_redis.{layer}", "CONFIG": config}}
    with override_settings(CHANNEL_LAYERS=layers), published_to(pair.url, durable=True):
        async with connected("news") as stream:
            for number in range(3):
                await apublish("news", f"{number} before")
                await asyncio.to_thread(pair.fail_over)
                await apublish("news", f"{number} after")
                await publish_elsewhere(pair.master, f"{number} another", durable=True)
            expected = [f"{n} {when}" for n in range(3) for when in ("before", "after", "another")]
            assert await stream.until_events(9) == expected
        # Its tasks and connections; its streams have ended.
        await getattr(channel_layers["default"], close)()
