"""The connection that a thread has to the database of the store."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any, Final

from django.db import DEFAULT_DB_ALIAS, Error, connections
from django.db.backends.base.base import BaseDatabaseWrapper

from django_sse.concurrency.threads import Result, unpooled
from django_sse.stores.database.errors import FAILURES, lacks_a_table

# The shortest time between two reconnects of a reader. In SQLite, the files of closed connections
# may stay open for this long.
_REOPEN_SECONDS: Final = 10.0

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

# Queries that tell whether a server is read-only before a write fails. PostgreSQL's answer is also
# "on" on a standby that follows another server.
_READ_ONLY_SETTINGS: Final = {
    "postgresql": "SELECT current_setting('transaction_read_only')",
    "mysql": "SELECT @@global.read_only, @@global.innodb_read_only",
}


class StoreConnection:
    """What the store does with the calling thread's connection.

    Args:
        using: The database alias.
    """

    def __init__(self, using: str) -> None:
        self._using = using
        self._reopen_after = 0.0

    def open(self) -> BaseDatabaseWrapper:
        """Return a connection for a thread of the store's, which does not wait for ever."""
        connection = self._connection
        if timeouts := _DRIVER_TIMEOUTS.get(connection.vendor):
            connection = connections[self._using] = unpooled(self._using)
            options = connection.settings_dict["OPTIONS"]
            connection.settings_dict["OPTIONS"] = {**timeouts, **options}
        return connection

    def reopen(self) -> bool:
        """Reconnect now and then if this may reach another server or release files.

        A server that takes no writes may have been the master before a failover: published events
        reach it late or never. SQLite keeps the files of closed connections open while another
        connection of the process holds a lock, as an idle connection does in WAL mode:
        sqlite.org/src, os_unix.c.

        Returns:
            Whether the server still takes no writes, for example a replica that is read on purpose.
        """
        connection = self._connection
        is_read_only = _is_read_only(connection)
        if (is_read_only or connection.vendor == "sqlite") and self._reopen_after < monotonic():
            self._reopen_after = monotonic() + _REOPEN_SECONDS
            connection.close()
            is_read_only = _is_read_only(connection)
        return is_read_only

    def run(self, read: Callable[[], Result]) -> Result:
        """Run a read, on a new connection if the old one fails."""
        with self.hint_at_migrate():
            try:
                return read()
            except FAILURES:
                # The connection may have been lost while it was idle. A read can safely run twice.
                self._connection.close()
                return read()

    def data_version(self) -> tuple[Any, int] | None:
        """Return a value that stays the same while no other connection has changed the database."""
        connection = self._connection
        if connection.vendor != "sqlite":
            return None
        with connection.cursor() as cursor:
            # Takes 2 microseconds. Comparable within one connection only: sqlite.org/pragma.html.
            cursor.execute("PRAGMA data_version")
            return connection.connection, cursor.fetchone()[0]

    @contextmanager
    def without_waiting(self, *, wait: bool = False) -> Iterator[None]:
        """Fail at once if SQLite is locked, because every read of the hub would wait as well."""
        connection = self._connection
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

    @contextmanager
    def hint_at_migrate(self) -> Iterator[None]:
        """Say what to do where the tables were never made."""
        try:
            yield
        except Error as error:
            if lacks_a_table(error):
                alias = "" if self._using == DEFAULT_DB_ALIAS else f" --database {self._using}"
                error.add_note(
                    f"django_sse has no tables in the database {self._using!r}: run `python "
                    f"manage.py migrate{alias}`."
                )
            raise

    @property
    def _connection(self) -> BaseDatabaseWrapper:
        return connections[self._using]


def is_in_memory(name: object) -> bool:
    """Whether the NAME of an SQLite database is not a file's."""
    return name == ":memory:" or (isinstance(name, str) and "mode=memory" in name)


def _is_read_only(connection: BaseDatabaseWrapper) -> bool:
    """Whether the server of a connection takes no writes."""
    if connection.vendor not in _READ_ONLY_SETTINGS:
        return False
    with connection.cursor() as cursor:
        cursor.execute(_READ_ONLY_SETTINGS[connection.vendor])
        settings = cursor.fetchone()
    return any(str(setting).lower() not in ("0", "off") for setting in settings)
