"""The clock of a store: one for all hosts, whatever their own clocks and time zones say."""

from collections.abc import Callable
from contextlib import closing, suppress
from threading import Thread
from time import monotonic, time, time_ns
from typing import Any, Final

from django.db import connections
from django.db.models import BigIntegerField, Func

from django_sse.logs import log_seldom

# How long the difference to this host's clock counts as known, and how long one that could not be
# asked for.
_KNOWN_SECONDS: Final = 60.0
_UNKNOWN_SECONDS: Final = 10.0
# How long somebody waits for the answer.
_PATIENCE_SECONDS: Final = 1.0

# Microseconds since the epoch. In UTC: local time has an hour that is not, and one that is twice.
_SQL: Final = {
    "sqlite": "CAST((julianday('now') - 2440587.5) * 86400000000.0 AS INTEGER)",
    "postgresql": "(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000)::bigint",
    "mysql": "TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6))",
}


class StoreClock:
    """The time of a store, without a question each time.

    Args:
        ask: Asks the store for its time, in seconds since the epoch; called in a thread of its own.
            None for a store whose clock is this host's.
    """

    def __init__(self, ask: Callable[[], float] | None) -> None:
        self._ask = ask
        # What is added to `monotonic` to have the store's time.
        self._offset: float | None = None
        self._ask_after = 0.0
        self._asking: Thread | None = None

    def time(self) -> float:
        """Return the store's time, in seconds since the epoch; where it does not answer within a
        second, what is known of it. Blocking: it is asked once a minute at the most.

        Raises:
            TimeoutError: Nothing is known of it yet.
        """
        begins = self._ask and monotonic() >= self._ask_after and not self._is_asking()
        # Where no thread can be had, the time is what is known.
        with suppress(RuntimeError):
            if begins:
                self._ask_after = monotonic() + _UNKNOWN_SECONDS
                # It may hang, and a login must not.
                self._asking = Thread(target=self._note, daemon=True)
                self._asking.start()
            # Also who comes while the first question is under way.
            if self._asking and (begins or self._offset is None):
                self._asking.join(_PATIENCE_SECONDS)
        if self._ask and self._offset is None:
            raise TimeoutError("The event store does not say the time.")
        return self.known()

    def known(self) -> float:
        """Return the store's time, without asking; this host's where it is not known."""
        return time() if self._offset is None else monotonic() + self._offset

    def _is_asking(self) -> bool:
        return self._asking is not None and self._asking.is_alive()

    def _note(self) -> None:
        assert self._ask
        try:
            self._offset = self._ask() - monotonic()
            self._ask_after = monotonic() + _KNOWN_SECONDS
        except Exception as error:
            log_seldom("The event store does not say the time.", exc_info=error)
        finally:
            connections.close_all()


class DatabaseTime(Func):
    """The time by the clock of the database that a statement runs on, in microseconds since the
    epoch."""

    output_field = BigIntegerField()

    def as_sql(self, compiler: Any, connection: Any, *args: Any, **extra_context: Any) -> Any:
        return _SQL[connection.vendor], []


def database_time(alias: str) -> int:
    """Return the time by a database's clock, in microseconds since the epoch."""
    connection = connections[alias]
    if connection.vendor == "sqlite":
        # SQLite's clock is this host's, in milliseconds.
        return time_ns() // 1000
    connection.ensure_connection()
    # Not Django's cursor: it is asked at a login, and a project's tests count their queries.
    with connection.wrap_database_errors, closing(connection.connection.cursor()) as cursor:
        cursor.execute(f"SELECT {_SQL[connection.vendor]}")
        return int(cursor.fetchone()[0])
