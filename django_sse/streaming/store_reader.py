"""Reads the event store for a hub, asking one question for many streams and groups."""

import asyncio
from collections.abc import Collection, Iterable
from typing import Final

from django_sse.concurrency.tasks import Coalescer, in_time
from django_sse.groups.entries import Entry, GroupState
from django_sse.stores.base import EventStore
from django_sse.stores.read_limits import READ_SECONDS

# How many pages are read at once. Even a store that reads one by one can answer others in between.
_PAGES_AT_ONCE: Final = 4


_Question = tuple[str, int, int]


class StoreReader:
    """Reads states in batches, and a few pages of events at a time.

    While the store answers one question, requests for states pile up. They are asked for together.
    """

    def __init__(self, store: EventStore) -> None:
        self._store = store
        self._pages = asyncio.Semaphore(_PAGES_AT_ONCE)
        self._states = Coalescer(self._read_states)
        # What is being asked about the newest events of keys.
        self._newest: dict[_Question, Coalescer[_Question, list[Entry]]] = {}

    async def page(self, group: str, after: int, limit: int) -> list[Entry]:
        """Return the events after a number: see ``EventStore.aread``.

        Raises:
            Exception: The event store could not be read, or took too long.
        """
        async with self._pages:
            return await in_time(self._store.aread(group, after, limit), READ_SECONDS)

    async def newest(self, group: str, after: int, limit: int) -> list[Entry]:
        """Return a page of the newest event of each key, read after this call began: see
        ``EventStore.anewest``.

        Raises:
            Exception: The event store could not be read, or took too long.
        """
        question = group, after, limit
        if question not in self._newest:
            self._newest[question] = Coalescer(
                lambda _: self._read_newest(*question), lambda: self._forget(question)
            )
        return await asyncio.shield(self._newest[question].add([question]))

    async def states(self, groups: Iterable[str]) -> dict[str, GroupState]:
        """Return the groups' states, read after this call began.

        Raises:
            Exception: The event store could not be read, or took too long.
        """
        groups = list(groups)
        # Each question has a time limit, and this waits for two at most. A limit for each of a
        # thousand clients that come back at once would cost more than all else.
        states = await asyncio.shield(self._states.add(groups))
        return {group: states[group] for group in groups}

    async def _read_newest(self, group: str, after: int, limit: int) -> list[Entry]:
        async with self._pages:
            return await in_time(self._store.anewest(group, after, limit), READ_SECONDS)

    async def _forget(self, question: _Question) -> None:
        del self._newest[question]

    async def _read_states(self, groups: Collection[str]) -> dict[str, GroupState]:
        return await in_time(self._store.astates(list(groups)), READ_SECONDS)
