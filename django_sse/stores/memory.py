"""Keeps events in this process: for one process, for tests, and for development."""

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import islice
from math import inf
from threading import Lock
from time import monotonic, time
from typing import Final

from django.db import DEFAULT_DB_ALIAS

from django_sse.concurrency.forks import forget_in_child
from django_sse.conf import conf
from django_sse.event import key_of
from django_sse.groups.entries import Entry, GroupState, Hint, Kind, Lease, NewEntry
from django_sse.groups.names import OWNER_PREFIX
from django_sse.groups.numbering import Numbering, first_number
from django_sse.groups.replay import filling
from django_sse.stores.base import Cursor, EventStore, most_changes
from django_sse.stores.read_limits import READ_BYTES

# How often publishing looks for what has expired in other groups.
_DROP_SECONDS: Final = 0.1
# How many changes are remembered for `achanged`. After more changes, it looks at all groups that it
# is asked about.
_CHANGES: Final = 10_000


@dataclass(slots=True)
class _Group:
    name: str = ""
    first: int = 0
    head: int = 0
    cancelled: bool = False
    closing: bytes = b""
    # Each entry, and when it was appended (monotonic seconds).
    entries: deque[tuple[Entry, float]] = field(default_factory=deque)
    # When the group last changed (monotonic seconds), and which of all changes that was.
    changed: float = 0.0
    change: int = 0
    producer: int = 0
    renewed: int = 0
    # The newest entry of each key, in order, and when it was appended.
    newest: dict[bytes, tuple[Entry, float]] = field(default_factory=dict)
    # Its time on the agenda of those whose events get old; 0 if it has none.
    aging_since: float = 0.0

    def needs_only_a_number(self, entry: NewEntry) -> bool:
        """Whether an entry is an event that only needs the next number, as most are."""
        return (
            entry.kind is Kind.EVENT
            and not (self.cancelled or self.producer or entry.producer)
            and self.head > 0
        )

    def add(self, entry: Entry, now: float) -> None:
        """Keep a new entry, and as the newest of its key if it has one."""
        kept = entry, now
        self.entries.append(kept)
        if (key := key_of(entry.wire)) is not None:
            self.newest.pop(key, None)
            self.newest[key] = kept

    def trim(self, since: float, now: float) -> None:
        """Drop the keys and the entries that are too many, old keys, and entries of before a time.

        Args:
            since: The time, in seconds by ``monotonic``.
            now: The present time.
        """
        while self.newest:
            key, (_, appended) = next(iter(self.newest.items()))
            if len(self.newest) <= conf().MAX_KEYS and appended >= _since(now, conf().GROUP_TTL):
                break
            del self.newest[key]
        entries, most = self.entries, conf().HISTORY_SIZE
        while entries and (len(entries) > most or entries[0][1] < since) and not self.keeps_all:
            entries.popleft()

    @property
    def keeps_all(self) -> bool:
        """Whether the group has a producer, or had one until shortly."""
        since_end = first_number() - self.renewed if self.renewed else inf
        return bool(self.producer) or since_end < conf().PRODUCER_KEEP * 1_000_000

    @property
    def state(self) -> GroupState:
        oldest = self.entries[0][0].number if self.entries else self.head + 1
        return GroupState(self.first, self.head, oldest, self.cancelled, producer=self.producer)


class _Agenda:
    """The names of groups, each to be looked at when a time is over."""

    def __init__(self) -> None:
        self._due: list[tuple[float, str]] = []

    def add(self, at: float, name: str) -> None:
        """Add a name with its time, in seconds by ``monotonic``."""
        heappush(self._due, (at, name))

    def take(self, before: float) -> Iterator[tuple[float, str]]:
        """Yield and remove the names with times before another one, with these times."""
        while self._due and self._due[0][0] < before:
            yield heappop(self._due)


class MemoryStore(EventStore):
    """Keeps events in this process, which loses them when it ends. No other process can publish to
    its streams.

    Inside a transaction, a cancel or a reopen takes effect at the commit.
    """

    crosses_processes = False
    never_blocks = True

    def __init__(self, *, using: str = DEFAULT_DB_ALIAS) -> None:
        super().__init__(using=using)
        self._lock = Lock()
        # Owners' groups are kept apart, since they expire sooner.
        self._groups: dict[str, _Group] = {}
        self._of_owners: dict[str, _Group] = {}
        # When groups may expire, and when the events of groups do.
        self._expiring, self._owners_expiring, self._aging = _Agenda(), _Agenda(), _Agenda()
        # Those that have a producer.
        self._producing: dict[str, _Group] = {}
        # The names of the groups that changed last, and how many changes there were.
        self._changes: deque[str] = deque(maxlen=_CHANGES)
        self._change = 0
        # When publishing next drops what has expired in other groups.
        self._drop_again_at = 0.0
        forget_in_child(self)

    def forget(self) -> None:
        """Go on in the child of a fork. The child keeps the parent's events, unless another thread
        of the parent was changing them."""
        if self._lock.locked():
            self._groups.clear()
            self._of_owners.clear()
            self._producing.clear()
            self._expiring, self._owners_expiring, self._aging = _Agenda(), _Agenda(), _Agenda()
            self._changes.clear()
            self._lock = Lock()

    def states(self, groups: Sequence[str]) -> dict[str, GroupState]:
        with self._lock:
            return {group: self._trimmed(group).state for group in groups}

    async def astates(self, groups: Sequence[str]) -> dict[str, GroupState]:
        return self.states(groups)

    async def aread(self, group: str, after: int, limit: int) -> list[Entry]:
        with self._lock:
            entries = self._trimmed(group).entries
            skipped = max(after + 1 - entries[0][0].number, 0) if entries else 0
            return _page(islice(entries, skipped, skipped + limit))

    async def anewest(self, group: str, after: int, limit: int) -> list[Entry]:
        with self._lock:
            newest = self._trimmed(group).newest.values()
            return _page(islice((item for item in newest if item[0].number > after), limit))

    async def achanged(
        self, cursor: Cursor, groups: Collection[str]
    ) -> tuple[Iterable[Hint], Cursor]:
        with self._lock:
            hints = []
            for name in () if cursor is None else self._may_have_changed(cursor, groups):
                group = self._kept_with(name).get(name)
                if group and group.change > cursor and name in groups:
                    hints.append(Hint(name, group.head, group.cancelled, producer=group.producer))
            return hints, self._change

    def _may_have_changed(self, cursor: int, groups: Collection[str]) -> Iterable[str]:
        changes = self._change - cursor
        if changes > min(len(self._changes), most_changes(groups)):
            return list(groups)
        return dict.fromkeys(islice(reversed(self._changes), changes))

    async def atrim(self) -> None:
        with self._lock:
            self._drop_expired(monotonic())

    async def anew_run(self, group: str, above: int) -> GroupState:
        with self._lock:
            now = monotonic()
            kept = self._group(group, now)
            if kept.head < above:
                kept.head = max(first_number(), above + 1)
                kept.first = kept.first or kept.head
                kept.entries.clear()
                self._note_change(kept, now)
            return kept.state

    async def alapsed(self, seconds: float) -> list[Lease]:
        before = first_number() - seconds * 1_000_000
        with self._lock:
            return [
                Lease(name, group.producer, group.renewed)
                for name, group in self._producing.items()
                if group.renewed < before
            ]

    def _append(
        self, entries: Sequence[NewEntry], *, staged: bool = False
    ) -> tuple[list[int | None], list[Hint]]:
        numbers: list[int | None]
        with self._lock:
            now = monotonic()
            group = self._groups.get(entries[0].group) if len(entries) == 1 else None
            if group is not None and group.needs_only_a_number(entries[0]):
                hint = self._publish(group, entries[0], now)
                numbers, hints = [hint.head], [hint]
            else:
                numbers, hints = self._append_all(entries, now, staged=staged)
            if now >= self._drop_again_at:
                self._drop_expired(now)
            return numbers, hints

    def _publish(self, group: _Group, new: NewEntry, now: float) -> Hint:
        """Append an event that only needs the next number, without a ``Numbering``."""
        group.head += 1
        entry = Entry(group.head, new.wire, False, new.exclude)
        group.add(entry, now)
        group.trim(_since(now, conf().HISTORY_AGE), now)
        self._note_change(group, now)
        return Hint(new.group, group.head, False, (entry,))

    def _append_all(
        self, entries: Sequence[NewEntry], now: float, *, staged: bool
    ) -> tuple[list[int | None], list[Hint]]:
        turns: dict[str, Numbering] = {}
        numbers = []
        for entry in entries:
            turn = turns.get(entry.group)
            if turn is None:
                group = self._kept_with(entry.group).get(entry.group) or _Group()
                turn = turns[entry.group] = Numbering(
                    entry.group,
                    group.first,
                    group.head,
                    group.cancelled,
                    group.closing,
                    producer=group.producer,
                    renewed=group.renewed,
                )
            numbers.append(turn.take(entry, staged=staged))
        hints = [turn.finish() for turn in turns.values()]
        for turn in turns.values():
            self._keep(turn, now)
        return numbers, hints

    def _kept_with(self, name: str) -> dict[str, _Group]:
        return self._of_owners if name.startswith(OWNER_PREFIX) else self._groups

    def _group(self, name: str, now: float) -> _Group:
        """Return a group, which is added if it is not there."""
        groups = self._kept_with(name)
        group = groups.get(name)
        if group is None:
            group = groups[name] = _Group(name)
            expiring = self._owners_expiring if groups is self._of_owners else self._expiring
            expiring.add(now, name)
        return group

    def _trimmed(self, name: str) -> _Group:
        group = self._kept_with(name).get(name)
        now = monotonic()
        if not group or (
            name.startswith(OWNER_PREFIX) and group.changed < _since(now, conf().CANCEL_TTL)
        ):
            return _Group()
        group.trim(_kept_since(now, name), now)
        return group

    def _keep(self, turn: Numbering, now: float) -> None:
        if not (turn.numbered or turn.producer or turn.group in self._kept_with(turn.group)):
            return
        group = self._group(turn.group, now)
        if turn.first != group.first:
            group.entries.clear()
        group.first, group.head = turn.first, turn.head
        group.cancelled, group.closing = turn.cancelled, turn.closing
        self._producing.pop(turn.group, None)
        if turn.producer:
            self._producing[turn.group] = group
        group.producer, group.renewed = turn.producer, turn.renewed
        for entry in turn.numbered:
            group.add(entry, now)
        group.trim(_kept_since(now, turn.group), now)
        self._note_change(group, now)

    def _note_change(self, group: _Group, now: float) -> None:
        self._change += 1
        group.change, group.changed = self._change, now
        self._changes.append(group.name)
        if group.aging_since or not (group.entries and conf().HISTORY_AGE):
            return
        if not group.name.startswith(OWNER_PREFIX):
            self._look_again(group, now)

    def _look_again(self, group: _Group, since: float) -> None:
        """Have a group looked at when its events from a time are too old."""
        group.aging_since = since
        self._aging.add(since, group.name)

    def _drop_expired(self, now: float) -> None:
        self._drop_again_at = now + _DROP_SECONDS
        for groups, expiring, ttl in (
            (self._groups, self._expiring, conf().GROUP_TTL),
            (self._of_owners, self._owners_expiring, conf().CANCEL_TTL),
        ):
            for _, name in expiring.take(_since(now, ttl)):
                if group := groups.get(name):
                    if group.changed < _since(now, ttl):
                        del groups[name]
                        self._producing.pop(name, None)
                    else:
                        expiring.add(group.changed, name)
        since = _since(now, conf().HISTORY_AGE)
        for noted, name in self._aging.take(since):
            group = self._groups.get(name)
            # A group of that name may have expired, and another one begun.
            if group and group.aging_since == noted:
                newest = group.entries[-1][1] if group.entries else -inf
                if newest >= since or group.keeps_all:
                    # With the next look, if it keeps what is older.
                    self._look_again(group, max(newest, since))
                else:
                    group.aging_since = 0.0
                    group.trim(since, now)


def _page(items: Iterable[tuple[Entry, float]]) -> list[Entry]:
    """Return entries with their times, as many as a page holds."""
    epoch = time() - monotonic()
    page = list(items)
    count = filling((len(entry.wire) for entry, _ in page), READ_BYTES)
    return [entry._replace(time=epoch + appended) for entry, appended in page[:count]]


def _kept_since(now: float, name: str) -> float:
    # The reason for an owner's end is kept as long as the end itself.
    return _since(now, 0 if name.startswith(OWNER_PREFIX) else conf().HISTORY_AGE)


def _since(now: float, seconds: float) -> float:
    return now - seconds if seconds else -inf
