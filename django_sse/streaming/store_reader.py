"""Reads the event store for a hub, without asking it for each stream or group by itself."""

import asyncio
from collections.abc import Iterable
from typing import Final

from django_sse.concurrency.tasks import in_time, must_propagate, spawn
from django_sse.groups.entries import Entry, GroupState
from django_sse.stores.base import EventStore
from django_sse.stores.read_limits import READ_SECONDS

# How many pages are read at once: a store that reads one after the other answers others between.
_PAGES_AT_ONCE: Final = 4


class StoreReader:
    """Asks the store once for the states of all groups that are asked for while it answers another
    question, and for a few pages of events at a time."""

    def __init__(self, store: EventStore) -> None:
        self._store = store
        self._pages = asyncio.Semaphore(_PAGES_AT_ONCE)
        self._wanted: set[str] = set()
        self._next: asyncio.Future[dict[str, GroupState]] | None = None
        self._reading = False

    async def page(self, group: str, after: int, limit: int) -> list[Entry]:
        """Return the events that follow a number: see ``EventStore.aread``.

        Raises:
            Exception: The event store could not be read, or not in time.
        """
        async with self._pages:
            return await in_time(self._store.aread(group, after, limit), READ_SECONDS)

    async def states(self, groups: Iterable[str]) -> dict[str, GroupState]:
        """Return the states of the groups, as they are from this call on.

        Raises:
            Exception: The event store could not be read, or not in time.
        """
        groups = list(groups)
        self._wanted.update(groups)
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
        answer = self._next
        if not self._reading:
            self._reading = True
            spawn(self._read())
        # Not only the question, which may wait for another one that hangs.
        # Shielded: it is others' answer, too.
        states = await in_time(asyncio.shield(answer), READ_SECONDS)
        return {group: states[group] for group in groups}

    async def _read(self) -> None:
        try:
            while answer := self._next:
                wanted, self._wanted, self._next = self._wanted, set(), None
                try:
                    answer.set_result(
                        await in_time(self._store.astates(list(wanted)), READ_SECONDS)
                    )
                except BaseException as error:
                    if must_propagate(error):
                        answer.cancel()
                        raise
                    answer.set_exception(error)
                    # Read here, for the case that nobody waits any more.
                    answer.exception()
        finally:
            self._reading = False
