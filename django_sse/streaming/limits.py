"""Limits on open streams: in this process, per user, per address and per group.

Each hub counts its own streams. So streams do not count any more once their event loop is closed.
A limit applies to the sum of all hubs of the process.
"""

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from threading import RLock
from typing import Final, Protocol

from django_sse.concurrency.forks import ForkSafeLock
from django_sse.conf import Conf

counting: Final = ForkSafeLock(RLock)
"""Held from a check of the limits until the stream is counted: they apply to all threads."""


class Counted(Protocol):
    """The properties of a stream that limits apply to."""

    @property
    def groups(self) -> Collection[str]:
        """The names of the stream's groups."""

    @property
    def user(self) -> str | None:
        """The owner key of the user who owns the stream; None if nobody does."""

    @property
    def address(self) -> str | None:
        """The client's address; None if it is not known."""


@dataclass(frozen=True, slots=True)
class RequestedStream:
    """A stream that was requested and has not begun, as limits see it."""

    groups: Collection[str]
    user: str | None
    address: str | None


class TooManyStreams(Exception):
    """A limit does not allow one more stream."""

    def __init__(self, limit: str) -> None:
        self.limit = limit
        super().__init__(f"The limit {limit} is reached.")


class Occupancy:
    """The open streams of one hub, counted per user, address and group."""

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
        """Stop counting a stream that ends."""
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
    """Return the name of the limit that one more stream would exceed, or None.

    Args:
        stream: The stream that wants to begin.
        occupancies: The occupancies of all hubs of the process.
        limits: The settings.
    """
    user = () if stream.user is None else (stream.user,)
    address = () if stream.address is None else (stream.address,)
    # What is not limited is not counted, since this is asked twice for each stream.
    streams = limits.MAX_STREAMS
    if streams is not None and sum(hub.streams for hub in occupancies) >= streams:
        return "MAX_STREAMS"
    for limit, counters, keys in (
        ("MAX_STREAMS_PER_USER", "users", user),
        ("MAX_STREAMS_PER_ADDRESS", "addresses", address),
        ("MAX_STREAMS_PER_GROUP", "groups", stream.groups),
    ):
        if (most := getattr(limits, limit)) is None:
            continue
        if _most([getattr(hub, counters) for hub in occupancies], keys) >= most:
            return limit
    if limits.MAX_OPEN_GROUPS is not None:
        opened = [hub.groups for hub in occupancies]
        new = [group for group in stream.groups if not any(group in groups for groups in opened)]
        if new and _number_of_different(opened) + len(new) > limits.MAX_OPEN_GROUPS:
            return "MAX_OPEN_GROUPS"
    return None


def _number_of_different(groups: Collection[Collection[str]]) -> int:
    # There is nearly always one hub, so avoid building a set of its groups.
    return len(set().union(*groups)) if len(groups) > 1 else sum(map(len, groups))


def _most(counters: Collection[Counter[str]], keys: Collection[str]) -> int:
    return max((sum(counter[key] for counter in counters) for key in keys), default=0)
