"""Counts what happens to the streams of this process."""

import asyncio
from collections import Counter
from typing import Final, Self

from django_sse.concurrency.forks import in_child
from django_sse.concurrency.loops import ByLoop
from django_sse.logs import LogThrottle, logger


class Tally:
    """What has happened to the streams of one event loop since the process began."""

    __slots__ = ("closed", "delivered", "healed", "opened", "resets")

    def __init__(self) -> None:
        self.opened = 0
        self.closed: Counter[str] = Counter()
        """The streams that have ended, by reason."""
        self.delivered = 0
        """Events, counted once for each stream that they were handed to."""
        self.healed = 0
        """How often the store had events that no doorbell had told of."""
        self.resets = 0
        """The streams that began with ``reset``."""

    def add(self, other: Self) -> None:
        """Add what another tally has counted."""
        self.opened += other.opened
        # A copy, since another thread may be counting a new reason.
        self.closed += Counter(dict(other.closed))
        self.delivered += other.delivered
        self.healed += other.healed
        self.resets += other.resets


_of_closed_loops: Final[list[Tally]] = [Tally()]
# Each loop counts alone, so that counting needs no lock.
_tallies: Final[ByLoop[Tally]] = ByLoop(lambda tally: _of_closed_loops[0].add(tally))


def tally_of(loop: asyncio.AbstractEventLoop) -> Tally:
    """Return what counts the streams of an event loop."""
    return _tallies.of(loop, Tally)


def whole_tally() -> Tally:
    """Return the sum of all tallies of this process."""
    whole = Tally()
    for tally in (*_of_closed_loops, *list(_tallies.values())):
        whole.add(tally)
    return whole


def forget_tallies() -> None:
    """Count from 0 on."""
    _tallies.clear()
    _of_closed_loops[0] = Tally()


in_child(forget_tallies)


class Refusals(LogThrottle):
    """Counts refusals by reason, and logs only some of them: there may be hundreds a second."""

    def note(self, reason: str, error: BaseException | None = None) -> None:
        """Count a refusal, and log it with its error unless a similar one was logged just now."""
        if count := self.count(reason):
            logger.warning(
                "Clients are refused and told to come back: %s (%d since this was last logged).",
                reason,
                count,
                exc_info=error,
            )


refusals: Final = Refusals()
