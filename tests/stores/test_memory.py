"""What is special to the memory store: how much memory it takes."""

import asyncio
import tracemalloc

from django.test import override_settings

from django_sse.stores.memory import MemoryStore
from django_sse.testing.stores import append, event, state


async def test_groups_that_are_idle_keep_nothing_for_longer_than_their_history() -> None:
    store = MemoryStore()
    size = 1_000_000
    tracemalloc.start()
    try:
        with override_settings(DJANGO_SSE={"HISTORY_AGE": 0.2, "GROUP_TTL": 0}):
            await append(store, *(event(f"idle-{n}", "a" * size) for n in range(5)))
            assert tracemalloc.get_traced_memory()[0] > 5 * size
            async with asyncio.timeout(10):
                while tracemalloc.get_traced_memory()[0] > size:
                    await asyncio.sleep(0.05)
                    await append(store, event("news", "b"))
    finally:
        tracemalloc.stop()
    # The group itself goes on where it was.
    assert (await state(store, "idle-0")).first
