"""The tables of the store, on its alias."""

from collections.abc import Iterator, Sequence
from typing import Final, TypeVar

from django.db.models import QuerySet

from django_sse.models import EventGroup, NewestEvent, OutboxEvent, StoredEvent
from django_sse.stores.clock import database_time

Item = TypeVar("Item")

BATCH: Final = 500
"""How many parameters one statement has: SQLite limits them."""


class Tables:
    """The store's rows.

    Args:
        using: The database alias.
    """

    def __init__(self, using: str) -> None:
        self.using = using

    @property
    def groups(self) -> QuerySet[EventGroup]:
        return EventGroup.objects.using(self.using)

    @property
    def stored(self) -> QuerySet[StoredEvent]:
        return StoredEvent.objects.using(self.using)

    @property
    def newest(self) -> QuerySet[NewestEvent]:
        return NewestEvent.objects.using(self.using)

    @property
    def outbox(self) -> QuerySet[OutboxEvent]:
        return OutboxEvent.objects.using(self.using)

    def now(self) -> int:
        """Return the time by the database's clock, in microseconds since the epoch."""
        return database_time(self.using)

    def delete(self, rows: QuerySet[StoredEvent] | QuerySet[NewestEvent]) -> int:
        """Delete rows. `QuerySet.delete` would load them if a signal has a receiver."""
        return rows._raw_delete(self.using)


def batches(items: Sequence[Item], parameters: int = 1) -> Iterator[Sequence[Item]]:
    """Yield the items in parts that fit into one statement.

    Args:
        items: The items.
        parameters: How many parameters each of them takes.
    """
    size = BATCH // parameters
    for begin in range(0, len(items), size):
        yield items[begin : begin + size]
