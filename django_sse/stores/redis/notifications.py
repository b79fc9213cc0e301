"""The redis store's doorbell: the channels on which its script publishes what it appends.

On one server these are plain channels, and in a cluster sharded ones, in the slots of their groups.
See https://redis.io/docs/latest/develop/pubsub/.
"""

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import redis
from redis.exceptions import NoPermissionError, ResponseError

from django_sse.concurrency.tasks import Turns, heeding_cancel, must_propagate, spawn
from django_sse.groups.entries import Hint, Ring
from django_sse.logs import log_seldom
from django_sse.stores.notifications import Connection, Notifications, Subscriber
from django_sse.stores.redis.doorbell_messages import decode, unsigned
from django_sse.stores.redis.keys import Keys
from django_sse.stores.redis.script import Call, is_of_wrong_server, typed
from django_sse.stores.redis.servers import Servers
from django_sse.stores.redis.url import Address

# How long servers may take to take all subscriptions of a hub.
_OPEN_SECONDS: Final = 5.0
# How long a connection may be silent until it is read again.
_READ_SECONDS: Final = 3600.0
# More than a test has.
_TEST_BYTES: Final = 40
# How often it is looked whether the keys are on other servers by now.
_LOOK_SECONDS: Final = 1.0
# What Redis says without a code: of what a script may not do, and of what a version does not know.
_DENIED: Final = re.compile("ACL failure|The user executing the script")
_UNKNOWN: Final = re.compile("[Uu]nknown")


class RedisNotifications(Notifications):
    """Tells hubs by Redis's publishing and subscribing.

    Args:
        keys: The names of the channels.
        servers: Where they are.
        ring: Returns the call that publishes a message to a channel of a shard.
    """

    def __init__(self, keys: Keys, servers: Servers, ring: Callable[[int, str, str], Call]) -> None:
        self._keys = keys
        self._servers = servers
        self._ring = ring

    def notify(self, hints: Sequence[Hint]) -> None:
        calls = [
            self._ring(self._keys.shard(hint.group), self._keys.channel(hint.group), unsigned(hint))
            for hint in hints
        ]
        _raise_first_error(self._servers.run(calls))

    def subscriber(self, hear: Ring, set_hearing: Callable[[bool], None]) -> "_RedisSubscriber":
        return _RedisSubscriber(self._keys, self._servers, self._ring, hear, set_hearing)


class _RedisSubscriber(Subscriber["_Connections"]):
    place = "The subscriber to the event store in Redis"

    def __init__(
        self,
        keys: Keys,
        servers: Servers,
        ring: Callable[[int, str, str], Call],
        hear: Ring,
        set_hearing: Callable[[bool], None],
    ) -> None:
        super().__init__(hear, set_hearing)
        self._keys = keys
        self._servers = servers
        self._ring = ring
        self.channels = [keys.owners_channel(shard) for shard in keys.shards]
        # The groups that are followed, and the connections if there are any.
        self._groups: set[str] = set()
        self._connections: _Connections | None = None

    async def enter(self, group: str) -> None:
        self._groups.add(group)
        if self._connections:
            await self._connections.subscribe([group])

    async def leave(self, group: str) -> None:
        self._groups.discard(group)
        if self._connections:
            await self._connections.unsubscribe(group)

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator["_Connections"]:
        connections = _Connections(self._keys, self._servers, self._hear)
        watching: asyncio.Task[None] | None = None
        try:
            try:
                async with asyncio.timeout(_OPEN_SECONDS):
                    await connections.open()
                    # From now on, who enters subscribes by itself.
                    self._connections = connections
                    await connections.subscribe(list(self._groups))
            except TimeoutError:
                raise redis.TimeoutError("Redis has not answered in time.") from None
            if connections.lost.done():
                connections.lost.result()
            watching = spawn(connections.watch())
            yield connections
        except Exception:
            self._servers.doubt()
            raise
        else:
            # A test did not come back: another server may have the keys by now.
            self._servers.doubt()
        finally:
            self._connections = None
            if watching:
                watching.cancel()
            # Shielded: all of them must be closed even if the task is cancelled.
            await asyncio.shield(spawn(connections.close()))

    async def _send(self, test: str) -> None:
        calls = [
            self._ring(shard, channel, test)
            for shard, channel in zip(self._keys.shards, self.channels, strict=True)
        ]
        _raise_first_error(await heeding_cancel(self._servers.arun(calls)))

    def _explain(self, error: BaseException) -> str:
        text = super()._explain(error)
        if isinstance(error, NoPermissionError) or _DENIED.search(text):
            return (
                f"{text} Allow its user to subscribe and publish: ACL SETUSER ... +@pubsub "
                f"{self._keys.acl}"
            )
        if isinstance(error, ResponseError) and _UNKNOWN.search(text):
            return f"{text} In a cluster, this needs Redis 7 or newer, or Valkey."
        return text

    def _lasts(self, error: BaseException) -> bool:
        return isinstance(error, ResponseError) and not is_of_wrong_server(error)


class _Connections(Connection):
    """A connection to each server that has keys, lost as soon as one of them is."""

    def __init__(self, keys: Keys, servers: Servers, hear: Ring) -> None:
        super().__init__()
        self._keys = keys
        self._servers = servers
        self._hear = hear
        # A key of each shard, in its slot, and where these are.
        self._places = [keys.changes(shard) for shard in keys.shards]
        self._homes: list[Address | None] = []
        # What is done once a channel is subscribed to, or all is lost.
        self._unconfirmed: dict[bytes, asyncio.Future[None]] = {}
        self._connections: dict[Address | None, _Connection] = {}

    async def open(self) -> None:
        """Connect to all servers, and subscribe to the channels of owners.

        Raises:
            redis.RedisError: A server is not reached.
        """
        self._homes = await self._servers.homes(self._places)
        for home in dict.fromkeys(self._homes):
            connection = _Connection(
                self._servers.subscribing_connection(home),
                (self._keys.subscribing, self._keys.unsubscribing),
                self,
            )
            self._connections[home] = connection
            await connection.open()
        await self._subscribe(
            [(shard, self._keys.owners_channel(shard)) for shard in self._keys.shards]
        )

    async def watch(self) -> None:
        """Be lost once the keys of a shard are on another server."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            if self._servers.known_homes(self._places) != self._homes:
                self.lose(redis.ConnectionError("Another server has taken over."))
                return

    async def subscribe(self, groups: Iterable[str]) -> None:
        """Subscribe to groups. Returns once their servers have confirmed it, or one is lost."""
        await self._subscribe(
            [(self._keys.shard(group), self._keys.channel(group)) for group in groups]
        )

    async def _subscribe(self, channels: Iterable[tuple[int, str]]) -> None:
        of_home: dict[Address | None, list[str]] = {}
        confirmed: list[asyncio.Future[None]] = []
        for shard, channel in channels:
            of_home.setdefault(self._homes[shard], []).append(channel)
            future = asyncio.get_running_loop().create_future()
            confirmed.append(self._unconfirmed.setdefault(channel.encode(), future))
        for home, some in of_home.items():
            await self._connections[home].subscribe(some)
        if confirmed and not self.lost.done():
            await asyncio.wait(confirmed)

    async def unsubscribe(self, group: str) -> None:
        """Unsubscribe from a group."""
        connection = self._connections[self._homes[self._keys.shard(group)]]
        await connection.unsubscribe(self._keys.channel(group))

    async def close(self) -> None:
        """Close all connections."""
        self.lose(redis.ConnectionError("The connections are closed."))
        for connection in self._connections.values():
            await connection.close()

    def lose(self, error: BaseException) -> None:
        super().lose(error)
        for future in self._unconfirmed.values():
            future.set_result(None)
        self._unconfirmed.clear()

    def confirm(self, channel: bytes) -> None:
        """Note that a channel is subscribed to."""
        if future := self._unconfirmed.pop(channel, None):
            future.set_result(None)

    def take(self, channel: bytes, message: bytes) -> None:
        """Take a message."""
        if self._is_test(message[:_TEST_BYTES].decode(errors="replace"), channel.decode()):
            return
        try:
            self._hear([decode(channel, message)])
        except ValueError:
            log_seldom("Ignored a message on a channel of Redis that is not a doorbell.")


class _Connection:
    """A connection to one server, which is never made again by itself.

    Not a ``PubSub`` of redis-py, which connects anew in silence, so that nobody knows that messages
    are lost. That of redis-py before 7 has no sharded channels either.

    Args:
        connection: The connection, not yet open.
        commands: What subscribes to a channel and what unsubscribes.
        owner: Takes what arrives, and is told once nothing does any more.
    """

    def __init__(self, connection: Any, commands: tuple[str, str], owner: _Connections) -> None:
        self._connection = connection
        self._subscribing, self._unsubscribing = commands
        self._owner = owner
        self._reading: asyncio.Task[None] | None = None
        # How many unsubscriptions of a channel the server has not confirmed.
        self._leaving: Counter[bytes] = Counter()

    async def open(self) -> None:
        """Connect.

        Raises:
            redis.RedisError: The server is not reached.
        """
        await heeding_cancel(self._connection.connect())
        self._reading = spawn(self._read())

    async def subscribe(self, channels: Sequence[str]) -> None:
        """Subscribe to channels. The owner is told once the server has confirmed each."""
        await self._send([(self._subscribing, channel) for channel in channels])

    async def unsubscribe(self, channel: str) -> None:
        """Unsubscribe from a channel."""
        self._leaving[channel.encode()] += 1
        await self._send([(self._unsubscribing, channel)])

    async def close(self) -> None:
        """Close the connection."""
        if self._reading:
            self._reading.cancel()
        with suppress(redis.RedisError, OSError):
            await self._connection.disconnect(nowait=True)
        if self._reading:
            await asyncio.wait([self._reading])

    async def _send(self, commands: Iterable[Sequence[str]]) -> None:
        # Otherwise redis-py would connect anew, and nobody would know of it.
        if not self._connection.is_connected:
            return
        try:
            packed = self._connection.pack_commands(commands)
            await self._connection.send_packed_command(packed, check_health=False)
        except (redis.RedisError, OSError) as error:
            self._owner.lose(error)

    async def _read(self) -> None:
        turns = Turns()
        try:
            while True:
                reply = await self._connection.read_response(
                    timeout=_READ_SECONDS, disconnect_on_error=False
                )
                if reply is not None:
                    kind, channel, what = reply
                    self._take_reply(kind, channel, what)
                    # A flood of messages may leave nothing to wait for.
                    await turns.give_way(len(what) if isinstance(what, bytes) else 0)
        except BaseException as error:
            if must_propagate(error):
                raise
            self._owner.lose(typed(error))

    def _take_reply(self, kind: bytes, channel: bytes, text: Any) -> None:
        if kind.endswith(b"message"):
            self._owner.take(channel, text)
        elif kind.endswith(b"unsubscribe"):
            if not self._leaving[channel]:
                # A server unsubscribes all from the channels of a slot that it gives away.
                raise redis.ConnectionError("A slot has moved to another server.")
            self._leaving[channel] -= 1
            if not self._leaving[channel]:
                del self._leaving[channel]
        elif kind.endswith(b"subscribe"):
            self._owner.confirm(channel)


def _raise_first_error(replies: Sequence[Any]) -> None:
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply
