"""The clock of a database: one for all hosts, whatever their own clocks and time zones say."""

from typing import Any, Final

from django.db import connections
from django.db.models import BigIntegerField, Func

# Microseconds since the epoch. In UTC: local time has an hour that is not, and one that is twice.
_SQL: Final = {
    "sqlite": "CAST((julianday('now') - 2440587.5) * 86400000000.0 AS INTEGER)",
    "postgresql": "(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000)::bigint",
    "mysql": "TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6))",
}


class DatabaseTime(Func):
    """The time by the clock of the database that a statement runs on, in microseconds since the
    epoch."""

    output_field = BigIntegerField()

    def as_sql(self, compiler: Any, connection: Any, *args: Any, **extra_context: Any) -> Any:
        return _SQL[connection.vendor], []


def database_time(alias: str) -> int:
    """Return the time by a database's clock, in microseconds since the epoch."""
    connection = connections[alias]
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {_SQL[connection.vendor]}")
        return int(cursor.fetchone()[0])
