"""A thread for what blocks, such as the database, with one job at a time."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from contextvars import Context, copy_context
from threading import Lock
from typing import TypeVar

from asgiref.sync import SyncToAsync, ThreadSensitiveContext
from django.core.cache import caches
from django.db import connections

Result = TypeVar("Result")


class WorkerThread:
    """Runs jobs in one thread of its own, which begins with the first of them."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._executor: ThreadPoolExecutor | None = None
        self._lock = Lock()

    async def run(self, job: Callable[[], Result]) -> Result:
        """Return what a job returns, or raise what it raises."""
        with self._lock:
            if self._executor is None:
                self._executor = ThreadPoolExecutor(1, thread_name_prefix=self._name)
            # In an empty context: nothing of a request's is kept.
            running = self._executor.submit(Context().run, job)
        return await asyncio.wrap_future(running)

    async def aclose(self, last: Callable[[], None]) -> None:
        """Run a last job and end the thread; another one begins with the next job."""
        with self._lock:
            executor, self._executor = self._executor, None
        if executor:
            closing = executor.submit(last)
            executor.shutdown(wait=False)
            # Shielded: a loop that ends meanwhile must not keep it from being run.
            await asyncio.shield(asyncio.wrap_future(closing))


def request_context() -> Context:
    """Return a copy of the context of the request that is answered: its language, its time zone,
    and whatever else is set in it, but nothing that would keep what it holds: no thread, and no
    connection to a database or a cache."""
    kept = Context()
    for variable, value in copy_context().items():
        if variable is not SyncToAsync.thread_sensitive_context:
            kept.run(variable.set, value)
    kept.run(_forget_connections)
    return kept


def _forget_connections() -> None:
    for handler in (connections, caches):
        for alias in handler:
            with suppress(AttributeError):
                del handler[alias]


def with_this_thread(context: Context) -> Context:
    """Return a copy of a context in which ``sync_to_async`` uses the thread that it uses here, in
    ``own_thread``."""
    copied = context.copy()
    variable = SyncToAsync.thread_sensitive_context
    copied.run(variable.set, variable.get())
    return copied


@asynccontextmanager
async def own_thread() -> AsyncGenerator[Callable[[], None]]:
    """Let ``sync_to_async`` in the block use a thread of the block's own, which ends after it and
    closes its connections to databases.

    Yields:
        What gives the thread up for another one, as where it hangs.
    """
    context = ThreadSensitiveContext()

    def give_up() -> None:
        # Not left to asgiref, which waits for the thread: in older versions on the event loop.
        if executor := SyncToAsync.context_to_thread_executor.pop(context, None):
            executor.submit(connections.close_all)
            executor.shutdown(wait=False)

    async with context:
        try:
            yield give_up
        finally:
            give_up()
