"""What stores keep about a group, and what doorbells say about it."""

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
    """An entry to append to a group: an encoded event without an id.

    ``exclude`` is the key of the owner whose streams do not get the event. ``at`` is for an ``END``
    that is written late: the time when it was ordered, in microseconds since the epoch; 0 for now.
    """

    group: str
    wire: bytes
    kind: Kind = Kind.EVENT
    exclude: str = ""
    at: int = 0


@dataclass(frozen=True, slots=True)
class Entry:
    """A numbered event of a group.

    ``closes`` is True for the ``close`` of a cancel. ``exclude`` is the key of the owner whose
    streams do not get the event. ``time`` is when the event was appended, in seconds since the
    epoch, if it was read from a store.
    """

    number: int
    wire: bytes
    closes: bool = False
    exclude: str = ""
    time: float = field(default=0.0, compare=False)


@dataclass(frozen=True, slots=True)
class GroupState:
    """Where a group stands.

    ``first`` is its first number ever, ``head`` its last number, and ``oldest`` the number of the
    oldest kept event (head + 1 if no event is kept). ``origin`` is the position before the first
    event, and the head of a group that was never published to. It is 0, or another number in a
    store that may forget everything.
    """

    first: int = 0
    head: int = 0
    oldest: int = 1
    cancelled: bool = False
    origin: int = 0


@dataclass(frozen=True, slots=True)
class Hint:
    """The message of a doorbell: the head of a group, and perhaps the new entries themselves."""

    group: str
    head: int
    cancelled: bool
    entries: tuple[Entry, ...] = ()

    def encode(self) -> str:
        """Return the hint as text of at most 190 characters, without the entries."""
        return f"{plain(self.group)} {self.head} {int(self.cancelled)}"

    @classmethod
    def decode(cls, text: str) -> "Hint":
        """Return the hint that a text encodes.

        Raises:
            ValueError: The text is not a hint.
        """
        group, head, cancelled = text.split(" ")
        return cls(validate_group_or_owner_key(group), int(head), cancelled == "1")


Ring = Callable[[Sequence[Hint]], None]
"""Tells the hubs about new entries."""


@dataclass(slots=True)
class Numbering:
    """Gives the entries of one group their numbers. Each store does this under its lock.

    ``closing`` is the wire of the ``close`` that ended a cancelled group. If ``first`` has changed
    afterwards, the store keeps nothing older. ``now`` returns the store's time, in microseconds
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
        """Number one entry. Return its number, or None if it takes no number.

        A staged entry comes from a committed transaction, so it is too late to refuse it. If its
        group was cancelled meanwhile, another ``close`` follows it.

        Raises:
            GroupCancelled: The entry is an event for a cancelled group, and is not staged.
        """
        if entry.kind is Kind.REOPEN:
            self.cancelled = False
            if self.group.startswith(OWNER_PREFIX):
                # Record the time, so that an END ordered earlier cannot take effect later.
                self._begin_anew(closing_wire(None), self.now(), closes=False)
            return None
        if entry.kind is Kind.END:
            if 0 < entry.at <= self.first:
                # A later order prevails: the owner may have been let in again.
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
        """Return the hint about the group as it is now."""
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
    """Return the first number of a group: the time, in microseconds since the epoch."""
    return time_ns() // 1000
