"""Keeps events in the project's database, with a transactional outbox."""

import asyncio
import re
import sqlite3
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import takewhile
from math import inf
from pathlib import Path
from time import monotonic
from typing import Any, Final, NamedTuple, TypeVar

from django.apps import apps
from django.conf import settings
from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.db import (
    DEFAULT_DB_ALIAS,
    Error,
    InterfaceError,
    InternalError,
    OperationalError,
    connections,
    router,
    transaction,
)
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import (
    BigIntegerField,
    BinaryField,
    ExpressionWrapper,
    F,
    OuterRef,
    QuerySet,
    Subquery,
)
from django.db.models.expressions import RawSQL
from django.db.models.functions import Length

from django_sse.channel_layer import crossing_layer
from django_sse.concurrency.threads import Result
from django_sse.conf import conf
from django_sse.exceptions import GroupCancelled
from django_sse.groups.entries import Entry, GroupState, Hint, Kind, NewEntry, Ring
from django_sse.groups.names import OWNER_PREFIX
from django_sse.groups.numbering import Numbering
from django_sse.groups.replay import filling
from django_sse.logs import log_seldom
from django_sse.models import EventGroup, OutboxEvent, StoredEvent
from django_sse.stores.base import Cursor, Dropped, EventStore
from django_sse.stores.clock import DatabaseTime, StoreClock, database_time
from django_sse.stores.postgresql_notify import Notifications
from django_sse.stores.read_limits import READ_BYTES
from django_sse.stores.timed_thread import TimedThread, unpooled

Item = TypeVar("Item")

# A change becomes visible later than its timestamp, by the length of a commit. Changes up to this
# old (microseconds) are therefore reported again.
_SLACK: Final = 10_000_000

# Names or ids in one statement.
_BATCH: Final = 500

# The databases that the tests run on (MariaDB stands for MySQL). Each locks differently.
_VENDORS: Final = {"sqlite": "SQLite", "postgresql": "PostgreSQL", "mysql": "MySQL or MariaDB"}

# PostgreSQL's SQLSTATEs.
_SERIALIZATION_FAILURE: Final = "40001"
_LOCK_NOT_AVAILABLE: Final = "55P03"
_READ_ONLY: Final = "25006"
_UNDEFINED_TABLE: Final = "42P01"
# MySQL's error numbers: a row changed since the snapshot (1020), a lock was not available in time
# or, in MariaDB, not at once (1205), a deadlock (1213), a lock was not available at once (3572).
_MYSQL_CONFLICTS: Final = (1020, 1205, 1213, 3572)
# MySQL's error numbers: the server is read-only (by either of its options), or the connection is.
_MYSQL_READ_ONLY: Final = (1290, 1836, 1792)
# MySQL's error number: a table was never made.
_MYSQL_NO_SUCH_TABLE: Final = 1146
# Queries that tell whether a server is read-only before a write fails. PostgreSQL's answer is also
# "on" on a standby that follows another server.
_READ_ONLY_SETTINGS: Final = {
    "postgresql": "SELECT current_setting('transaction_read_only')",
    "mysql": "SELECT @@global.read_only, @@global.innodb_read_only",
}
# What drivers raise if the server, or the connection to it, fails.
_FAILURES: Final = (InterfaceError, InternalError, OperationalError)

# One query reads a page with its small wires. It loads at most this many bytes of them; large wires
# are read separately.
_LOADED_BYTES: Final = 1024 * 1024
_SMALL_WIRE: Final = "CASE WHEN LENGTH(wire) <= %s THEN wire END"

# The shortest time between two reconnects of a reader. In SQLite, the files of closed connections
# may stay open for this long.
_REOPEN_SECONDS: Final = 10.0

# What trimming drops in one transaction, and how many groups it looks for at a time.
_TRIM_EVENTS: Final = 1000
_TRIM_GROUPS: Final = 100
# How long one step of trimming takes, in seconds: in the background, and while a publisher waits.
# After a publisher's step no other publisher trims for this many times its duration.
_STEP_SECONDS: Final = 1.0
_PUBLISHER_SECONDS: Final = 0.01
_PUBLISHER_PAUSE: Final = 5

# How long one look for changes may number what publishers left behind, in seconds. Reads wait
# meanwhile.
_NUMBERING_SECONDS: Final = 1.0

# Driver options (seconds), by vendor: no thread waits for ever for a server that does not answer.
_DRIVER_TIMEOUTS: Final[dict[str, dict[str, int]]] = {
    "postgresql": {
        "connect_timeout": 3,
        "keepalives_idle": 15,
        "keepalives_interval": 5,
        "keepalives_count": 3,
    },
    "mysql": {"connect_timeout": 3, "read_timeout": 60, "write_timeout": 60},
}


# Django prefers it to psycopg2, whose connections work differently.
_HAS_PSYCOPG_3: Final = find_spec("psycopg") is not None


class _Cursor(NamedTuple):
    """When the store was last asked for changes. ``time`` (microseconds) is by the database's
    clock, ``monotonic`` (seconds) by this process's, at the same moment."""

    time: int
    monotonic: float
    version: tuple[Any, int] | None
    is_read_only: bool = False

    def clock_jumped(self, now: int) -> bool:
        """Whether the database's clock was set since then, or belongs to another server."""
        passed = (monotonic() - self.monotonic) * 1_000_000
        return abs(now - self.time - passed) > _SLACK / 2


class DatabaseStore(EventStore):
    """Keeps events in tables of a database of the project.

    Inside a transaction an event is only inserted into the outbox, without a number and without a
    lock. After the commit, a separate short transaction numbers what waits in the group, in order,
    under the group's lock. If the publisher has died by then, the next process that looks does
    this.

    Args:
        using: The database alias of the tables.
        listen_alias: The alias that PostgreSQL's LISTEN uses; None for ``using``.

    Raises:
        ImproperlyConfigured: django-tenants keeps the tables outside the public schema.
    """

    crosses_processes = True

    def __init__(self, *, using: str = DEFAULT_DB_ALIAS, listen_alias: str | None = None) -> None:
        super().__init__(using=using)
        self._refuse_schemas_of_tenants()
        if using in connections and connections[using].vendor != "sqlite":
            self.clock = StoreClock(lambda: database_time(using) / 1_000_000)
        self.listen_alias = listen_alias or using
        self._notifications = Notifications(using, self.listen_alias, self._in_reader)
        self._reader = TimedThread("django-sse-store", self._connect)
        # In a separate thread, so that no read waits for trimming.
        self._trimmer = TimedThread("django-sse-trim", self._connect, most=1)
        self._reopen_after = 0.0

    @property
    def file(self) -> Path | None:  # type: ignore[override]
        connection = connections[self.using]
        name = connection.settings_dict["NAME"]
        return None if connection.vendor != "sqlite" or _is_in_memory(name) else Path(name)

    @property
    def address(self) -> str:  # type: ignore[override]
        settings = connections[self.using].settings_dict
        return " ".join(str(settings[key]) for key in ("ENGINE", "HOST", "PORT", "NAME"))

    @property
    def notifications(self) -> Notifications | None:  # type: ignore[override]
        # NOTIFY locks the whole server at each commit, so it is not used if a layer does its work.
        listens = connections[self.using].vendor == "postgresql" and _HAS_PSYCOPG_3
        return self._notifications if listens and crossing_layer() is None else None

    # Reading

    def states(self, groups: Sequence[str]) -> dict[str, GroupState]:
        if connections[self.using].in_atomic_block:
            return self._read_states(groups)
        return self._with_connection(lambda: self._read_states(groups))

    def _read_states(self, groups: Sequence[str]) -> dict[str, GroupState]:
        oldest = self._stored.filter(group=OuterRef("name")).order_by("number").values("number")
        idle = ExpressionWrapper(DatabaseTime() - F("changed"), BigIntegerField())
        rows = self._groups.annotate(oldest=Subquery(oldest[:1]), idle=idle).values_list(
            "name", "first", "head", "oldest", "cancelled", "idle"
        )
        ttl = conf().CANCEL_TTL * 1_000_000
        found = {
            name: GroupState(first, head, oldest or head + 1, cancelled)
            for some in _batches(groups)
            for name, first, head, oldest, cancelled, idle in rows.filter(name__in=some)
            # Trimming may not have dropped the owner's group yet.
            if idle < ttl or not name.startswith(OWNER_PREFIX)
        }
        return {group: found.get(group) or GroupState() for group in groups}

    async def astates(self, groups: Sequence[str]) -> dict[str, GroupState]:
        return await self._in_reader(lambda: self._read_states(groups))

    async def aread(self, group: str, after: int, limit: int) -> list[Entry]:
        return await self._in_reader(lambda: self._read(group, after, limit))

    async def achanged(
        self, cursor: Cursor, groups: Container[str]
    ) -> tuple[Iterable[Hint] | None, Cursor]:
        return await self._in_reader(lambda: self._changed(cursor, groups))

    async def anew_run(self, group: str, above: int) -> GroupState:
        return await self._in_reader(lambda: self._begin_run(group, above))

    async def aclose(self) -> None:
        await self._reader.aclose()

    def _read(self, group: str, after: int, limit: int) -> list[Entry]:
        # Raw SQL: Django takes longer to compile its own expression than to read the whole page.
        small = RawSQL(_SMALL_WIRE, [_LOADED_BYTES // limit], output_field=BinaryField())  # noqa: S611
        rows = self._stored.filter(group=group, number__gt=after).order_by("number")
        columns = rows.values_list("number", small, "closes", "exclude", "created")
        page = list(columns[:limit])
        wires = {number: wire for number, wire, *_ in page}
        if None in wires.values():
            wires = self._with_large_wires(group, wires)
        count = filling(map(len, wires.values()), READ_BYTES)
        return [
            Entry(number, bytes(wires[number]), closes, exclude, created / 1_000_000)
            for number, _, closes, exclude, created in page[:count]
        ]

    def _with_large_wires(
        self, group: str, wires: dict[int, bytes | None]
    ) -> dict[int, bytes | None]:
        """Return the first wires, as many as fit into one page, and load those that are None."""
        rows = self._stored.filter(group=group)
        sizes = {number: len(wire) for number, wire in wires.items() if wire is not None}
        for some in _batches([number for number in wires if number not in sizes]):
            sizes |= dict(rows.filter(number__in=some).values_list("number", Length("wire")))
        # The page ends before an event that was trimmed meanwhile.
        there = list(takewhile(sizes.__contains__, wires))
        count = filling((sizes[number] for number in there), READ_BYTES)
        wires = {number: wires[number] for number in there[:count]}
        for some in _batches([number for number, wire in wires.items() if wire is None]):
            for number, wire in rows.filter(number__in=some).values_list("number", "wire"):
                wires[number] = bytes(wire)
        return dict(takewhile(lambda item: item[1] is not None, wires.items()))

    def _changed(
        self, cursor: _Cursor | None, groups: Container[str]
    ) -> tuple[list[Hint] | None, _Cursor]:
        is_read_only = self._reopen()
        version = self._data_version()
        if cursor and version and version == cursor.version:
            return [], cursor
        began, now = monotonic(), self._now()
        waiting = self._outbox.order_by().values_list("group", flat=True).distinct()
        hints = []
        # Owners first: what was published after a kick is not for who was kicked.
        for group in sorted(waiting, key=lambda name: not name.startswith(OWNER_PREFIX)):
            if monotonic() - began > _NUMBERING_SECONDS:
                version = None
                break
            try:
                with self._without_waiting():
                    hints += self._number({group: []}, wait=False)[1]
            except OperationalError as error:
                if not _is_locked(error):
                    raise
                # Another process holds the lock. Without a version, the next look comes back to
                # this group whether anything changes or not.
                version = None
        next_cursor = _Cursor(now, began, version, is_read_only)
        if cursor and (cursor.clock_jumped(now) or (cursor.is_read_only and not is_read_only)):
            # This may be another server, which took more events meanwhile.
            return None, next_cursor
        if cursor:
            rows = self._groups.filter(changed__gte=cursor.time - _SLACK)
            changed = rows.values_list("name", "head", "cancelled")
            hints += [Hint(*row) for row in changed if row[0] in groups]
        return hints, next_cursor

    def _begin_run(self, name: str, above: int) -> GroupState:
        # If another process holds the lock, this raises, and the hub asks again.
        with self._without_waiting(), transaction.atomic(using=self.using):
            for row in self._lock([name], wait=False):
                if row.head < above:
                    self._delete(self._stored.filter(group=name))
                    self._groups.filter(name=name).update(
                        head=max(self._now(), above + 1), changed=DatabaseTime()
                    )
        return self.states([name])[name]

    def _reopen(self) -> bool:
        """Reconnect now and then if this may reach another server or release files.

        A server that takes no writes may have been the master before a failover: published events
        reach it late or never. SQLite keeps the files of closed connections open while another
        connection of the process holds a lock, as an idle connection does in WAL mode:
        sqlite.org/src, os_unix.c.

        Returns:
            Whether the server still takes no writes, for example a replica that is read on purpose.
        """
        connection = connections[self.using]
        is_read_only = _is_read_only(connection)
        if (is_read_only or connection.vendor == "sqlite") and self._reopen_after < monotonic():
            self._reopen_after = monotonic() + _REOPEN_SECONDS
            connection.close()
            is_read_only = _is_read_only(connection)
        return is_read_only

    @contextmanager
    def _without_waiting(self, *, wait: bool = False) -> Iterator[None]:
        """Fail at once if SQLite is locked, because every read of the hub would wait as well."""
        connection = connections[self.using]
        if wait or connection.vendor != "sqlite":
            yield
            return
        with connection.cursor() as cursor:
            cursor.execute("PRAGMA busy_timeout")
            [busy_timeout] = cursor.fetchone()
            cursor.execute("PRAGMA busy_timeout = 0")
            try:
                yield
            finally:
                cursor.execute(f"PRAGMA busy_timeout = {int(busy_timeout)}")

    def _data_version(self) -> tuple[Any, int] | None:
        """Return a value that stays the same while no other connection has changed the database."""
        connection = connections[self.using]
        if connection.vendor != "sqlite":
            return None
        with connection.cursor() as cursor:
            # Takes 2 microseconds. Comparable within one connection only: sqlite.org/pragma.html.
            cursor.execute("PRAGMA data_version")
            return connection.connection, cursor.fetchone()[0]

    async def _in_reader(self, read: Callable[[], Result]) -> Result:
        """Run a read in the store's reader thread, on the connection that this thread keeps."""
        return await self._reader.run(lambda: self._with_connection(read))

    def _connect(self) -> BaseDatabaseWrapper:
        """Return a connection for the calling thread that does not wait for ever."""
        connection = connections[self.using]
        if timeouts := _DRIVER_TIMEOUTS.get(connection.vendor):
            connection = connections[self.using] = unpooled(self.using)
            options = connection.settings_dict["OPTIONS"]
            connection.settings_dict["OPTIONS"] = {**timeouts, **options}
        return connection

    def _with_connection(self, read: Callable[[], Result]) -> Result:
        with self._hint_at_migrate():
            try:
                return read()
            except _FAILURES:
                # The connection may have been lost while it was idle. A read can safely run twice.
                connections[self.using].close()
                return read()

    @contextmanager
    def _hint_at_migrate(self) -> Iterator[None]:
        """Say what to do where the tables were never made."""
        try:
            yield
        except Error as error:
            if _lacks_a_table(error):
                alias = "" if self.using == DEFAULT_DB_ALIAS else f" --database {self.using}"
                error.add_note(
                    f"django_sse has no tables in the database {self.using!r}: run `python "
                    f"manage.py migrate{alias}`."
                )
            raise

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

    def _stage(self, entries: Sequence[NewEntry]) -> Callable[[], Sequence[Hint]]:
        with transaction.atomic(using=self.using):
            # Insert before reading: SQLite refuses the first write of a transaction if another one
            # has changed the database since its first read.
            self._outbox.bulk_create(
                OutboxEvent(
                    group=entry.group,
                    kind=entry.kind,
                    wire=entry.wire,
                    exclude=entry.exclude,
                    at=self._now() if entry.kind is Kind.END else 0,
                )
                for entry in entries
            )
            self._refuse_cancelled({entry.group for entry in entries if entry.kind is Kind.EVENT})
        groups = {entry.group for entry in entries}
        return lambda: self._number_each(sorted(groups))

    def _refuse_cancelled(self, groups: Collection[str]) -> None:
        for some in _batches(sorted(groups)):
            rows = self._groups.filter(name__in=some, cancelled=True)
            cancelled = set(rows.values_list("name", flat=True))
            kinds = (Kind.CLOSE, Kind.REOPEN)
            waiting = self._outbox.filter(group__in=some, kind__in=kinds).order_by("id")
            for group, kind in waiting.values_list("group", "kind"):
                (cancelled.add if kind == Kind.CLOSE else cancelled.discard)(group)
            for group in cancelled:
                raise GroupCancelled(group)

    def _number_each(self, groups: Iterable[str]) -> list[Hint]:
        """Number what waits in some groups, each group in a short transaction."""
        return [hint for group in groups for hint in self._number({group: []})[1]]

    def _number(
        self, new: Mapping[str, Sequence[NewEntry]], *, wait: bool = True
    ) -> tuple[dict[str, list[int | None]], list[Hint]]:
        """Number what waits in these groups, then the new entries, in one short transaction.

        Raises:
            OperationalError: ``wait`` is False, and another transaction holds a group's lock.
        """
        # Every such transaction locks its groups in the same order, so there is no deadlock.
        names = sorted(new)
        # Only an old connection may be dead although a new one would work.
        is_old = connections[self.using].connection is not None
        while True:
            may_be_committed = False
            try:
                with transaction.atomic(using=self.using):
                    rows = self._lock(names, wait=wait)
                    if len(rows) == len(names):
                        numbered = self._number_locked(rows, new)
                        may_be_committed = True
                        return numbered
                # In a separate transaction: an insert inside it would take a lock out of order.
                self._groups.bulk_create(
                    [EventGroup(name=name, changed=DatabaseTime()) for name in names],
                    ignore_conflicts=True,
                )
            except _FAILURES as error:
                connection = connections[self.using]
                if connection.in_atomic_block:
                    raise
                if wait and _is_conflict(error):
                    # At REPEATABLE READ and above, and in MySQL at any level, a transaction that
                    # conflicts with another one may have to begin again.
                    continue
                if not _is_unusable(connection, error):
                    raise
                # Outside requests nobody else closes it, and every later call would fail as well.
                connection.close()
                if may_be_committed or not is_old:
                    raise
                is_old = False

    def _lock(self, names: Sequence[str], *, wait: bool = True) -> list[EventGroup]:
        features = connections[self.using].features
        if features.has_select_for_update:
            # In one statement, so that the database decides on the order.
            nowait = features.has_select_for_update_nowait and not wait
            rows = self._groups.filter(name__in=names).order_by("name")
            return list(rows.select_for_update(nowait=nowait))
        locked: list[EventGroup] = []
        for some in _batches(names):
            groups = self._groups.filter(name__in=some)
            # A write as the first statement takes SQLite's lock in any transaction mode.
            groups.update(head=F("head"))
            locked += groups
        return locked

    def _number_locked(
        self, rows: Sequence[EventGroup], new: Mapping[str, Sequence[NewEntry]]
    ) -> tuple[dict[str, list[int | None]], list[Hint]]:
        waiting: dict[str, list[OutboxEvent]] = {}
        for some in _batches(list(new)):
            for event in self._outbox.filter(group__in=some).order_by("id"):
                waiting.setdefault(event.group, []).append(event)
        numbers, hints = {}, []
        for row in rows:
            staged = [
                NewEntry(event.group, bytes(event.wire), Kind(event.kind), event.exclude, event.at)
                for event in waiting.get(row.name, [])
            ]
            closing = self._closing(row, staged)
            turn = Numbering(row.name, row.first, row.head, row.cancelled, closing, self._now)
            for entry in staged:
                turn.take(entry, staged=True)
            numbers[row.name] = [turn.take(entry) for entry in new[row.name]]
            hint = turn.finish()
            # Also without new entries: another process may have numbered this process's entries.
            hints.append(hint)
            if hint.entries or hint.cancelled != row.cancelled:
                self._keep(row, turn)
        for ids in _batches([event.id for events in waiting.values() for event in events]):
            self._outbox.filter(id__in=ids).delete()
        if self.notifications:
            self.notifications.notify(hints)
        return numbers, hints

    def _now(self) -> int:
        return database_time(self.using)

    def _closing(self, row: EventGroup, staged: Sequence[NewEntry]) -> bytes:
        if not (row.cancelled and staged):
            return b""
        close = self._stored.filter(group=row.name, number=row.head).first()
        return bytes(close.wire) if close else b""

    def _keep(self, row: EventGroup, turn: Numbering) -> None:
        if row.first and turn.first != row.first:
            self._delete(self._stored.filter(group=row.name))
        self._stored.bulk_create(
            StoredEvent(
                group=row.name,
                number=entry.number,
                wire=entry.wire,
                closes=entry.closes,
                exclude=entry.exclude,
                created=DatabaseTime(),
            )
            for entry in turn.numbered
        )
        self._groups.filter(name=row.name).update(
            first=turn.first,
            head=turn.head,
            cancelled=turn.cancelled,
            changed=DatabaseTime(),
        )
        size = conf().HISTORY_SIZE
        in_bulk = max(size // 10, 1)
        if turn.head // in_bulk != row.head // in_bulk:
            self._delete(self._stored.filter(group=row.name, number__lte=turn.head - size))

    # Trimming

    def append(self, entries: Sequence[NewEntry], ring: Ring) -> list[int | None]:
        with self._hint_at_migrate():
            numbers = super().append(entries, ring)
        # Publishers trim as well, since a site may only publish.
        if self.takes_trim_turn():
            if connections[self.using].in_atomic_block:
                transaction.on_commit(self._trim_after_publishing, using=self.using, robust=True)
            else:
                self._trim_after_publishing()
        return numbers

    async def atrim(self) -> None:
        more = True
        try:
            while more:
                dropped, more = await self._trimmer.run(lambda: self._trim(_STEP_SECONDS))
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
        return self._trim(wait=True)[0]

    def _trim_after_publishing(self) -> None:
        began = monotonic()
        try:
            _, more = self._trim(_PUBLISHER_SECONDS)
            if more:
                # A later publisher goes on.
                self.trim_due = monotonic() + _PUBLISHER_PAUSE * (monotonic() - began)
        except Exception as error:
            # The events are published, so publishing must not fail because of this.
            log_seldom("Old events could not be dropped.", exc_info=error)

    def _trim(self, seconds: float = inf, *, wait: bool = False) -> tuple[Dropped, bool]:
        """Drop old events and idle groups, one group after the other.

        Args:
            seconds: Stop after this many seconds.
            wait: Whether to wait for locked groups. Otherwise they are skipped.

        Returns:
            How much was dropped, and whether more is left.
        """
        ends = monotonic() + seconds
        events = groups = 0
        skipped: set[str] = set()
        while names := self._groups_to_trim(skipped):
            for name in names:
                dropped = Dropped()
                try:
                    with self._without_waiting(wait=wait), transaction.atomic(using=self.using):
                        for row in self._lock([name], wait=wait):
                            dropped = self._drop_from(row)
                except OperationalError as error:
                    if wait or not _is_locked(error):
                        raise
                    if connections[self.using].vendor == "sqlite":
                        # An SQLite file has one lock for all groups.
                        return Dropped(events, groups), True
                if not any(dropped):
                    skipped.add(name)
                events, groups = events + dropped.events, groups + dropped.groups
                if monotonic() >= ends:
                    return Dropped(events, groups), True
        return Dropped(events, groups), False

    def _groups_to_trim(self, skipped: Collection[str]) -> list[str]:
        """Return groups with something to drop, without those that were skipped."""
        if len(skipped) >= _BATCH:
            return []
        now = self._now()
        # The reason for an owner's end is kept as long as the end itself.
        old = self._stored.filter(created__lt=_before(now, conf().HISTORY_AGE))
        old = (
            old.exclude(group__startswith=OWNER_PREFIX)
            .exclude(group__in=skipped)
            .order_by("created")
        )
        names = set(old.values_list("group", flat=True)[:_TRIM_GROUPS])
        # The second condition lets SQLite use the index.
        of_owners = self._groups.filter(name__startswith=OWNER_PREFIX, name__gte=OWNER_PREFIX)
        others = self._groups.exclude(name__startswith=OWNER_PREFIX)
        for some, ttl in ((of_owners, conf().CANCEL_TTL), (others, conf().GROUP_TTL)):
            idle = some.filter(changed__lt=_before(now, ttl)).exclude(name__in=skipped)
            names.update(idle.values_list("name", flat=True)[:_TRIM_GROUPS])
        return sorted(names)[:_TRIM_GROUPS]

    def _drop_from(self, row: EventGroup) -> Dropped:
        """Drop the oldest events of a locked group, or the whole group if it is idle."""
        now, ttl, age = self._now(), conf().GROUP_TTL, conf().HISTORY_AGE
        if row.name.startswith(OWNER_PREFIX):
            ttl, age = conf().CANCEL_TTL, 0
        is_idle = row.changed < _before(now, ttl)
        is_idle = is_idle and not self._outbox.filter(group=row.name).exists()
        since = inf if is_idle else _before(now, age)
        of_group = self._stored.filter(group=row.name)
        oldest = of_group.order_by("number").values_list("number", "created")[:_TRIM_EVENTS]
        # Only from the oldest event on: the kept events have no gaps even if the clock was set.
        old = [number for number, _ in takewhile(lambda event: event[1] < since, oldest)]
        events = self._delete(of_group.filter(number__lte=old[-1])) if old else 0
        if not is_idle or len(old) == _TRIM_EVENTS:
            return Dropped(events)
        row.delete(using=self.using)
        return Dropped(events, 1)

    def _delete(self, rows: QuerySet[StoredEvent]) -> int:
        """Delete rows. `QuerySet.delete` would load them if a signal has a receiver."""
        return rows._raw_delete(self.using)

    # Configuration

    def _refuse_schemas_of_tenants(self) -> None:
        """Refuse tables outside the public schema, since the store's threads have no tenant and
        would not read them."""
        if not self._has_schemas_of_tenants():
            return
        public, of_tenants = _apps_of_schemas()
        app = apps.get_app_config("django_sse")
        names = {app.name, f"{type(app).__module__}.{type(app).__qualname__}"}
        if names.isdisjoint(public) or not names.isdisjoint(of_tenants):
            raise ImproperlyConfigured(
                "The tables of django_sse must be in the public schema and in no other. Otherwise "
                "a tenant's events go to tables of that tenant, which nobody reads. List "
                '"django_sse" in SHARED_APPS and not in TENANT_APPS, and run `manage.py '
                "migrate_schemas --shared`. If tenants have the tables already, first drop them "
                "while django_sse is still in TENANT_APPS: `manage.py migrate_schemas "
                "--skip-checks --tenant django_sse zero`."
            )

    def _has_schemas_of_tenants(self) -> bool:
        if not apps.is_installed("django_tenants") or self.using not in connections:
            return False
        return hasattr(connections[self.using], "schema_name")

    def check(self) -> list[checks.CheckMessage]:
        for option, alias in (("using", self.using), ("listen_alias", self.listen_alias)):
            if alias not in connections:
                return [
                    checks.Error(
                        f"The database store uses the alias {alias!r}, which DATABASES lacks.",
                        hint=f"Set the option `{option}` to one of {', '.join(connections)}.",
                        id="django_sse.E003",
                    )
                ]
        # The router of django-tenants answers for the current tenant's schema, for example in a
        # command.
        if not self._has_schemas_of_tenants() and not router.allow_migrate_model(
            self.using, EventGroup
        ):
            return [
                checks.Error(
                    f"The database store uses the alias {self.using!r}, but a database router "
                    "keeps the tables of django_sse away from it.",
                    hint="Let the router migrate django_sse there, or name another alias: "
                    'DJANGO_SSE = {"STORE": {"BACKEND": "database", "OPTIONS": {"using": ...}}}.',
                    id="django_sse.E004",
                )
            ]
        vendor = connections[self.using].vendor
        if vendor not in _VENDORS:
            return [
                checks.Error(
                    f"The database store does not support {vendor}, the database of the alias "
                    f"{self.using!r}. It relies on locks and transactions, which were never tested "
                    "there.",
                    hint=f"Use {', '.join(_VENDORS.values())} for this alias in DATABASES.",
                    id="django_sse.E006",
                )
            ]
        return self._check_sqlite()

    def _check_sqlite(self) -> list[checks.CheckMessage]:
        connection = connections[self.using]
        if connection.vendor != "sqlite" or _is_in_memory(connection.settings_dict["NAME"]):
            return []
        options = connection.settings_dict.get("OPTIONS", {})
        wal = re.search(r"journal_mode\s*=\s*wal", options.get("init_command", ""), re.IGNORECASE)
        immediate = str(options.get("transaction_mode")).upper() in ("IMMEDIATE", "EXCLUSIVE")
        if wal and immediate:
            return []
        return [
            checks.Warning(
                f"SQLite on the alias {self.using!r} is not set to "
                f"{'WAL' if not wal else 'IMMEDIATE transactions'}: publishing from several "
                'threads or processes will fail with "database is locked".',
                hint='Set "OPTIONS": {"transaction_mode": "IMMEDIATE", '
                '"init_command": "PRAGMA journal_mode=WAL"} for this alias in DATABASES.',
                id="django_sse.W005",
            )
        ]

    # The tables, on the store's alias

    @property
    def _groups(self) -> QuerySet[EventGroup]:
        return EventGroup.objects.using(self.using)

    @property
    def _stored(self) -> QuerySet[StoredEvent]:
        return StoredEvent.objects.using(self.using)

    @property
    def _outbox(self) -> QuerySet[OutboxEvent]:
        return OutboxEvent.objects.using(self.using)


def _batches(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    """Yield the items in parts that fit into one statement: SQLite limits its variables."""
    for begin in range(0, len(items), _BATCH):
        yield items[begin : begin + _BATCH]


def _before(now: int, seconds: float) -> int:
    """Return the time (microseconds) that is ``seconds`` before ``now``; 0, before all, for 0."""
    return now - int(seconds * 1_000_000) if seconds else 0


def _apps_of_schemas() -> tuple[Collection[str], Collection[str]]:
    """Return the apps of django-tenants' public schema, and the apps of all other schemas."""
    types = getattr(settings, "TENANT_TYPES", None)
    if not (types and getattr(settings, "HAS_MULTI_TYPE_TENANTS", False)):
        return getattr(settings, "SHARED_APPS", ()), getattr(settings, "TENANT_APPS", ())
    public = getattr(settings, "PUBLIC_SCHEMA_NAME", "public")
    others = {app for name, of_type in types.items() if name != public for app in of_type["APPS"]}
    return types[public]["APPS"], others


def _is_locked(error: OperationalError) -> bool:
    """Whether a lock of another transaction stopped this one, which does not wait."""
    if _sqlstate(error) == _LOCK_NOT_AVAILABLE or _is_conflict(error):
        return True
    code = getattr(error.__cause__, "sqlite_errorcode", 0) & 0xFF
    return code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _is_unusable(connection: BaseDatabaseWrapper, error: Error) -> bool:
    """Whether a connection was lost, or its server takes no writes, like a former master after a
    failover."""
    if _sqlstate(error) == _READ_ONLY or (error.args and error.args[0] in _MYSQL_READ_ONLY):
        return True
    return connection.connection is None or not connection.is_usable()


def _is_read_only(connection: BaseDatabaseWrapper) -> bool:
    """Whether the server of a connection takes no writes."""
    if connection.vendor not in _READ_ONLY_SETTINGS:
        return False
    with connection.cursor() as cursor:
        cursor.execute(_READ_ONLY_SETTINGS[connection.vendor])
        settings = cursor.fetchone()
    return any(str(setting).lower() not in ("0", "off") for setting in settings)


def _is_conflict(error: Error) -> bool:
    """Whether a transaction conflicted with another one and has to begin again."""
    if _sqlstate(error) == _SERIALIZATION_FAILURE:
        return True
    return bool(error.args) and error.args[0] in _MYSQL_CONFLICTS


def _sqlstate(error: Error) -> str | None:
    # The name of the attribute in psycopg, and in psycopg2.
    cause = error.__cause__
    return getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)


def _lacks_a_table(error: Error) -> bool:
    if _sqlstate(error) == _UNDEFINED_TABLE or error.args[:1] == (_MYSQL_NO_SUCH_TABLE,):
        return True
    return str(error).startswith("no such table: ")


def _is_in_memory(name: object) -> bool:
    return name == ":memory:" or (isinstance(name, str) and "mode=memory" in name)
