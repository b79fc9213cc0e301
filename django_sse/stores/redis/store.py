"""Keeps events in Redis Streams: for processes on any number of machines."""

import asyncio
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import cached_property
from itertools import chain, islice
from typing import Any, Final, NamedTuple

import redis
from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.db import DEFAULT_DB_ALIAS
from redis.exceptions import ClusterCrossSlotError

from django_sse.concurrency.tasks import heeding_cancel
from django_sse.conf import Conf, conf
from django_sse.event import KEY_FIELD
from django_sse.exceptions import (
    AlreadyProducing,
    EventStreamError,
    GroupCancelled,
    PartlyPublished,
)
from django_sse.groups.entries import Entry, GroupState, Hint, Kind, Lease, NewEntry
from django_sse.groups.numbering import HeadMoved
from django_sse.stores.base import Cursor, EventStore, most_changes
from django_sse.stores.clock import StoreClock
from django_sse.stores.read_limits import READ_BYTES
from django_sse.stores.redis.discovery import ClusterDiscovery, SentinelDiscovery
from django_sse.stores.redis.doorbell_messages import doorbell_secret
from django_sse.stores.redis.keys import ClusterKeys, Keys
from django_sse.stores.redis.notifications import RedisNotifications
from django_sse.stores.redis.routing import RoutedServers
from django_sse.stores.redis.script import Call, raise_first_error, typed
from django_sse.stores.redis.servers import OPTIONS, OneServer, Servers
from django_sse.stores.redis.url import BAD_URL, Place, place_in, pool_of

# How many states are asked for at a time.
_STATES: Final = 500
# How many groups are looked for at a time whose producers may have died.
_LAPSED_STEPS: Final = 100
# What begins or renews a lease.
_LEASING: Final = (Kind.BEGIN, Kind.RENEW, Kind.HAND_OVER)
# What may be refused even if it comes from no producer.
_REFUSABLE: Final = (Kind.EVENT, Kind.EXPECT)
# Why the script refuses an entry.
_REFUSALS: Final[dict[int, Callable[[str], Exception]]] = {
    -1: GroupCancelled,
    -2: AlreadyProducing,
    -3: HeadMoved,
}
_SURE: Final = (GroupCancelled, AlreadyProducing, HeadMoved)


class _Cursor(NamedTuple):
    """The run and the newest change of each shard."""

    runs: tuple[bytes, ...]
    scores: tuple[int, ...]


class RedisStore(EventStore):
    """Keeps events in Redis: on one server, in a Redis Cluster, or where Sentinels say.

    Redis may forget what it acknowledged when it restarts or another server takes over. The store
    notices this by the server's ``run_id`` and its last promotion. If one of them changes, each
    group begins a new run of numbers as soon as it is used, and clients get a ``reset``.

    In a cluster, groups are kept in a few slots, each with a set of changes. A call appends to all
    groups of a slot or to none. A group goes on with its numbers if its slot moves to a server that
    cannot have lost any of its events since.

    Inside a transaction on ``using``, a cancel or a reopen takes effect at the commit. If the
    process dies between the commit and its hook, what it published is lost.

    Publishing raises redis-py's own errors. It tries again only if the server refused the command,
    for example because it is not the master any more. Any other repetition could publish an event
    twice.

    Args:
        url: The URL of the server, in the form that redis-py accepts. Or
            ``redis+cluster://host:6379,host:6379``, or
            ``redis+sentinel://host:26379,host:26379/service/0``.
        prefix: The prefix of the keys in Redis, without braces in a cluster.
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
        self._known_limits: tuple[Conf | None, str] = (None, "")

    @cached_property
    def _place(self) -> Place | None:
        return place_in(self.url)

    @cached_property
    def _keys(self) -> Keys:
        if self._place:
            is_cluster = self._place.service is None
            return ClusterKeys(self._prefix) if is_cluster else Keys(self._prefix, self._place.db)
        return Keys(self._prefix, self._server["db"])

    @cached_property
    def _marks_apart(self) -> bool:
        """Whether a change is marked by a call of its own, as in a cluster. There, the keys of a
        call must be in one slot, and those of a slot move to another server one after the other."""
        return isinstance(self._keys, ClusterKeys)

    @cached_property
    def _servers(self) -> Servers:
        if not self._place:
            return OneServer(self.url)
        if isinstance(self._keys, ClusterKeys):
            discovery = ClusterDiscovery(self._place, self._keys.slots)
            return RoutedServers(discovery, self._keys.slot, self._place)
        return RoutedServers(SentinelDiscovery(self._place), lambda key: 0, self._place)

    @cached_property
    def address(self) -> str:  # type: ignore[override]
        # Without the password: nobody must be able to guess it from the address.
        if place := self._place:
            hosts = [f"{host}:{port}" for host, port in sorted(place.hosts)]
            return f"{hosts} {place.service} {place.db} {self._prefix}"
        server = self._server
        where = [server.get("path") or (server["host"], server["port"]), server["db"]]
        return f"{where} {self._prefix}"

    @property
    def _server(self) -> dict[str, Any]:
        given: dict[str, Any] = pool_of(redis.ConnectionPool, self.url).connection_kwargs
        return {"host": "localhost", "port": 6379, "db": 0} | given

    @cached_property
    def notifications(self) -> RedisNotifications:  # type: ignore[override]
        return RedisNotifications(self._keys, self._servers, self._ring)

    # Reading

    def states(self, groups: Sequence[str]) -> dict[str, GroupState]:
        return _by_group(groups, self._run(*self._state_calls(groups)))

    async def astates(self, groups: Sequence[str]) -> dict[str, GroupState]:
        return _by_group(groups, await self._arun(*self._state_calls(groups)))

    async def aread(self, group: str, after: int, limit: int) -> list[Entry]:
        call = self._call("read", self._keys.of_group(group), max(after + 1, 0), limit, READ_BYTES)
        [rows] = await self._arun(call)
        return _entries(rows)

    async def anewest(self, group: str, after: int, limit: int) -> list[Entry]:
        keys = self._keys.of_newest(group)
        [rows] = await self._arun(self._call("newest", keys, after, limit, READ_BYTES))
        return _entries(rows)

    async def achanged(
        self, cursor: _Cursor | None, groups: Collection[str]
    ) -> tuple[Iterable[Hint] | None, Cursor]:
        since = [""] * len(self._keys.shards) if cursor is None else cursor.scores
        most = most_changes(groups) // len(self._keys.shards)
        replies = await self._arun(
            *(
                self._call("changes", [self._keys.changes(shard)], score, most)
                for shard, score in zip(self._keys.shards, since, strict=True)
            )
        )
        runs, scores, changed = zip(*replies, strict=True)
        now = _Cursor(runs, scores)
        if cursor is None or None in changed or _went_back(cursor, now):
            # Redis may have forgotten events that this hub has seen, even before the first cursor.
            return None, now
        names = iter(self._names(changed, groups))
        hints: list[Hint] = []
        while some := list(islice(names, _STATES)):
            hints += [
                Hint(name, state.head, state.cancelled, producer=state.producer)
                for name, state in (await self.astates(some)).items()
            ]
        return hints, now

    def _names(self, changed: Iterable[Sequence[bytes] | int], groups: Collection[str]) -> set[str]:
        """Return which of some groups may have changed, given those of each shard that have, or the
        number of these if they are too many."""
        names: set[str] = set()
        too_many = set()
        for shard, of_shard in zip(self._keys.shards, changed, strict=True):
            if isinstance(of_shard, int):
                too_many.add(shard)
            else:
                names.update(name for name in map(bytes.decode, of_shard) if name in groups)
        if too_many:
            names.update(group for group in groups if self._keys.shard(group) in too_many)
        return names

    async def alapsed(self, seconds: float) -> list[Lease]:
        age = seconds * 1_000_000
        of_shards = await asyncio.gather(
            *(self._alapsed(self._keys.producing(shard), age) for shard in self._keys.shards)
        )
        return list(chain.from_iterable(of_shards))

    async def _alapsed(self, producing: str, age: float) -> list[Lease]:
        lapsed: list[Lease] = []
        is_last = False
        while not is_last:
            # Those that have lapsed stay in the set until they are closed.
            call = self._call("lapsed", [producing], age, len(lapsed), _LAPSED_STEPS)
            [names] = await self._arun(call)
            is_last = len(names) < _LAPSED_STEPS
            groups = [name.decode() for name in names]
            replies = await self._arun(
                *(self._call("lease", self._keys.of_group(name)) for name in groups)
            )
            leases = [Lease(group, *reply) for group, reply in zip(groups, replies, strict=True)]
            lapsed += [lease for lease in leases if lease.producer]
            if ended := [lease.group for lease in leases if not lease.producer]:
                await self._arun(self._call("ended", [producing], age, *ended))
        return lapsed

    async def anew_run(self, group: str, above: int) -> GroupState:
        reply, _ = await self._arun(
            self._call("new_run", self._keys.of_group(group), above),
            self._mark(self._keys.shard(group), [group]),
        )
        return _state(reply)

    async def aclose(self) -> None:
        await super().aclose()
        if "_servers" in vars(self):
            await self._servers.adisconnect()

    # Appending

    def _append(
        self, entries: Sequence[NewEntry], *, staged: bool = False
    ) -> tuple[list[int | None], list[Hint]]:
        shards: dict[int, list[NewEntry]] = {}
        for entry in entries:
            shards.setdefault(self._keys.shard(entry.group), []).append(entry)
        if len(shards) == 1:
            [shard] = shards
            marks_apart = self._marks_apart
            replies = self._servers.run(
                self._append_calls(shard, entries, staged=staged, marks_apart=marks_apart)
            )
            if not marks_apart and isinstance(typed(replies[0]), ClusterCrossSlotError):
                # The one server is of a cluster, and has appended nothing.
                self._marks_apart = True
                return self._append(entries, staged=staged)
            return _appended(entries, _append_reply(replies))
        if not staged and any(map(_can_be_refused, entries)):
            checked = self._run(*(self._check_call(part) for part in shards.values()))
            for part, reply in zip(shards.values(), checked, strict=True):
                _raise_refusal(part, reply)
        return self._append_to_several(entries, shards, staged=staged)

    def _append_to_several(
        self, entries: Sequence[NewEntry], shards: dict[int, list[NewEntry]], *, staged: bool
    ) -> tuple[list[int | None], list[Hint]]:
        """Append to several shards at once.

        Raises:
            PartlyPublished: Some shards have failed.
            Exception: All of them have failed: the error of one.
        """
        numbers: dict[int, list[int | None]] = {}
        hints: list[Hint] = []
        failures: dict[int, Exception] = {}
        # What expects a group's head goes first: nothing else happens if it is refused.
        expecting = {s for s, part in shards.items() if any(e.kind is Kind.EXPECT for e in part)}
        for turn in (expecting, shards.keys() - expecting):
            if failures:
                failures |= dict.fromkeys(turn, next(iter(failures.values())))
                break
            calls = {
                s: self._append_calls(s, shards[s], staged=staged, marks_apart=self._marks_apart)
                for s in shards
                if s in turn
            }
            replies = iter(self._servers.run(list(chain.from_iterable(calls.values()))))
            for shard, of_shard in calls.items():
                try:
                    reply = _append_reply([next(replies) for _ in of_shard])
                    numbers[shard], more = _appended(shards[shard], reply)
                    hints += more
                except Exception as error:
                    failures[shard] = error
        if failures:
            # What says that nothing was done comes last: others may not be sure.
            first = min(failures.values(), key=lambda error: isinstance(error, _SURE))
            if not numbers:
                raise first
            failed = [entry.group for shard in failures for entry in shards[shard]]
            raise PartlyPublished([hint.group for hint in hints], failed, hints) from first
        of_shards = {shard: iter(given) for shard, given in numbers.items()}
        return [next(of_shards[self._keys.shard(entry.group)]) for entry in entries], hints

    def _append_calls(
        self, shard: int, entries: Sequence[NewEntry], *, staged: bool, marks_apart: bool
    ) -> list[Call]:
        groups = _groups_of(entries)
        if marks_apart:
            calls = [
                self._entries_call("append", groups, entries, staged=staged),
                # It follows the append, so that whoever is told of a change finds it.
                self._mark(shard, groups),
            ]
        else:
            changes = self._keys.changes(shard)
            calls = [self._entries_call("append", groups, entries, changes, staged=staged)]
        if producing := {entry.group for entry in entries if entry.kind in _LEASING}:
            calls.append(self._call("producing", [self._keys.producing(shard)], *producing))
        return calls

    def _check_call(self, entries: Sequence[NewEntry]) -> Call:
        return self._entries_call("check", _groups_of(entries), entries, staged=False)

    def _entries_call(
        self,
        operation: str,
        groups: Sequence[str],
        entries: Sequence[NewEntry],
        *more_keys: str,
        staged: bool,
    ) -> Call:
        index = {group: position for position, group in enumerate(groups, 1)}
        keys = [key for group in groups for key in self._keys.of_group(group)]
        arguments: list[Any] = []
        have_keys = False
        for group, wire, kind, exclude, at, producer in entries:
            arguments += (f"{index[group]} {kind.name} {at} {producer} {exclude}", wire)
            have_keys = have_keys or wire.startswith(KEY_FIELD)
        if have_keys:
            keys += [key for group in groups for key in self._keys.of_newest(group)]
        return self._call(
            operation,
            [*keys, *more_keys],
            len(groups),
            int(staged),
            self._keys.publishing,
            doorbell_secret(),
            *map(self._keys.channel, groups),
            *arguments,
        )

    # Redis

    def _ask_time(self) -> float:
        [(seconds, microseconds)] = self._run(self._call("time", [self._keys.changes(0)]))
        return int(seconds) + int(microseconds) / 1_000_000

    def _call(self, operation: str, keys: Sequence[str], *arguments: Any) -> Call:
        """Return the arguments of EVALSHA after the script's name."""
        trust = "1" if self._durable else self._servers.trust
        return (len(keys), *keys, operation, trust, self._limits(), *arguments)

    def _limits(self) -> str:
        settings, limits = self._known_limits
        if settings is not conf():
            settings = conf()
            limits = (
                f"{settings.HISTORY_SIZE} {settings.MAX_KEYS} "
                f"{_milliseconds(settings.HISTORY_AGE)} {_milliseconds(settings.GROUP_TTL)} "
                f"{_milliseconds(settings.CANCEL_TTL)} {_milliseconds(settings.PRODUCER_KEEP)}"
            )
            # Kept, since it is sent with each call.
            self._known_limits = settings, limits
        return limits

    def _mark(self, shard: int, groups: Sequence[str]) -> Call:
        return self._call("mark", [self._keys.changes(shard)], *groups)

    def _ring(self, shard: int, channel: str, message: str) -> Call:
        keys = self._keys
        return self._call("ring", [keys.changes(shard)], keys.publishing, channel, message)

    def _state_calls(self, groups: Sequence[str]) -> list[Call]:
        return [self._call("state", self._keys.of_group(group)) for group in groups]

    def _run(self, *calls: Call) -> list[Any]:
        """Run the script for each of the calls in one round trip, from any thread."""
        return raise_first_error(self._servers.run(calls))

    async def _arun(self, *calls: Call) -> list[Any]:
        """Run the script for each of the calls in one round trip, on the running loop."""
        return raise_first_error(await heeding_cancel(self._servers.arun(calls)))

    # Configuration

    def forget(self) -> None:
        if self._durable:
            raise EventStreamError(
                'The redis store has the option "durable": True, so it notices no loss. Set it to '
                "False, which resets all clients, and then back."
            )

    def check(self) -> list[checks.CheckMessage]:
        try:
            if self._place:
                return self._servers.check()
            pool_of(redis.BlockingConnectionPool, self.url, **OPTIONS).make_connection()
        except ImproperlyConfigured as error:
            problem = str(error)
        except (AttributeError, TypeError, ValueError, redis.RedisError):
            problem = BAD_URL
        else:
            return []
        return [
            checks.Error(
                problem,
                hint='Use a URL like "redis://user:password@host:6379/0", '
                '"unix:///run/redis.sock", "redis+cluster://host:6379,host:6379" or '
                '"redis+sentinel://host:26379,host:26379/service/0"; with rediss in place of '
                "redis for TLS. Other options of redis-py go into its query.",
                id="django_sse.E005",
            )
        ]


def _groups_of(entries: Iterable[NewEntry]) -> list[str]:
    return list(dict.fromkeys([entry.group for entry in entries]))


def _can_be_refused(entry: NewEntry) -> bool:
    return entry.kind in _REFUSABLE or entry.producer != 0


def _raise_refusal(entries: Sequence[NewEntry], reply: Any) -> None:
    """Raise what the script's reply says, if it refuses an entry.

    Raises:
        GroupCancelled, AlreadyProducing, HeadMoved: As for ``EventStore.append``.
    """
    if isinstance(reply, list) and isinstance(reply[0], int):
        why, position = reply
        raise _REFUSALS[why](_groups_of(entries)[position - 1])


def _appended(entries: Sequence[NewEntry], reply: Any) -> tuple[list[int | None], list[Hint]]:
    """Return what an append's reply says: a number for each entry, and a hint for each group.

    Raises:
        GroupCancelled, AlreadyProducing, HeadMoved: As for ``EventStore.append``.
    """
    _raise_refusal(entries, reply)
    numbered: dict[str, list[Entry]] = {entry.group: [] for entry in entries}
    text, *closings = reply if isinstance(reply, list) else [reply, *[b""] * len(numbered)]
    words = [int(word) for word in text.split()]
    numbers, states = words[: len(entries)], iter(words[len(entries) :])
    for entry, number in zip(entries, numbers, strict=True):
        if number:
            closes = entry.kind is not Kind.EVENT
            numbered[entry.group].append(Entry(number, entry.wire, closes, entry.exclude))
    hints = []
    for group, head, cancelled, closing in zip(numbered, states, states, closings, strict=True):
        if closing:
            numbered[group].append(Entry(head, closing, closes=True))
        hints.append(Hint(group, head, bool(cancelled), tuple(numbered[group])))
    return [number or None for number in numbers], hints


def _append_reply(replies: Sequence[Any]) -> Any:
    """Return the reply to an append, given that and the replies to what follows from it.

    Raises:
        Exception: The append has failed.
        redis.ConnectionError: What follows has failed.
    """
    first, *others = replies
    if isinstance(first, Exception):
        raise first
    for reply in others:
        if isinstance(reply, Exception):
            # Not the error itself: a refusal would say that nothing was published.
            raise redis.ConnectionError(
                "The events are published, but streams may hear late of them, or of their producer."
            ) from reply
    return first


def _went_back(before: _Cursor, now: _Cursor) -> bool:
    return before.runs != now.runs or any(
        score < known for known, score in zip(before.scores, now.scores, strict=True)
    )


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


def _milliseconds(seconds: float) -> str:
    return str(max(int(seconds * 1000), 1)) if seconds else "-"


def _state(reply: Sequence[int]) -> GroupState:
    first, head, oldest, cancelled, origin, producer = reply
    return GroupState(first, head, oldest, bool(cancelled), origin, producer)


def _by_group(groups: Sequence[str], replies: Sequence[Any]) -> dict[str, GroupState]:
    return {group: _state(reply) for group, reply in zip(groups, replies, strict=True)}
