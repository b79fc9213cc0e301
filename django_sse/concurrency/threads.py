"""The library's threads: for blocking calls, such as those to the database, and for event loops."""

import _thread
import asyncio
import sys
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from contextvars import Context, copy_context
from functools import partial
from queue import SimpleQueue
from threading import Thread
from time import monotonic
from types import SimpleNamespace
from typing import Any, Final, Self, TypeVar
from weakref import finalize

from asgiref.sync import AsyncToSync, SyncToAsync, ThreadSensitiveContext
from django.core.cache import caches
from django.db import connections

from django_sse.concurrency.forks import ForkSafeLock, forget_in_child

Result = TypeVar("Result")

# A connection that has not been used for this long may have been closed by the database.
_IDLE_SECONDS: Final = 1.0
# A call that takes this long keeps its thread busy, so that those who come use another one.
_BUSY_SECONDS: Final = 1.0


def request_context() -> Context:
    """Return a copy of the current request's context.

    It has the language, the time zone, and whatever else is set in it. It has nothing that would
    keep the request's resources: no thread, and no connection to a database or a cache.
    """
    kept = Context()
    for variable, value in copy_context().items():
        if variable is not SyncToAsync.thread_sensitive_context:
            kept.run(variable.set, value)
    kept.run(_forget_resources)
    return kept


def _forget_resources() -> None:
    # The thread that waits for the request below a sync middleware. It will be gone by then.
    with suppress(AttributeError):
        del AsyncToSync.executors.current
    for handler in (connections, caches):
        for alias in handler:
            with suppress(AttributeError):
                del handler[alias]


class LoopThread:
    """An event loop in a separate thread, which starts when the loop is first asked for.

    If gevent or eventlet turn threads into greenlets, this is still a thread of the operating
    system. Python knows one running loop per such thread, and while there is one, Django refuses
    the database to everything else that runs in that thread.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = ForkSafeLock()
        self.forget()
        forget_in_child(self)

    def forget(self) -> None:
        """Reset the state in the child of a fork, which does not have the thread."""
        self.running: asyncio.AbstractEventLoop | None = None

    def loop(self) -> asyncio.AbstractEventLoop:
        """Return the running loop.

        Raises:
            OSError, RuntimeError: The thread or the loop cannot be started now.
        """
        with self._lock:
            if self.running is None:
                self.running = self._begin()
            return self.running

    def _begin(self) -> asyncio.AbstractEventLoop:
        native = _native_threads()
        begun: list[asyncio.AbstractEventLoop | Exception] = []
        ready = (native or _thread).allocate_lock()

        def run() -> None:
            try:
                # Made in this thread: with gevent, a loop's selector belongs to its thread.
                loop = asyncio.new_event_loop()
                if native:
                    loop.set_default_executor(_InPlaceExecutor())
                begun.append(loop)
            except Exception as error:
                begun.append(error)
                return
            finally:
                ready.release()
            loop.run_forever()

        ready.acquire()
        if native:
            native.start_new_thread(run, ())
        else:
            Thread(target=run, name=self._name, daemon=True).start()
        # This blocks all greenlets for some milliseconds, so that none runs while the lock is held.
        ready.acquire()
        if isinstance(begun[0], Exception):
            raise begun[0]
        return begun[0]


class _InPlaceExecutor(ThreadPoolExecutor):
    """Runs a loop's jobs for other threads, such as looking up a name, in the loop's own thread.

    Other threads would be greenlets, which cannot be waited for when the process ends.
    """

    def submit(self, job: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(job(*args, **kwargs))
        except Exception as error:
            done.set_exception(error)
        return done


def _native_threads() -> Any:
    """Return the original module ``_thread`` if greenlets have replaced it, or else None."""
    gevent: Any = sys.modules.get("gevent.monkey")
    if gevent and gevent.is_module_patched("threading"):
        names = ["start_new_thread", "allocate_lock"]
        found = zip(names, gevent.get_original("_thread", names), strict=True)
        return SimpleNamespace(**dict(found))
    eventlet: Any = sys.modules.get("eventlet.patcher")
    if eventlet and eventlet.is_monkey_patched("thread"):
        return eventlet.original("_thread")
    return None


class OwnThread:
    """A thread that lasts for a ``with`` block, for ``sync_to_async`` calls in some contexts.

    It starts with the first call, and closes its database connections when it ends. A thread that
    hangs does not keep the process from ending.
    """

    def __init__(self) -> None:
        self._context = ThreadSensitiveContext()

    def __enter__(self) -> Self:
        SyncToAsync.context_to_thread_executor[self._context] = _DaemonThreadExecutor()
        return self

    def __exit__(self, *exc_info: object) -> None:
        # Not by asgiref, which would wait for the thread: in older versions on the event loop.
        SyncToAsync.context_to_thread_executor.pop(self._context).shutdown(wait=False)

    def within(self, context: Context) -> Context:
        """Return a copy of a context in which ``sync_to_async`` uses this thread."""
        copied = context.copy()
        copied.run(SyncToAsync.thread_sensitive_context.set, self._context)
        return copied

    def give_up(self) -> None:
        """Use another thread for later calls, if this one may hang. It ends after its last call."""
        self.__exit__()
        self.__enter__()


class SharedThreads:
    """A few threads that any number of contexts share for their ``sync_to_async`` calls.

    A context uses the first thread, or the next one if a call keeps that busy. Each thread ends,
    with its database connections, when no context uses it any more.

    Args:
        count: How many threads there are at most.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._lock = ForkSafeLock()
        self.forget()
        forget_in_child(self)

    def forget(self) -> None:
        """Reset the state in the child of a fork, which does not have the threads."""
        self._threads = [_SharedThread() for _ in range(self._count)]

    def enter(self, context: Context) -> tuple[Context, Callable[[], None]]:
        """Return a copy of a context that uses one of the threads, and a function for its end."""
        with self._lock:
            thread = min(self._threads, key=_SharedThread.is_kept_busy)
            if not thread.users:
                thread.__enter__()
            thread.users += 1

        def leave() -> None:
            with self._lock:
                thread.users -= 1
                if not thread.users:
                    thread.__exit__()

        return thread.within(context), leave


class _SharedThread(OwnThread):
    """One of several shared threads, which repairs its database connections before each call."""

    def __init__(self) -> None:
        super().__init__()
        self.users = 0
        self._last_changed = 0.0
        self._is_busy = False

    def __enter__(self) -> Self:
        executor = _DaemonThreadExecutor(self._run)
        SyncToAsync.context_to_thread_executor[self._context] = executor
        return self

    def is_kept_busy(self) -> bool:
        return self._is_busy and monotonic() - self._last_changed > _BUSY_SECONDS

    def _run(self, job: Callable[[], Result]) -> Result:
        idle = monotonic() - self._last_changed
        self._is_busy, self._last_changed = True, monotonic()
        try:
            _close_broken_connections(idle)
            return job()
        finally:
            self._is_busy, self._last_changed = False, monotonic()


def _close_broken_connections(idle: float) -> None:
    """Close connections that do not work any more. Django does so at the beginning of a request.

    Args:
        idle: How many seconds the thread has done nothing, so that its connections may have been
            closed meanwhile.
    """
    for connection in connections.all(initialized_only=True):
        if connection.connection is None or connection.in_atomic_block:
            continue
        if (connection.errors_occurred or idle > _IDLE_SECONDS) and not connection.is_usable():
            connection.close()
        connection.errors_occurred = False


class _DaemonThreadExecutor(Executor):
    """Runs jobs one after the other in one daemon thread.

    A process that ends does not wait for this thread, as it does for those of a ThreadPoolExecutor.
    The thread ends once nobody holds the executor any more.
    """

    def __init__(self, run: Callable[[Callable[[], Any]], Any] | None = None) -> None:
        self._run = run
        self._jobs: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._has_begun = False
        self._end = finalize(self, self._jobs.put, None)

    def submit(self, job: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        if not self._end.alive:
            raise RuntimeError("The thread has ended.")
        if not self._has_begun:
            Thread(target=_run_jobs, args=[self._jobs], daemon=True).start()
            self._has_begun = True
        done: Future[Any] = Future()
        job = partial(job, *args, **kwargs)
        self._jobs.put((done, partial(self._run, job) if self._run else job))
        return done

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._end()


def _run_jobs(jobs: "SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]") -> None:
    try:
        while task := jobs.get():
            done, job = task
            if done.set_running_or_notify_cancel():
                try:
                    done.set_result(job())
                except BaseException as error:
                    done.set_exception(error)
            # Keep no reference to the job while waiting for the next one.
            del task, done, job
    finally:
        connections.close_all()
