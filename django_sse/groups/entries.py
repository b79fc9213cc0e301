"""What stores keep of a group, and what doorbells say of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from time import time_ns

from django_sse.event import Event
from django_sse.exceptions import GroupCancelled
from django_sse.groups.names import OWNER_PREFIX, validate_group_or_owner_key
from django_sse.text import plain


class Kind(IntEnum):
    """What an appended entry does."""

    EVENT = 0
    CLOSE = 1  # cancels the group
    REOPEN = 2  # brings it back; takes no number
    END = 3  # ends an owner's streams: a CLOSE that begins the group anew, numbered by the time


@dataclass(frozen=True, slots=True)
class NewEntry:
    """What is to be appended to a group: an encoded event without an id.

    ``exclude`` is the key of the owner whose streams are left out. ``at`` is when an ``END`` was
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

    ``closes`` is True for the ``close`` of a cancel; ``exclude`` is the key of the owner whose
    streams are left out. ``time`` is when it was appended, in seconds since the epoch, where it was
    read from a store.
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
        return cls(validate_group_or_owner_key(group), int(head), cancelled == "1")


Ring = Callable[[Sequence[Hint]], None]
"""Tells the hubs of what is new."""


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
            if self.group.startswith(OWNER_PREFIX):
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


def closing_wire(reason: str | None) -> bytes:
    """Return the wire of the ``close`` that tells clients that a group is cancelled, and why."""
    return Event({"reason": reason}, event="close").encode()


def first_number() -> int:
    """Return the first number of a group: the time in microseconds."""
    return time_ns() // 1000
