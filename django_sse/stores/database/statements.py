"""The statements of publishing, written by hand.

Django takes some ten times as long to compile these statements as a database takes to run them.
"""

from collections.abc import Collection, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final, NamedTuple

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from django_sse.event import KEY_FIELD, key_of
from django_sse.groups.entries import Entry, Kind, NewEntry
from django_sse.groups.names import OWNER_PREFIX
from django_sse.models import EventGroup, NewestEvent, OutboxEvent, StoredEvent
from django_sse.stores.clock import TIME_SQL
from django_sse.stores.database.runs import DatabaseRun
from django_sse.stores.database.tables import BATCH, batches
from django_sse.stores.postgresql_notify import CHANNEL

# Names in braces are of tables and columns, whose quotes depend on the database; {in} is as many
# placeholders as there are names or ids, and {rows} as many rows as there are entries. {run} is the
# present run of the database. It is compared in the statement that gives a number, since a pooler
# may have gone on to another server before it.
_RUN: Final = "{run}"
_SELECT_GROUPS: Final = (
    "SELECT name, first, head, cancelled, producer, renewed, changed, run = {run} FROM {groups} "
    "WHERE name IN ({in})"
)
# A write as the first statement takes SQLite's lock in any transaction mode.
_TOUCH_GROUPS: Final = "UPDATE {groups} SET head = head WHERE name IN ({in})"
_RETURNING_GROUPS: Final = (
    " RETURNING name, first, head, cancelled, producer, renewed, changed, run = {run}"
)
# Only while nothing waits for the group in the outbox. In PostgreSQL, a row that was committed
# while this statement waited for the lock is not seen. It was published at the same time, and may
# be numbered later.
_ADVANCE_GROUP: Final = (
    "UPDATE {groups} SET head = head + %s, producer = producer + %s, changed = {now} "
    "WHERE name = %s AND first > 0 AND NOT cancelled AND producer = %s AND run = {run} "
    "AND NOT EXISTS (SELECT 1 FROM {outbox} WHERE {group} = %s) RETURNING head, name"
)
_UPDATE_GROUP: Final = (
    "UPDATE {groups} SET first = %s, head = %s, cancelled = %s, producer = %s, renewed = %s, "
    "run = {run}, changed = {now} WHERE name = %s"
)
_INSERT_STORED: Final = (
    "INSERT INTO {stored} ({group}, number, wire, closes, exclude, created) VALUES {rows}"
)
_STORED_ROW: Final = "(%s, %s, %s, %s, %s, {now})"
_INSERT_NEWEST: Final = (
    "INSERT INTO {newest} ({group}, key_digest, number, wire, exclude, created) VALUES {rows} "
    "{replace}"
)
_NEWEST_ROW: Final = "(%s, %s, %s, %s, %s, {now})"
_REPLACE: Final = (
    "ON CONFLICT ({group}, key_digest) DO UPDATE SET number = excluded.number, "
    "wire = excluded.wire, exclude = excluded.exclude, created = excluded.created"
)
# MariaDB has no other way, which newer versions of MySQL still understand.
_REPLACE_ON_MYSQL: Final = (
    "ON DUPLICATE KEY UPDATE number = VALUES(number), wire = VALUES(wire), "
    "exclude = VALUES(exclude), created = VALUES(created)"
)
# All of it, and the notification, in one round trip to PostgreSQL.
_APPEND: Final = (
    "WITH advanced AS (" + _ADVANCE_GROUP + "), "  # noqa: S608
    "new (place, wire, exclude) AS (VALUES {rows}), stored AS ("
    "INSERT INTO {stored} ({group}, number, wire, closes, exclude, created) "
    "SELECT %s, head - %s + place, wire, FALSE, exclude, {now} FROM advanced, new){newest_of_keys} "
    "SELECT head{notify} FROM advanced"
)
_APPENDED_ROW: Final = "(%s, %s, %s)"
_NEWEST_OF_KEYS: Final = (
    ", newest AS (INSERT INTO {newest} ({group}, key_digest, number, wire, exclude, created) "
    "SELECT %s, key_digest, head - %s + place, wire, exclude, {now} "
    "FROM advanced, new JOIN (VALUES {keys}) AS keys (place, key_digest) USING (place) "
    + _REPLACE
    + ")"
)
_KEY_ROW: Final = "(%s, %s)"
# PostgreSQL's protocol has at most 65,535 parameters, and the texts of statements are cached.
_MOST_APPENDED: Final = 1000
# Numbers what waits for a group in its usual state, also in one round trip to PostgreSQL. All of it
# sees the same snapshot: the end of an owner and what the same transaction has published. Rows are
# deleted only once the group is locked, so that no two publishers wait for each other.
_NUMBER_WAITING: Final = (
    "WITH locked AS (SELECT name, head FROM {groups} WHERE name = %s AND first > 0 "
    "AND NOT cancelled AND producer = 0 AND run = {run} "
    "AND (head + (SELECT COUNT(*) FROM {outbox} WHERE {group} = name)) / %s = head / %s "
    "AND NOT EXISTS (SELECT 1 FROM {outbox} WHERE {group} = name "
    "AND (kind <> {event} OR SUBSTRING(wire FROM 1 FOR 5) = '{key_field}')) "
    "AND NOT EXISTS (SELECT 1 FROM {outbox} WHERE {group} >= %s AND {group} LIKE %s) FOR UPDATE), "
    "taken AS (DELETE FROM {outbox} USING locked WHERE {group} = locked.name "
    "RETURNING id, wire, exclude), "
    "numbered AS (SELECT name, head + ROW_NUMBER() OVER (ORDER BY id) AS number, wire, exclude "
    "FROM locked, taken), "
    "last AS (SELECT MAX(number) AS head FROM numbered), "
    "advanced AS (UPDATE {groups} SET head = last.head, changed = {now} FROM last "
    "WHERE name = %s AND last.head IS NOT NULL), "
    "stored AS (INSERT INTO {stored} ({group}, number, wire, closes, exclude, created) "
    "SELECT name, number, wire, FALSE, exclude, {now} FROM numbered) "
    "SELECT number, wire, exclude{notify} FROM numbered, last ORDER BY number"
)
# What `Hint.encode` returns for a group that is not cancelled. However many rows are returned,
# PostgreSQL sends equal notifications of a transaction once.
_NOTIFY: Final = f", pg_notify('{CHANNEL}', name || ' ' || head || ' 0')"
_DROP_STORED: Final = "DELETE FROM {stored} WHERE {group} = %s AND number <= %s"
# MySQL may read the table that it deletes from only in a derived table.
_DROP_KEYS: Final = (
    "DELETE FROM {newest} WHERE {group} = %s AND (created < {now} - %s OR number <= ("
    "SELECT number FROM (SELECT number FROM {newest} WHERE {group} = %s "
    "ORDER BY number DESC LIMIT 1 OFFSET %s) AS surplus))"
)
_INSERT_STAGED: Final = "INSERT INTO {outbox} ({group}, kind, wire, exclude, at) VALUES {rows}"
_STAGED_ROW: Final = "(%s, %s, %s, %s, %s)"
# Only if all groups are in their usual state, which is cheaper to see than in what state they are.
_INSERT_STAGED_AS_USUAL: Final = (
    "INSERT INTO {outbox} ({group}, kind, wire, exclude, at) SELECT * FROM (VALUES {rows}) AS new "
    "WHERE NOT EXISTS (SELECT 1 FROM {groups} WHERE name IN ({in}) AND cancelled) "
    "AND NOT EXISTS (SELECT 1 FROM {outbox} WHERE {group} IN ({in}) AND kind <> {event})"
)
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
    producer: int
    renewed: int
    changed: int
    is_of_this_run: bool
    """Whether the database has all that it has acknowledged of the group."""


class Statements:
    """Runs the statements of publishing on the calling thread's connection.

    Args:
        using: The database alias.
        run: What tells the present run of the database.
    """

    def __init__(self, using: str, run: DatabaseRun) -> None:
        self._using = using
        self._run_of_database = run

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
            LockedGroup(name, first, head, bool(cancelled), producer, renewed, changed, bool(run))
            for name, first, head, cancelled, producer, renewed, changed, run in rows
        )
        return sorted(groups)

    def append_as_usual(
        self, group: str, entries: Sequence[NewEntry], *, notify: bool
    ) -> tuple[Entry, ...]:
        """Lock a group in its usual state, and add events to it.

        Args:
            group: The name of the group.
            entries: The events, all of them from the group's producer or none of them.
            notify: Whether PostgreSQL is to tell the hubs.

        Returns:
            The numbered events; or none if nothing was done: the group does not exist yet, or is
            cancelled, or has another producer, or something waits for it in the outbox, or the
            database cannot return what it updates.
        """
        count = len(entries)
        producer = entries[0].producer
        parameters: list[Any] = [count, count if producer else 0, group, producer, group]
        if self._connection.vendor == "postgresql":
            if count > _MOST_APPENDED:
                return ()
            binary = self._binary
            for place, entry in enumerate(entries, 1):
                parameters += [place, binary(entry.wire), entry.exclude]
            parameters += [group, count]
            if places := _newest_places(entries):
                parameters += [group, count]
                for place, digest in places:
                    parameters += [place + 1, digest]
            rows = self._select(
                _APPEND,
                parameters,
                row=_APPENDED_ROW,
                rows=count,
                keys=len(places),
                notify=notify,
            )
        elif self._returns_changed_rows:
            rows = self._select(_ADVANCE_GROUP, parameters)
        else:
            return ()
        if not rows:
            return ()
        first = rows[0][0] - count + 1
        numbered = tuple(
            Entry(number, entry.wire, exclude=entry.exclude)
            for number, entry in enumerate(entries, first)
        )
        if self._connection.vendor != "postgresql":
            self.store(group, numbered)
        return numbered

    def number_waiting_as_usual(
        self, group: str, in_bulk: int, *, notify: bool
    ) -> tuple[Entry, ...]:
        """Number the events that wait for a group in its usual state, in one statement.

        Args:
            group: The name of the group.
            in_bulk: Nothing is done if the head passes a multiple of this.
            notify: Whether PostgreSQL is to tell the hubs.

        Returns:
            The numbered events; or none if nothing was done, for a reason of ``append_as_usual``,
            or because more than events without a key waits for it, or anything for an owner.
        """
        if self._connection.vendor != "postgresql":
            return ()
        of_owners = [OWNER_PREFIX, f"{OWNER_PREFIX}%"]
        rows = self._select(
            _NUMBER_WAITING, [group, in_bulk, in_bulk, *of_owners, group], notify=notify
        )
        return tuple(
            Entry(number, bytes(wire), exclude=exclude) for number, wire, exclude, *_ in rows
        )

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
        rows = self._staged_rows(entries, now)
        self._insert(_INSERT_STAGED, _STAGED_ROW, rows)

    def stage_as_usual(self, entries: Sequence[NewEntry], groups: Sequence[str]) -> bool:
        """Insert events for groups in their usual state into the outbox, in one statement.

        Args:
            entries: The events.
            groups: The names of their groups.

        Returns:
            Whether it was done. It was not if a group is cancelled, or if a cancel waits for it, or
            if the events do not fit into one statement.
        """
        rows = self._staged_rows(entries, 0)
        values = [value for row in rows for value in row]
        parameters = [*values, *groups, *groups]
        # MySQL would lock what the statement reads until the transaction ends.
        if self._connection.vendor == "mysql" or len(parameters) > BATCH:
            return False
        return bool(
            self._run(
                _INSERT_STAGED_AS_USUAL,
                parameters,
                names=len(groups),
                row=_STAGED_ROW,
                rows=len(rows),
            )
        )

    def cancelled(self, groups: Collection[str]) -> set[str]:
        """Return those of the groups that are cancelled, or will be by what waits for them."""
        cancelled: set[str] = set()
        for some in batches(sorted(groups), 2):
            for group, kind, _ in self._select(_SELECT_CANCELS, [*some, *some], names=len(some)):
                (cancelled.add if kind == Kind.CLOSE else cancelled.discard)(group)
        return cancelled

    def store(self, group: str, entries: Sequence[Entry]) -> None:
        """Insert numbered entries of a group, and keep the newest of each key."""
        binary = self._binary
        rows = [
            (group, entry.number, binary(entry.wire), entry.closes, entry.exclude)
            for entry in entries
        ]
        self._insert(_INSERT_STORED, _STORED_ROW, rows)
        if places := _newest_places(entries):
            newest = [
                (group, digest, entry.number, binary(entry.wire), entry.exclude)
                for place, digest in places
                for entry in [entries[place]]
            ]
            self._insert(_INSERT_NEWEST, _NEWEST_ROW, newest)

    def drop(self, group: str, number: int) -> None:
        """Delete the events of a group up to a number."""
        self._run(_DROP_STORED, [group, number])

    def drop_keys(self, group: str, most: int, age: int) -> None:
        """Forget keys of a group: those beyond the newest ``most``, and those older than ``age``
        microseconds."""
        self._run(_DROP_KEYS, [group, age, group, most])

    def update(
        self,
        group: str,
        *,
        first: int,
        head: int,
        cancelled: bool,
        producer: int,
        renewed: int,
    ) -> None:
        """Write where a group stands now, in the present run of the database."""
        self._run(_UPDATE_GROUP, [first, head, cancelled, producer, renewed, group])

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

    def _staged_rows(self, entries: Sequence[NewEntry], now: int) -> list[tuple[Any, ...]]:
        binary = self._binary
        return [
            (
                entry.group,
                int(entry.kind),
                binary(entry.wire),
                entry.exclude,
                now if entry.group.startswith(OWNER_PREFIX) else 0,
            )
            for entry in entries
        ]

    def _insert(self, sql: str, row: str, rows: Sequence[Sequence[Any]]) -> None:
        connection = self._connection
        if connection.vendor == "sqlite" and len(rows) > 1:
            # Cheaper than to compile a statement for all of them.
            with connection.cursor() as cursor:
                one = _completed(sql, connection.vendor, names=0, row=row, rows=1)
                cursor.executemany(one, rows)
            return
        for some in batches(rows, row.count("%s")):
            values = [value for values in some for value in values]
            self._run(sql, values, row=row, rows=len(some))

    def _run(self, sql: str, parameters: Sequence[Any], **parts: Any) -> int:
        """Run a statement, and return how many rows it has changed."""
        with self._connection.cursor() as cursor:
            cursor.execute(self._complete(sql, parameters, parts), parameters)
            return int(cursor.rowcount)

    def _select(self, sql: str, parameters: Sequence[Any], **parts: Any) -> list[Any]:
        with self._connection.cursor() as cursor:
            cursor.execute(self._complete(sql, parameters, parts), parameters)
            return list(cursor.fetchall())

    def _complete(self, sql: str, parameters: Sequence[Any], parts: dict[str, Any]) -> str:
        parts.setdefault("names", len(parameters))
        run = self._run_of_database.sql() if _RUN in sql else ""
        return _completed(sql, self._connection.vendor, run=run, **parts)


def _newest_places(entries: Sequence[NewEntry | Entry]) -> list[tuple[int, str]]:
    """Return the places of the newest entry of each key, with a hash of the key."""
    newest = {
        key: place for place, entry in enumerate(entries) if (key := key_of(entry.wire)) is not None
    }
    return [(place, blake2b(key, digest_size=16).hexdigest()) for key, place in newest.items()]


@lru_cache(maxsize=500)
def _completed(
    sql: str,
    vendor: str,
    *,
    names: int,
    row: str = "",
    rows: int = 0,
    keys: int = 0,
    notify: bool = False,
    run: str = "",
) -> str:
    """Return a statement with names and placeholders, as a database has them.

    Args:
        sql: The statement.
        vendor: The database.
        names: How many names or ids it has.
        row: The placeholders of one entry.
        rows: How many entries it has.
        keys: How many keys these entries have.
        notify: Whether it notifies.
        run: What gives the present run of the database.
    """
    fixed = _names(vendor)
    return sql.format_map(
        {
            **fixed,
            "in": ", ".join(["%s"] * names),
            "rows": ", ".join([row.format_map(fixed)] * rows),
            "newest_of_keys": (
                _NEWEST_OF_KEYS.format_map({**fixed, "keys": ", ".join([_KEY_ROW] * keys)})
                if keys
                else ""
            ),
            "notify": _NOTIFY if notify else "",
            "run": run,
        }
    )


@lru_cache(maxsize=3)
def _names(vendor: str) -> dict[str, str]:
    quote = "`" if vendor == "mysql" else '"'
    models = {
        "groups": EventGroup,
        "stored": StoredEvent,
        "newest": NewestEvent,
        "outbox": OutboxEvent,
    }
    tables = {name: f"{quote}{model._meta.db_table}{quote}" for name, model in models.items()}
    kinds = {kind.name.lower(): str(int(kind)) for kind in Kind}
    names = {**tables, **kinds, "group": f"{quote}group{quote}", "now": TIME_SQL[vendor]}
    replace = _REPLACE_ON_MYSQL if vendor == "mysql" else _REPLACE
    return {**names, "replace": replace.format_map(names), "key_field": KEY_FIELD.decode()}
