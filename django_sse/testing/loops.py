"""An event loop beside a test that is not async."""

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, Future
from contextvars import copy_context
from queue import SimpleQueue
from threading import Thread
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from asgiref.sync import AsyncToSync

from django_sse.concurrency.threads import without_thread

Result = TypeVar("Result")

# How long tasks may take to end that a test has left.
_SECONDS: Final = 1.0


class LoopBeside:
    """An event loop that runs in another thread for a ``with`` block, so that streams go on between
    two calls of the test.

    Synchronous code that is called on the loop, such as a query of a view, runs in the test's own
    thread while that waits in ``run``: only there is the test's transaction open.
    """

    def __enter__(self) -> Self:
        self._executor = _WhileWaiting()
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._work, name="django-sse-test", daemon=True)
        self._thread.start()
        # Of asgiref: where `sync_to_async` looks for the thread of a loop.
        executors: dict[asyncio.AbstractEventLoop, Any] = AsyncToSync.loop_thread_executors
        executors[self._loop] = self._executor
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.run(_cancel_others())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        del AsyncToSync.loop_thread_executors[self._loop]
        self._loop.close()

    def run(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        """Run a coroutine on the loop, and return what it returns."""
        context = without_thread(copy_context())
        done = context.run(asyncio.run_coroutine_threadsafe, coroutine, self._loop)
        return self._executor.work_until(done)

    def _work(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()


class _WhileWaiting(Executor):
    """Runs jobs in the thread that waits for something."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()

    def submit(self, job: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        answer: Future[Any] = Future()

        def work() -> None:
            if answer.set_running_or_notify_cancel():
                try:
                    answer.set_result(job(*args, **kwargs))
                except BaseException as error:
                    answer.set_exception(error)

        self._jobs.put(work)
        return answer

    def work_until(self, done: Future[Result]) -> Result:
        """Run jobs until a future is done, and return its result."""
        done.add_done_callback(lambda _: self._jobs.put(None))
        while job := self._jobs.get():
            job()
        return done.result()


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    if others:
        # Some may not let themselves be cancelled.
        await asyncio.wait(others, timeout=_SECONDS)
    await asyncio.get_running_loop().shutdown_asyncgens()
