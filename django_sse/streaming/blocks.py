"""Events as streams are sent them: encoded once, joined once, the newest kept in memory."""

import sys
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Final

from django_sse.conf import conf
from django_sse.doorbells.mailbox import Message
from django_sse.event import Event, decode_block, with_id
from django_sse.groups.entries import Entry
from django_sse.groups.position import format_position

# How many times its bytes a tail may hold for a moment.
_HELD: Final = 8


class Block:
    """One event as it goes over the wire. ``number`` 0 is a plain message: no id, no replay."""

    __slots__ = ("_event", "chunk", "closes", "exclude", "group", "message", "number", "wire")

    def __init__(self, group: str, entry: Entry, message: Message | None = None) -> None:
        self.group = group
        self.number = entry.number
        self.wire = entry.wire
        self.closes = entry.closes
        self.exclude = entry.exclude
        # A Channels message that each view's own handler makes an event of.
        self.message = message
        self._event: Event | None = None
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

    def event(self) -> Event:
        """Return the event again, for a view's ``filter_event``."""
        if self._event is None:
            self._event = decode_block(self.wire)
        return self._event


class Batch:
    """The blocks that have piled up in a group, joined once for all its streams."""

    __slots__ = ("blocks", "chunk", "closing", "excluded", "first", "is_large", "last", "messages")

    def __init__(self, blocks: Sequence[Block]) -> None:
        numbers = [block.number for block in blocks if block.number]
        self.blocks = blocks
        # Without numbers every stream takes all of it, and its position stays.
        self.first, self.last = (numbers[0], numbers[-1]) if numbers else (sys.maxsize, 0)
        self.messages = [block for block in blocks if not block.number]
        # The marks of owners whose streams are not sent all of it.
        self.excluded = {block.exclude for block in blocks if block.exclude}
        self.closing = next((block for block in reversed(blocks) if block.closes), None)
        size = sum(len(block.chunk) for block in blocks)
        # More than may wait for a client at a time: then it is nobody's one chunk.
        self.is_large = size > conf().BACKLOG_BYTES
        sent = blocks if not self.is_large else ()
        self.chunk = b"".join(block.chunk for block in sent if not block.closes)

    def after(self, number: int, *, with_messages: bool) -> Sequence[Block]:
        """Return the blocks that a stream has not taken yet."""
        return [
            block
            for block in self.blocks
            if (block.number > number if block.number else with_messages)
        ]


class Tail:
    """The newest blocks of a group, without a gap, bounded in bytes.

    ``next`` is the number that follows the last one.
    """

    def __init__(self, max_bytes: int) -> None:
        self.next = 0
        self._blocks: deque[Block] = deque()
        self._bytes = 0
        self._max_bytes = max_bytes
        self._held = 1

    @property
    def first(self) -> int:
        """The number of the oldest block; that of the next one if there is none."""
        return self._blocks[0].number if self._blocks else self.next

    @property
    def has_room(self) -> bool:
        """Whether older blocks may be put in front, so that room for new ones is left."""
        return self._bytes <= self._max_bytes // 2

    def after(self, number: int) -> list[Block]:
        """Return the blocks that follow a number, which is not below the one before the first."""
        return list(islice(self._blocks, number + 1 - self.first, None))

    def append(self, blocks: Sequence[Block]) -> None:
        """Add new blocks, which go on where it ends."""
        self.next = blocks[-1].number + 1
        self._blocks.extend(blocks)
        self._bytes += sum(block.size for block in blocks)
        self.bound(self._max_bytes)

    def prepend(self, blocks: Iterable[Block]) -> bool:
        """Add older blocks in front, from the newest to the oldest, as far as they go on from there
        and there is room; return whether there was any."""
        before = self.first
        for block in blocks:
            if block.number == self.first - 1 and self._bytes + block.size <= self._room:
                self._blocks.appendleft(block)
                self._bytes += block.size
        return self.first < before

    def bound(self, max_bytes: int) -> None:
        """Keep at most so many bytes, from now on."""
        self._max_bytes = max_bytes
        while self._bytes > self._room:
            self._bytes -= self._blocks.popleft().size

    def hold(self, blocks: Sequence[Block]) -> None:
        """Keep the newest blocks, and what comes, until ``let_go``, though that is more than
        otherwise, eight times as much at the most."""
        self._held = _HELD
        self.prepend(block for block in reversed(blocks) if block.number)

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
        self._blocks.clear()
        self._bytes = 0
