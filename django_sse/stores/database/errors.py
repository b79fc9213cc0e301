"""What an error of a database means, by its code in each of the databases supported."""

import sqlite3
from typing import Final

from django.db import Error, InterfaceError, InternalError, OperationalError
from django.db.backends.base.base import BaseDatabaseWrapper

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

FAILURES: Final = (InterfaceError, InternalError, OperationalError)
"""What drivers raise if the server, or the connection to it, fails."""


def is_locked(error: OperationalError) -> bool:
    """Whether a lock of another transaction stopped this one, which does not wait."""
    if _sqlstate(error) == _LOCK_NOT_AVAILABLE or is_conflict(error):
        return True
    code = getattr(error.__cause__, "sqlite_errorcode", 0) & 0xFF
    return code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def is_conflict(error: Error) -> bool:
    """Whether a transaction conflicted with another one and has to begin again."""
    if _sqlstate(error) == _SERIALIZATION_FAILURE:
        return True
    return bool(error.args) and error.args[0] in _MYSQL_CONFLICTS


def is_unusable(connection: BaseDatabaseWrapper, error: Error) -> bool:
    """Whether a connection was lost, or its server takes no writes, like a former master after a
    failover."""
    if _sqlstate(error) == _READ_ONLY or (error.args and error.args[0] in _MYSQL_READ_ONLY):
        return True
    return connection.connection is None or not connection.is_usable()


def lacks_a_table(error: Error) -> bool:
    """Whether a table was never made."""
    if _sqlstate(error) == _UNDEFINED_TABLE or error.args[:1] == (_MYSQL_NO_SUCH_TABLE,):
        return True
    return str(error).startswith("no such table: ")


def _sqlstate(error: Error) -> str | None:
    # The name of the attribute in psycopg, and in psycopg2.
    cause = error.__cause__
    return getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
