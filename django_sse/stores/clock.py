"""The clock of a store: the same for all hosts, whatever their own clocks and time zones say."""

from collections.abc import Callable
from contextlib import closing, suppress
from threading import Thread
from time import monotonic, time, time_ns
from typing import Any, Final

from django.db import connections
from django.db.models import BigIntegerField, Func

from django_sse.logs import log_seldom

# The pause before the store is asked again: after an answer, and without one.
_ASK_AGAIN_SECONDS: Final = 60.0
_RETRY_SECONDS: Final = 10.0
# How long a caller waits for the answer.
_ANSWER_SECONDS: Final = 1.0

TIME_SQL: Final = {
    "sqlite": "CAST((julianday('now') - 2440587.5) * 86400000000.0 AS INTEGER)",
    "postgresql": "(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000)::bigint",
    "mysql": "TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6))",
}
"""A database's own time when a statement runs, in microseconds since the epoch. In UTC: local time
skips one hour a year and repeats another."""


class StoreClock:
    """The time of a store, without asking the store each time.

    Args:
        ask: Asks the store for its time, in seconds since the epoch. Called in a separate thread.
            None if the store uses this host's clock.
    """

    def __init__(self, ask: Callable[[], float] | None) -> None:
        self._ask = ask
        # The store's time is `monotonic` plus this.
        self._offset: float | None = None
        self._ask_after = 0.0
        self._asker: Thread | None = None

    def time(self) -> float:
        """Return the store's time, in seconds since the epoch.

        Asks the store at most once a minute. If it does not answer within a second, the time
        follows from its last answer. Blocks.

        Raises:
            TimeoutError: The store has never answered.
        """
        begins = self._ask and monotonic() >= self._ask_after and not self._is_asking()
        # If no thread can be started, the last answer has to do.
        with suppress(RuntimeError):
            if begins:
                self._ask_after = monotonic() + _RETRY_SECONDS
                # The question may hang, but a login must not.
                self._asker = Thread(target=self._update_offset, daemon=True)
                self._asker.start()
            # Callers that arrive during the first question wait as well.
            if self._asker and (begins or self._offset is None):
                self._asker.join(_ANSWER_SECONDS)
        if self._ask and self._offset is None:
            raise TimeoutError("The event store does not tell the time.")
        return self.known()

    def known(self) -> float:
        """Return the store's time without asking, or this host's time if it is unknown."""
        return time() if self._offset is None else monotonic() + self._offset

    def _is_asking(self) -> bool:
        return self._asker is not None and self._asker.is_alive()

    def _update_offset(self) -> None:
        assert self._ask
        try:
            self._offset = self._ask() - monotonic()
            self._ask_after = monotonic() + _ASK_AGAIN_SECONDS
        except Exception as error:
            log_seldom("The event store does not tell the time.", exc_info=error)
        finally:
            connections.close_all()


class DatabaseTime(Func):
    """The database's own time when a statement runs, in microseconds since the epoch."""

    output_field = BigIntegerField()

    def as_sql(self, compiler: Any, connection: Any, *args: Any, **extra_context: Any) -> Any:
        return TIME_SQL[connection.vendor], []


def database_time(alias: str) -> int:
    """Return the time by a database's clock, in microseconds since the epoch."""
    connection = connections[alias]
    if connection.vendor == "sqlite":
        # SQLite's clock is this host's, in milliseconds.
        return time_ns() // 1000
    connection.ensure_connection()
    # Django's cursor would count the query. Logins ask for the time, and projects' tests count
    # queries.
    with connection.wrap_database_errors, closing(connection.connection.cursor()) as cursor:
        cursor.execute(f"SELECT {TIME_SQL[connection.vendor]}")
        return int(cursor.fetchone()[0])
