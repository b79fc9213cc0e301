"""Keeps events in Redis Streams: for processes on any number of machines."""

import asyncio
import re
from collections.abc import AsyncGenerator, Callable, Container, Iterable, Sequence
from functools import cached_property
from hashlib import sha1
from pathlib import Path
from typing import Any, Final, NamedTuple
from weakref import finalize

from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.db import DEFAULT_DB_ALIAS
from django.views.decorators.debug import sensitive_variables

from django_sse.concurrency.forks import ForkSafeLock
from django_sse.conf import conf
from django_sse.event import KEY_FIELD
from django_sse.exceptions import AlreadyProducing, GroupCancelled
from django_sse.groups.entries import Entry, GroupState, Hint, Kind, Lease, NewEntry
from django_sse.groups.numbering import HeadMoved
from django_sse.stores.base import Cursor, EventStore
from django_sse.stores.clock import StoreClock
from django_sse.stores.read_limits import READ_BYTES
from django_sse.text import plain

try:
    import redis
    import redis.asyncio
    from redis.asyncio.retry import Retry as AsyncRetry
    from redis.backoff import NoBackoff
    from redis.exceptions import (
        AskError,
        BusyLoadingError,
        ClusterDownError,
        MasterDownError,
        MovedError,
        NoScriptError,
        ReadOnlyError,
        ResponseError,
        TryAgainError,
    )
    from redis.retry import Retry
except ImportError as error:
    raise ImproperlyConfigured(
        f"The redis store needs redis-py ({error}): pip install 'redis>=5.2'."
    ) from error

_SCRIPT: Final = Path(__file__).with_suffix(".lua").read_text()
# The name that EVALSHA uses for the script.
_SHA: Final = sha1(_SCRIPT.encode(), usedforsecurity=False).hexdigest()
# redis-py before 5.3 asks for a name here, and later versions warn of one.
_VERSION: Final = tuple(int(part) for part in redis.__version__.split(".")[:2])
_COMMAND_NAME: Final = () if _VERSION >= (5, 3) else ("EVALSHA",)

# Defaults for what the URL does not say. RESP2 connections need one exchange less, and every
# version of redis-py reads their replies alike.
_OPTIONS: Final[dict[str, Any]] = {
    "socket_timeout": 5.0,
    "socket_connect_timeout": 5.0,
    "protocol": 2,
    # Connections for publishing, and as many for the reads of each event loop. A caller waits
    # `timeout` seconds for a free one, since a hub may have thousands of groups to read at once.
    "max_connections": 8,
    "timeout": 5.0,
}

# How many groups are looked for at a time whose producers may have died.
_LAPSED_STEPS: Final = 100
# What begins or renews a lease.
_LEASING: Final = (Kind.BEGIN, Kind.RENEW, Kind.HAND_OVER)
# Why the script refuses an entry.
_REFUSALS: Final[dict[int, Callable[[str], Exception]]] = {
    -1: GroupCancelled,
    -2: AlreadyProducing,
    -3: HeadMoved,
}
# The errors of a server that takes no commands, or takes none now: a replica that was the master
# before a failover, a server that is starting, one that is cut off from its replicas.
_WRONG_SERVER: Final = (
    AskError,
    BusyLoadingError,
    ClusterDownError,
    MasterDownError,
    MovedError,
    ReadOnlyError,
    TryAgainError,
)
_WRONG_SERVER_CODES: Final = re.compile(
    r"\b(READONLY|LOADING|MASTERDOWN|CLUSTERDOWN|UNBLOCKED|NOREPLICAS|MISCONF)\b"
)

# The message of redis-py is left out, since it may contain a part of the password.
_BAD_URL: Final = "The redis store's `url` is not accepted by redis-py. It is not shown here."


_Call = tuple[Any, ...]


class _Cursor(NamedTuple):
    run: bytes
    score: int


class RedisStore(EventStore):
    """Keeps events in Redis.

    Redis may forget what it acknowledged when it restarts or another server takes over. The store
    notices this by the server's ``run_id`` and its last promotion. If one of them changes, each
    group begins a new run of numbers as soon as it is used, and clients get a ``reset``.

    Inside a transaction on ``using``, a cancel or a reopen takes effect at the commit. If the
    process dies between the commit and its hook, what it published is lost.

    Publishing raises redis-py's own errors. It tries again only if the server refused the command,
    for example because it is not the master any more. Any other repetition could publish an event
    twice.

    Args:
        url: The URL of the server, in the form that redis-py accepts.
        prefix: The prefix of the keys in Redis.
        durable: The operator's promise that Redis forgets nothing (``appendfsync always``, and no
            failover to a replica that may be behind). Streams then go on after a restart. All
            processes must have the same value.
        using: The database alias whose transactions publishing waits for.
    """

    crosses_processes = True
    failures = (*EventStore.failures, redis.RedisError)

    def __init__(
        self,
        *,
        url: str = "redis://localhost:6379/0",
        prefix: str = "sse",
        durable: bool = False,
        using: str = DEFAULT_DB_ALIAS,
    ) -> None:
        super().__init__(using=using)
        self.clock = StoreClock(self._ask_time)
        self.url = url
        self._prefix = prefix
        self._durable = durable
        self._client_lock = ForkSafeLock()
        self._client: redis.Redis | None = None
        # A connection belongs to its loop, so each loop has a client. The generator closes it.
        self._readers: dict[
            asyncio.AbstractEventLoop, tuple[redis.asyncio.Redis, AsyncGenerator[None]]
        ] = {}

    @cached_property
    def address(self) -> str:  # type: ignore[override]
        # Without the password: nobody must be able to guess it from the address.
        server = {"host": "localhost", "port": 6379, "db": 0}
        server |= _pool(redis.ConnectionPool, self.url).connection_kwargs
        where = [server.get("path") or (server["host"], server["port"]), server["db"]]
        return f"{where} {self._prefix}"

    # Reading

    def states(self, groups: Sequence[str]) -> dict[str, GroupState]:
        return _by_group(groups, self._run(*self._state_calls(groups)))

    async def astates(self, groups: Sequence[str]) -> dict[str, GroupState]:
        return _by_group(groups, await self._arun(*self._state_calls(groups)))

    async def aread(self, group: str, after: int, limit: int) -> list[Entry]:
        call = self._call("read", self._keys(group), max(after + 1, 0), limit, READ_BYTES)
        [rows] = await self._arun(call)
        return _entries(rows)

    async def anewest(self, group: str, after: int, limit: int) -> list[Entry]:
        keys = self._keys_of_newest(group)
        [rows] = await self._arun(self._call("newest", keys, after, limit, READ_BYTES))
        return _entries(rows)

    async def achanged(
        self, cursor: _Cursor | None, groups: Container[str]
    ) -> tuple[Iterable[Hint] | None, Cursor]:
        since = "" if cursor is None else cursor.score
        [(run, score, names)] = await self._arun(self._call("changes", [self._changes], since))
        now = _Cursor(run, score)
        if cursor is None or names is None or run != cursor.run or score < cursor.score:
            # Redis may have forgotten events that this hub has seen, even before the first cursor.
            return None, now
        changed = [name for name in map(bytes.decode, names) if name in groups]
        states = await self.astates(changed)
        return [
            Hint(name, state.head, state.cancelled, producer=state.producer)
            for name, state in states.items()
        ], now

    async def alapsed(self, seconds: float) -> list[Lease]:
        age = seconds * 1_000_000
        lapsed: list[Lease] = []
        is_last = False
        while not is_last:
            # Those that have lapsed stay in the set until they are closed.
            call = self._call("lapsed", [self._producing], age, len(lapsed), _LAPSED_STEPS)
            [names] = await self._arun(call)
            is_last = len(names) < _LAPSED_STEPS
            groups = [name.decode() for name in names]
            replies = await self._arun(*(self._call("lease", self._keys(name)) for name in groups))
            leases = [Lease(group, *reply) for group, reply in zip(groups, replies, strict=True)]
            lapsed += [lease for lease in leases if lease.producer]
            if ended := [lease.group for lease in leases if not lease.producer]:
                await self._arun(self._call("ended", [self._producing], age, *ended))
        return lapsed

    async def anew_run(self, group: str, above: int) -> GroupState:
        reply, _ = await self._arun(
            self._call("new_run", self._keys(group), above), self._mark([group])
        )
        return _state(reply)

    async def aclose(self) -> None:
        await super().aclose()
        await self._disconnect()

    async def _disconnect(self) -> None:
        if reader := self._readers.get(asyncio.get_running_loop()):
            # Reads under way go on. Their connections are closed when the loop ends.
            await reader[0].connection_pool.disconnect(inuse_connections=False)

    async def _reader(self) -> redis.asyncio.Redis:
        loop = asyncio.get_running_loop()
        if loop not in self._readers:
            for closed in [other for other in list(self._readers) if other.is_closed()]:
                self._readers.pop(closed, None)
            pool = _pool(
                redis.asyncio.BlockingConnectionPool,
                self.url,
                **_OPTIONS,
                # A connection may have been cut while it was idle. A read can safely run twice.
                retry=AsyncRetry(NoBackoff(), 1),
                # redis-py before 6 needs this to retry at all.
                retry_on_error=[redis.ConnectionError, redis.TimeoutError],
            )
            client = redis.asyncio.Redis.from_pool(pool)
            closing = _close_at_end(client)
            self._readers[loop] = client, closing
            await anext(closing)
        return self._readers[loop][0]

    # Appending

    def _append(
        self, entries: Sequence[NewEntry], *, staged: bool = False
    ) -> tuple[list[int | None], list[Hint]]:
        groups = list(dict.fromkeys(entry.group for entry in entries))
        index = {group: position for position, group in enumerate(groups, 1)}
        keys = [key for group in groups for key in self._keys(group)]
        if any(entry.wire.startswith(KEY_FIELD) for entry in entries):
            keys += [key for group in groups for key in self._keys_of_newest(group)]
        reply, *_ = self._run(
            self._call(
                "append",
                keys,
                len(groups),
                conf().MAX_KEYS,
                int(staged),
                *(
                    argument
                    for entry in entries
                    for argument in (
                        index[entry.group],
                        entry.kind.name,
                        entry.wire,
                        entry.exclude,
                        entry.at,
                        entry.producer,
                    )
                ),
            ),
            # A separate command, since the keys of a script must be in one slot of a cluster. It
            # follows the append, so that whoever is told of a change finds it.
            self._mark(groups),
            *self._mark_producing(entries),
        )
        if isinstance(reply, list) and isinstance(reply[0], int):
            why, position = reply
            raise _REFUSALS[why](groups[position - 1])
        text, *closings = reply if isinstance(reply, list) else [reply, *[b""] * len(groups)]
        words = [int(word) for word in text.split()]
        numbers, states = words[: len(entries)], iter(words[len(entries) :])
        numbered: dict[str, list[Entry]] = {group: [] for group in groups}
        for entry, number in zip(entries, numbers, strict=True):
            if number:
                closes = entry.kind is not Kind.EVENT
                numbered[entry.group].append(Entry(number, entry.wire, closes, entry.exclude))
        hints = []
        for group, head, cancelled, closing in zip(groups, states, states, closings, strict=True):
            if closing:
                numbered[group].append(Entry(head, closing, closes=True))
            hints.append(Hint(group, head, bool(cancelled), tuple(numbered[group])))
        return [number or None for number in numbers], hints

    # Redis

    def _ask_time(self) -> float:
        seconds, microseconds = self._publisher.time()
        return float(seconds + microseconds / 1_000_000)

    @property
    def _publisher(self) -> redis.Redis:
        # All threads share one client.
        with self._client_lock:
            if self._client is None:
                pool = _pool(
                    redis.BlockingConnectionPool,
                    self.url,
                    **_OPTIONS,
                    retry=Retry(NoBackoff(), 0),
                )
                self._client = redis.Redis(connection_pool=pool)
                # Closes the pool once neither the store nor a thread uses the client. A process
                # that ends needs no help, and its other threads may still publish.
                finalize(self._client, pool.disconnect).atexit = False
            return self._client

    @property
    def _changes(self) -> str:
        return f"{self._prefix}:changed"

    @property
    def _producing(self) -> str:
        return f"{self._prefix}:producing"

    def _keys(self, group: str) -> list[str]:
        tag = self._tag(group)
        return [f"{tag}:group", f"{tag}:events"]

    def _keys_of_newest(self, group: str) -> list[str]:
        tag = self._tag(group)
        return [f"{tag}:newest", f"{tag}:keys"]

    def _tag(self, group: str) -> str:
        # The text in braces chooses the slot in a cluster.
        return f"{{{self._prefix}:{plain(group)}}}"

    def _call(self, operation: str, keys: Sequence[str], *arguments: Any) -> _Call:
        """Return the arguments of EVALSHA after the script's name."""
        common = (
            operation,
            int(self._durable),
            conf().HISTORY_SIZE,
            _milliseconds(conf().HISTORY_AGE),
            _milliseconds(conf().GROUP_TTL),
            _milliseconds(conf().CANCEL_TTL),
            _milliseconds(conf().PRODUCER_KEEP),
        )
        return (len(keys), *keys, *common, *arguments)

    def _mark(self, groups: Sequence[str]) -> _Call:
        return self._call("mark", [self._changes], *groups)

    def _mark_producing(self, entries: Sequence[NewEntry]) -> list[_Call]:
        groups = {entry.group for entry in entries if entry.kind in _LEASING}
        return [self._call("producing", [self._producing], *groups)] if groups else []

    def _state_calls(self, groups: Sequence[str]) -> list[_Call]:
        return [self._call("state", self._keys(group)) for group in groups]

    def _run(self, *calls: _Call) -> list[Any]:
        """Run the script for each of the calls in one round trip, from any thread."""
        client = self._publisher
        replies = _execute(client, calls)
        if (done := _count_until_refused(replies)) < len(calls):
            self._replace(client)
            client = self._publisher
            replies[done:] = _execute(client, calls[done:])
            if _count_until_refused(replies) < len(calls):
                self._replace(client)
        return _raise_first_error(replies)

    async def _arun(self, *calls: _Call) -> list[Any]:
        """Run the script for each of the calls in one round trip, on the running loop."""
        task = asyncio.current_task()
        cancelling = task.cancelling() if task else 0
        client = await self._reader()
        replies = await _aexecute(client, calls)
        if (done := _count_until_refused(replies)) < len(calls):
            await self._disconnect()
            replies[done:] = await _aexecute(client, calls[done:])
            if _count_until_refused(replies) < len(calls):
                await self._disconnect()
        if task and task.cancelling() > cancelling:
            # redis-py has been seen to swallow the cancellation.
            raise asyncio.CancelledError
        return _raise_first_error(replies)

    def _replace(self, client: redis.Redis) -> None:
        """Use a new client from now on. Calls of other threads under way keep the old one."""
        with self._client_lock:
            if self._client is client:
                self._client = None

    # Configuration

    def check(self) -> list[checks.CheckMessage]:
        try:
            _pool(redis.BlockingConnectionPool, self.url, **_OPTIONS).make_connection()
        except (AttributeError, ImproperlyConfigured, TypeError, ValueError, redis.RedisError):
            return [
                checks.Error(
                    _BAD_URL,
                    hint='Use a URL like "redis://user:password@host:6379/0" or '
                    '"unix:///run/redis.sock". Other options of redis-py go into its query.',
                    id="django_sse.E005",
                )
            ]
        return []


@sensitive_variables()
def _pool(kind: type[Any], url: str, **options: Any) -> Any:
    try:
        return kind.from_url(url, **options)
    except (AttributeError, ValueError):
        raise ImproperlyConfigured(_BAD_URL) from None


async def _close_at_end(client: redis.asyncio.Redis) -> AsyncGenerator[None]:
    """Close a client when its loop ends: a loop that shuts down closes its async generators."""
    try:
        yield
    finally:
        await client.aclose()


def _entries(rows: Sequence[tuple[bytes, Sequence[bytes]]]) -> list[Entry]:
    return [
        Entry(
            int(number),
            fields[b"wire"],
            fields[b"closes"] == b"1",
            fields.get(b"exclude", b"").decode(),
            int(milliseconds) / 1000,
        )
        for stream_id, flat in rows
        for fields in [dict(zip(flat[::2], flat[1::2], strict=True))]
        for number, milliseconds in [stream_id.split(b"-")]
    ]


def _milliseconds(seconds: float) -> int | str:
    return max(int(seconds * 1000), 1) if seconds else ""


def _state(reply: Sequence[int]) -> GroupState:
    first, head, oldest, cancelled, origin, producer = reply
    return GroupState(first, head, oldest, bool(cancelled), origin, producer)


def _by_group(groups: Sequence[str], replies: Sequence[Any]) -> dict[str, GroupState]:
    return {group: _state(reply) for group, reply in zip(groups, replies, strict=True)}


def _queue(pipe: Any, calls: Iterable[_Call]) -> Any:
    for call in calls:
        pipe.evalsha(_SHA, *call)
    return pipe


def _execute(client: redis.Redis, calls: Sequence[_Call]) -> list[Any]:
    # Not through a pipeline of redis-py, which takes longer than all else that publishing does.
    pool = client.connection_pool
    connection: Any = pool.get_connection(*_COMMAND_NAME)
    try:
        replies = _replies(connection, calls)
        if (done := _count_until_unknown(replies)) < len(calls):
            connection.send_command("SCRIPT LOAD", _SCRIPT)
            connection.read_response()
            replies[done:] = _replies(connection, calls[done:])
    except BaseException:
        # A reply that was not read would be taken for another call's.
        connection.disconnect()
        raise
    finally:
        pool.release(connection)
    return replies


def _replies(connection: Any, calls: Sequence[_Call]) -> list[Any]:
    commands = [("EVALSHA", _SHA, *call) for call in calls]
    connection.send_packed_command(connection.pack_commands(commands))
    replies = []
    for _ in calls:
        try:
            replies.append(connection.read_response())
        except ResponseError as error:
            replies.append(error)
    return replies


async def _aexecute(client: redis.asyncio.Redis, calls: Sequence[_Call]) -> list[Any]:
    async with client.pipeline(transaction=False) as pipe:
        replies: list[Any] = await _queue(pipe, calls).execute(raise_on_error=False)
        if (done := _count_until_unknown(replies)) < len(calls):
            await client.script_load(_SCRIPT)
            replies[done:] = await _queue(pipe, calls[done:]).execute(raise_on_error=False)
    return replies


def _count_until_unknown(replies: Sequence[Any]) -> int:
    """Return how many calls came before the first one for which the server lacked the script.

    This call and all later ones are made again in the same order. Later calls that succeeded can
    run twice, since an append is always the first call.
    """
    for n, reply in enumerate(replies):
        if isinstance(reply, NoScriptError):
            return n
    return len(replies)


def _count_until_refused(replies: Sequence[Any]) -> int:
    """Return how many calls came before the first one that the wrong server refused.

    Such an error is a reply and drops no connection, although the address leads to another server
    after a failover. Nothing was done: a server refuses a script before it writes.
    """
    for n, reply in enumerate(replies):
        if isinstance(reply, Exception) and _is_of_wrong_server(reply):
            return n
    return len(replies)


def _is_of_wrong_server(error: Exception) -> bool:
    # Redis before 7 puts the reason somewhere in the text of a script's error.
    return isinstance(error, _WRONG_SERVER) or (
        isinstance(error, ResponseError) and _WRONG_SERVER_CODES.search(str(error)) is not None
    )


def _raise_first_error(replies: list[Any]) -> list[Any]:
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply
    return replies
