"""Reads the event store for a hub, asking one question for many streams and groups."""

import asyncio
from collections.abc import Iterable
from typing import Final

from django_sse.concurrency.tasks import in_time, must_propagate, spawn
from django_sse.groups.entries import Entry, GroupState
from django_sse.stores.base import EventStore
from django_sse.stores.read_limits import READ_SECONDS

# How many pages are read at once. Even a store that reads one by one can answer others in between.
_PAGES_AT_ONCE: Final = 4


class StoreReader:
    """Reads states in batches, and a few pages of events at a time.

    While the store answers one question, requests for states pile up. They are asked for together.
    """

    def __init__(self, store: EventStore) -> None:
        self._store = store
        self._pages = asyncio.Semaphore(_PAGES_AT_ONCE)
        self._wanted: set[str] = set()
        self._next: asyncio.Future[dict[str, GroupState]] | None = None
        self._reading = False

    async def page(self, group: str, after: int, limit: int) -> list[Entry]:
        """Return the events after a number: see ``EventStore.aread``.

        Raises:
            Exception: The event store could not be read, or took too long.
        """
        async with self._pages:
            return await in_time(self._store.aread(group, after, limit), READ_SECONDS)

    async def states(self, groups: Iterable[str]) -> dict[str, GroupState]:
        """Return the groups' states, read after this call began.

        Raises:
            Exception: The event store could not be read, or took too long.
        """
        groups = list(groups)
        self._wanted.update(groups)
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
        answer = self._next
        if not self._reading:
            self._reading = True
            spawn(self._read())
        # `_read` limits the time of each question, of which this waits for two at most. A limit for
        # each of a thousand clients that come back at once would cost more than all else.
        # Shielded, since others wait for the answer, too.
        states = await asyncio.shield(answer)
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
                    # Mark the exception as retrieved, in case nobody waits any more.
                    answer.exception()
        finally:
            self._reading = False
