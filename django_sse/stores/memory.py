"""Keeps events in this process: for one process, for tests, and for development."""

from collections import OrderedDict, deque
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from threading import Lock
from time import monotonic

from django.db import DEFAULT_DB_ALIAS

from django_sse.conf import conf
from django_sse.stores.base import (
    Cursor,
    Entry,
    EventStore,
    GroupState,
    Hint,
    NewEntry,
    Numbering,
    first_number,
)


@dataclass(slots=True)
class _Group:
    first: int = 0
    head: int = 0
    cancelled: bool = False
    closing: bytes = b""
    entries: deque[Entry] = field(default_factory=deque)
    # When each of the entries was appended, and the group last changed (monotonic seconds).
    times: deque[float] = field(default_factory=deque)
    changed: float = 0.0
    change: int = 0

    def trim(self) -> None:
        history_age = conf().HISTORY_AGE
        expired = monotonic() - history_age if history_age else 0.0
        while self.entries and (len(self.entries) > conf().HISTORY_SIZE or self.times[0] < expired):
            self.entries.popleft()
            self.times.popleft()

    @property
    def state(self) -> GroupState:
        oldest = self.entries[0].number if self.entries else self.head + 1
        return GroupState(self.first, self.head, oldest, self.cancelled)


class MemoryStore(EventStore):
    """Events of this process, lost with it. No other process can publish to its streams.

    Within a transaction, a cancel or a reopen counts from the commit on.
    """

    crosses_processes = False

    def __init__(self, *, using: str = DEFAULT_DB_ALIAS) -> None:
        super().__init__(using=using)
        self._lock = Lock()
        # In the order of their last change, which is also the order in which they expire.
        self._groups: OrderedDict[str, _Group] = OrderedDict()
        self._change = 0

    def states(self, groups: Sequence[str]) -> dict[str, GroupState]:
        with self._lock:
            return {group: self._trimmed(group).state for group in groups}

    async def astates(self, groups: Sequence[str]) -> dict[str, GroupState]:
        return self.states(groups)

    async def aread(self, group: str, after: int, limit: int) -> list[Entry]:
        with self._lock:
            entries = self._trimmed(group).entries
            skipped = max(after + 1 - entries[0].number, 0) if entries else 0
            return list(islice(entries, skipped, skipped + limit))

    async def achanged(
        self, cursor: Cursor, groups: Container[str]
    ) -> tuple[Iterable[Hint], Cursor]:
        with self._lock:
            hints = []
            for name, group in reversed(self._groups.items()):
                if cursor is None or group.change <= cursor:
                    break
                if name in groups:
                    hints.append(Hint(name, group.head, group.cancelled))
            return hints, self._change

    async def anew_run(self, group: str, above: int) -> GroupState:
        with self._lock:
            kept = self._groups.setdefault(group, _Group())
            if kept.head < above:
                kept.head = max(first_number(), above + 1)
                kept.first = kept.first or kept.head
                kept.entries.clear()
                kept.times.clear()
                self._touch(group)
            return kept.state

    def _append(
        self, entries: Sequence[NewEntry], *, staged: bool = False
    ) -> tuple[list[int | None], list[Hint]]:
        with self._lock:
            turns: dict[str, Numbering] = {}
            numbers = []
            for entry in entries:
                if entry.group not in turns:
                    group = self._groups.get(entry.group) or _Group()
                    turns[entry.group] = Numbering(
                        entry.group, group.head, group.cancelled, group.closing
                    )
                numbers.append(turns[entry.group].take(entry, staged=staged))
            hints = [turn.finish() for turn in turns.values()]
            for turn in turns.values():
                self._keep(turn)
            self._forget_idle_groups()
            return numbers, hints

    def _trimmed(self, name: str) -> _Group:
        group = self._groups.get(name) or _Group()
        group.trim()
        return group

    def _keep(self, turn: Numbering) -> None:
        if not turn.numbered and turn.group not in self._groups:
            return
        group = self._groups.setdefault(turn.group, _Group())
        self._touch(turn.group)
        group.head, group.cancelled, group.closing = turn.head, turn.cancelled, turn.closing
        if turn.numbered and not group.first:
            group.first = turn.numbered[0].number
        group.entries.extend(turn.numbered)
        group.times.extend([group.changed] * len(turn.numbered))
        group.trim()

    def _touch(self, name: str) -> None:
        self._groups.move_to_end(name)
        self._change += 1
        group = self._groups[name]
        group.change, group.changed = self._change, monotonic()

    def _forget_idle_groups(self) -> None:
        if (ttl := conf().GROUP_TTL) is None:
            return
        expired = monotonic() - ttl
        while self._groups and next(iter(self._groups.values())).changed < expired:
            self._groups.popitem(last=False)
