"""The tables of the store, on its alias, and the locks of their groups."""

from collections.abc import Iterator, Sequence
from typing import Final, TypeVar

from django.db import connections
from django.db.models import F, QuerySet

from django_sse.models import EventGroup, OutboxEvent, StoredEvent
from django_sse.stores.clock import database_time

Item = TypeVar("Item")

BATCH: Final = 500
"""How many names or ids one statement has: SQLite limits its variables."""


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
    def outbox(self) -> QuerySet[OutboxEvent]:
        return OutboxEvent.objects.using(self.using)

    def now(self) -> int:
        """Return the time by the database's clock, in microseconds since the epoch."""
        return database_time(self.using)

    def lock(self, names: Sequence[str], *, wait: bool = True) -> list[EventGroup]:
        """Lock groups until the transaction ends, and return those that there are.

        Raises:
            OperationalError: ``wait`` is False, and another transaction holds a group's lock.
        """
        features = connections[self.using].features
        if features.has_select_for_update:
            # In one statement, so that the database decides on the order.
            nowait = features.has_select_for_update_nowait and not wait
            rows = self.groups.filter(name__in=names).order_by("name")
            return list(rows.select_for_update(nowait=nowait))
        locked: list[EventGroup] = []
        for some in batches(names):
            groups = self.groups.filter(name__in=some)
            # A write as the first statement takes SQLite's lock in any transaction mode.
            groups.update(head=F("head"))
            locked += groups
        return locked

    def delete(self, rows: QuerySet[StoredEvent]) -> int:
        """Delete rows. `QuerySet.delete` would load them if a signal has a receiver."""
        return rows._raw_delete(self.using)


def batches(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    """Yield the items in parts that fit into one statement."""
    for begin in range(0, len(items), BATCH):
        yield items[begin : begin + BATCH]
