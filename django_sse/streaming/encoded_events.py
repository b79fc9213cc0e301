"""Events as streams are sent them: encoded once, joined once, the newest kept in memory."""

import sys
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Final

from django_sse.conf import conf
from django_sse.doorbells.layer_channel import Message
from django_sse.event import Event, decode_block, with_id
from django_sse.groups.entries import Entry
from django_sse.groups.position import format_position

# How many times its bytes a tail may hold for a moment.
_HELD: Final = 8


class EncodedEvent:
    """One event as it goes over the wire. ``number`` 0 is a plain message: no id, no replay."""

    __slots__ = ("_decoded", "chunk", "closes", "exclude", "group", "message", "number", "wire")

    def __init__(self, group: str, entry: Entry, message: Message | None = None) -> None:
        self.group = group
        self.number = entry.number
        self.wire = entry.wire
        self.closes = entry.closes
        self.exclude = entry.exclude
        # A Channels message that each view's own handler makes an event of.
        self.message = message
        self._decoded: Event | None = None
        # What every stream of this group alone is sent: the very same bytes object.
        self.chunk = (
            with_id(format_position({group: entry.number}), entry.wire)
            if entry.number
            else entry.wire
        )

    @property
    def size(self) -> int:
        """The bytes that it takes in memory, nearly."""
        return len(self.wire) + len(self.chunk)

    def decoded(self) -> Event:
        """Return the event again, for a view's ``filter_event``."""
        if self._decoded is None:
            self._decoded = decode_block(self.wire)
        return self._decoded


class Batch:
    """The events that have piled up in a group, joined once for all its streams."""

    __slots__ = ("chunk", "closing", "events", "excluded", "first", "is_large", "last", "messages")

    def __init__(self, events: Sequence[EncodedEvent]) -> None:
        numbers = [encoded.number for encoded in events if encoded.number]
        self.events = events
        # Without numbers every stream takes all of it, and its position stays.
        self.first, self.last = (numbers[0], numbers[-1]) if numbers else (sys.maxsize, 0)
        self.messages = [encoded for encoded in events if not encoded.number]
        # The keys of owners whose streams are not sent all of it.
        self.excluded = {encoded.exclude for encoded in events if encoded.exclude}
        self.closing = next((encoded for encoded in reversed(events) if encoded.closes), None)
        size = sum(len(encoded.chunk) for encoded in events)
        # More than may wait for a client at a time: then it is nobody's one chunk.
        self.is_large = size > conf().BACKLOG_BYTES
        sent = events if not self.is_large else ()
        self.chunk = b"".join(encoded.chunk for encoded in sent if not encoded.closes)

    def after(self, number: int, *, with_messages: bool) -> Sequence[EncodedEvent]:
        """Return the events that a stream has not taken yet."""
        return [
            encoded
            for encoded in self.events
            if (encoded.number > number if encoded.number else with_messages)
        ]


class Tail:
    """The newest events of a group, without a gap, bounded in bytes.

    ``next`` is the number that follows the last one.
    """

    def __init__(self, max_bytes: int) -> None:
        self.next = 0
        self._events: deque[EncodedEvent] = deque()
        self._bytes = 0
        self._max_bytes = max_bytes
        self._held = 1

    @property
    def first(self) -> int:
        """The number of the oldest event; that of the next one if there is none."""
        return self._events[0].number if self._events else self.next

    @property
    def has_room(self) -> bool:
        """Whether older events may be put in front, so that room for new ones is left."""
        return self._bytes <= self._max_bytes // 2

    def after(self, number: int) -> list[EncodedEvent]:
        """Return the events that follow a number, which is not below the one before the first."""
        return list(islice(self._events, number + 1 - self.first, None))

    def append(self, events: Sequence[EncodedEvent]) -> None:
        """Add new events, which go on where it ends."""
        self.next = events[-1].number + 1
        self._events.extend(events)
        self._bytes += sum(encoded.size for encoded in events)
        self.bound(self._max_bytes)

    def prepend(self, events: Iterable[EncodedEvent]) -> bool:
        """Add older events in front, from the newest to the oldest, as far as they go on from there
        and there is room; return whether there was any."""
        before = self.first
        for encoded in events:
            if encoded.number == self.first - 1 and self._bytes + encoded.size <= self._room:
                self._events.appendleft(encoded)
                self._bytes += encoded.size
        return self.first < before

    def bound(self, max_bytes: int) -> None:
        """Keep at most so many bytes, from now on."""
        self._max_bytes = max_bytes
        while self._bytes > self._room:
            self._bytes -= self._events.popleft().size

    def hold(self, events: Sequence[EncodedEvent]) -> None:
        """Keep the newest events, and what comes, until ``let_go``, though that is more than
        otherwise, eight times as much at the most."""
        self._held = _HELD
        self.prepend(encoded for encoded in reversed(events) if encoded.number)

    def let_go(self) -> None:
        """Keep no more than otherwise again."""
        self._held = 1
        self.bound(self._max_bytes)

    @property
    def _room(self) -> int:
        return self._max_bytes * self._held

    def clear(self, next: int) -> None:
        """Begin anew, with the number that comes next."""
        self.next = next
        self._events.clear()
        self._bytes = 0
