"""The redis store's doorbell: the channels on which its script publishes what it appends.

On one server these are plain channels, and in a cluster sharded ones, in the slots of their groups.
See https://redis.io/docs/latest/develop/pubsub/.
"""

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from secrets import token_hex
from typing import Any, Final

import redis
from redis.exceptions import NoPermissionError, ResponseError

from django_sse.concurrency.tasks import Turns, heeding_cancel, must_propagate, spawn
from django_sse.groups.entries import Hint, Ring
from django_sse.logs import log_seldom
from django_sse.stores.notifications import (
    Connection,
    Notifications,
    Subscriber,
    TestedSubscriber,
)
from django_sse.stores.redis.doorbell_messages import decode, unsigned
from django_sse.stores.redis.keys import Keys
from django_sse.stores.redis.script import Call, is_of_wrong_server, raise_first_error, typed
from django_sse.stores.redis.servers import Servers
from django_sse.stores.redis.url import Address

# How long a server may take to answer, and to take so many subscriptions.
_OPEN_SECONDS: Final = 5.0
_CHANNELS: Final = 1000
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
        raise_first_error(self._servers.run(calls))

    def subscriber(self, hear: Ring, set_hearing: Callable[[bool], None]) -> "_RedisSubscriber":
        return _RedisSubscriber(self._keys, self._servers, self._ring, hear, set_hearing)


class _RedisSubscriber(Subscriber):
    """Subscribes to each server that has keys, so that one that is lost silences no other."""

    def __init__(
        self,
        keys: Keys,
        servers: Servers,
        ring: Callable[[int, str, str], Call],
        hear: Ring,
        set_hearing: Callable[[bool], None],
    ) -> None:
        self._keys = keys
        self._servers = servers
        self._ring = ring
        self._hear = hear
        self._set_hearing = set_hearing
        # A key of each shard, in its slot, and the server that has it.
        self._places = [keys.changes(shard) for shard in keys.shards]
        self._homes: list[Address | None] = []
        self._groups: set[str] = set()
        self._subscribers: dict[Address | None, _ServerSubscriber] = {}
        self._listening: dict[_ServerSubscriber, asyncio.Task[None]] = {}

    async def listen(self) -> None:
        try:
            while True:
                try:
                    homes = await heeding_cancel(self._servers.homes(self._places))
                    if homes != self._homes:
                        self._follow(homes)
                except BaseException as error:
                    if must_propagate(error):
                        raise
                    # Those go on that are subscribed to.
                    log_seldom("Redis does not say which server has the groups.", exc_info=error)
                await asyncio.sleep(_LOOK_SECONDS)
        finally:
            for listening in self._listening.values():
                listening.cancel()
            if self._listening:
                await asyncio.wait(self._listening.values())

    async def enter(self, group: str) -> None:
        self._groups.add(group)
        if self._homes:
            await self._subscriber_of(group).enter(group)

    async def leave(self, group: str) -> None:
        self._groups.discard(group)
        if self._homes:
            await self._subscriber_of(group).leave(group)

    def doubt(self, group: str) -> None:
        if self._homes:
            self._subscriber_of(group).doubt(group)

    def _subscriber_of(self, group: str) -> "_ServerSubscriber":
        return self._subscribers[self._homes[self._keys.shard(group)]]

    def _follow(self, homes: list[Address | None]) -> None:
        """Subscribe to the servers that have the keys now. Those that have what they had go on."""
        shards: dict[Address | None, list[int]] = {}
        for shard, home in zip(self._keys.shards, homes, strict=True):
            shards.setdefault(home, []).append(shard)
        before, self._homes, self._subscribers = self._subscribers, homes, {}
        for home, of_home in shards.items():
            subscriber = before.get(home)
            if subscriber is None or subscriber.shards != of_home:
                subscriber = _ServerSubscriber(
                    self._keys,
                    self._servers,
                    self._ring,
                    home,
                    of_home,
                    self._groups,
                    self._hear,
                    lambda hears: self._tell(),
                )
                listening = self._listening[subscriber] = spawn(subscriber.listen())
                listening.add_done_callback(partial(self._forget, subscriber))
            self._subscribers[home] = subscriber
        for subscriber, listening in self._listening.items():
            if self._subscribers.get(subscriber.home) is not subscriber:
                listening.cancel()
        self._tell()

    def _forget(self, subscriber: "_ServerSubscriber", listening: asyncio.Task[None]) -> None:
        del self._listening[subscriber]

    def _tell(self) -> None:
        self._set_hearing(all(subscriber.hears for subscriber in self._subscribers.values()))


class _ServerSubscriber(TestedSubscriber["_Connection"]):
    """A hub's end of the notifications of one server.

    Args:
        home: The server; None if the store has one address.
        shards: Those that the server has.
        groups: All groups that the hub follows, on whichever server.
    """

    def __init__(
        self,
        keys: Keys,
        servers: Servers,
        ring: Callable[[int, str, str], Call],
        home: Address | None,
        shards: list[int],
        groups: Collection[str],
        hear: Ring,
        set_hearing: Callable[[bool], None],
    ) -> None:
        super().__init__(hear, set_hearing)
        self.home = home
        self.shards = shards
        # Its own: what all subscribers heard would be the square of their number.
        token = token_hex(8)
        self.channels = [keys.test_channel(shard, token) for shard in shards]
        where = f"{home.host}:{home.port}" if home else "Redis"
        self.place = f"The subscriber to the event store in {where}"
        self._keys = keys
        self._servers = servers
        self._ring = ring
        self._groups = groups
        self._connection: _Connection | None = None

    async def enter(self, group: str) -> None:
        if self._connection:
            await self._connection.subscribe([self._keys.channel(group)])

    async def leave(self, group: str) -> None:
        if self._connection:
            await self._connection.unsubscribe(self._keys.channel(group))

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator["_Connection"]:
        connection = _Connection(
            self._servers.subscribing_connection(self.home),
            (self._keys.subscribing, self._keys.unsubscribing),
            self._hear,
        )
        try:
            try:
                async with asyncio.timeout(_OPEN_SECONDS):
                    await connection.open()
                # From now on, who enters subscribes by itself.
                self._connection = connection
                channels = self._all_channels()
                for first in range(0, len(channels), _CHANNELS):
                    async with asyncio.timeout(_OPEN_SECONDS):
                        await connection.subscribe(channels[first : first + _CHANNELS])
                    if connection.lost.done():
                        connection.lost.result()
            except TimeoutError:
                raise redis.TimeoutError("Redis has not answered in time.") from None
            yield connection
        except Exception:
            self._servers.doubt()
            raise
        else:
            # A test did not come back: another server may have the keys by now.
            self._servers.doubt()
        finally:
            self._connection = None
            # Shielded: it must be closed even if the task is cancelled.
            await asyncio.shield(spawn(connection.close()))

    def _all_channels(self) -> list[str]:
        shards = set(self.shards)
        owners = [self._keys.owners_channel(shard) for shard in self.shards]
        groups = [group for group in self._groups if self._keys.shard(group) in shards]
        return [*owners, *self.channels, *map(self._keys.channel, groups)]

    async def _send(self, test: str) -> None:
        calls = [
            self._ring(shard, channel, test)
            for shard, channel in zip(self.shards, self.channels, strict=True)
        ]
        raise_first_error(await heeding_cancel(self._servers.arun(calls)))

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


class _Connection(Connection):
    """A connection to one server, which is never made again by itself.

    Not a ``PubSub`` of redis-py, which connects anew in silence, so that nobody knows that messages
    are lost. That of redis-py before 7 has no sharded channels either.

    Args:
        connection: redis-py's connection, not yet open.
        commands: What subscribes to a channel and what unsubscribes.
        hear: Called with the hints that arrive.
    """

    def __init__(self, connection: Any, commands: tuple[str, str], hear: Ring) -> None:
        super().__init__()
        self._connection = connection
        self._subscribing, self._unsubscribing = commands
        self._hear = hear
        self._reading: asyncio.Task[None] | None = None
        # What is done once a channel is subscribed to, or the connection is lost.
        self._unconfirmed: dict[bytes, asyncio.Future[None]] = {}
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
        """Subscribe. Returns once the server has confirmed each, or the connection is lost."""
        confirmed: list[asyncio.Future[None]] = []
        for channel in channels:
            future = asyncio.get_running_loop().create_future()
            confirmed.append(self._unconfirmed.setdefault(channel.encode(), future))
        await self._send([(self._subscribing, channel) for channel in channels])
        if confirmed and not self.lost.done():
            await asyncio.wait(confirmed)

    async def unsubscribe(self, channel: str) -> None:
        """Unsubscribe from a channel."""
        self._leaving[channel.encode()] += 1
        await self._send([(self._unsubscribing, channel)])

    async def close(self) -> None:
        """Close the connection."""
        self.lose(redis.ConnectionError("The connection is closed."))
        if self._reading:
            self._reading.cancel()
        with suppress(redis.RedisError, OSError):
            await self._connection.disconnect(nowait=True)
        if self._reading:
            await asyncio.wait([self._reading])

    def lose(self, error: BaseException) -> None:
        super().lose(error)
        for future in self._unconfirmed.values():
            future.set_result(None)
        self._unconfirmed.clear()

    def _take(self, channel: bytes, message: bytes) -> None:
        if self._is_test(message[:_TEST_BYTES].decode(errors="replace"), channel.decode()):
            return
        try:
            self._hear([decode(channel, message)])
        except ValueError:
            log_seldom("Ignored a message on a channel of Redis that is not a doorbell.")

    async def _send(self, commands: Iterable[Sequence[str]]) -> None:
        # Otherwise redis-py would connect anew, and nobody would know of it.
        if not self._connection.is_connected:
            return
        try:
            packed = self._connection.pack_commands(commands)
            sending = self._connection.send_packed_command(packed, check_health=False)
            await heeding_cancel(sending)
        except Exception as error:
            self.lose(error)

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
            self.lose(typed(error))

    def _take_reply(self, kind: bytes, channel: bytes, what: Any) -> None:
        if kind.endswith(b"message"):
            self._take(channel, what)
        elif kind.endswith(b"unsubscribe"):
            if not self._leaving[channel]:
                # A server unsubscribes all from the channels of a slot that it gives away.
                raise redis.ConnectionError("A slot has moved to another server.")
            self._leaving[channel] -= 1
            if not self._leaving[channel]:
                del self._leaving[channel]
        elif kind.endswith(b"subscribe") and (confirmed := self._unconfirmed.pop(channel, None)):
            confirmed.set_result(None)
