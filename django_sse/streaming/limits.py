"""How many streams there may be at once: in this process, of a user, an address, a group.

Every hub counts its own streams, so that those of an event loop that was closed under them no
longer count; a limit holds for the sum of all hubs of the process.
"""

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from threading import RLock
from typing import Final, Protocol

from django_sse.concurrency.forks import ForkSafeLock
from django_sse.conf import Conf

counting: Final = ForkSafeLock(RLock)
"""Held from a look at the limits until the stream is counted: they hold over all threads."""


class Counted(Protocol):
    """What a stream counts as."""

    @property
    def groups(self) -> Collection[str]:
        """The names of its groups."""

    @property
    def user(self) -> str | None:
        """The owner key of the user whose it is; None for nobody's."""

    @property
    def address(self) -> str | None:
        """Where its client is; None if that is not known."""


@dataclass(frozen=True, slots=True)
class RequestedStream:
    """What a stream would count as that has not begun."""

    groups: Collection[str]
    user: str | None
    address: str | None


class TooManyStreams(Exception):
    """A stream that is one too many."""

    def __init__(self, limit: str) -> None:
        self.limit = limit
        super().__init__(f"{limit} is reached.")


class Occupancy:
    """What the open streams of one hub count as."""

    def __init__(self) -> None:
        self.streams = 0
        self.users: Counter[str] = Counter()
        self.addresses: Counter[str] = Counter()
        self.groups: Counter[str] = Counter()

    def add(self, stream: Counted) -> None:
        """Count a stream that begins."""
        self.streams += 1
        for counter, keys in self._counters(stream):
            counter.update(keys)

    def remove(self, stream: Counted) -> None:
        """Count a stream no more."""
        self.streams -= 1
        for counter, keys in self._counters(stream):
            for key in keys:
                counter[key] -= 1
                if not counter[key]:
                    del counter[key]

    def _counters(self, stream: Counted) -> Iterable[tuple[Counter[str], Collection[str]]]:
        yield self.users, () if stream.user is None else (stream.user,)
        yield self.addresses, () if stream.address is None else (stream.address,)
        yield self.groups, stream.groups


def reached_limit(stream: Counted, occupancies: Collection[Occupancy], limits: Conf) -> str | None:
    """Return the name of the limit that keeps one more stream out, or None.

    Args:
        stream: The stream that wants to begin.
        occupancies: Those of all hubs of the process.
        limits: The settings.
    """
    user = () if stream.user is None else (stream.user,)
    address = () if stream.address is None else (stream.address,)
    taken = {
        "MAX_STREAMS": sum(hub.streams for hub in occupancies),
        "MAX_STREAMS_PER_USER": _most([hub.users for hub in occupancies], user),
        "MAX_STREAMS_PER_ADDRESS": _most([hub.addresses for hub in occupancies], address),
        "MAX_STREAMS_PER_GROUP": _most([hub.groups for hub in occupancies], stream.groups),
    }
    for limit, count in taken.items():
        if (most := getattr(limits, limit)) is not None and count >= most:
            return limit
    if limits.MAX_OPEN_GROUPS is not None:
        opened = [hub.groups for hub in occupancies]
        new = [group for group in stream.groups if not any(group in groups for groups in opened)]
        if new and _number_of_different(opened) + len(new) > limits.MAX_OPEN_GROUPS:
            return "MAX_OPEN_GROUPS"
    return None


def _number_of_different(groups: Collection[Collection[str]]) -> int:
    # Nearly always there is one hub, whose groups need not be looked at one by one.
    return len(set().union(*groups)) if len(groups) > 1 else sum(map(len, groups))


def _most(counters: Collection[Counter[str]], keys: Collection[str]) -> int:
    return max((sum(counter[key] for counter in counters) for key in keys), default=0)
