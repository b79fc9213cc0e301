"""When the streams of a hub are looked at: each when it may have something due, not all each time.

To look at thousands of silent streams every second would cost more than their heartbeats.
"""

from collections.abc import Iterable, Iterator
from math import ceil
from typing import Final, Generic, Protocol, TypeVar

# No stream is left alone for longer, in seconds, whatever settings have said when it was looked at.
_LONGEST: Final = 60.0


class Looked(Protocol):
    """The part of a stream that a timetable uses."""

    next_look: int
    """The tick at which it is looked at next."""


Item = TypeVar("Item", bound=Looked)


class Timetable(Generic[Item]):
    """Streams, by the tick at which each is looked at next.

    Args:
        began: When the ticks begin, by the loop's time.
        interval: Seconds from one tick to the next.
    """

    def __init__(self, began: float, interval: float) -> None:
        self._began = began
        self._interval = interval
        self._last = 0
        self._ticks: dict[int, set[Item]] = {}

    @property
    def next_tick(self) -> float:
        """When the next tick is, by the loop's time."""
        return self._began + (self._last + 1) * self._interval

    def add(self, item: Item, due: float) -> None:
        """Look at a stream at the first tick that is not before some time."""
        due = min(due, self.next_tick + _LONGEST)
        item.next_look = max(ceil((due - self._began) / self._interval), self._last + 1)
        self._ticks.setdefault(item.next_look, set()).add(item)

    def remove(self, item: Item) -> None:
        """Look at a stream no more."""
        if streams := self._ticks.get(item.next_look):
            streams.discard(item)

    def take_due(self, now: float) -> Iterator[Item]:
        """Return the streams that are due at a tick that comes now. Those that are not taken from
        the iterator are due at the next tick.

        Args:
            now: The loop's time, in seconds.
        """
        # A tick that is late stands for those that it has missed.
        self._last = max(self._last + 1, int((now - self._began) / self._interval))
        return self._taken([tick for tick in self._ticks if tick <= self._last])

    def _taken(self, ticks: Iterable[int]) -> Iterator[Item]:
        for tick in ticks:
            streams = self._ticks[tick]
            while streams:
                yield streams.pop()
            del self._ticks[tick]
