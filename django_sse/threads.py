"""A thread for what blocks, such as the database, with one job at a time."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context
from threading import Lock
from typing import TypeVar

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
