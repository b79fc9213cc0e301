"""What stores keep about a group, and what doorbells say about it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

from django_sse.encoding import as_own_json
from django_sse.event import Event
from django_sse.groups.names import validate_group_or_owner_key
from django_sse.text import plain


class Kind(IntEnum):
    """What an appended entry does."""

    EVENT = 0
    CLOSE = 1  # cancels the group
    REOPEN = 2  # brings it back; takes no number
    END = 3  # ends an owner's streams: a CLOSE that begins the group anew, numbered by the time
    BEGIN = 4  # gives the group to a producer; takes no number
    RENEW = 5  # says that the producer is alive; takes no number
    LAPSE = 6  # a CLOSE that counts only if the producer is no longer alive
    HAND_OVER = 7  # leaves the group, which goes on, to its next producer; takes no number
    EXPECT = 8  # refuses all if the group's last number is not `at`; takes no number


class NewEntry(NamedTuple):
    """An entry to append to a group: an encoded event without an id.

    ``exclude`` is the key of the owner whose streams do not get the event. ``at`` is when an
    ``END`` or ``REOPEN`` was ordered, in microseconds since the epoch, if it is written late; 0 for
    now. ``producer`` is the token of the producer that the entry comes from, or, for a ``LAPSE``,
    of the one that has died; 0 for none. Each event that a producer appends makes its token one
    more, so an append whose answer was lost can be tried again, and counts once.

    The ``at`` of a ``BEGIN`` is the age, in microseconds, from which a producer that the group
    already has is dead; its ``wire`` then closes the group. The ``at`` of a ``LAPSE`` is when the
    dead producer was last alive. The ``at`` of an ``EXPECT`` is the ``GroupState.head`` that the
    caller knows. It comes before all other entries of its group.
    """

    group: str
    wire: bytes
    kind: Kind = Kind.EVENT
    exclude: str = ""
    at: int = 0
    producer: int = 0


class OwnEntry(NewEntry):
    """An entry that the library writes of its own accord, such as who is present: a test that asks
    what was published is not told of it."""

    __slots__ = ()


class Entry(NamedTuple):
    """A numbered event of a group.

    ``closes`` is True for the ``close`` of a cancel. ``exclude`` is the key of the owner whose
    streams do not get the event. ``time`` is when the event was appended, in seconds since the
    epoch, if it was read from a store.
    """

    number: int
    wire: bytes
    closes: bool = False
    exclude: str = ""
    time: float = 0.0


@dataclass(frozen=True, slots=True)
class GroupState:
    """Where a group stands.

    ``first`` is its first number ever, ``head`` its last number, and ``oldest`` the number of the
    oldest kept event (head + 1 if no event is kept). ``origin`` is the position before the first
    event, and the head of a group that was never published to. It is 0, or another number in a
    store that may forget everything. ``producer`` is the token of the group's producer, 0 if it
    has none, and ``HANDED_OVER`` if the next one is to go on.
    """

    first: int = 0
    head: int = 0
    oldest: int = 1
    cancelled: bool = False
    origin: int = 0
    producer: int = 0


class Lease(NamedTuple):
    """A producer's hold on its group, and when the producer was last alive, by the store's clock in
    microseconds since the epoch."""

    group: str
    producer: int
    renewed: int


class Hint(NamedTuple):
    """The message of a doorbell: the head of a group, and perhaps the new entries themselves.

    ``producer`` is the token of the group's producer, which a store knows and a doorbell does not
    say.
    """

    group: str
    head: int
    cancelled: bool
    entries: tuple[Entry, ...] = ()
    producer: int = 0

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


def closing_wire(reason: str | None, result: Any = None) -> bytes:
    """Return the wire of the ``close`` that tells clients that a group is cancelled, and why.

    Raises:
        InvalidEvent: The result cannot be sent as JSON.
    """
    if result is None:
        return Event(as_own_json({"reason": reason}), event="close").encode()
    return Event({"reason": reason, "result": result}, event="close").encode()
