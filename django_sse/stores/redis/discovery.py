"""Finds out which server has which slot now: in a Redis Cluster, or behind Sentinels."""

from collections.abc import Collection, Iterable
from math import inf
from typing import Any, Final, Protocol

import redis
import redis.asyncio
import redis.asyncio.cluster
import redis.asyncio.sentinel
import redis.cluster
import redis.sentinel
from django.core import checks
from django.views.decorators.debug import sensitive_variables
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from django_sse.stores.redis.url import Address, Place

# A server that hangs is not waited for: another one answers as well.
_SECONDS: Final = 1.0
# What a connection that only asks needs of the URL's options.
_NEEDED: Final = ("protocol", "socket_timeout", "socket_connect_timeout", "socket_keepalive")
# RedisClusterException is no RedisError.
_ERRORS: Final = (redis.RedisError, redis.exceptions.RedisClusterException, OSError)


class Discovery(Protocol):
    """Finds the servers with the data."""

    holds_for: float
    """After how many seconds an answer is to be asked for again."""

    def owners(self, known: Collection[Address]) -> dict[int, Address]:
        """Return the server that has each slot.

        Args:
            known: Servers that had slots before. They are asked besides those of the URL.

        Raises:
            redis.ConnectionError: Nobody tells.
        """

    async def aowners(self, known: Collection[Address]) -> dict[int, Address]:
        """Do what ``owners`` does, on the running loop."""

    def check(self) -> list[checks.CheckMessage]:
        """Return what is wrong, as far as it can be known now."""


class ClusterDiscovery:
    """Asks any server of a Redis Cluster.

    Args:
        place: What the URL says.
        slots: The slots that matter.
    """

    # A server that has lost a slot hears of it within moments, and says so.
    holds_for = inf

    def __init__(self, place: Place, slots: Collection[int]) -> None:
        self._hosts = list(place.hosts)
        self._options = {
            **_asking_options(place),
            **{name: place.options.get(name) for name in ("username", "password")},
        }
        self._slots = slots

    @sensitive_variables()
    def owners(self, known: Collection[Address]) -> dict[int, Address]:
        kind: Any = redis.cluster.ClusterNode
        nodes = [kind(*address) for address in {*self._hosts, *known}]
        try:
            client: Any = redis.cluster.RedisCluster(
                startup_nodes=nodes, require_full_coverage=False, **self._options
            )
        except _ERRORS as error:
            raise self._unknown(error) from None
        try:
            return self._owners(client.nodes_manager)
        finally:
            client.close()

    @sensitive_variables()
    async def aowners(self, known: Collection[Address]) -> dict[int, Address]:
        kind = redis.asyncio.cluster.ClusterNode
        client: Any = redis.asyncio.cluster.RedisCluster(
            startup_nodes=[kind(*address) for address in {*self._hosts, *known}],
            require_full_coverage=False,
            **self._options,
        )
        try:
            await client.initialize()
        except _ERRORS as error:
            # It also asks a master for its commands, which may be the one that is lost.
            if not self._owners(client.nodes_manager):
                raise self._unknown(error) from None
        finally:
            await client.aclose()
        return self._owners(client.nodes_manager)

    def check(self) -> list[checks.CheckMessage]:
        return []

    def _owners(self, manager: Any) -> dict[int, Address]:
        return {
            slot: Address(nodes[0].host, nodes[0].port)
            for slot in self._slots
            if (nodes := manager.slots_cache.get(slot))
        }

    def _unknown(self, error: BaseException) -> redis.ConnectionError:
        return _error("The Redis Cluster is not found", self._hosts, error, self._options)


class SentinelDiscovery:
    """Asks the Sentinels for the master of their service. All slots are the master's."""

    # A master that comes back after a failover does not know of it until the Sentinels tell it,
    # which takes them 8 seconds and more. It then forgets all that it has acknowledged meanwhile.
    holds_for = 2.0

    def __init__(self, place: Place) -> None:
        self._hosts = list(place.hosts)
        self._service = place.service
        self._options = {**_asking_options(place), **place.sentinel_options}

    @sensitive_variables()
    def owners(self, known: Collection[Address]) -> dict[int, Address]:
        kind: Any = redis.sentinel.Sentinel
        options = {**self._options, "retry": Retry(NoBackoff(), 0)}
        sentinels = kind(self._hosts, sentinel_kwargs=options)
        try:
            master = sentinels.discover_master(self._service)
        except _ERRORS as error:
            raise self._unknown(error) from None
        finally:
            for sentinel in sentinels.sentinels:
                sentinel.close()
        return self._found(master, sentinels)

    @sensitive_variables()
    async def aowners(self, known: Collection[Address]) -> dict[int, Address]:
        kind: Any = redis.asyncio.sentinel.Sentinel
        options = {**self._options, "retry": AsyncRetry(NoBackoff(), 0)}
        sentinels = kind(self._hosts, sentinel_kwargs=options)
        try:
            master = await sentinels.discover_master(self._service)
        except _ERRORS as error:
            raise self._unknown(error) from None
        finally:
            for sentinel in sentinels.sentinels:
                await sentinel.aclose()
        return self._found(master, sentinels)

    @sensitive_variables()
    def check(self) -> list[checks.CheckMessage]:
        names: set[str] = set()
        options = {**self._options, "retry": Retry(NoBackoff(), 0)}
        for host, port in self._hosts:
            sentinel: Any = redis.Redis(host=host, port=port, **options)
            try:
                names |= set(sentinel.sentinel_masters())
            except _ERRORS:
                continue
            finally:
                sentinel.close()
        if not names or self._service in names:
            # They may be away while the check runs.
            return []
        return [
            checks.Error(
                f"The Sentinels of the redis store's `url` know no service {self._service!r}.",
                hint=f"They know {', '.join(sorted(names))}.",
                id="django_sse.E009",
            )
        ]

    def _found(self, master: tuple[str, int], sentinels: Any) -> dict[int, Address]:
        # redis-py puts the one that has answered first: one that is down would cost each look a
        # second.
        answered = sentinels.sentinels[0].connection_pool.connection_kwargs
        first = Address(answered["host"], answered["port"])
        self._hosts.sort(key=lambda host: host != first)
        return {0: Address(*master)}

    def _unknown(self, error: BaseException) -> redis.ConnectionError:
        what = f"No Sentinel knows a master of {self._service!r} now"
        return _error(what, self._hosts, error, self._options)


def _asking_options(place: Place) -> dict[str, Any]:
    options: dict[str, Any] = {"socket_timeout": _SECONDS, "socket_connect_timeout": _SECONDS}
    options |= {name: value for name, value in place.options.items() if name in _NEEDED}
    if place.tls:
        options["ssl"] = True
        options |= {name: v for name, v in place.options.items() if name.startswith("ssl_")}
    return options


def _error(
    what: str, hosts: Iterable[Address], error: BaseException, options: dict[str, Any]
) -> redis.ConnectionError:
    """Return what publishing raises, which says what redis-py does, but no password."""
    text = str(error)
    secrets = [value for name, value in options.items() if name.endswith("password") and value]
    if any(str(secret) in text for secret in secrets):
        # redis-py before 6 shows what a connection was made with.
        text = type(error).__name__
    asked = ", ".join(f"{host}:{port}" for host, port in hosts)
    return redis.ConnectionError(f"{what}. Asked: {asked}. {text}")
