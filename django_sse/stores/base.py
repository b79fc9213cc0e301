"""The contract of an event store: each group's recent events, and whether it is cancelled."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import inf
from pathlib import Path
from random import uniform
from time import monotonic
from typing import Any, ClassVar, Final, NamedTuple

from asgiref.sync import sync_to_async
from django.core import checks
from django.db import DEFAULT_DB_ALIAS, connections, transaction

from django_sse.conf import conf
from django_sse.exceptions import GroupCancelled
from django_sse.groups.entries import Entry, GroupState, Hint, Kind, NewEntry, Ring
from django_sse.stores.clock import StoreClock
from django_sse.stores.notify import Notifications
from django_sse.stores.unwritten_ends import unwritten_ends

# How often a process trims, at the most.
_TRIM_SECONDS: Final = 60.0


class Dropped(NamedTuple):
    """How much was dropped for its age."""

    events: int = 0
    groups: int = 0


Cursor = Any


class EventStore(ABC):
    """Keeps each group's recent events in order.

    Numbers: a group's first number is the time in microseconds, every later one is one more. They
    never go back, neither after trimming nor after ``reopen``. Where a store has lost what it had
    acknowledged, a new run of numbers begins at the time, and nothing older is kept: so every
    position of before is seen to be of a lost history.

    Appending: all entries of one call are appended, or none; groups may be mixed. A ``CLOSE``
    takes a number like an event, once: a second one for a cancelled group is dropped. Appending an
    event to a cancelled group raises ``GroupCancelled``.

    Names: a group's has 1 to 99 ASCII letters, digits, hyphens, underscores and full stops, and
    before it, where tenants are kept apart, up to 63 of these or ``=`` and a slash. They are
    compared byte for byte.

    Groups whose names begin with ``OWNER_PREFIX`` are those of owners of streams. An ``END``
    cancels one, and begins it anew with a first number that is the time: its state says when that
    was.
    Where it is written late, that is the time that it was ordered at, and it takes no number if
    there is a later one. They are kept for ``CANCEL_TTL``, and others for ``GROUP_TTL``.

    Transactions: where a transaction is open on ``using``, entries come into being with its commit.

    Reading is async. It adds no group and no event, but ``achanged`` also finishes what a publisher
    that died after its commit has left behind.
    """

    crosses_processes: ClassVar[bool]
    """Whether another process sees what this one appends."""

    file: Path | None = None
    """The file that all of it is kept in, if it is one: only processes of one host share it."""

    address: str = ""
    """Where else it is kept: the same text in all processes that share it, and in no others."""

    notifications: Notifications | None = None
    """What tells the hubs of other processes of whatever is appended, if the store does itself."""

    def __init__(self, *, using: str = DEFAULT_DB_ALIAS) -> None:
        self.using = using
        self.clock = StoreClock(None)
        """What times and first numbers are by: this host's where the store has none of its own."""

    def append(self, entries: Sequence[NewEntry], ring: Ring) -> list[int | None]:
        """Append entries and ring; return their numbers (None for ``REOPEN`` and dropped ones).

        Inside a transaction on ``using`` the numbers are None, and the ringing is done after the
        commit. An ``END`` that cannot be written, now or after the commit, is tried again for
        ``CANCEL_TTL``. Blocking: for synchronous code.

        Raises:
            GroupCancelled: An event for a cancelled group; nothing was appended.
            TransactionManagementError: Autocommit is off.
        """
        reopened = [entry.group for entry in entries if entry.kind is Kind.REOPEN]
        connection = connections[self.using]
        if not connection.in_atomic_block:
            # Not get_autocommit(), which connects: a store may have nothing to do with a database.
            connected = connection.connection is not None
            if not (connection.autocommit if connected else connection.settings_dict["AUTOCOMMIT"]):
                raise transaction.TransactionManagementError(
                    "Publishing needs autocommit, or a transaction opened by atomic(): otherwise "
                    "nobody could tell when an event comes into being."
                )
            with self._keeping_ends(entries, ring):
                numbers, hints = self._append(entries)
            unwritten_ends.take_back(self, reopened)
            ring(hints)
            return numbers
        commit = self._stage(entries)

        def append_and_ring() -> None:
            with self._keeping_ends(entries, ring):
                hints = commit()
            unwritten_ends.take_back(self, reopened)
            ring(hints)

        # A failing hook must not keep the project's own hooks from running; Django logs it.
        transaction.on_commit(append_and_ring, using=self.using, robust=True)
        return [None] * len(entries)

    async def aappend(self, entries: Sequence[NewEntry], ring: Ring) -> list[int | None]:
        """Append from async code; otherwise as ``append``."""
        # In the thread that async_to_sync or the request keeps, where its transaction is open.
        return await sync_to_async(self.append)(entries, ring)

    @contextmanager
    def _keeping_ends(self, entries: Sequence[NewEntry], ring: Ring) -> Iterator[None]:
        """Have the ends tried again that cannot be written: nobody else would shut them out."""
        now = self.clock.known()
        try:
            yield
        except BaseException:
            ends = [
                replace(entry, at=entry.at or int(now * 1_000_000))
                for entry in entries
                if entry.kind is Kind.END
            ]
            unwritten_ends.keep(self, ends, ring)
            raise

    @abstractmethod
    def _append(
        self, entries: Sequence[NewEntry], *, staged: bool = False
    ) -> tuple[list[int | None], list[Hint]]:
        """Append entries now; return a number (or None) each, and a hint for each group.

        Args:
            staged: They come out of a transaction that has committed: see ``Numbering.take``.

        Raises:
            GroupCancelled: An event for a cancelled group; nothing was appended.
        """

    def _stage(self, entries: Sequence[NewEntry]) -> Callable[[], Sequence[Hint]]:
        """Take entries within an open transaction; return what appends them after its commit.

        This one keeps them in memory until then: they are lost with the process.

        Raises:
            GroupCancelled: An event for a cancelled group; nothing was taken.
        """
        groups = [entry.group for entry in entries if entry.kind is Kind.EVENT]
        for group, state in (self.states(groups) if groups else {}).items():
            if state.cancelled:
                raise GroupCancelled(group)
        return lambda: self._append(entries, staged=True)[1]

    @abstractmethod
    def states(self, groups: Sequence[str]) -> dict[str, GroupState]:
        """Return the state of each of the groups. Blocking: for synchronous code."""

    @abstractmethod
    async def astates(self, groups: Sequence[str]) -> dict[str, GroupState]:
        """Return the state of each of the groups."""

    @abstractmethod
    async def aread(self, group: str, after: int, limit: int) -> list[Entry]:
        """Return kept entries numbered above ``after``, in order, each with the time of its append.

        It is the first ``limit`` of them, or as many as it takes to have ``READ_BYTES``: the last
        one may go beyond. What follows is not loaded, either, since many may read at once.
        """

    @abstractmethod
    async def achanged(
        self, cursor: Cursor, groups: Container[str]
    ) -> tuple[Iterable[Hint] | None, Cursor]:
        """Return hints of those of the groups that changed since the cursor was made, and the next
        cursor; None instead of the hints where any of them may have changed.

        The first cursor is None. A change may be told more than once, and is never left out. What
        this costs follows what changed, not how many groups there are.
        """

    @abstractmethod
    async def anew_run(self, group: str, above: int) -> GroupState:
        """Begin a new run of numbers, if the group's head is below ``above``, which was seen.

        Returns:
            The state of the group afterwards.
        """

    trim_due = inf
    """When this process trims next, by ``time.monotonic``."""

    def takes_trim_turn(self) -> bool:
        """Whether to trim now; then nobody else in this process does for a while."""
        if self.trim_due == inf:
            # Not each process as it begins, which may publish once and end.
            self.trim_due = monotonic() + uniform(0, _trim_seconds())
        if monotonic() < self.trim_due:
            return False
        self.trim_due = monotonic() + _trim_seconds()
        return True

    def trim(self) -> Dropped | None:
        """Drop what is older than ``HISTORY_AGE``, and groups idle for their time to live; return
        how much, or None from a store in which that expires by itself. Blocking."""
        return None

    async def atrim(self) -> None:
        """Drop the same, without being in the way of reads."""

    async def aclose(self) -> None:
        """Let go of what async reading holds open; the store can be used again afterwards."""

    def check(self) -> list[checks.CheckMessage]:
        """Return what is wrong with the store's configuration."""
        return []


def _trim_seconds() -> float:
    # Less often than this, what is kept for less would lie about for longer than it is kept.
    return min(_TRIM_SECONDS, max(conf().HISTORY_AGE or inf, 1.0))
