"""How the entries of a group get their numbers."""

from collections.abc import Callable
from time import time_ns

from django_sse.exceptions import AlreadyProducing, GroupCancelled
from django_sse.groups.entries import Entry, Hint, Kind, NewEntry, closing_wire
from django_sse.groups.names import OWNER_PREFIX
from django_sse.groups.producer_tokens import HANDED_OVER


def first_number() -> int:
    """Return the first number of a group: the time, in microseconds since the epoch."""
    return time_ns() // 1000


class HeadMoved(Exception):
    """Somebody else has appended to a group, and what expected its head is refused."""

    def __init__(self, group: str) -> None:
        self.group = group
        super().__init__(f"Group {group!r} has other entries than was expected.")


class Numbering:
    """Gives the entries of one group their numbers. Each store does this under its lock.

    If ``first`` has changed afterwards, the store keeps nothing older.

    Args:
        group: The full name of the group.
        first: The group's first number, 0 if it has none.
        head: The group's last number, 0 if it has none.
        cancelled: Whether the group is cancelled.
        closing: The wire of the ``close`` that ended a cancelled group.
        now: Returns the store's time, in microseconds since the epoch; None for this host's.
        producer: The token of the group's producer, 0 if it has none.
        renewed: When a producer of the group was last alive, or has ended, in microseconds since
            the epoch; 0 if the group never had one, or was reopened.
    """

    __slots__ = (
        "_first_before",
        "_now",
        "cancelled",
        "closing",
        "first",
        "group",
        "head",
        "numbered",
        "producer",
        "renewed",
    )

    def __init__(
        self,
        group: str,
        first: int,
        head: int,
        cancelled: bool,
        closing: bytes = b"",
        now: Callable[[], int] | None = None,
        *,
        producer: int = 0,
        renewed: int = 0,
    ) -> None:
        self.group = group
        self.first = self._first_before = first
        self.head = head
        self.cancelled = cancelled
        self.closing = closing
        self.numbered: list[Entry] = []
        self.producer = producer
        self.renewed = renewed
        self._now = now or first_number

    def take(self, entry: NewEntry, *, staged: bool = False) -> int | None:
        """Number one entry. Return its number, or None if it takes no number.

        A staged entry comes from a committed transaction, so it is too late to refuse it. If its
        group was cancelled meanwhile, another ``close`` follows it.

        A ``BEGIN`` only takes a number if it closes the group, whose last producer has died.

        Raises:
            GroupCancelled: The entry is an event for a cancelled group, and is not staged. Or it
                comes from a producer that is not the group's.
            AlreadyProducing: The entry is a ``BEGIN``, and the group has a producer.
            HeadMoved: The entry is an ``EXPECT``, and the group has another head.
        """
        if entry.kind is Kind.EVENT:
            return self._publish(entry, staged=staged)
        if entry.kind is Kind.EXPECT:
            if entry.at != self.head:
                raise HeadMoved(self.group)
            return None
        if entry.kind is Kind.LAPSE:
            if entry.producer != self.producer or entry.at != self.renewed:
                return None
            return self._close(entry.wire)
        if entry.kind is Kind.BEGIN:
            return self._begin(entry)
        if entry.producer and entry.producer != self.producer:
            raise GroupCancelled(self.group)
        if entry.kind is Kind.RENEW:
            self.renewed = self._now()
            return None
        if entry.kind is Kind.HAND_OVER:
            self.producer, self.renewed = HANDED_OVER, self._now()
            return None
        if entry.kind is Kind.REOPEN:
            if self.cancelled:
                self.cancelled, self.renewed = False, 0
            if self.group.startswith(OWNER_PREFIX):
                # Record the time, so that an END ordered earlier cannot take effect later.
                self._begin_anew(closing_wire(None), entry.at or self._now(), closes=False)
            return None
        if entry.kind is Kind.END:
            # What this turn has numbered was ordered before it.
            if 0 < entry.at <= self._first_before:
                # A later order prevails: the owner may have been let in again.
                return None
            self._begin_anew(entry.wire, entry.at or self._now(), closes=True)
            self.cancelled = True
            return self.head
        return None if self.cancelled else self._close(entry.wire)

    def finish(self) -> Hint:
        """Return the hint about the group as it is now."""
        if self.cancelled and self.numbered and not self.numbered[-1].closes:
            self._add(self.closing or closing_wire(None), closes=True)
        entries = tuple(self.numbered)
        return Hint(self.group, self.head, self.cancelled, entries, producer=self.producer)

    def _publish(self, entry: NewEntry, *, staged: bool) -> int:
        if entry.producer and entry.producer != self.producer:
            raise GroupCancelled(self.group)
        if self.cancelled and not staged:
            raise GroupCancelled(self.group)
        if entry.producer:
            self.producer += 1
        return self._add(entry.wire, closes=False, exclude=entry.exclude)

    def _begin(self, entry: NewEntry) -> int | None:
        if self.cancelled:
            raise GroupCancelled(self.group)
        if self.producer not in (0, HANDED_OVER, entry.producer):
            if self._now() - self.renewed < entry.at:
                raise AlreadyProducing(self.group)
            return self._close(entry.wire)
        self.producer, self.renewed = entry.producer, self._now()
        return None

    def _close(self, wire: bytes) -> int:
        self.cancelled = True
        self.closing = wire
        if self.producer:
            self.producer, self.renewed = 0, self._now()
        return self._add(wire, closes=True)

    def _begin_anew(self, wire: bytes, number: int, *, closes: bool) -> None:
        self.first = self.head = max(number, self.first + 1)
        self.numbered[:] = [Entry(self.head, wire, closes)]

    def _add(self, wire: bytes, *, closes: bool, exclude: str = "") -> int:
        self.head = self.head + 1 if self.head else self._now()
        self.first = self.first or self.head
        self.numbered.append(Entry(self.head, wire, closes, exclude))
        return self.head
