"""Dropping what nobody needs any more: old events, and groups that are idle."""

from collections.abc import Collection
from itertools import takewhile
from math import inf
from time import monotonic
from typing import Final

from django.db import OperationalError, connections, transaction
from django.db.models import Q, QuerySet

from django_sse.concurrency.forks import ForkSafeLock
from django_sse.conf import conf
from django_sse.groups.names import OWNER_PREFIX
from django_sse.models import EventGroup
from django_sse.stores.base import Dropped
from django_sse.stores.database.connection import StoreConnection
from django_sse.stores.database.errors import is_locked
from django_sse.stores.database.statements import LockedGroup, Statements
from django_sse.stores.database.tables import BATCH, Tables

# How many events are dropped in one transaction, and are looked at for their groups; and how many
# groups are found at a time.
_TRIM_EVENTS: Final = 1000
_TRIM_GROUPS: Final = 100


class Trimming:
    """Drops old events and idle groups from the store's tables, on the calling thread's
    connection."""

    def __init__(self, tables: Tables, statements: Statements, connection: StoreConnection) -> None:
        self._tables = tables
        self._statements = statements
        self._connection = connection
        # Found, and not trimmed yet: to look passes by all that was deleted since the last vacuum.
        self._found: list[str] = []
        # Publishers trim as well, each in its own thread.
        self._lock = ForkSafeLock()

    def run(self, seconds: float = inf, *, wait: bool = False) -> tuple[Dropped, bool]:
        """Drop old events and idle groups, one group after the other.

        Args:
            seconds: Stop after this many seconds.
            wait: Whether to wait for locked groups. Otherwise they are skipped.

        Returns:
            How much was dropped, and whether more is left.
        """
        using, ends = self._tables.using, monotonic() + seconds
        events = groups = 0
        skipped: set[str] = set()
        with self._lock:
            names, self._found = self._found, []
        while names := names or self._groups_to_trim(skipped):
            while names:
                name = names.pop(0)
                dropped = Dropped()
                try:
                    with (
                        self._connection.without_waiting(wait=wait),
                        transaction.atomic(using=using),
                    ):
                        for row in self._statements.lock([name], wait=wait):
                            dropped = self._drop_from(row)
                except OperationalError as error:
                    if wait or not is_locked(error):
                        raise
                    if connections[using].vendor == "sqlite":
                        # An SQLite file has one lock for all groups.
                        return Dropped(events, groups), True
                if not any(dropped):
                    skipped.add(name)
                events, groups = events + dropped.events, groups + dropped.groups
                if monotonic() >= ends:
                    with self._lock:
                        self._found += names
                    return Dropped(events, groups), True
        return Dropped(events, groups), False

    def _groups_to_trim(self, skipped: Collection[str]) -> list[str]:
        """Return groups with something to drop, without those that were skipped."""
        if len(skipped) >= BATCH:
            return []
        now = self._tables.now()
        # The reason for an owner's end is kept as long as the end itself.
        old = self._tables.stored.filter(created__lt=_before(now, conf().HISTORY_AGE))
        old = (
            old.exclude(group__startswith=OWNER_PREFIX)
            .exclude(group__in=skipped)
            .exclude(group__in=self._keeping_all(now).values("name"))
            .order_by("created")
        )
        names = set(old.values_list("group", flat=True)[:_TRIM_EVENTS])
        # The second condition lets SQLite use the index.
        of_owners = self._tables.groups.filter(
            name__startswith=OWNER_PREFIX, name__gte=OWNER_PREFIX
        )
        others = self._tables.groups.exclude(name__startswith=OWNER_PREFIX)
        for some, ttl in ((of_owners, conf().CANCEL_TTL), (others, conf().GROUP_TTL)):
            idle = some.filter(changed__lt=_before(now, ttl)).exclude(name__in=skipped)
            names.update(idle.values_list("name", flat=True)[:_TRIM_GROUPS])
        return sorted(names)[:_TRIM_GROUPS]

    def _keeping_all(self, now: int) -> QuerySet[EventGroup]:
        """Return the groups that have a producer, or had one until shortly."""
        since = _before(now, conf().PRODUCER_KEEP)
        return self._tables.groups.filter(Q(producer__gt=0) | Q(producer=0, renewed__gt=since))

    def _drop_from(self, row: LockedGroup) -> Dropped:
        """Drop the oldest events of a locked group, or the whole group if it is idle."""
        now, ttl, age = self._tables.now(), conf().GROUP_TTL, conf().HISTORY_AGE
        if row.producer or row.renewed > _before(now, conf().PRODUCER_KEEP):
            # Its producer may have begun since it was found.
            return Dropped()
        if row.name.startswith(OWNER_PREFIX):
            ttl, age = conf().CANCEL_TTL, 0
        is_idle = row.changed < _before(now, ttl)
        is_idle = is_idle and not self._tables.outbox.filter(group=row.name).exists()
        since = inf if is_idle else _before(now, age)
        of_group = self._tables.stored.filter(group=row.name)
        oldest = of_group.order_by("number").values_list("number", "created")[:_TRIM_EVENTS]
        # Only from the oldest event on: the kept events have no gaps even if the clock was set.
        old = [number for number, _ in takewhile(lambda event: event[1] < since, oldest)]
        events = self._tables.delete(of_group.filter(number__lte=old[-1])) if old else 0
        if not is_idle or len(old) == _TRIM_EVENTS:
            return Dropped(events)
        self._tables.delete(self._tables.newest.filter(group=row.name))
        self._tables.groups.filter(name=row.name).delete()
        return Dropped(events, 1)


def _before(now: int, seconds: float) -> int:
    """Return the time (microseconds) that is ``seconds`` before ``now``; 0, before all, for 0 and
    for an age that no database can calculate with."""
    return max(now - int(seconds * 1_000_000), 0) if seconds else 0
