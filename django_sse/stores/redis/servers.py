"""Where the redis store sends its calls: the interface, and one server behind one address."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Sequence
from typing import Any, Final, Protocol
from weakref import finalize

import redis
import redis.asyncio
from django.core import checks
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from django_sse.concurrency.forks import ForkSafeLock
from django_sse.concurrency.loops import ByLoop
from django_sse.stores.redis.script import Call, aexecute, execute, is_of_wrong_server
from django_sse.stores.redis.url import Address, pool_of, without_option

# Defaults for what the URL does not say. RESP2 connections need one exchange less, and every
# version of redis-py reads their replies alike.
OPTIONS: Final[dict[str, Any]] = {
    "socket_timeout": 5.0,
    "socket_connect_timeout": 5.0,
    "protocol": 2,
    # Connections for publishing, and as many for the reads of each event loop. A caller waits
    # `timeout` seconds for a free one, since a hub may have thousands of groups to read at once.
    "max_connections": 8,
    "timeout": 5.0,
}


class Servers(ABC):
    """The servers that keep the events.

    A call that was refused by a server which takes no commands now is made again, with all calls
    after it that are for the same keys' slot.
    """

    trust: str = "0"
    """What the script gets to know of the runs of other servers: see ``script.lua``."""

    @abstractmethod
    def run(self, calls: Sequence[Call]) -> list[Any]:
        """Run the script for each of the calls, from any thread.

        Returns:
            The replies. Some may be errors.

        Raises:
            redis.RedisError: No call was made, or nobody knows which ones were.
        """

    @abstractmethod
    async def arun(self, calls: Sequence[Call]) -> list[Any]:
        """Do what ``run`` does, on the running loop, for calls that can safely be made twice."""

    @abstractmethod
    async def homes(self, keys: Sequence[str]) -> list[Address | None]:
        """Return the server that each of some keys is on now, by its address, or None if the store
        has one address. Asks if that is not known.

        Raises:
            redis.RedisError: Nobody tells.
        """

    @abstractmethod
    def doubt(self) -> None:
        """Have it asked again where the keys are."""

    @abstractmethod
    def subscribing_connection(self, home: Address | None) -> Any:
        """Return a new connection to a server, for the running loop, which is not yet open. It
        belongs to the caller, and speaks RESP2: of the newer protocol's messages, redis-py before 6
        reads none with a limit of time."""

    @abstractmethod
    async def adisconnect(self) -> None:
        """Close the idle connections of the running loop."""

    @abstractmethod
    def check(self) -> list[checks.CheckMessage]:
        """Return what is wrong with the servers, as far as it can be known now."""


class OneServer(Servers):
    """The server that a URL of redis-py names, or whichever comes to be behind this address."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._client_lock = ForkSafeLock()
        self._client: redis.Redis | None = None
        # A connection belongs to its loop, so each loop has a client. The generator closes it.
        self._readers: ByLoop[tuple[redis.asyncio.Redis, AsyncGenerator[None]]] = ByLoop()

    def run(self, calls: Sequence[Call]) -> list[Any]:
        client = self._publisher
        replies = execute(client, calls)
        if (done := _count_until_refused(replies)) < len(calls):
            self._replace(client)
            client = self._publisher
            replies[done:] = execute(client, calls[done:])
            if _count_until_refused(replies) < len(calls):
                self._replace(client)
        return replies

    async def arun(self, calls: Sequence[Call]) -> list[Any]:
        client = await self._reader()
        replies = await aexecute(client, calls)
        if (done := _count_until_refused(replies)) < len(calls):
            await self.adisconnect()
            replies[done:] = await aexecute(client, calls[done:])
            if _count_until_refused(replies) < len(calls):
                await self.adisconnect()
        return replies

    async def homes(self, keys: Sequence[str]) -> list[Address | None]:
        return [None] * len(keys)

    def doubt(self) -> None:
        """Do nothing: there is one address."""

    def subscribing_connection(self, home: Address | None) -> Any:
        retry = AsyncRetry(NoBackoff(), 0)
        url = without_option(self._url, "protocol")
        pool = pool_of(redis.asyncio.BlockingConnectionPool, url, **OPTIONS, retry=retry)
        return pool.make_connection()

    async def adisconnect(self) -> None:
        if reader := self._readers.get(asyncio.get_running_loop()):
            # Reads under way go on. Their connections are closed when the loop ends.
            await reader[0].connection_pool.disconnect(inuse_connections=False)

    def check(self) -> list[checks.CheckMessage]:
        return []

    async def _reader(self) -> redis.asyncio.Redis:
        loop = asyncio.get_running_loop()
        if loop not in self._readers:
            pool = pool_of(
                redis.asyncio.BlockingConnectionPool,
                self._url,
                **OPTIONS,
                # A connection may have been cut while it was idle. A read can safely run twice.
                retry=AsyncRetry(NoBackoff(), 1),
                # redis-py before 6 needs this to retry at all.
                retry_on_error=[redis.ConnectionError, redis.TimeoutError],
            )
            client = redis.asyncio.Redis.from_pool(pool)
            closing = close_at_end(client)
            self._readers[loop] = client, closing
            await anext(closing)
        return self._readers[loop][0]

    @property
    def _publisher(self) -> redis.Redis:
        # All threads share one client.
        with self._client_lock:
            if self._client is None:
                pool = pool_of(
                    redis.BlockingConnectionPool,
                    self._url,
                    **OPTIONS,
                    retry=Retry(NoBackoff(), 0),
                )
                self._client = client_of(pool)
            return self._client

    def _replace(self, client: redis.Redis) -> None:
        """Use a new client from now on. Calls of other threads under way keep the old one."""
        with self._client_lock:
            if self._client is client:
                self._client = None


class Closing(Protocol):
    """What is closed when its event loop ends."""

    async def aclose(self) -> None:
        """Close all connections."""


def client_of(pool: redis.ConnectionPool) -> redis.Redis:
    """Return a client whose connections are closed once nobody uses it."""
    client = redis.Redis(connection_pool=pool)
    # A process that ends needs no help, and its other threads may still publish.
    finalize(client, pool.disconnect).atexit = False
    return client


async def close_at_end(client: Closing) -> AsyncGenerator[None]:
    """Close a client when its loop ends: a loop that shuts down closes its async generators."""
    try:
        yield
    finally:
        await client.aclose()


def _count_until_refused(replies: Sequence[Any]) -> int:
    """Return how many calls came before the first one that the wrong server refused."""
    for n, reply in enumerate(replies):
        if is_of_wrong_server(reply):
            return n
    return len(replies)
