"""Whether a transaction is open in any thread of this process, seen from an event loop."""

from typing import Any, Final
from weakref import WeakSet

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created

from django_sse.concurrency.forks import ForkSafeLock

_lock: Final = ForkSafeLock()
_connections: Final[WeakSet[BaseDatabaseWrapper]] = WeakSet()


def is_any_open(alias: str) -> bool:
    """Return whether any thread has a transaction open on a database, or has autocommit off.

    The code on an event loop does not know which thread has its own transaction: the one of its
    request, of ``async_to_sync``, or the one for all other synchronous code.
    """
    with _lock:
        # Each request has a thread and a connection of its own. Opened again, it is noted again.
        for closed in [each for each in _connections if each.connection is None]:
            _connections.discard(closed)
        return any(
            connection.in_atomic_block or not connection.autocommit
            for connection in _connections
            if connection.alias == alias
        )


def _note(*, connection: BaseDatabaseWrapper, **kwargs: Any) -> None:
    with _lock:
        _connections.add(connection)


connection_created.connect(_note)
