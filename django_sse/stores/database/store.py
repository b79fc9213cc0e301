"""Keeps events in the project's database, with a transactional outbox."""

import asyncio
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path
from threading import local
from time import monotonic
from typing import Any, Final, NamedTuple

from django.core import checks
from django.db import DEFAULT_DB_ALIAS, OperationalError, connections, transaction
from django.db.models import (
    BigIntegerField,
    BinaryField,
    ExpressionWrapper,
    F,
    OuterRef,
    QuerySet,
    Subquery,
    Value,
)
from django.db.models.expressions import RawSQL
from django.db.models.functions import Length

from django_sse.channel_layer import crossing_layer
from django_sse.concurrency.threads import Result
from django_sse.conf import conf
from django_sse.exceptions import GroupCancelled
from django_sse.groups.entries import Entry, GroupState, Hint, Kind, Lease, NewEntry, Ring
from django_sse.groups.names import OWNER_PREFIX
from django_sse.groups.numbering import Numbering
from django_sse.groups.replay import filling
from django_sse.logs import log_seldom
from django_sse.models import EventGroup
from django_sse.stores import base
from django_sse.stores.base import Cursor, Dropped, EventStore, most_changes
from django_sse.stores.clock import DatabaseTime, StoreClock, database_time
from django_sse.stores.database.checks import check_database, refuse_schemas_of_tenants
from django_sse.stores.database.connection import StoreConnection, is_in_memory
from django_sse.stores.database.errors import FAILURES, is_conflict, is_locked, is_unusable
from django_sse.stores.database.runs import FORGOTTEN, DatabaseRun
from django_sse.stores.database.statements import LockedGroup, Statements
from django_sse.stores.database.tables import Tables, batches
from django_sse.stores.database.trimming import Trimming
from django_sse.stores.postgresql_notify import PostgreSQLNotifications
from django_sse.stores.read_limits import READ_BYTES
from django_sse.stores.timed_thread import Connection, TimedThread

# A change becomes visible later than its timestamp, by the length of a commit. Changes up to this
# old (microseconds) are therefore reported again.
_SLACK: Final = 10_000_000

# One query reads a page with its small wires. It loads at most this many bytes of them; large wires
# are read separately.
_LOADED_BYTES: Final = 1024 * 1024
_SMALL_WIRE: Final = "CASE WHEN LENGTH(wire) <= %s THEN wire END"

# How long one step of trimming takes, in seconds: in the background, and while a publisher waits.
# After a publisher's step no other publisher trims for this many times its duration.
_STEP_SECONDS: Final = 1.0
_PUBLISHER_SECONDS: Final = 0.01
_PUBLISHER_PAUSE: Final = 5

# What was ordered longer ago than this (microseconds) is not of a transaction that was just
# committed.
_LONG_AGO: Final = 60_000_000
# An age that nothing has, in microseconds, and with which every database can calculate.
_NEVER: Final = 2**62

# How long one look for changes may number what publishers left behind, in seconds. Reads wait
# meanwhile.
_NUMBERING_SECONDS: Final = 1.0

# Django prefers it to psycopg2, whose connections work differently.
_HAS_PSYCOPG_3: Final = find_spec("psycopg") is not None


class _Cursor(NamedTuple):
    """When the store was last asked for changes. ``time`` (microseconds) is by the database's
    clock, ``monotonic`` (seconds) by this process's, at the same moment."""

    time: int
    monotonic: float
    version: tuple[Any, int] | None
    run: str
    is_read_only: bool = False
    is_unfinished: bool = False
    """Whether something is left of what nobody may have looked at for long."""

    def clock_jumped(self, now: int) -> bool:
        """Whether the database's clock was set since then, or belongs to another server."""
        passed = (monotonic() - self.monotonic) * 1_000_000
        return abs(now - self.time - passed) > _SLACK / 2


@dataclass(slots=True)
class _Transaction:
    """A transaction that publishes. One that was rolled back may go on as the next one, since it
    leaves nothing to number."""

    is_committed: bool = False
    numbered: set[str] = field(default_factory=set)
    """The groups that are numbered since its commit."""


class DatabaseStore(EventStore):
    """Keeps events in tables of a database of the project.

    Inside a transaction an event is only inserted into the outbox, without a number and without a
    lock. After the commit, a separate short transaction numbers what waits in the group, in order,
    under the group's lock. If the publisher has died by then, the next process that looks does
    this.

    Args:
        using: The database alias of the tables.
        listen_alias: The alias that PostgreSQL's LISTEN uses; None for ``using``.
        durable: The operator's promise that a PostgreSQL server which takes over has all that the
            last one has acknowledged (synchronous replication). Streams then go on after a
            failover. All processes must have the same value.

    Raises:
        ImproperlyConfigured: django-tenants keeps the tables outside the public schema.
    """

    crosses_processes = True

    def __init__(
        self,
        *,
        using: str = DEFAULT_DB_ALIAS,
        listen_alias: str | None = None,
        durable: bool = False,
    ) -> None:
        super().__init__(using=using)
        refuse_schemas_of_tenants(using)
        if using in connections and connections[using].vendor != "sqlite":
            self.clock = StoreClock(lambda: database_time(using) / 1_000_000)
        self.listen_alias = listen_alias or using
        self._notifications = PostgreSQLNotifications(using, self.listen_alias, self._in_reader)
        self._connection = StoreConnection(using)
        self._tables = Tables(using)
        self._run = DatabaseRun(using, durable=durable)
        self._statements = Statements(using, self._run)
        self._of_thread = local()
        self._trimming = Trimming(self._tables, self._statements, self._connection)
        self._reader = TimedThread("django-sse-store", self._connection.open)
        # In a separate thread, so that no read waits for trimming.
        self._trimmer = TimedThread("django-sse-trim", self._connection.open, most=1)

    @property
    def file(self) -> Path | None:  # type: ignore[override]
        connection = connections[self.using]
        return _file(connection.settings_dict["NAME"]) if connection.vendor == "sqlite" else None

    @property
    def address(self) -> str:  # type: ignore[override]
        settings = connections[self.using].settings_dict
        return " ".join(str(settings[key]) for key in ("ENGINE", "HOST", "PORT", "NAME"))

    @property
    def notifications(self) -> PostgreSQLNotifications | None:  # type: ignore[override]
        # NOTIFY locks the whole server at each commit, so it is not used if a layer does its work.
        listens = connections[self.using].vendor == "postgresql" and _HAS_PSYCOPG_3
        return self._notifications if listens and crossing_layer() is None else None

    # Reading

    def states(self, groups: Sequence[str]) -> dict[str, GroupState]:
        if connections[self.using].in_atomic_block:
            return self._read_states(groups)
        return self._connection.run(lambda: self._read_states(groups))

    def _read_states(self, groups: Sequence[str]) -> dict[str, GroupState]:
        events = self._tables.stored.filter(group=OuterRef("name"))
        oldest = events.order_by("number").values("number")
        idle = ExpressionWrapper(DatabaseTime() - F("changed"), BigIntegerField())
        rows = self._tables.groups.annotate(oldest=Subquery(oldest[:1]), idle=idle).values_list(
            "name", "first", "head", "oldest", "cancelled", "producer", "idle"
        )
        ttl = conf().CANCEL_TTL * 1_000_000
        found = {
            name: GroupState(first, head, oldest or head + 1, cancelled, producer=producer)
            for some in batches(groups)
            for name, first, head, oldest, cancelled, producer, idle in rows.filter(name__in=some)
            # Trimming may not have dropped the owner's group yet.
            if idle < ttl or not _is_owner(name)
        }
        return {group: found.get(group) or GroupState() for group in groups}

    async def astates(self, groups: Sequence[str]) -> dict[str, GroupState]:
        return await self._in_reader(lambda: self._read_states(groups))

    async def aread(self, group: str, after: int, limit: int) -> list[Entry]:
        return await self._in_reader(lambda: self._read(group, after, limit))

    async def anewest(self, group: str, after: int, limit: int) -> list[Entry]:
        return await self._in_reader(lambda: self._read_newest(group, after, limit))

    async def achanged(
        self, cursor: Cursor, groups: Collection[str]
    ) -> tuple[Iterable[Hint] | None, Cursor]:
        # A hub changes its groups while the thread reads.
        asked = set(groups)
        return await self._in_reader(lambda: self._changed(cursor, asked))

    async def anew_run(self, group: str, above: int) -> GroupState:
        return await self._in_reader(lambda: self._begin_run(group, above))

    async def alapsed(self, seconds: float) -> list[Lease]:
        return await self._in_reader(lambda: self._lapsed(seconds))

    async def aclose(self) -> None:
        await super().aclose()
        await self._reader.aclose()

    def _connect(self) -> Connection:
        return self._connection.open()

    def _lapsed(self, seconds: float) -> list[Lease]:
        before = self._tables.now() - int(seconds * 1_000_000)
        rows = self._tables.groups.filter(producer__gt=0, renewed__lt=before)
        return [Lease(*row) for row in rows.values_list("name", "producer", "renewed")]

    def _read(self, group: str, after: int, limit: int) -> list[Entry]:
        return self._page(self._tables.stored.filter(group=group), after, limit)

    def _read_newest(self, group: str, after: int, limit: int) -> list[Entry]:
        rows = self._tables.newest.filter(group=group).annotate(closes=Value(False))
        # A page ends before an event that was replaced meanwhile, and may be empty.
        while not (page := self._page(rows, after, limit)):
            if not rows.filter(number__gt=after).exists():
                break
        return page

    def _page(self, rows: QuerySet[Any], after: int, limit: int) -> list[Entry]:
        # Raw SQL: Django takes longer to compile its own expression than to read the whole page.
        small = RawSQL(_SMALL_WIRE, [_LOADED_BYTES // limit], output_field=BinaryField())  # noqa: S611
        some = rows.filter(number__gt=after).order_by("number")
        columns = some.values_list("number", small, "closes", "exclude", "created")
        page = list(columns[:limit])
        wires = {number: wire for number, wire, *_ in page}
        if None in wires.values():
            wires = self._with_large_wires(rows, wires)
        count = filling(map(len, wires.values()), READ_BYTES)
        return [
            Entry(number, bytes(wires[number]), closes, exclude, created / 1_000_000)
            for number, _, closes, exclude, created in page[:count]
        ]

    def _with_large_wires(
        self, rows: QuerySet[Any], wires: dict[int, bytes | None]
    ) -> dict[int, bytes | None]:
        """Return the first wires, as many as fit into one page, and load those that are None."""
        sizes = {number: len(wire) for number, wire in wires.items() if wire is not None}
        for some in batches([number for number in wires if number not in sizes]):
            sizes |= dict(rows.filter(number__in=some).values_list("number", Length("wire")))
        # The page ends before an event that was trimmed or replaced meanwhile.
        there = list(takewhile(sizes.__contains__, wires))
        count = filling((sizes[number] for number in there), READ_BYTES)
        wires = {number: wires[number] for number in there[:count]}
        for some in batches([number for number, wire in wires.items() if wire is None]):
            for number, wire in rows.filter(number__in=some).values_list("number", "wire"):
                wires[number] = bytes(wire)
        return dict(takewhile(lambda item: item[1] is not None, wires.items()))

    def _changed(
        self, cursor: _Cursor | None, groups: Collection[str]
    ) -> tuple[list[Hint] | None, _Cursor]:
        is_read_only = self._connection.reopen()
        version = self._connection.data_version()
        if cursor and version and version == cursor.version:
            return [], cursor
        began, now, run = monotonic(), self._tables.now(), self._run.now()
        waiting = self._tables.outbox.order_by().values_list("group", flat=True).distinct()
        first_look, is_complete = cursor is None or cursor.is_unfinished, True
        hints = []
        for done, group in enumerate(sorted(waiting, key=_owners_first)):
            # One at least, or nothing is ever numbered where the database is that slow.
            if done and monotonic() - began > _NUMBERING_SECONDS:
                is_complete = False
                break
            try:
                with self._connection.without_waiting():
                    hints += self._number({group: []}, wait=False, first_look=first_look)[1]
            except OperationalError as error:
                if not is_locked(error):
                    raise
                # Another process holds the lock.
                is_complete = False
        if not is_complete:
            # Without a version, the next look comes back to what is left whether anything changes
            # or not.
            version = None
        next_cursor = _Cursor(
            now, began, version, run, is_read_only, first_look and not is_complete
        )
        if cursor and (
            cursor.clock_jumped(now)
            or (cursor.is_read_only and not is_read_only)
            or cursor.run != run
        ):
            # This may be another server, which has other events.
            return None, next_cursor
        if cursor:
            rows = self._tables.groups.filter(changed__gte=cursor.time - _SLACK)
            columns = rows.values_list("name", "head", "cancelled", "producer")
            most = most_changes(groups)
            changed = list(columns[: most + 1])
            if len(changed) > most:
                changed = [
                    row for some in batches(list(groups)) for row in columns.filter(name__in=some)
                ]
            hints += [
                Hint(name, head, cancelled, producer=producer)
                for name, head, cancelled, producer in changed
                if name in groups
            ]
        # What was published after a kick is not for who was kicked, whoever has numbered the two.
        hints.sort(key=lambda hint: _owners_first(hint.group))
        return hints, next_cursor

    def _begin_run(self, name: str, above: int) -> GroupState:
        # If another process holds the lock, this raises, and the hub asks again.
        with self._connection.without_waiting(), transaction.atomic(using=self.using):
            for row in self._statements.lock([name], wait=False):
                if row.head < above:
                    self._renumber(row, above)
        return self.states([name])[name]

    def _renumber(self, row: LockedGroup, above: int) -> None:
        """Begin a new run of numbers of a locked group, and keep nothing older."""
        self._tables.delete(self._tables.stored.filter(group=row.name))
        self._statements.update(
            row.name,
            first=row.first,
            head=max(self._tables.now(), above + 1),
            cancelled=row.cancelled,
            producer=row.producer,
            renewed=row.renewed,
        )

    def forget(self) -> int:
        names = list(self._tables.groups.filter(head__gt=0).order_by("name").values_list("name"))
        for some in batches([name for [name] in names]):
            with transaction.atomic(using=self.using):
                # In the order of all who lock groups, so that there is no deadlock.
                self._statements.lock(some)
                self._tables.groups.filter(name__in=some).update(
                    run=FORGOTTEN, changed=DatabaseTime()
                )
        return len(names)

    async def _in_reader(self, read: Callable[[], Result]) -> Result:
        """Run a read in the store's reader thread, on the connection that this thread keeps."""
        return await self._reader.run(lambda: self._connection.run(read))

    # Appending

    def _append(
        self, entries: Sequence[NewEntry], *, staged: bool = False
    ) -> tuple[list[int | None], list[Hint]]:
        new: dict[str, list[NewEntry]] = {}
        for entry in entries:
            new.setdefault(entry.group, []).append(entry)
        numbers, hints = self._number(new)
        in_order = {group: iter(of_group) for group, of_group in numbers.items()}
        return [next(in_order[entry.group]) for entry in entries], hints

    def _stage(self, entries: Sequence[NewEntry]) -> Callable[[], Iterable[Sequence[Hint]]]:
        groups = sorted({entry.group for entry in entries}, key=_owners_first)
        are_events = all(entry.kind is Kind.EVENT for entry in entries)
        if not (are_events and self._statements.stage_as_usual(entries, groups)):
            self._stage_in_any_state(entries)
        current = getattr(self._of_thread, "transaction", None)
        if current is None or current.is_committed:
            current = self._of_thread.transaction = _Transaction()
        return lambda: self._number_each(groups, current)

    def _stage_in_any_state(self, entries: Sequence[NewEntry]) -> None:
        with transaction.atomic(using=self.using):
            # Insert before reading: SQLite refuses the first write of a transaction if another one
            # has changed the database since its first read.
            has_owners = any(_is_owner(entry.group) for entry in entries)
            self._statements.stage(entries, self._tables.now() if has_owners else 0)
            of_events = {entry.group for entry in entries if entry.kind is Kind.EVENT}
            for group in self._statements.cancelled(of_events):
                raise GroupCancelled(group)

    def _number_each(
        self, groups: Iterable[str], committed: _Transaction
    ) -> Iterator[Sequence[Hint]]:
        """Number what waits in some groups, each group in a short transaction, and yield its hints
        after each. Whatever else the same transaction has published to a group is numbered with it.
        """
        committed.is_committed = True
        for group in groups:
            if group not in committed.numbered:
                _, hints = self._number({group: []})
                committed.numbered.add(group)
                yield hints

    def _number(
        self,
        new: Mapping[str, Sequence[NewEntry]],
        *,
        wait: bool = True,
        first_look: bool = False,
    ) -> tuple[dict[str, list[int | None]], list[Hint]]:
        """Number what waits in these groups, then the new entries, in one short transaction.

        Args:
            new: New entries by group.
            wait: Whether to wait for groups that another transaction has locked.
            first_look: Whether nobody may have looked at what waits for a long time.

        Returns:
            The numbers of the new entries by group, and hints: those of owners come first.

        Raises:
            OperationalError: ``wait`` is False, and another transaction holds a group's lock.
        """
        # Every such transaction locks its groups in the same order, so there is no deadlock.
        names = sorted(new)
        # Only an old connection may be dead although a new one would work.
        is_old = connections[self.using].connection is not None
        # Hints about owners that were numbered first.
        owner_hints: list[Hint] = []
        while True:
            may_be_committed = False
            try:
                if wait and (hints := self._number_waiting_as_usual(new)):
                    return {name: [] for name in names}, owner_hints + hints
                with transaction.atomic(using=self.using):
                    if numbered := self._number_as_usual(new):
                        may_be_committed = True
                        return numbered[0], owner_hints + numbered[1]
                    rows = self._statements.lock(names, wait=wait)
                    # In a transaction that nobody refuses, so that what is refused is asked anew.
                    if forgotten := [row for row in rows if row.head and not row.is_of_this_run]:
                        for row in forgotten:
                            self._renumber(row, row.head)
                        continue
                    if len(rows) == len(names):
                        waiting = self._statements.take_waiting(names)
                        # What a transaction published after a kick is not for the user whom it
                        # kicked. Asked afterwards, to see all that was committed with it.
                        are_owners = all(map(_is_owner, waiting))
                        owners = [] if are_owners else self._statements.waiting_owners(names)
                        if not owners:
                            numbers, hints = self._number_locked(
                                rows, waiting, new, first_look=first_look
                            )
                            may_be_committed = True
                            return numbers, owner_hints + hints
                        transaction.set_rollback(True, using=self.using)
                # In separate transactions: inside this one, a lock would be taken out of order.
                if len(rows) == len(names):
                    for owner in owners:
                        _, hints = self._number({owner: []}, wait=wait, first_look=first_look)
                        owner_hints += hints
                    continue
                self._tables.groups.bulk_create(
                    [EventGroup(name=name, changed=DatabaseTime()) for name in names],
                    ignore_conflicts=True,
                )
            except FAILURES as error:
                connection = connections[self.using]
                if connection.in_atomic_block:
                    raise
                if wait and is_conflict(error):
                    # At REPEATABLE READ and above, and in MySQL at any level, a transaction that
                    # conflicts with another one may have to begin again.
                    continue
                if not is_unusable(connection, error):
                    raise
                # Outside requests nobody else closes it, and every later call would fail as well.
                connection.close()
                if may_be_committed or not is_old:
                    raise
                is_old = False

    def _number_as_usual(
        self, new: Mapping[str, Sequence[NewEntry]]
    ) -> tuple[dict[str, list[int | None]], list[Hint]] | None:
        """Number new events of one group in its usual state, with the fewest statements.

        Returns:
            The same as ``_number``; or None if nothing was done.
        """
        # Groups that are locked one after the other could wait for each other.
        [group, *others] = new
        entries = new[group]
        if others or not entries:
            return None
        producer = entries[0].producer
        if any(
            entry.kind is not Kind.EVENT or entry.producer != (producer and producer + place)
            for place, entry in enumerate(entries)
        ):
            return None
        notify = self.notifications is not None
        numbered = self._statements.append_as_usual(group, entries, notify=notify)
        if not numbered:
            return None
        head = numbered[-1].number
        self._drop_surplus(group, head - len(entries), head, keeps_all=bool(producer))
        numbers: list[int | None] = [entry.number for entry in numbered]
        return {group: numbers}, [Hint(group, head, cancelled=False, entries=numbered)]

    def _number_waiting_as_usual(self, new: Mapping[str, Sequence[NewEntry]]) -> list[Hint]:
        """Number what waits for one group in its usual state, with one statement.

        No transaction surrounds it. If its answer is lost it can run again, since it takes what it
        numbers out of the outbox.

        Returns:
            The hint of the group; or none if nothing was done.
        """
        [group, *others] = new
        if others or new[group] or _is_owner(group) or connections[self.using].in_atomic_block:
            return []
        notify = self.notifications is not None
        numbered = self._statements.number_waiting_as_usual(group, _in_bulk(), notify=notify)
        if not numbered:
            return []
        return [Hint(group, numbered[-1].number, cancelled=False, entries=numbered)]

    def _number_locked(
        self,
        rows: Sequence[LockedGroup],
        waiting: Mapping[str, Sequence[NewEntry]],
        new: Mapping[str, Sequence[NewEntry]],
        *,
        first_look: bool,
    ) -> tuple[dict[str, list[int | None]], list[Hint]]:
        numbers, hints = {}, []
        for row in rows:
            staged = waiting.get(row.name, [])
            closing = self._closing(row) if row.cancelled and staged else b""
            turn = Numbering(
                row.name,
                row.first,
                row.head,
                row.cancelled,
                closing,
                self._tables.now,
                producer=row.producer,
                renewed=row.renewed,
            )
            # An owner's streams end as of now, with the commit: a session that began while the
            # transaction was open ends, too. On a first look, the commit may be long ago, and the
            # owner may have come back since.
            long_ago = self._tables.now() - _LONG_AGO if staged and first_look else 0
            for entry in staged:
                turn.take(entry._replace(at=0) if entry.at > long_ago else entry, staged=True)
            numbers[row.name] = [turn.take(entry) for entry in new[row.name]]
            hint = turn.finish()
            # Also without new entries: another process may have numbered this process's entries.
            hints.append(hint)
            has_changed = (hint.cancelled, turn.producer, turn.renewed) != (
                row.cancelled,
                row.producer,
                row.renewed,
            )
            if hint.entries or has_changed:
                self._keep(row, turn)
        if self.notifications:
            self.notifications.notify(hints)
        return numbers, hints

    def _closing(self, row: LockedGroup) -> bytes:
        closes = self._tables.stored.filter(group=row.name, number=row.head)
        wire = closes.values_list("wire", flat=True).first()
        return bytes(wire) if wire else b""

    def _keep(self, row: LockedGroup, turn: Numbering) -> None:
        if row.first and turn.first != row.first:
            self._tables.delete(self._tables.stored.filter(group=row.name))
        self._statements.store(row.name, turn.numbered)
        self._statements.update(
            row.name,
            first=turn.first,
            head=turn.head,
            cancelled=turn.cancelled,
            producer=turn.producer,
            renewed=turn.renewed,
        )
        # All that its last producer had published was kept.
        before = 0 if row.renewed and not turn.renewed else row.head
        self._drop_surplus(row.name, before, turn.head, keeps_all=bool(turn.renewed))

    def _drop_surplus(self, group: str, before: int, head: int, *, keeps_all: bool) -> None:
        """Drop what HISTORY_SIZE and MAX_KEYS do not keep, in bulk: now and then as the head
        moves."""
        if head // _in_bulk() != before // _in_bulk():
            if not keeps_all:
                self._statements.drop(group, head - conf().HISTORY_SIZE)
            age = int(conf().GROUP_TTL * 1_000_000) or _NEVER
            self._statements.drop_keys(group, conf().MAX_KEYS, min(age, _NEVER))

    # Trimming

    def refuse_apart(self) -> None:
        connection = connections[self.using]
        if connection.vendor == "sqlite" and connection.in_atomic_block:
            raise RuntimeError(
                "A producer cannot work inside a transaction on SQLite, which lets one connection "
                "write at a time: it would wait for itself. Leave the `atomic` block first; in "
                "tests, use TransactionTestCase."
            )

    def append(self, entries: Sequence[NewEntry], ring: Ring) -> list[int | None]:
        with self._connection.hint_at_migrate():
            numbers = super().append(entries, ring)
        self._trim_in_turn()
        return numbers

    def append_with(
        self,
        entries: Sequence[NewEntry],
        ring: Ring,
        claim: Callable[[], None],
        remember: Callable[[Sequence[int | None]], None],
    ) -> list[int | None]:
        connection = connections[self.using]
        if connection.in_atomic_block:
            # The project's transaction has all of it, and gives no numbers before its commit.
            return super().append_with(entries, ring, claim, remember)
        self._require_autocommit(connection)
        with self._connection.hint_at_migrate():
            numbers, hints = self._append_in_transaction(entries, claim, remember)
        ring(hints)
        if base.on_append:
            base.on_append(entries, None)
        self._trim_in_turn()
        return numbers

    def _append_in_transaction(
        self,
        entries: Sequence[NewEntry],
        claim: Callable[[], None],
        remember: Callable[[Sequence[int | None]], None],
    ) -> tuple[list[int | None], list[Hint]]:
        while True:
            try:
                # The groups are locked last, and only until the commit.
                with transaction.atomic(using=self.using):
                    claim()
                    numbers, hints = self._append(entries)
                    remember(numbers)
                return numbers, hints
            except FAILURES as error:
                connection = connections[self.using]
                if is_unusable(connection, error):
                    # Outside requests nobody else closes it, and every later call would fail too.
                    connection.close()
                    raise
                if not is_conflict(error):
                    raise

    def _trim_in_turn(self) -> None:
        # Publishers trim as well, since a site may only publish.
        if self.takes_trim_turn():
            if connections[self.using].in_atomic_block:
                transaction.on_commit(self._trim_after_publishing, using=self.using, robust=True)
            else:
                self._trim_after_publishing()

    async def atrim(self) -> None:
        more = True
        try:
            while more:
                dropped, more = await self._trimmer.run(lambda: self._trimming.run(_STEP_SECONDS))
                if more and not any(dropped):
                    # Another process is writing to the SQLite file.
                    await asyncio.sleep(_STEP_SECONDS)
        finally:
            if more:
                # The last stream has ended. The next caller that may trim goes on at once.
                self.trim_due = 0.0
            # The thread is idle for too long to keep a connection open.
            await self._trimmer.aclose()

    def trim(self) -> Dropped:
        return self._trimming.run(wait=True)[0]

    def _trim_after_publishing(self) -> None:
        began = monotonic()
        try:
            _, more = self._trimming.run(_PUBLISHER_SECONDS)
            if more:
                # A later publisher goes on.
                self.trim_due = monotonic() + _PUBLISHER_PAUSE * (monotonic() - began)
        except Exception as error:
            # The events are published, so publishing must not fail because of this.
            log_seldom("Old events could not be dropped.", exc_info=error)

    # Configuration

    def check(self) -> list[checks.CheckMessage]:
        return check_database(self.using, self.listen_alias)


@lru_cache
def _file(name: Any) -> Path | None:
    """Return the file of an SQLite database with this NAME."""
    return None if is_in_memory(name) else Path(name)


def _in_bulk() -> int:
    """How many events the head moves on before what is too old is dropped."""
    return max(conf().HISTORY_SIZE // 10, 1)


def _is_owner(name: str) -> bool:
    return name.startswith(OWNER_PREFIX)


def _owners_first(name: str) -> bool:
    return not _is_owner(name)
