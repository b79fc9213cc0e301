"""The contract of an event store: each group's recent events, and whether it is cancelled."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import IntEnum
from math import inf
from pathlib import Path
from random import uniform
from time import monotonic, time_ns
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple

from asgiref.sync import sync_to_async
from django.core import checks
from django.db import DEFAULT_DB_ALIAS, connections, transaction

from django_sse.conf import conf
from django_sse.event import Event
from django_sse.exceptions import GroupCancelled, InvalidGroup
from django_sse.stores.clock import StoreClock
from django_sse.stores.unwritten import unwritten
from django_sse.text import plain

if TYPE_CHECKING:
    from django_sse.stores.notifications import Notifications

_GROUP_NAME: Final = re.compile(r"[A-Za-z0-9\-_.]{1,99}", re.ASCII)
# In a store, behind the tenant whose it is: see `namespaces`.
_FULL_NAME: Final = re.compile(rf"(?:[A-Za-z0-9\-_.=]{{1,63}}/)?{_GROUP_NAME.pattern}", re.ASCII)

NAME_LENGTH: Final = 163
"""The characters of a group's full name, at the most."""

READ_SECONDS: Final = 4.0
"""How long a store may take to answer a read: one that hangs is one that is away."""

# How often a process trims, at the most.
_TRIM_SECONDS: Final = 60.0

MARK: Final = "~"
"""What the names of owners' groups begin with, and no other's can: see ``Kind.END``."""

MARK_LENGTH: Final = 33
"""The characters of an owner's mark, which is the name of its group."""

READ_BYTES: Final = 192 * 1024
"""The bytes of events with which a read is full, however few they are."""


def validate_group(group: str) -> str:
    """Return the group's name, as Channels allows it.

    Raises:
        InvalidGroup: Not 1 to 99 ASCII letters, digits, hyphens, underscores and full stops.
    """
    name = plain(group)
    if not isinstance(name, str) or not _GROUP_NAME.fullmatch(name):
        raise InvalidGroup(
            f"{group!r} is not a group name: it takes 1 to 99 ASCII letters, digits, "
            "hyphens, underscores and full stops."
        )
    return name


def validate_group_or_mark(name: str) -> str:
    """Return the full name of a group, or the one of an owner's.

    Raises:
        InvalidGroup: It is neither.
    """
    if not _FULL_NAME.fullmatch(name.removeprefix(MARK)):
        raise InvalidGroup(f"{name!r} is not the name of a group in a store.")
    return str(plain(name))


class Kind(IntEnum):
    """What an appended entry does."""

    EVENT = 0
    CLOSE = 1  # cancels the group
    REOPEN = 2  # brings it back; takes no number
    END = 3  # ends an owner's streams: a CLOSE that begins the group anew, numbered by the time


@dataclass(frozen=True, slots=True)
class NewEntry:
    """What is to be appended to a group: an encoded event without an id.

    ``exclude`` is the mark of the owner whose streams are left out. ``at`` is when an ``END`` was
    ordered that is written late, in microseconds since the epoch; 0 for now.
    """

    group: str
    wire: bytes
    kind: Kind = Kind.EVENT
    exclude: str = ""
    at: int = 0


@dataclass(frozen=True, slots=True)
class Entry:
    """A numbered event of a group.

    ``closes`` marks the ``close`` of a cancel; ``exclude`` is the mark of the owner whose streams
    are left out. ``time`` is when it was appended, in seconds since the epoch, where it was read
    from a store.
    """

    number: int
    wire: bytes
    closes: bool = False
    exclude: str = ""
    time: float = field(default=0.0, compare=False)


@dataclass(frozen=True, slots=True)
class GroupState:
    """Where a group stands.

    ``first`` is its first number ever, ``head`` its last, ``oldest`` the oldest one kept (head + 1
    when none is). ``origin`` is the position before its first event, and the head of a group never
    published to: 0, or what a store that may forget all has it stand for.
    """

    first: int = 0
    head: int = 0
    oldest: int = 1
    cancelled: bool = False
    origin: int = 0


@dataclass(frozen=True, slots=True)
class Hint:
    """What a doorbell says: how far a group has got, and perhaps the new entries themselves."""

    group: str
    head: int
    cancelled: bool
    entries: tuple[Entry, ...] = ()

    def encode(self) -> str:
        """Return the hint as text of at most 190 characters, without the entries."""
        return f"{plain(self.group)} {self.head} {int(self.cancelled)}"

    @classmethod
    def decode(cls, text: str) -> "Hint":
        """Return the hint that a text stands for.

        Raises:
            ValueError: It is none.
        """
        group, head, cancelled = text.split(" ")
        return cls(validate_group_or_mark(group), int(head), cancelled == "1")


@dataclass(slots=True)
class Numbering:
    """Gives the entries of one group their numbers; what every store does under its lock.

    ``closing`` is the wire of the ``close`` that a cancelled group ended with. Where ``first`` is
    another one afterwards, nothing older is kept. ``now`` returns the store's time, in microseconds
    since the epoch.
    """

    group: str
    first: int
    head: int
    cancelled: bool
    closing: bytes = b""
    now: Callable[[], int] = field(default_factory=lambda: first_number)
    numbered: list[Entry] = field(default_factory=list)

    def take(self, entry: NewEntry, *, staged: bool = False) -> int | None:
        """Number one entry; None for what takes no number.

        A staged entry comes out of a transaction that has committed, so it is too late to refuse
        it: in a group cancelled meanwhile it goes before a ``close`` of its own.

        Raises:
            GroupCancelled: An event, not staged, for a cancelled group.
        """
        if entry.kind is Kind.REOPEN:
            self.cancelled = False
            if self.group.startswith(MARK):
                # Noted with its time, so that no END that was ordered before comes after it.
                self._begin_anew(closing_wire(None), self.now(), closes=False)
            return None
        if entry.kind is Kind.END:
            if 0 < entry.at <= self.first:
                # What was ordered later holds: the owner may have been let in again.
                return None
            self._begin_anew(entry.wire, entry.at or self.now(), closes=True)
            self.cancelled = True
            return self.head
        if entry.kind is Kind.CLOSE:
            if self.cancelled:
                return None
            self.cancelled = True
            self.closing = entry.wire
        elif self.cancelled and not staged:
            raise GroupCancelled(self.group)
        return self._add(entry.wire, closes=entry.kind is Kind.CLOSE, exclude=entry.exclude)

    def finish(self) -> Hint:
        """Return the hint that tells of the group as it is now."""
        if self.cancelled and self.numbered and not self.numbered[-1].closes:
            self._add(self.closing or closing_wire(None), closes=True)
        return Hint(self.group, self.head, self.cancelled, tuple(self.numbered))

    def _begin_anew(self, wire: bytes, number: int, *, closes: bool) -> None:
        self.first = self.head = max(number, self.first + 1)
        self.numbered[:] = [Entry(self.head, wire, closes)]

    def _add(self, wire: bytes, *, closes: bool, exclude: str = "") -> int:
        self.head = self.head + 1 if self.head else self.now()
        self.first = self.first or self.head
        self.numbered.append(Entry(self.head, wire, closes, exclude))
        return self.head


class Dropped(NamedTuple):
    """How much was dropped for its age."""

    events: int = 0
    groups: int = 0


Ring = Callable[[Sequence[Hint]], None]
Cursor = Any


class EventStore(ABC):
    """Keeps each group's recent events in order.

    Numbers: a group's first number is the time in microseconds, every later one is one more. They
    never go back, neither after trimming nor after ``reopen``. Where a store has lost what it had
    acknowledged, a new run of numbers begins at the time, and nothing older is kept: so every
    position of before is seen to be of a lost history.

    Appending: all entries of one call are appended, or none; groups may be mixed. A ``CLOSE``
    takes a number like an event, once: a second one for a cancelled group is dropped. Appending an
    event to a cancelled group raises ``GroupCancelled``.

    Names: a group's has 1 to 99 ASCII letters, digits, hyphens, underscores and full stops, and
    before it, where tenants are kept apart, up to 63 of these or ``=`` and a slash. They are
    compared byte for byte.

    Groups whose names begin with ``MARK`` are those of owners of streams. An ``END`` cancels one,
    and begins it anew with a first number that is the time, so that its state says when that was.
    Where it is written late, that is the time that it was ordered at, and it takes no number if
    there is a later one. They are kept for ``CANCEL_TTL``, and others for ``GROUP_TTL``.

    Transactions: where a transaction is open on ``using``, entries come into being with its commit.

    Reading is async. It adds no group and no event, but ``achanged`` also finishes what a publisher
    that died after its commit has left behind.
    """

    crosses_processes: ClassVar[bool]
    """Whether another process sees what this one appends."""

    file: Path | None = None
    """The file that all of it is kept in, if it is one: only processes of one host share it."""

    address: str = ""
    """Where else it is kept: the same text in all processes that share it, and in no others."""

    notifications: "Notifications | None" = None
    """What tells the hubs of other processes of whatever is appended, if the store does itself."""

    def __init__(self, *, using: str = DEFAULT_DB_ALIAS) -> None:
        self.using = using
        self.clock = StoreClock(None)
        """What times and first numbers are by: this host's where the store has none of its own."""

    def append(self, entries: Sequence[NewEntry], ring: Ring) -> list[int | None]:
        """Append entries and ring; return their numbers (None for ``REOPEN`` and dropped ones).

        Inside a transaction on ``using`` the numbers are None, and the ringing is done after the
        commit. An ``END`` that cannot be written, now or after the commit, is tried again for
        ``CANCEL_TTL``. Blocking: for synchronous code.

        Raises:
            GroupCancelled: An event for a cancelled group; nothing was appended.
            TransactionManagementError: Autocommit is off.
        """
        reopened = [entry.group for entry in entries if entry.kind is Kind.REOPEN]
        connection = connections[self.using]
        if not connection.in_atomic_block:
            # Not get_autocommit(), which connects: a store may have nothing to do with a database.
            connected = connection.connection is not None
            if not (connection.autocommit if connected else connection.settings_dict["AUTOCOMMIT"]):
                raise transaction.TransactionManagementError(
                    "Publishing needs autocommit, or a transaction opened by atomic(): otherwise "
                    "nobody could tell when an event comes into being."
                )
            with self._keeping_ends(entries, ring):
                numbers, hints = self._append(entries)
            unwritten.take_back(self, reopened)
            ring(hints)
            return numbers
        commit = self._stage(entries)

        def append_and_ring() -> None:
            with self._keeping_ends(entries, ring):
                hints = commit()
            unwritten.take_back(self, reopened)
            ring(hints)

        # A failing hook must not keep the project's own hooks from running; Django logs it.
        transaction.on_commit(append_and_ring, using=self.using, robust=True)
        return [None] * len(entries)

    async def aappend(self, entries: Sequence[NewEntry], ring: Ring) -> list[int | None]:
        """Append from async code; otherwise as ``append``."""
        # In the thread that async_to_sync or the request keeps, where its transaction is open.
        return await sync_to_async(self.append)(entries, ring)

    @contextmanager
    def _keeping_ends(self, entries: Sequence[NewEntry], ring: Ring) -> Iterator[None]:
        """Have the ends tried again that cannot be written: nobody else would shut them out."""
        now = self.clock.known()
        try:
            yield
        except BaseException:
            ends = [
                replace(entry, at=entry.at or int(now * 1_000_000))
                for entry in entries
                if entry.kind is Kind.END
            ]
            unwritten.keep(self, ends, ring)
            raise

    @abstractmethod
    def _append(
        self, entries: Sequence[NewEntry], *, staged: bool = False
    ) -> tuple[list[int | None], list[Hint]]:
        """Append entries now; return a number (or None) each, and a hint for each group.

        Args:
            staged: They come out of a transaction that has committed: see ``Numbering.take``.

        Raises:
            GroupCancelled: An event for a cancelled group; nothing was appended.
        """

    def _stage(self, entries: Sequence[NewEntry]) -> Callable[[], Sequence[Hint]]:
        """Take entries within an open transaction; return what appends them after its commit.

        This one keeps them in memory until then: they are lost with the process.

        Raises:
            GroupCancelled: An event for a cancelled group; nothing was taken.
        """
        groups = [entry.group for entry in entries if entry.kind is Kind.EVENT]
        for group, state in (self.states(groups) if groups else {}).items():
            if state.cancelled:
                raise GroupCancelled(group)
        return lambda: self._append(entries, staged=True)[1]

    @abstractmethod
    def states(self, groups: Sequence[str]) -> dict[str, GroupState]:
        """Return the state of each of the groups. Blocking: for synchronous code."""

    @abstractmethod
    async def astates(self, groups: Sequence[str]) -> dict[str, GroupState]:
        """Return the state of each of the groups."""

    @abstractmethod
    async def aread(self, group: str, after: int, limit: int) -> list[Entry]:
        """Return kept entries numbered above ``after``, in order, each with the time of its append.

        It is the first ``limit`` of them, or as many as it takes to have ``READ_BYTES``: the last
        one may go beyond. What follows is not loaded, either, since many may read at once.
        """

    @abstractmethod
    async def achanged(
        self, cursor: Cursor, groups: Container[str]
    ) -> tuple[Iterable[Hint] | None, Cursor]:
        """Return hints of those of the groups that changed since the cursor was made, and the next
        cursor; None instead of the hints where any of them may have changed.

        The first cursor is None. A change may be told more than once, and is never left out. What
        this costs follows what changed, not how many groups there are.
        """

    @abstractmethod
    async def anew_run(self, group: str, above: int) -> GroupState:
        """Begin a new run of numbers, if the group's head is below ``above``, which was seen.

        Returns:
            The state of the group afterwards.
        """

    trim_due = inf
    """When this process trims next, by ``time.monotonic``."""

    def takes_trim_turn(self) -> bool:
        """Whether to trim now; then nobody else in this process does for a while."""
        if self.trim_due == inf:
            # Not each process as it begins, which may publish once and end.
            self.trim_due = monotonic() + uniform(0, _trim_seconds())
        if monotonic() < self.trim_due:
            return False
        self.trim_due = monotonic() + _trim_seconds()
        return True

    def trim(self) -> Dropped | None:
        """Drop what is older than ``HISTORY_AGE``, and groups idle for their time to live; return
        how much, or None from a store in which that expires by itself. Blocking."""
        return None

    async def atrim(self) -> None:
        """Drop the same, without being in the way of reads."""

    async def aclose(self) -> None:
        """Let go of what async reading holds open; the store can be used again afterwards."""

    def check(self) -> list[checks.CheckMessage]:
        """Return what is wrong with the store's configuration."""
        return []


def closing_wire(reason: str | None) -> bytes:
    """Return the wire of the ``close`` that tells clients that a group is cancelled, and why."""
    return Event({"reason": reason}, event="close").encode()


def _trim_seconds() -> float:
    # Less often than this, what is kept for less would lie about for longer than it is kept.
    return min(_TRIM_SECONDS, max(conf().HISTORY_AGE or inf, 1.0))


def first_number() -> int:
    """Return the first number of a group: the time in microseconds."""
    return time_ns() // 1000
