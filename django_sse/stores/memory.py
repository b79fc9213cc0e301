"""Keeps events in this process: for one process, for tests, and for development."""

from collections import OrderedDict, deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from math import inf
from threading import Lock
from time import monotonic, time
from typing import Final

from django.db import DEFAULT_DB_ALIAS

from django_sse.concurrency.forks import forget_in_child
from django_sse.conf import conf
from django_sse.event import key_of
from django_sse.groups.entries import Entry, GroupState, Hint, Lease, NewEntry
from django_sse.groups.names import OWNER_PREFIX
from django_sse.groups.numbering import Numbering, first_number
from django_sse.groups.replay import filling
from django_sse.stores.base import Cursor, EventStore
from django_sse.stores.read_limits import READ_BYTES

# How often publishing looks for what has expired in other groups.
_DROP_SECONDS: Final = 0.1


@dataclass(slots=True)
class _Group:
    first: int = 0
    head: int = 0
    cancelled: bool = False
    closing: bytes = b""
    entries: deque[Entry] = field(default_factory=deque)
    # When each entry was appended, and when the group last changed (monotonic seconds).
    times: deque[float] = field(default_factory=deque)
    changed: float = 0.0
    change: int = 0
    producer: int = 0
    renewed: int = 0
    # The newest entry of each key, in order, and when it was appended.
    newest: dict[bytes, tuple[Entry, float]] = field(default_factory=dict)

    def keep_newest(self, entry: Entry, now: float) -> None:
        """Keep an entry as the newest of its key, if it has one."""
        if (key := key_of(entry.wire)) is not None:
            self.newest.pop(key, None)
            self.newest[key] = entry, now

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
        if self.keeps_all:
            return
        while self.entries and (len(self.entries) > conf().HISTORY_SIZE or self.times[0] < since):
            self.entries.popleft()
            self.times.popleft()

    @property
    def keeps_all(self) -> bool:
        """Whether the group has a producer, or had one until shortly."""
        since_end = first_number() - self.renewed if self.renewed else inf
        return bool(self.producer) or since_end < conf().PRODUCER_KEEP * 1_000_000

    @property
    def state(self) -> GroupState:
        oldest = self.entries[0].number if self.entries else self.head + 1
        return GroupState(self.first, self.head, oldest, self.cancelled, producer=self.producer)


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
        # In the order of their last change, which is also the order in which they expire. Owners'
        # groups are kept apart, since they expire sooner.
        self._groups: OrderedDict[str, _Group] = OrderedDict()
        self._of_owners: OrderedDict[str, _Group] = OrderedDict()
        # The groups that have events, in the order in which their newest events expire.
        self._aging: OrderedDict[str, _Group] = OrderedDict()
        # Those that have a producer.
        self._producing: dict[str, _Group] = {}
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
            self._aging.clear()
            self._producing.clear()
            self._lock = Lock()

    def states(self, groups: Sequence[str]) -> dict[str, GroupState]:
        with self._lock:
            return {group: self._trimmed(group).state for group in groups}

    async def astates(self, groups: Sequence[str]) -> dict[str, GroupState]:
        return self.states(groups)

    async def aread(self, group: str, after: int, limit: int) -> list[Entry]:
        with self._lock:
            kept = self._trimmed(group)
            skipped = max(after + 1 - kept.entries[0].number, 0) if kept.entries else 0
            entries = zip(kept.entries, kept.times, strict=True)
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
            for kept in (self._groups, self._of_owners):
                for name, group in reversed(kept.items()):
                    if cursor is None or group.change <= cursor:
                        break
                    if name in groups:
                        hints.append(
                            Hint(name, group.head, group.cancelled, producer=group.producer)
                        )
            return hints, self._change

    async def atrim(self) -> None:
        with self._lock:
            self._drop_expired(monotonic())

    async def anew_run(self, group: str, above: int) -> GroupState:
        with self._lock:
            kept = self._kept_with(group).setdefault(group, _Group())
            if kept.head < above:
                kept.head = max(first_number(), above + 1)
                kept.first = kept.first or kept.head
                kept.entries.clear()
                kept.times.clear()
                self._touch(group, monotonic())
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
        with self._lock:
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
            now = monotonic()
            for turn in turns.values():
                self._keep(turn, now)
            if now >= self._drop_again_at:
                self._drop_expired(now)
            return numbers, hints

    def _kept_with(self, name: str) -> OrderedDict[str, _Group]:
        return self._of_owners if name.startswith(OWNER_PREFIX) else self._groups

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
        groups = self._kept_with(turn.group)
        if not (turn.numbered or turn.producer) and turn.group not in groups:
            return
        group = groups.get(turn.group)
        if group is None:
            group = groups[turn.group] = _Group()
        self._touch(turn.group, now)
        if turn.first != group.first:
            group.entries.clear()
            group.times.clear()
        group.first, group.head = turn.first, turn.head
        group.cancelled, group.closing = turn.cancelled, turn.closing
        self._producing.pop(turn.group, None)
        if turn.producer:
            self._producing[turn.group] = group
        group.producer, group.renewed = turn.producer, turn.renewed
        group.entries.extend(turn.numbered)
        group.times.extend([now] * len(turn.numbered))
        for entry in turn.numbered:
            group.keep_newest(entry, now)
        group.trim(_kept_since(now, turn.group), now)
        if turn.numbered and groups is self._groups:
            self._aging[turn.group] = group
            self._aging.move_to_end(turn.group)

    def _touch(self, name: str, now: float) -> None:
        groups = self._kept_with(name)
        groups.move_to_end(name)
        self._change += 1
        group = groups[name]
        group.change, group.changed = self._change, now

    def _drop_expired(self, now: float) -> None:
        self._drop_again_at = now + _DROP_SECONDS
        for groups, ttl in (
            (self._groups, conf().GROUP_TTL),
            (self._of_owners, conf().CANCEL_TTL),
        ):
            while groups and next(iter(groups.values())).changed < _since(now, ttl):
                name, _ = groups.popitem(last=False)
                self._aging.pop(name, None)
                self._producing.pop(name, None)
        since = _since(now, conf().HISTORY_AGE)
        for _ in range(len(self._aging)):
            name, group = next(iter(self._aging.items()))
            if group.times and group.times[-1] >= since:
                break
            if group.keeps_all:
                self._aging.move_to_end(name)
            else:
                del self._aging[name]
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
