"""Whether the database still has all that it has acknowledged.

A server that takes over may lack the last events, and a restored backup lacks more. Clients have
their numbers, which must not be given to other events. So each group has the run of the database
that its last number is of. If the database is in another run, the group begins a new run of numbers
before it gets another event.
"""

from contextlib import closing
from typing import Final

from django.db import NotSupportedError, ProgrammingError, connections, transaction

from django_sse.logs import log_once
from django_sse.models import EventGroup

FORGOTTEN: Final = "-"
"""No run of any database."""

# Changed by a restore: another file if the table was made or filled anew, in another cluster if its
# number happens to be the same. (It is also changed by what writes the table anew, like VACUUM
# FULL, which cannot be told apart.)
_FILE: Final = "COALESCE(pg_relation_filenode('{groups}'::regclass), 0)"
_CLUSTER: Final = "(SELECT system_identifier FROM pg_control_system())"
# Changed by each promotion, and by a recovery that ends before the last record.
_TIMELINE: Final = "left(pg_walfile_name(pg_current_wal_lsn()), 8)"


class DatabaseRun:
    """Tells the run of a database. Only PostgreSQL's ever changes by itself.

    Args:
        using: The database alias.
        durable: Whether a server that takes over has all that the last one has acknowledged.
    """

    def __init__(self, using: str, *, durable: bool) -> None:
        self._using = using
        self._durable = durable
        self._sql: str | None = None

    def sql(self) -> str:
        """Return the expression of the present run, for a statement on the primary."""
        if connections[self._using].vendor != "postgresql":
            return "''"
        if self._sql is None:
            parts = [_CLUSTER] if self._durable else [_CLUSTER, _TIMELINE]
            parts = [part for part in parts if self._is_allowed(part)]
            table = connections[self._using].ops.quote_name(EventGroup._meta.db_table)
            self._sql = " || ' ' || ".join(["''", _FILE.format(groups=table), *parts])
        return self._sql

    def now(self) -> str:
        """Return the present run; an empty text for a standby, or if it never changes by itself."""
        if connections[self._using].vendor != "postgresql":
            return ""
        return self._ask(self.sql())

    def _is_allowed(self, part: str) -> bool:
        try:
            with transaction.atomic(using=self._using):
                self._ask(part)
        except (ProgrammingError, NotSupportedError) as error:
            log_once(
                f"The database {self._using!r} does not tell whether another server has taken over "
                "or a backup was restored. After either, run `python manage.py sse_reset`. "
                f"{error}"
            )
            return False
        return True

    def _ask(self, run: str) -> str:
        connection = connections[self._using]
        connection.ensure_connection()
        # Django's cursor would count the query, and projects' tests count queries.
        with connection.wrap_database_errors, closing(connection.connection.cursor()) as cursor:
            cursor.execute(f"SELECT CASE WHEN NOT pg_is_in_recovery() THEN ({run})::text END")
            return cursor.fetchone()[0] or ""
