"""The transaction that a ``TestCase`` keeps open: what is published in it never gets its commit."""

from typing import Any

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from django_sse.stores.base import AfterCommit, EventStore


def commit_published() -> None:
    """Publish what waits for the commit of a ``TestCase``, and only for that.

    The project's own hooks are left to ``captureOnCommitCallbacks``.
    """
    for connection in connections.all(initialized_only=True):
        if is_in_test_case(connection):
            for waiting in waiting_on(connection):
                waiting.publish()


def waiting_for_commit() -> int:
    """Return how many times this thread has published in a transaction that is still open."""
    return sum(len(waiting_on(connection)) for connection in connections.all(initialized_only=True))


def never_commits(store: EventStore) -> bool:
    """Whether a ``TestCase`` uses the database store, whose events no stream can then read."""
    from django_sse.stores.database import DatabaseStore

    return isinstance(store, DatabaseStore) and is_in_test_case(connections[store.using])


def is_in_test_case(connection: BaseDatabaseWrapper) -> bool:
    """Whether the only transaction that is open is the one of a ``TestCase``."""
    blocks: list[Any] = connection.atomic_blocks
    return bool(blocks) and all(block._from_testcase for block in blocks)


def waiting_on(connection: BaseDatabaseWrapper) -> list[AfterCommit]:
    """Return what waits for the commit of a connection's transaction."""
    hooks: list[Any] = connection.run_on_commit
    found = [getattr(hook, "__self__", None) for _, hook, _ in hooks]
    return [each for each in found if isinstance(each, AfterCommit) and not each.is_done]
