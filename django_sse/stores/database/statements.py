"""The statements of publishing, written by hand.

Django takes some ten times as long to compile these statements as a database takes to run them.
"""

from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from django_sse.groups.entries import Entry, Kind, NewEntry
from django_sse.groups.names import OWNER_PREFIX
from django_sse.models import EventGroup, OutboxEvent, StoredEvent
from django_sse.stores.clock import TIME_SQL
from django_sse.stores.database.tables import batches

# Names in braces are of tables and columns, whose quotes depend on the database; {in} is as many
# placeholders as there are names or ids.
_SELECT_GROUPS: Final = (
    "SELECT name, first, head, cancelled, changed FROM {groups} WHERE name IN ({in})"
)
# A write as the first statement takes SQLite's lock in any transaction mode.
_TOUCH_GROUPS: Final = "UPDATE {groups} SET head = head WHERE name IN ({in})"
_RETURNING_GROUPS: Final = " RETURNING name, first, head, cancelled, changed"
# Only while nothing waits for the group in the outbox. In PostgreSQL, a row that was committed
# while this statement waited for the lock is not seen. It was published at the same time, and may
# be numbered later.
_ADVANCE_GROUP: Final = (
    "UPDATE {groups} SET head = head + %s, changed = {now} WHERE name = %s AND first > 0 "
    "AND NOT cancelled AND NOT EXISTS (SELECT 1 FROM {outbox} WHERE {group} = %s) RETURNING head"
)
_UPDATE_GROUP: Final = (
    "UPDATE {groups} SET first = %s, head = %s, cancelled = %s, changed = {now} WHERE name = %s"
)
_INSERT_STORED: Final = (
    "INSERT INTO {stored} ({group}, number, wire, closes, exclude, created) VALUES "
)
_STORED_ROW: Final = "(%s, %s, %s, %s, %s, {now})"
_INSERT_STAGED: Final = "INSERT INTO {outbox} ({group}, kind, wire, exclude, at) VALUES "
_STAGED_ROW: Final = "(%s, %s, %s, %s, %s)"
_SELECT_STAGED: Final = (
    "SELECT id, {group}, wire, kind, exclude, at FROM {outbox} WHERE {group} IN ({in}) ORDER BY id"
)
# One row at a time: for several ids, InnoDB may scan the whole table, and would wait for the rows
# of all open transactions.
_DELETE_STAGED: Final = "DELETE FROM {outbox} WHERE id = %s"
_TAKE_STAGED: Final = (
    "DELETE FROM {outbox} WHERE {group} IN ({in}) RETURNING id, {group}, wire, kind, exclude, at"
)
# The first condition lets SQLite use the index.
_SELECT_WAITING_OWNERS: Final = (
    "SELECT DISTINCT {group} FROM {outbox} WHERE {group} >= %s AND {group} LIKE %s"
)
# What decides whether a group is cancelled, in order: its row, then what waits for it.
_SELECT_CANCELS: Final = (
    "SELECT name, {close}, 0 FROM {groups} WHERE name IN ({in}) AND cancelled UNION ALL "
    "SELECT {group}, kind, id FROM {outbox} WHERE {group} IN ({in}) AND kind IN ({close}, {reopen})"
    " ORDER BY 3"
)


class LockedGroup(NamedTuple):
    """A group as it is while its row is locked."""

    name: str
    first: int
    head: int
    cancelled: bool
    changed: int


class Statements:
    """Runs the statements of publishing on the calling thread's connection.

    Args:
        using: The database alias.
    """

    def __init__(self, using: str) -> None:
        self._using = using

    def lock(self, names: Sequence[str], *, wait: bool = True) -> list[LockedGroup]:
        """Lock groups until the transaction ends, and return those that exist, by name.

        Raises:
            OperationalError: ``wait`` is False, and another transaction holds a group's lock.
        """
        connection = self._connection
        rows: list[Any] = []
        if connection.features.has_select_for_update:
            nowait = connection.features.has_select_for_update_nowait and not wait
            # In one statement, so that the database decides on the order.
            locking = f" ORDER BY name {connection.ops.for_update_sql(nowait=nowait)}"
            rows = self._select(_SELECT_GROUPS + locking, names)
        else:
            for some in batches(names):
                if self._returns_changed_rows:
                    rows += self._select(_TOUCH_GROUPS + _RETURNING_GROUPS, some)
                else:
                    self._run(_TOUCH_GROUPS, some)
                    rows += self._select(_SELECT_GROUPS, some)
        groups = (
            LockedGroup(name, first, head, bool(cancelled), changed)
            for name, first, head, cancelled, changed in rows
        )
        return sorted(groups)

    def advance(self, group: str, count: int) -> int | None:
        """Lock a group in its usual state, with its head moved forward.

        Args:
            group: The name of the group.
            count: How many events are added to it.

        Returns:
            The new head; or None if nothing was done: the group does not exist yet, or is
            cancelled, or something waits for it in the outbox, or the database cannot return what
            it updates.
        """
        if not self._returns_changed_rows:
            return None
        rows = self._select(_ADVANCE_GROUP, [count, group, group])
        return rows[0][0] if rows else None

    def take_waiting(self, groups: Sequence[str]) -> dict[str, list[NewEntry]]:
        """Remove what waits in the outbox for its number, and return it by group and in order."""
        waiting: dict[str, list[NewEntry]] = {}
        for some in batches(groups):
            if self._returns_changed_rows:
                rows = sorted(self._select(_TAKE_STAGED, some))
            else:
                rows = self._select(_SELECT_STAGED, some)
                for row in rows:
                    self._run(_DELETE_STAGED, row[:1])
            for _, group, wire, kind, exclude, at in rows:
                entry = NewEntry(group, bytes(wire), Kind(kind), exclude, at)
                waiting.setdefault(group, []).append(entry)
        return waiting

    def waiting_owners(self, but: Sequence[str]) -> list[str]:
        """Return the owners for whom something waits in the outbox, but those that are given."""
        rows = self._select(_SELECT_WAITING_OWNERS, [OWNER_PREFIX, f"{OWNER_PREFIX}%"])
        return sorted({owner for [owner] in rows}.difference(but))

    def stage(self, entries: Sequence[NewEntry], now: int) -> None:
        """Insert entries into the outbox.

        Args:
            entries: The entries.
            now: The database's time, in microseconds since the epoch, if owners are among them.
        """
        binary = self._binary
        rows = [
            (
                entry.group,
                int(entry.kind),
                binary(entry.wire),
                entry.exclude,
                now if entry.group.startswith(OWNER_PREFIX) else 0,
            )
            for entry in entries
        ]
        self._insert(_INSERT_STAGED, _STAGED_ROW, rows)

    def cancelled(self, groups: Collection[str]) -> set[str]:
        """Return those of the groups that are cancelled, or will be by what waits for them."""
        cancelled: set[str] = set()
        for some in batches(sorted(groups), 2):
            for group, kind, _ in self._select(_SELECT_CANCELS, some, times=2):
                (cancelled.add if kind == Kind.CLOSE else cancelled.discard)(group)
        return cancelled

    def store(self, group: str, entries: Sequence[Entry]) -> None:
        """Insert numbered entries of a group."""
        binary = self._binary
        rows = [
            (group, entry.number, binary(entry.wire), entry.closes, entry.exclude)
            for entry in entries
        ]
        self._insert(_INSERT_STORED, _STORED_ROW, rows)

    def update(self, group: str, *, first: int, head: int, cancelled: bool) -> None:
        """Write where a group stands now."""
        self._run(_UPDATE_GROUP, [first, head, cancelled, group])

    @property
    def _connection(self) -> BaseDatabaseWrapper:
        return connections[self._using]

    @property
    def _returns_changed_rows(self) -> bool:
        # The feature is about INSERT. MariaDB has it, and cannot do the same with UPDATE.
        connection = self._connection
        returns = connection.features.can_return_columns_from_insert
        return bool(returns) and connection.vendor != "mysql"

    @property
    def _binary(self) -> Any:
        # What a driver wants of a BinaryField's value.
        driver: Any = self._connection
        return driver.Database.Binary

    def _insert(self, sql: str, row: str, rows: Sequence[Sequence[Any]]) -> None:
        for some in batches(rows, row.count("%s")):
            values = [value for values in some for value in values]
            self._run(sql + ", ".join([row] * len(some)), values)

    def _run(self, sql: str, parameters: Sequence[Any]) -> None:
        connection = self._connection
        with connection.cursor() as cursor:
            cursor.execute(_with_names(connection, sql, len(parameters)), parameters)

    def _select(self, sql: str, parameters: Sequence[Any], *, times: int = 1) -> list[Any]:
        connection = self._connection
        with connection.cursor() as cursor:
            cursor.execute(_with_names(connection, sql, len(parameters)), [*parameters] * times)
            return list(cursor.fetchall())


def _with_names(connection: BaseDatabaseWrapper, sql: str, count: int) -> str:
    """Return a statement with names and placeholders, as the connection's database has them."""
    names = {**_names(connection.vendor), "in": ", ".join(["%s"] * count)}
    return sql.format_map(names)


@lru_cache(maxsize=3)
def _names(vendor: str) -> dict[str, str]:
    quote = "`" if vendor == "mysql" else '"'
    models = {"groups": EventGroup, "stored": StoredEvent, "outbox": OutboxEvent}
    tables = {name: f"{quote}{model._meta.db_table}{quote}" for name, model in models.items()}
    kinds = {"close": str(int(Kind.CLOSE)), "reopen": str(int(Kind.REOPEN))}
    return {**tables, **kinds, "group": f"{quote}group{quote}", "now": TIME_SQL[vendor]}
