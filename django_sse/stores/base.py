"""The contract of an event store, which keeps each group's recent events and its state."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import cached_property
from math import inf
from pathlib import Path
from random import uniform
from time import monotonic
from typing import Any, ClassVar, Final, NamedTuple

from asgiref.sync import sync_to_async
from django.core import checks
from django.db import DEFAULT_DB_ALIAS, connections, transaction
from django.db import Error as DatabaseFailure
from django.db.backends.base.base import BaseDatabaseWrapper

from django_sse.concurrency.signal_calls import working_for
from django_sse.conf import conf
from django_sse.exceptions import GroupCancelled, PartlyPublished
from django_sse.groups.entries import Entry, GroupState, Hint, Kind, Lease, NewEntry, Ring
from django_sse.stores.clock import StoreClock
from django_sse.stores.notifications import Notifications
from django_sse.stores.timed_thread import Connection, TimedThread
from django_sse.stores.transactions import is_any_open
from django_sse.stores.write_retries import write_retries

# The longest pause between two trims in one process.
_TRIM_SECONDS: Final = 60.0
# A state costs a store some hundred times as much as a name. But a list of names must stay short.
_FEW_CHANGES: Final = 100
_CHANGES_A_GROUP: Final = 10
# How long publishers that never wait may hold an event loop.
_TURN_SECONDS: Final = 0.005


on_append: "Callable[[Sequence[NewEntry], AfterCommit | None], None] | None" = None
"""Tests are told here what was appended, and what waits for the commit if that is still to come."""


class Dropped(NamedTuple):
    """How many events and groups were dropped because of their age."""

    events: int = 0
    groups: int = 0


Cursor = Any


class EventStore(ABC):
    """Keeps each group's recent events in order.

    Numbers: the first number of a group is the time in microseconds. Each later number is one
    more. Numbers never go back, neither after trimming nor after ``reopen``. If a store has lost
    events that it had acknowledged, the group begins a new run of numbers at the current time and
    keeps nothing older. Every earlier position then shows that its history is lost.

    Appending: one call appends all of its entries or none. They may belong to different groups.
    Where these are on different servers, one may fail after another has appended
    (``PartlyPublished``), but never because an entry is refused that was refused before. A
    ``CLOSE`` takes a number like an event, but only once: a second ``CLOSE`` for a cancelled group
    is dropped. Appending an event to a cancelled group raises ``GroupCancelled``.

    Names: a group's name has 1 to 99 ASCII letters, digits, hyphens, underscores and full stops.
    If tenants are kept apart, a prefix comes first: up to 63 of these characters or ``=``, and a
    slash. Names are compared byte for byte.

    Owners: a group whose name begins with ``OWNER_PREFIX`` belongs to an owner of streams. An
    ``END`` cancels this group and begins it anew. The new first number is the time, so the state
    says when the streams were ended. An ``END`` that is written late gets the time when it was
    ordered, and takes no number if a later one exists. Owners' groups are kept for ``CANCEL_TTL``,
    all other groups for ``GROUP_TTL``.

    Producers: a ``BEGIN`` gives a group to a producer, until the group is cancelled. Entries with a
    producer's token raise ``GroupCancelled`` if the group is not that producer's. While a group has
    a producer, and for ``PRODUCER_KEEP`` after that, all of its events are kept.

    Keys: beside its history, a group has the newest event of each key of its events (``key_of``):
    of at least the ``MAX_KEYS`` keys that were published last, each for ``GROUP_TTL``. A ``CLOSE``,
    a ``REOPEN`` and a new run of numbers leave them.

    Expecting: an ``EXPECT`` has the whole call refused, with ``HeadMoved``, unless the group's head
    is still the one that ``astates`` has told. So what follows from the group's entries is appended
    once, also by several processes, and also if the answer is lost.

    Transactions: if a transaction is open on ``using``, its commit publishes the entries.

    Reading is async. It adds no group and no event. But if a publisher died after its commit,
    ``achanged`` finishes the work of that publisher.
    """

    crosses_processes: ClassVar[bool]
    """Whether other processes see what this process appends."""

    never_blocks: ClassVar[bool] = False
    """Whether appending waits for nothing, so that it needs no thread beside an event loop."""

    failures: ClassVar[tuple[type[Exception], ...]] = (DatabaseFailure, OSError)
    """What its methods raise if it cannot be reached or does not work."""

    file: Path | None = None
    """The file that holds the whole store, if there is one. Only processes of one host share it."""

    address: str = ""
    """Where the store is kept, apart from ``file``: the same text in all processes that share it,
    and in no others."""

    notifications: Notifications | None = None
    """What tells the hubs of other processes of each append, if the store does this itself."""

    def __init__(self, *, using: str = DEFAULT_DB_ALIAS) -> None:
        self.using = using
        self._writer = TimedThread("django-sse-write", self._connect)
        # When a publisher on an event loop next lets other tasks run.
        self._give_way_at = 0.0
        self.clock = StoreClock(None)
        """The clock of all times and first numbers: this host's if the store has no clock."""

    def append(self, entries: Sequence[NewEntry], ring: Ring) -> list[int | None]:
        """Append entries, call ``ring``, and return the numbers of the entries.

        The number is None for a ``REOPEN`` and for an entry that was dropped. Inside a transaction
        on ``using`` all numbers are None, and ``ring`` is called after the commit. An ``END`` that
        cannot be written, now or after the commit, is tried again for ``CANCEL_TTL``. Blocks: call
        it from synchronous code.

        Args:
            entries: The entries to append, of any groups.
            ring: Tells the hubs about the new entries.

        Raises:
            GroupCancelled: An event was for a cancelled group, or an entry came from a producer
                that is not the group's. Nothing was appended.
            AlreadyProducing: A ``BEGIN`` was for a group that has a producer.
            HeadMoved: An ``EXPECT`` expected another head. Nothing was appended.
            PartlyPublished: Some of the store's servers have appended their groups' entries.
            TransactionManagementError: Autocommit is off. Or an entry of a producer, or an
                ``EXPECT``, is appended in a transaction, where it could not be refused any more.
        """
        connection = connections[self.using]
        if not connection.in_atomic_block:
            self._require_autocommit(connection)
            return self._append_now(entries, ring)
        if any(entry.kind is Kind.EXPECT for entry in entries):
            raise transaction.TransactionManagementError(
                "What expects a group's head cannot be appended inside a transaction: another one "
                "may commit first."
            )
        if any(entry.producer for entry in entries):
            raise transaction.TransactionManagementError(
                "A producer cannot publish inside a transaction: what it publishes must be refused "
                "once another one has taken over. Produce outside of atomic()."
            )
        after_commit = AfterCommit(self, entries, ring)
        # robust: if this hook fails, Django logs it and still runs the project's own hooks.
        transaction.on_commit(after_commit.publish, using=self.using, robust=True)
        if on_append:
            on_append(entries, after_commit)
        return [None] * len(entries)

    def append_with(
        self,
        entries: Sequence[NewEntry],
        ring: Ring,
        claim: Callable[[], None],
        remember: Callable[[Sequence[int | None]], None],
    ) -> list[int | None]:
        """Append events between two writes to the database ``using``, such as of who asked for it.

        A store that keeps its events there does all three or nothing. Others do them one after the
        other, so that a process which dies may have appended and not remembered it.

        Args:
            entries: The events to append, of any groups.
            ring: Tells the hubs about the new entries.
            claim: Called first. If it raises, nothing is appended.
            remember: Called with the numbers.

        Raises:
            Exception: As for ``append``, or what ``claim`` and ``remember`` raise.
        """
        claim()
        numbers = self.append(entries, ring)
        remember(numbers)
        return numbers

    async def aappend(self, entries: Sequence[NewEntry], ring: Ring) -> list[int | None]:
        """Do what ``append`` does, from async code."""
        if self.never_blocks and self._autocommits and not is_any_open(self.using):
            numbers = self._append_now(entries, ring)
            # Who publishes in a loop must not hold up the streams.
            if monotonic() >= self._give_way_at:
                await asyncio.sleep(0)
                self._give_way_at = monotonic() + _TURN_SECONDS
            return numbers
        # sync_to_async uses the thread of async_to_sync or of the request, where its transaction
        # is open.
        return await sync_to_async(self.append)(entries, ring)

    async def aappend_apart(self, entries: Sequence[NewEntry], ring: Ring) -> list[int | None]:
        """Do what ``append`` does, on a connection of the store's own.

        So it is outside of every transaction, and no request waits for it.

        Raises:
            TimeoutError: The store does not answer. The entries may be appended nevertheless.
        """
        if self.never_blocks:
            return self.append(entries, ring)
        loop = asyncio.get_running_loop()

        def append() -> list[int | None]:
            with working_for(loop):
                return self.append(entries, ring)

        return await self._writer.run(append)

    def refuse_apart(self) -> None:
        """Refuse what would append apart while this thread's transaction has a lock.

        Raises:
            RuntimeError: It would wait for the transaction, which waits for it.
        """

    def _append_now(self, entries: Sequence[NewEntry], ring: Ring) -> list[int | None]:
        """Append entries where no transaction is open: what ``append`` and ``aappend`` share."""
        ordered_at = self.clock.known()
        try:
            numbers, hints = self._append(entries)
        except BaseException as error:
            self._keep_ends(entries, ring, ordered_at)
            if isinstance(error, PartlyPublished):
                ring(error.hints)
            raise
        self._take_back_ends(entries)
        ring(hints)
        if on_append:
            on_append(entries, None)
        return numbers

    @cached_property
    def _autocommits(self) -> bool:
        """Whether the settings have the database ``using`` commit each statement."""
        return bool(connections[self.using].settings_dict["AUTOCOMMIT"])

    @staticmethod
    def _require_autocommit(connection: BaseDatabaseWrapper) -> None:
        """Refuse to publish outside a transaction that nobody commits.

        Raises:
            TransactionManagementError: Autocommit is off.
        """
        # get_autocommit() would connect, but a store may not use the database at all.
        connected = connection.connection is not None
        if not (connection.autocommit if connected else connection.settings_dict["AUTOCOMMIT"]):
            raise transaction.TransactionManagementError(
                "Publishing needs autocommit, or a transaction opened by atomic(). Otherwise "
                "nobody can tell when an event is published."
            )

    def _connect(self) -> Connection:
        """Return a connection to the database ``using`` for the calling thread."""
        return connections[self.using]

    def _keep_ends(self, entries: Sequence[NewEntry], ring: Ring, ordered_at: float) -> None:
        """Keep ends that could not be written, to try them again: nobody else would shut out their
        owners."""
        ends = [
            entry._replace(at=entry.at or int(ordered_at * 1_000_000))
            for entry in entries
            if entry.kind is Kind.END
        ]
        write_retries.keep(self, ends, ring)

    def _take_back_ends(self, entries: Sequence[NewEntry]) -> None:
        """Forget the kept ends of owners who are let in again."""
        reopened = [entry.group for entry in entries if entry.kind is Kind.REOPEN]
        if reopened:
            write_retries.take_back(self, reopened)

    @abstractmethod
    def _append(
        self, entries: Sequence[NewEntry], *, staged: bool = False
    ) -> tuple[list[int | None], list[Hint]]:
        """Append entries now. Return a number or None for each entry, and a hint for each group.

        Args:
            entries: The entries to append, of any groups.
            staged: Whether they come from a committed transaction: see ``Numbering.take``.

        Raises:
            GroupCancelled: As for ``append``. Nothing was appended.
            AlreadyProducing: As for ``append``.
            HeadMoved: As for ``append``.
        """

    def _stage(self, entries: Sequence[NewEntry]) -> Callable[[], Iterable[Sequence[Hint]]]:
        """Take entries inside an open transaction. Return the function that appends them after
        its commit, and hands over hints as soon as hubs may be told.

        This default keeps them in memory until then, so they are lost with the process.

        Raises:
            GroupCancelled: An event was for a cancelled group. Nothing was taken.
        """
        groups = [entry.group for entry in entries if entry.kind is Kind.EVENT]
        for group, state in (self.states(groups) if groups else {}).items():
            if state.cancelled:
                raise GroupCancelled(group)
        return lambda: [self._append(entries, staged=True)[1]]

    @abstractmethod
    def states(self, groups: Sequence[str]) -> dict[str, GroupState]:
        """Return the state of each of the groups. Blocks: call it from synchronous code."""

    @abstractmethod
    async def astates(self, groups: Sequence[str]) -> dict[str, GroupState]:
        """Return the state of each of the groups."""

    @abstractmethod
    async def aread(self, group: str, after: int, limit: int) -> list[Entry]:
        """Return the kept entries numbered above ``after``, in order, with their append times.

        The page ends after ``limit`` entries, or after the entry that brings it to ``READ_BYTES``;
        this last entry may exceed the limit. Later entries are not even loaded, since many clients
        may read at once.
        """

    @abstractmethod
    async def anewest(self, group: str, after: int, limit: int) -> list[Entry]:
        """Return the newest entry of each key: a page of those numbered above ``after``, as
        ``aread`` does. It is empty only if there are no more."""

    @abstractmethod
    async def achanged(
        self, cursor: Cursor, groups: Collection[str]
    ) -> tuple[Iterable[Hint] | None, Cursor]:
        """Return hints for the groups that changed since the cursor was made, and the next cursor.

        None instead of the hints means that any of the groups may have changed. The first cursor
        is None. A change may be reported more than once, and is never left out. The cost depends
        on how much changed, not on the number of groups in the store. Where many more have changed
        than were asked for (``most_changes``), it depends on the latter.
        """

    @abstractmethod
    async def anew_run(self, group: str, above: int) -> GroupState:
        """Begin a new run of numbers if the group's head is below ``above``.

        Args:
            group: The group.
            above: A number of the group that somebody has seen.

        Returns:
            The state of the group afterwards.
        """

    @abstractmethod
    async def alapsed(self, seconds: float) -> list[Lease]:
        """Return the leases of the producers that were not renewed for so many seconds."""

    trim_due = inf
    """When this process trims next, by ``time.monotonic``."""

    def takes_trim_turn(self) -> bool:
        """Whether the caller should trim now. Then nobody else in this process trims for a
        while."""
        if self.trim_due == inf:
            # A process does not trim at its start, since it may publish once and end.
            self.trim_due = monotonic() + uniform(0, _trim_seconds())
        if monotonic() < self.trim_due:
            return False
        self.trim_due = monotonic() + _trim_seconds()
        return True

    def trim(self) -> Dropped | None:
        """Drop events older than ``HISTORY_AGE``, and groups idle for their time to live. Blocks.

        Returns:
            How much was dropped, or None if everything in the store expires by itself.
        """
        return None

    async def atrim(self) -> None:
        """Drop the same as ``trim``, without delaying reads."""

    def forget(self) -> int | None:
        """Have each group begin a new run of numbers when it is next used. Blocks.

        Nobody but the operator may know that the store has lost events, for example after a backup
        was restored.

        Returns:
            How many groups, or None if the store knows by itself.
        """
        return None

    async def aclose(self) -> None:
        """Close what async calls hold open. The store can be used again afterwards."""
        await self._writer.aclose()

    def check(self) -> list[checks.CheckMessage]:
        """Return the errors and warnings about the store's configuration."""
        return []


class AfterCommit:
    """Takes entries in a transaction, and publishes them once, after its commit."""

    def __init__(self, store: EventStore, entries: Sequence[NewEntry], ring: Ring) -> None:
        self.store = store
        self.is_done = False
        self._entries = entries
        self._ring = ring
        self._commit = store._stage(entries)

    def publish(self) -> None:
        """Append the entries and ring. A second call does nothing."""
        if self.is_done:
            return
        self.is_done = True
        store = self.store
        ordered_at = store.clock.known()
        try:
            for hints in self._commit():
                self._ring(hints)
        except BaseException as error:
            store._keep_ends(self._entries, self._ring, ordered_at)
            if isinstance(error, PartlyPublished):
                self._ring(error.hints)
            raise
        store._take_back_ends(self._entries)


def most_changes(groups: Collection[Any]) -> int:
    """Return how many changed groups ``achanged`` looks through. Beyond it, to ask for the state of
    each group costs less, of which there may be few."""
    return max(_FEW_CHANGES, _CHANGES_A_GROUP * len(groups))


def _trim_seconds() -> float:
    # With a longer pause, old events would stay for more than twice HISTORY_AGE.
    return min(_TRIM_SECONDS, max(conf().HISTORY_AGE or inf, 1.0))
