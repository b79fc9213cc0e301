"""Sends each call of the redis store to the server that has its keys now."""

import asyncio
import time
from collections.abc import (
    AsyncGenerator,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from math import inf
from time import monotonic
from typing import Any, Final

import redis
import redis.asyncio
from django.core import checks
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AskError,
    ClusterError,
    MovedError,
    NoScriptError,
    ResponseError,
    TryAgainError,
)
from redis.retry import Retry

from django_sse.concurrency.forks import ForkSafeLock
from django_sse.concurrency.loops import ByLoop
from django_sse.concurrency.tasks import spawn
from django_sse.stores.redis.discovery import Discovery
from django_sse.stores.redis.script import (
    SCRIPT,
    SHA,
    Call,
    connect,
    is_of_wrong_server,
    receive,
    send,
    typed,
)
from django_sse.stores.redis.servers import (
    OPTIONS,
    Servers,
    client_of,
    close_at_end,
)
from django_sse.stores.redis.url import Address, Place

# For how long a call follows its keys while they move to another server, and the pause between two
# attempts while they are under way.
_FOLLOWING_SECONDS: Final = 5.0
_PAUSE_SECONDS: Final = 0.05
# How often a call is made again for any other reason.
_ATTEMPTS: Final = 2
# The script's error for a group that another server's run has written: see `script.lua`.
_FOREIGN: Final = "FOREIGN"
_ASK_RUNS: Final = "?"
# A connection that has failed says so by one of these.
_BROKEN: Final = (redis.ConnectionError, redis.TimeoutError, OSError)


class _NotSent:
    """The reply of a server that was not reached: nothing was done."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


@dataclass
class _Chain:
    """The calls for one slot that are still to be made, in their order."""

    slot: int
    left: list[int]
    # Where the slot's keys are on their way to, for the next attempt.
    asked: Address | None = None
    attempts: int = 1

    @property
    def sent(self) -> list[int]:
        """The calls of the next attempt: one alone on the way of its keys, since keys of others may
        still be where they were, and would come into being a second time."""
        return self.left[:1] if self.asked else self.left

    def commands(self, calls: Sequence[Call]) -> list[tuple[Any, ...]]:
        asking = [("ASKING",)] if self.asked else []
        return [*asking, *(("EVALSHA", SHA, *calls[index]) for index in self.sent)]


@dataclass
class _Needs:
    """What has to be done before the next attempt."""

    script: set[Address] = field(default_factory=set)
    owners: bool = False
    runs: bool = False
    pause: bool = False


class _Plan:
    """Decides what is sent where, and what is sent again. Knows no connections.

    Args:
        slots: The slot of each call. The order of the calls for a slot is kept: who is told of a
            change finds it.
        can_repeat: Whether a call may be made again if nobody knows whether it was made.
    """

    def __init__(self, calls: Sequence[Call], slots: Sequence[int], *, can_repeat: bool) -> None:
        self.calls = list(calls)
        self.replies: list[Any] = [None] * len(calls)
        chains: dict[int, _Chain] = {}
        for index, slot in enumerate(slots):
            chains.setdefault(slot, _Chain(slot, [])).left.append(index)
        self.chains = list(chains.values())
        self.moved: dict[int, Address] = {}
        # Whether a slot is nobody's, as during a failover.
        self.lacks_owner = False
        self._can_repeat = can_repeat
        self._until = monotonic() + _FOLLOWING_SECONDS

    def batches(self, owners: Mapping[int, Address]) -> dict[Address, list[_Chain]]:
        """Return the chains by server, the servers in an order that is the same for all."""
        batches: dict[Address, list[_Chain]] = {}
        for chain in list(self.chains):
            owner = chain.asked or self.moved.pop(chain.slot, None) or owners.get(chain.slot)
            if owner:
                batches.setdefault(owner, []).append(chain)
            else:
                self.lacks_owner = True
                self._give_up(chain, _nobody_has_it())
        return dict(sorted(batches.items()))

    def fail(self, error: BaseException) -> None:
        """Give up what is left: no server was found."""
        for chain in list(self.chains):
            self._give_up(chain, error)

    def take(
        self, batches: Mapping[Address, list[_Chain]], replies: Mapping[Address, Any]
    ) -> _Needs:
        """Take the replies of each server: a list, or the error of its connection."""
        needs = _Needs()
        for address, chains in batches.items():
            answer = iter(replies[address]) if isinstance(replies[address], list) else None
            for chain in chains:
                self._take_chain(chain, address, needs, answer or replies[address])
        return needs

    def _take_chain(self, chain: _Chain, address: Address, needs: _Needs, answer: Any) -> None:
        sent = chain.sent
        if isinstance(answer, _NotSent | BaseException):
            needs.owners = True
            replies: list[Any] = [answer] * len(sent)
        else:
            if chain.asked:
                next(answer)
            replies = [typed(next(answer)) for _ in sent]
        chain.asked = None
        done = next((n for n, reply in enumerate(replies) if self._is_refused(reply)), len(sent))
        for index, reply in zip(sent[:done], replies, strict=False):
            self.replies[index] = reply
        chain.left = chain.left[done:]
        if not chain.left:
            self.chains.remove(chain)
        elif done < len(sent) and not self._goes_on(chain, address, needs, replies[done]):
            refused = replies[done]
            self._give_up(chain, refused.error if isinstance(refused, _NotSent) else refused)

    def _is_refused(self, reply: Any) -> bool:
        return (
            isinstance(reply, _NotSent | NoScriptError)
            or is_of_wrong_server(reply)
            or _is_foreign(reply)
            or (self._can_repeat and isinstance(reply, _BROKEN))
        )

    def _goes_on(self, chain: _Chain, address: Address, needs: _Needs, refused: Any) -> bool:
        """Note what a refused call needs. Return False if it is not made again."""
        if isinstance(refused, NoScriptError):
            needs.script.add(address)
        elif _is_foreign(refused):
            needs.runs = True
        elif isinstance(refused, AskError):
            chain.asked = Address(refused.host or address.host, refused.port)
            # The other server says whether all of its keys are there.
            return True
        elif isinstance(refused, MovedError):
            self.moved[chain.slot] = Address(refused.host or address.host, refused.port)
            # Where one slot has gone, others have gone, too.
            needs.owners = True
        elif isinstance(refused, TryAgainError):
            needs.pause = True
        else:
            needs.owners = needs.pause = True
            chain.attempts += 1
            return chain.attempts <= _ATTEMPTS
        return monotonic() < self._until

    def _give_up(self, chain: _Chain, error: BaseException) -> None:
        for index in chain.left:
            self.replies[index] = error
        self.chains.remove(chain)

    def trust(self, runs: Iterable[bytes]) -> None:
        """Tell the script the runs of all servers."""
        trusted = ",".join(run.decode() for run in runs) or "0"
        for chain in self.chains:
            for index in chain.left:
                # After the number of the keys, the keys, and the operation.
                call = self.calls[index]
                place = call[0] + 2
                if call[place] == _ASK_RUNS:
                    self.calls[index] = (*call[:place], trusted, *call[place + 1 :])


class RoutedServers(Servers):
    """The servers of a cluster, or the master that Sentinels watch.

    Args:
        discovery: Finds out which server has which slot.
        slot_of: Returns the slot of a key. If there is one master, all keys are in the same one.
        place: What the URL says.
    """

    trust = _ASK_RUNS

    def __init__(self, discovery: Discovery, slot_of: Callable[[str], int], place: Place) -> None:
        self._discovery = discovery
        self._slot_of = slot_of
        self._example = place.hosts[0]
        self._tls = place.tls
        self._options = {**OPTIONS, "db": place.db, **place.options}
        self._lock = ForkSafeLock()
        self._looking = ForkSafeLock()
        # Who has which slot, as far as it is known, and when that is to be asked again.
        self._owners: dict[int, Address] = {}
        self._ask_at = 0.0
        # When they were asked in vain the last time, and what came of it.
        self._failure: tuple[float, redis.ConnectionError] = (-inf, redis.ConnectionError())
        self._clients: dict[Address, redis.Redis] = {}
        self._readers: ByLoop[_Readers] = ByLoop()

    def run(self, calls: Sequence[Call]) -> list[Any]:
        plan = _Plan(calls, self._slots(calls), can_repeat=False)
        while plan.chains:
            try:
                self._look(plan)
            except redis.RedisError as error:
                plan.fail(error)
            batches = plan.batches(self._owners)
            needs = plan.take(batches, self._send(plan, batches))
            if needs.owners or plan.lacks_owner:
                self.doubt()
            if plan.chains:
                for address in needs.script:
                    self._load_script(address)
                if needs.runs:
                    plan.trust(self._runs())
                if needs.pause:
                    # Not imported by its name: gevent and eventlet may replace it.
                    time.sleep(_PAUSE_SECONDS)
        return plan.replies

    async def arun(self, calls: Sequence[Call]) -> list[Any]:
        plan = _Plan(calls, self._slots(calls), can_repeat=True)
        readers = await self._of_loop()
        while plan.chains:
            try:
                await self._alook(readers, plan.moved)
            except redis.RedisError as error:
                plan.fail(error)
            batches = plan.batches(self._owners)
            answers = await asyncio.gather(
                *(
                    readers.ask(address, [c for one in chains for c in one.commands(plan.calls)])
                    for address, chains in batches.items()
                )
            )
            needs = plan.take(batches, dict(zip(batches, answers, strict=True)))
            if needs.owners or plan.lacks_owner:
                self.doubt()
            if plan.chains:
                for address in needs.script:
                    await readers.ask(address, [("SCRIPT LOAD", SCRIPT)])
                if needs.runs:
                    masters = sorted(self._known())
                    replies = await asyncio.gather(
                        *(readers.ask(master, _ASK_RUN) for master in masters)
                    )
                    plan.trust(run for reply in replies for run in _run_in(reply))
                if needs.pause:
                    await asyncio.sleep(_PAUSE_SECONDS)
        return plan.replies

    async def homes(self, keys: Sequence[str]) -> list[Address | None]:
        await self._alook(await self._of_loop(), {})
        homes = [self._owners.get(self._slot_of(key)) for key in keys]
        if None in homes:
            self.doubt()
            raise _nobody_has_it()
        return homes

    def doubt(self) -> None:
        self._ask_at = 0.0

    def subscribing_connection(self, home: Address | None) -> Any:
        assert home
        options = {**self._options, "protocol": 2}
        return _reading_pool(home, options, tls=self._tls).make_connection()

    async def adisconnect(self) -> None:
        if readers := self._readers.get(asyncio.get_running_loop()):
            await readers.disconnect()

    def check(self) -> list[checks.CheckMessage]:
        # Fails if redis-py has no such option.
        self._client(self._example).connection_pool.make_connection()
        return self._discovery.check()

    def _slots(self, calls: Sequence[Call]) -> list[int]:
        return [self._slot_of(call[1]) for call in calls]

    def _look(self, plan: _Plan) -> None:
        """Find out who has which slot, if that is not known.

        Raises:
            redis.ConnectionError: Nobody tells.
        """
        asked = monotonic()
        if asked < self._ask_at:
            return
        # One thread asks for all that wait.
        with self._looking:
            if self._is_unanswered(asked):
                with self._noting_failure():
                    self._learn(self._discovery.owners(self._known()), plan.moved)

    async def _alook(self, readers: "_Readers", moved: Mapping[int, Address]) -> None:
        """Do what ``_look`` does, on the running loop."""
        asked = monotonic()
        if asked < self._ask_at:
            return
        async with readers.looking:
            if self._is_unanswered(asked):
                with self._noting_failure():
                    # Shielded: redis-py leaves connections open if it is cancelled.
                    answer = await asyncio.shield(spawn(self._ask_for_owners()))
                    if isinstance(answer, Exception):
                        raise answer
                    self._learn(answer, moved)
                await readers.drop_all_but(self._known())

    async def _ask_for_owners(self) -> dict[int, Address] | redis.ConnectionError:
        try:
            return await self._discovery.aowners(self._known())
        except redis.ConnectionError as error:
            # Returned, since whoever asked may have been cancelled.
            return error

    def _is_unanswered(self, asked: float) -> bool:
        """Whether nobody has found out since a time.

        Raises:
            redis.ConnectionError: Somebody has tried since, in vain.
        """
        if monotonic() < self._ask_at:
            return False
        failed_at, error = self._failure
        if failed_at < asked:
            return True
        # As many as wait would try one after the other, and each of them for seconds.
        raise redis.ConnectionError(*error.args) from None

    @contextmanager
    def _noting_failure(self) -> Iterator[None]:
        began = monotonic()
        try:
            yield
        except redis.ConnectionError as error:
            self._failure = began, error
            raise

    def _known(self) -> set[Address]:
        return set(self._owners.values())

    def _learn(self, owners: dict[int, Address], moved: Mapping[int, Address]) -> None:
        with self._lock:
            # A server that knows of a move says so sooner than others have heard of it.
            self._owners = {**owners, **moved}
            self._ask_at = monotonic() + self._discovery.holds_for
            addresses = set(self._owners.values())
            # The connections of the others are closed once nobody uses them.
            self._clients = {
                address: client for address, client in self._clients.items() if address in addresses
            }

    # Synchronous

    def _client(self, address: Address) -> redis.Redis:
        with self._lock:
            if address not in self._clients:
                kind = redis.SSLConnection if self._tls else redis.Connection
                pool: Any = redis.BlockingConnectionPool(  # type: ignore[no-untyped-call]
                    host=address.host,
                    port=address.port,
                    connection_class=kind,
                    **self._options,
                    retry=Retry(NoBackoff(), 0),
                )
                self._clients[address] = client_of(pool)
            return self._clients[address]

    def _send(self, plan: _Plan, batches: Mapping[Address, list[_Chain]]) -> dict[Address, Any]:
        """Send each server its calls at once, and then read: the servers work at the same time."""
        replies: dict[Address, Any] = {}
        open_: dict[Address, tuple[redis.Redis, Any, int]] = {}
        try:
            for address, chains in batches.items():
                client = self._client(address)
                try:
                    connection = connect(client)
                except _BROKEN as error:
                    replies[address] = _NotSent(error)
                    continue
                commands = [command for chain in chains for command in chain.commands(plan.calls)]
                open_[address] = client, connection, len(commands)
                try:
                    send(connection, commands)
                except _BROKEN as error:
                    replies[address] = error
            for address, (_, connection, count) in open_.items():
                if address not in replies:
                    try:
                        replies[address] = receive(connection, count)
                    except _BROKEN as error:
                        replies[address] = error
        finally:
            for address, (client, connection, _) in open_.items():
                if not isinstance(replies.get(address), list):
                    # A reply that was not read would be taken for another call's.
                    connection.disconnect()
                client.connection_pool.release(connection)
        return replies

    def _load_script(self, address: Address) -> None:
        try:
            self._client(address).script_load(SCRIPT)
        except _BROKEN:
            # The next attempt fails alike.
            self.doubt()

    def _runs(self) -> list[bytes]:
        runs: list[bytes] = []
        for address in sorted(self._known()):
            try:
                client = self._client(address)
                runs += _run_in([client.eval(SCRIPT, *_RUN)])
            except (*_BROKEN, ResponseError):
                continue
        return runs

    # On an event loop

    async def _of_loop(self) -> "_Readers":
        loop = asyncio.get_running_loop()
        if loop not in self._readers:
            readers = _Readers(self._options, tls=self._tls)
            self._readers[loop] = readers
            readers.closing = close_at_end(readers)
            await anext(readers.closing)
        return self._readers[loop]


class _Readers:
    """The clients of one event loop, by server."""

    def __init__(self, options: Mapping[str, Any], *, tls: bool) -> None:
        self._options = options
        self._tls = tls
        self._clients: dict[Address, redis.asyncio.Redis] = {}
        self.looking = asyncio.Lock()
        self.closing: AsyncGenerator[None] | None = None

    async def ask(self, address: Address, commands: Sequence[Sequence[Any]]) -> Any:
        """Return the replies to commands, or the error of the connection."""
        client = self._client(address)
        try:
            async with client.pipeline(transaction=False) as pipe:
                for command in commands:
                    pipe.execute_command(*command)
                return await pipe.execute(raise_on_error=False)
        except _BROKEN as error:
            return error
        finally:
            if self._clients.get(address) is not client:
                # It was dropped meanwhile, with the connection that was in use.
                await _disconnect_idle(client)

    async def drop_all_but(self, addresses: Collection[Address]) -> None:
        """Drop the clients of servers that have no slot any more."""
        for address in self._clients.keys() - addresses:
            # Reads under way go on.
            await _disconnect_idle(self._clients.pop(address))

    async def disconnect(self) -> None:
        # Reads under way go on. Their connections are closed when the loop ends.
        for client in list(self._clients.values()):
            await _disconnect_idle(client)

    async def aclose(self) -> None:
        for client in list(self._clients.values()):
            await client.aclose()

    def _client(self, address: Address) -> redis.asyncio.Redis:
        if address not in self._clients:
            pool = _reading_pool(address, self._options, tls=self._tls)
            self._clients[address] = redis.asyncio.Redis.from_pool(pool)
        return self._clients[address]


def _reading_pool(address: Address, options: Mapping[str, Any], *, tls: bool) -> Any:
    return redis.asyncio.BlockingConnectionPool(
        host=address.host,
        port=address.port,
        connection_class=redis.asyncio.SSLConnection if tls else redis.asyncio.Connection,
        **options,
        retry=AsyncRetry(NoBackoff(), 0),
    )


async def _disconnect_idle(client: redis.asyncio.Redis) -> None:
    """Close the connections of a client that nobody uses now."""

    async def disconnect() -> None:
        # A server that is lost may not answer a goodbye.
        with suppress(*_BROKEN):
            await client.connection_pool.disconnect(inuse_connections=False)

    # Shielded: redis-py leaves connections open if it is cancelled.
    await asyncio.shield(spawn(disconnect()))


def _nobody_has_it() -> ClusterError:
    return ClusterError("No server of the Redis Cluster has the slot.")


# The arguments of EVAL after the script: no keys, the operation, and whether Redis is durable.
_RUN: Final = (0, "run", "0")
_ASK_RUN: Final = [("EVAL", SCRIPT, *_RUN)]


def _run_in(replies: Any) -> list[bytes]:
    return (
        [reply for reply in replies if isinstance(reply, bytes)]
        if isinstance(replies, list)
        else []
    )


def _is_foreign(reply: Any) -> bool:
    return isinstance(reply, ResponseError) and _FOREIGN in str(reply)
