"""Events as they are sent to streams: encoded once, joined once, the newest kept in memory."""

import sys
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Final

from django_sse.conf import conf
from django_sse.doorbells.layer_channel import Message
from django_sse.event import Event, decode_block, key_of, with_id
from django_sse.groups.entries import Entry

# `Tail.hold` multiplies the tail's byte limit by this, until `let_go`.
_HOLD_FACTOR: Final = 8


class EncodedEvent:
    """One event as it goes over the wire. Number 0 means a plain message: no id, no replay."""

    __slots__ = (
        "_decoded",
        "chunk",
        "closes",
        "exclude",
        "group",
        "is_superseded",
        "key",
        "message",
        "number",
        "wire",
    )

    def __init__(
        self, group: str, entry: Entry, id: str = "", *, message: Message | None = None
    ) -> None:
        self.group = group
        self.number, self.wire, self.closes, self.exclude, _ = entry
        self.key = key_of(self.wire) if self.number else None
        self.is_superseded = False
        """Whether there is a newer event of its key, so that a client need not get this one."""
        # A Channels message, which each view's own handler turns into an event.
        self.message = message
        self._decoded: Event | None = None
        # Streams that follow only this group all send this same bytes object.
        self.chunk = with_id(id, self.wire) if id else self.wire

    @property
    def size(self) -> int:
        """The approximate size in memory, in bytes."""
        return len(self.wire) + len(self.chunk)

    def decoded(self) -> Event:
        """Return the decoded event, for a view's ``filter_event``."""
        if self._decoded is None:
            self._decoded = decode_block(self.wire)
        return self._decoded


def supersede(events: Sequence[EncodedEvent], newest: dict[bytes, EncodedEvent]) -> None:
    """Mark the events that newer ones of the same key replace.

    Args:
        events: Events in order.
        newest: The newest event of each key so far. It is updated.
    """
    for encoded in events:
        if encoded.key is not None:
            other = newest.get(encoded.key)
            if other is None or other.number < encoded.number:
                newest[encoded.key] = encoded
                if other is not None:
                    other.is_superseded = True
            elif encoded.number < other.number:
                encoded.is_superseded = True


class Batch:
    """New events of a group that have piled up, joined once for all its streams."""

    __slots__ = (
        "chunk",
        "closing",
        "count",
        "events",
        "excluded",
        "first",
        "has_keys",
        "is_large",
        "is_plain",
        "last",
        "messages",
        "moves_unseen",
    )

    def __init__(self, events: Sequence[EncodedEvent]) -> None:
        self.events = events
        # A batch without numbers is taken whole by every stream, whose position stays.
        self.first, self.last = sys.maxsize, 0
        self.messages: list[EncodedEvent] = []
        # The keys of owners whose streams do not get the whole batch.
        self.excluded: set[str] = set()
        self.closing: EncodedEvent | None = None
        self.has_keys = False
        size, chunks = 0, []
        for encoded in events:
            size += len(encoded.chunk)
            if not encoded.number:
                self.messages.append(encoded)
            elif not self.last:
                self.first = encoded.number
            self.last = encoded.number or self.last
            if encoded.exclude:
                self.excluded.add(encoded.exclude)
            if encoded.key is not None:
                self.has_keys = True
            if encoded.closes:
                self.closing = encoded
            elif not encoded.is_superseded:
                chunks.append(encoded.chunk)
        # Whether clients do not see its last number in an event.
        self.moves_unseen = self.closing is not None or events[-1].is_superseded
        # It exceeds what may wait for a client, so no stream takes it as one chunk.
        self.is_large = size > conf().BACKLOG_BYTES
        self.count = len(chunks)
        self.chunk = b"" if self.is_large else b"".join(chunks)
        # Streams that share chunks all take the same bytes, if they are at its beginning.
        self.is_plain = not (self.is_large or self.messages or self.excluded)

    def after(self, number: int, *, with_messages: bool) -> Sequence[EncodedEvent]:
        """Return the events that a stream has not taken yet.

        Args:
            number: The number of the last event that the stream has taken.
            with_messages: Whether to include events without a number.
        """
        return [
            encoded
            for encoded in self.events
            if (encoded.number > number if encoded.number else with_messages)
        ]


class Tail:
    """The newest events of a group, without a gap, limited in bytes."""

    def __init__(self, max_bytes: int) -> None:
        # The number of the next event if there are none.
        self._next = 0
        self._events: deque[EncodedEvent] = deque()
        self._bytes = 0
        self._max_bytes = max_bytes
        self._limit_factor = 1
        self._newest: dict[bytes, EncodedEvent] = {}

    @property
    def first(self) -> int:
        """The number of the oldest event, or of the next one if the tail is empty."""
        return self._events[0].number if self._events else self._next

    @property
    def has_room(self) -> bool:
        """Whether older events may be put in front and still leave room for new ones."""
        return self._bytes <= self._max_bytes // 2

    def after(self, number: int) -> list[EncodedEvent]:
        """Return the events that follow a number, which must be at least ``first - 1``."""
        return list(islice(self._events, number + 1 - self.first, None))

    def append(self, events: Sequence[EncodedEvent]) -> None:
        """Add new events, which must follow the last one without a gap."""
        self._events.extend(events)
        supersede(events, self._newest)
        for encoded in events:
            self._bytes += encoded.size
        self.bound(self._max_bytes)

    def prepend(self, events: Iterable[EncodedEvent]) -> bool:
        """Add older events in front, as long as there is no gap and there is room.

        Args:
            events: The events, from the newest to the oldest.

        Returns:
            Whether any event was added.
        """
        before = self.first
        for encoded in events:
            if encoded.number == self.first - 1 and self._bytes + encoded.size <= self._room:
                self._events.appendleft(encoded)
                self._bytes += encoded.size
                supersede([encoded], self._newest)
        return self.first < before

    def bound(self, max_bytes: int) -> None:
        """Limit the tail to this many bytes, from now on."""
        self._max_bytes = max_bytes
        while self._bytes > self._room:
            dropped = self._events.popleft()
            self._next = dropped.number + 1
            self._bytes -= dropped.size
            if dropped.key is not None and self._newest.get(dropped.key) is dropped:
                del self._newest[dropped.key]

    def supersede_older(self, events: Sequence[EncodedEvent]) -> None:
        """Mark those of older events that newer ones, also those of the tail, replace."""
        if any(encoded.key is not None for encoded in events):
            supersede(events, dict(self._newest))

    def hold(self, events: Sequence[EncodedEvent]) -> None:
        """Keep these and later events until ``let_go``, within eight times the usual bytes."""
        self._limit_factor = _HOLD_FACTOR
        self.prepend(encoded for encoded in reversed(events) if encoded.number)

    def let_go(self) -> None:
        """Return to the usual limit."""
        self._limit_factor = 1
        self.bound(self._max_bytes)

    @property
    def _room(self) -> int:
        return self._max_bytes * self._limit_factor

    def clear(self, next: int) -> None:
        """Drop all events and begin again.

        Args:
            next: The number of the next event.
        """
        self._next = next
        self._events.clear()
        self._newest.clear()
        self._bytes = 0
