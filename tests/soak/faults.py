"""What goes wrong during a soak test, at times and in an order that a seed decides."""

import asyncio
import random
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

from django_sse.stores.redis.keys import ClusterKeys
from tests.live.engines import Services
from tests.postgresql import PostgreSQLPair
from tests.redis import RedisCluster, RedisPair, RedisSentinels, RedisServer
from tests.soak.clients import Client
from tests.soak.processes import Publisher, Server
from tests.soak.publisher import GROUPS

Fault = Callable[[], Awaitable[None]]

_PAUSE_SECONDS = (1.0, 6.0)
_DOWN_SECONDS = (0.0, 2.0)


class Faults:
    """Lets things go wrong, every kind as often as the others, and counts them."""

    def __init__(
        self,
        servers: Sequence[Server],
        publishers: Sequence[Publisher],
        clients: Sequence[Client],
        services: Services,
        *,
        forgetful: bool,
        seed: str,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._random = random.Random(seed)
        self._servers = servers
        self._publishers = publishers
        self._clients = clients
        self._kinds: dict[str, Fault] = {
            "server killed": self._kill_server,
            "server paused": lambda: self._pause(self._random.choice(self._servers)),
            "publisher killed": lambda: self._kill_publisher(under_gevent=False),
            "publisher under gevent killed": lambda: self._kill_publisher(under_gevent=True),
            "connections cut by RST": lambda: self._cut(reset=True),
            "connections cut by FIN": lambda: self._cut(reset=False),
        }
        if end_sessions := services.end_sessions:
            self._kinds["PostgreSQL sessions ended"] = lambda: asyncio.to_thread(end_sessions)
        if postgresql := services.postgresql:
            self._kinds["PostgreSQL primary killed, standby promoted"] = lambda: self._promote(
                postgresql, forgetful=forgetful
            )
        if redis := services.redis:
            self._kinds["Redis killed"] = lambda: self._restart(redis, redis.kill)
            self._kinds["Redis stopped"] = lambda: self._restart(redis, redis.stop)
            self._kinds["Redis paused"] = lambda: self._pause(redis)
            self._kinds["Redis connections cut"] = lambda: _command(
                redis, "CLIENT KILL TYPE normal", "CLIENT KILL TYPE pubsub"
            )
            if isinstance(redis, RedisPair):
                self._kinds["Redis master demoted"] = lambda: self._demote(
                    redis, forgetful=forgetful
                )
            if forgetful:
                self._kinds["Redis emptied"] = lambda: _command(redis, "FLUSHALL")
        if several := services.several_redis:
            self._kinds["Redis master killed"] = lambda: self._lose_a_master(several)
            self._kinds["Redis master paused"] = lambda: self._pause_a_master(several)
            self._kinds["Redis failed over"] = lambda: self._hand_over(several)
            self._kinds["Redis connections cut"] = lambda: self._cut_from(several)
            if isinstance(several, RedisCluster):
                self._kinds["Redis slot moved"] = lambda: self._move_a_slot(several)

    async def run(self, seconds: float, pause: float) -> None:
        """Let things go wrong for some seconds, with a pause in between; all is well afterwards."""
        until = time.monotonic() + seconds
        waiting: list[str] = []
        while (left := until - time.monotonic()) > 0:
            chosen = self._random.uniform(0.3, 1.7) * pause
            await asyncio.sleep(min(chosen, left))
            if chosen >= left:
                return
            if not waiting:
                waiting = list(self._kinds)
                self._random.shuffle(waiting)
            kind = waiting.pop()
            self.counts[kind] += 1
            await self._kinds[kind]()

    async def _kill_server(self) -> None:
        server = self._random.choice(self._servers)
        await asyncio.to_thread(server.kill)
        await self._down()
        await asyncio.to_thread(server.start)

    async def _kill_publisher(self, *, under_gevent: bool) -> None:
        publisher = self._random.choice(
            [one for one in self._publishers if (one.how == "greenlets") == under_gevent]
        )
        publisher.kill()
        await self._down()
        publisher.start()

    async def _cut(self, *, reset: bool) -> None:
        for client in self._random.sample(self._clients, len(self._clients) // 2):
            client.cut(reset=reset)

    async def _demote(self, redis: RedisPair, *, forgetful: bool) -> None:
        """Let master and replica change places, with the connections to the old master open."""
        if forgetful:
            down = self._random.uniform(*_DOWN_SECONDS)
            await asyncio.to_thread(redis.lose_master, lambda: time.sleep(down))
        else:
            await asyncio.to_thread(redis.fail_over)

    async def _promote(self, postgresql: PostgreSQLPair, *, forgetful: bool) -> None:
        """Let the standby take over, and the primary come back as its standby."""
        if forgetful:
            # What is published meanwhile is lost.
            await asyncio.to_thread(postgresql.cut_off)
            await self._down()
        await asyncio.to_thread(postgresql.primary.stop)
        await self._down()
        await asyncio.to_thread(postgresql.promote)
        await asyncio.to_thread(postgresql.follow)

    async def _lose_a_master(self, several: RedisCluster | RedisSentinels) -> None:
        """Kill a master, and start it again once its replica has taken over."""
        master = self._random.choice(await asyncio.to_thread(several.masters))
        await asyncio.to_thread(several.fail_over, master)
        await self._down()
        await asyncio.to_thread(several.until_whole)

    async def _pause_a_master(self, several: RedisCluster | RedisSentinels) -> None:
        """Let a master hang, for which its replica may or may not take over meanwhile."""
        await self._pause(self._random.choice(await asyncio.to_thread(several.masters)))
        await asyncio.to_thread(several.until_whole)

    async def _hand_over(self, several: RedisCluster | RedisSentinels) -> None:
        """Let a master and its replica change places."""
        master = self._random.choice(await asyncio.to_thread(several.masters))
        await asyncio.to_thread(several.hand_over, master)
        await asyncio.to_thread(several.until_whole)

    async def _cut_from(self, several: RedisCluster | RedisSentinels) -> None:
        for master in await asyncio.to_thread(several.masters):
            await _command(master, "CLIENT KILL TYPE normal")

    async def _move_a_slot(self, cluster: RedisCluster) -> None:
        """Move the slot of a group that is published to."""
        slot = _slot_of(self._random.choice(GROUPS))

        def move() -> None:
            others = [each for each in cluster.masters() if each is not cluster.master_of(slot)]
            cluster.move_slot(slot, self._random.choice(others))
            cluster.until_whole()

        await asyncio.to_thread(move)

    async def _restart(self, redis: RedisServer | RedisPair, end: Callable[[], None]) -> None:
        await asyncio.to_thread(end)
        await self._down()
        await asyncio.to_thread(redis.start)

    async def _pause(self, what: Server | RedisServer | RedisPair) -> None:
        what.pause()
        await asyncio.sleep(self._random.uniform(*_PAUSE_SECONDS))
        what.resume()

    async def _down(self) -> None:
        await asyncio.sleep(self._random.uniform(*_DOWN_SECONDS))


def _slot_of(group: str) -> int:
    keys = ClusterKeys("sse")
    return keys.slot(keys.of_group(group)[0])


async def _command(redis: RedisServer | RedisPair, *commands: str) -> None:
    """Give Redis commands on a connection of its own, one after the other."""

    def give() -> None:
        for command in commands:
            with socket.create_connection(("127.0.0.1", redis.port), timeout=30) as connection:
                connection.sendall(f"{command}\r\n".encode())
                connection.recv(64)

    await asyncio.to_thread(give)
