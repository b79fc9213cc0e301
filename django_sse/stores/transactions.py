"""Whether a transaction is open in any thread of this process, seen from an event loop."""

from typing import Any, Final
from weakref import ref

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created

from django_sse.concurrency.forks import ForkSafeLock

_lock: Final = ForkSafeLock()
# Replaced as a whole, so that nobody who asks needs the lock: it is asked for each event.
_connections: tuple[ref[BaseDatabaseWrapper], ...] = ()


def is_any_open(alias: str) -> bool:
    """Return whether any thread has a transaction open on a database, or has autocommit off.

    The code on an event loop does not know which thread has its own transaction: the one of its
    request, of ``async_to_sync``, or the one for all other synchronous code.
    """
    for reference in _connections:
        connection = reference()
        if (
            connection is not None
            and connection.connection is not None
            and (connection.in_atomic_block or not connection.autocommit)
            and connection.alias == alias
        ):
            return True
    return False


def _note(*, connection: BaseDatabaseWrapper, **kwargs: Any) -> None:
    global _connections
    with _lock:
        # Each request has a thread and a connection of its own. Opened again, it is noted again.
        others = [
            reference
            for reference in _connections
            if (other := reference()) is not None
            and other.connection is not None
            and other is not connection
        ]
        _connections = (*others, ref(connection))


connection_created.connect(_note)
