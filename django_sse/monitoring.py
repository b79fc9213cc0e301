"""What is open and what was counted, in this process and in all."""

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Final

from django.utils.asyncio import async_unsafe

from django_sse.stores import get_store
from django_sse.streaming.hub import ask_from_sync, report, streams
from django_sse.streaming.open_stream import OpenStream
from django_sse.streaming.reports import (
    REPORTS,
    Counters,
    ProcessReport,
    ask_for_reports,
    counters,
)

__all__ = [
    "Counters",
    "OpenStream",
    "ProcessReport",
    "aprocesses",
    "counters",
    "processes",
    "streams",
]

# How often it is looked whether another process has answered, and how many reports at a time.
_LOOK_SECONDS: Final = 0.05
_PAGE: Final = 500


async def aprocesses(wait: float = 1.0) -> Sequence[ProcessReport]:
    """Ask all processes about their streams, and return their reports in the order of their names.

    Only processes with open streams answer. With the memory store there is only this one.

    Args:
        wait: How many seconds to wait for answers. It is not known how many will come.

    Raises:
        Exception: The event store could not be read or written.
    """
    store = get_store()
    if not store.crosses_processes:
        return [here] if (here := report()).streams else []
    state = (await store.astates([REPORTS]))[REPORTS]
    after = state.head if state.head != state.origin else 0
    await ask_for_reports(store)
    reports: dict[str, ProcessReport] = {}
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + wait
    while loop.time() < ends_at:
        await asyncio.sleep(_LOOK_SECONDS)
        for entry in await store.aread(REPORTS, after, _PAGE):
            after = entry.number
            answer = ProcessReport.read(entry)
            reports[answer.process] = answer
    return [reports[process] for process in sorted(reports)]


@async_unsafe("processes() would block the running event loop: use `await aprocesses()` there.")
def processes(wait: float = 1.0) -> Sequence[ProcessReport]:
    """Do what ``aprocesses`` does, from synchronous code."""
    return ask_from_sync(partial(aprocesses, wait))
