"""Threads of the library's own: for what blocks, such as the database, and for an event loop."""

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
from types import SimpleNamespace
from typing import Any, Self, TypeVar
from weakref import finalize

from asgiref.sync import AsyncToSync, SyncToAsync, ThreadSensitiveContext
from django.core.cache import caches
from django.db import connections

from django_sse.concurrency.forks import ForkSafeLock, forget_in_child

Result = TypeVar("Result")


def request_context() -> Context:
    """Return a copy of the context of the request that is answered: its language, its time zone,
    and whatever else is set in it, but nothing that would keep what it holds: no thread, and no
    connection to a database or a cache."""
    kept = Context()
    for variable, value in copy_context().items():
        if variable is not SyncToAsync.thread_sensitive_context:
            kept.run(variable.set, value)
    kept.run(_forget_what_is_held)
    return kept


def _forget_what_is_held() -> None:
    # The thread that waits for the request below a sync middleware, which is gone by then.
    with suppress(AttributeError):
        del AsyncToSync.executors.current
    for handler in (connections, caches):
        for alias in handler:
            with suppress(AttributeError):
                del handler[alias]


class LoopThread:
    """An event loop in a thread of its own, which begins when it is asked for.

    Where gevent or eventlet make greenlets of threads, it is one of the operating system all the
    same: Python knows of one running loop in each of those, and as long as there is one, Django
    refuses the database to all else that runs there.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = ForkSafeLock()
        self.forget()
        forget_in_child(self)

    def forget(self) -> None:
        """Begin anew, as the child of a fork, in which there is no such thread."""
        self.running: asyncio.AbstractEventLoop | None = None

    def loop(self) -> asyncio.AbstractEventLoop:
        """Return the running loop.

        Raises:
            OSError, RuntimeError: No thread, or no loop, can be had now.
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
                # Made here: with gevent, what a loop waits with belongs to its thread.
                loop = asyncio.new_event_loop()
                if native:
                    loop.set_default_executor(_InPlace())
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
        # All greenlets wait for these milliseconds, so that none comes by while the lock is held.
        ready.acquire()
        if isinstance(begun[0], Exception):
            raise begun[0]
        return begun[0]


class _InPlace(ThreadPoolExecutor):
    """Runs what a loop would leave to other threads, such as looking up a name, in the loop's own:
    others would be greenlets there, which cannot be waited for as the process ends."""

    def submit(self, job: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(job(*args, **kwargs))
        except Exception as error:
            done.set_exception(error)
        return done


def _native_threads() -> Any:
    """Return the module ``_thread`` of the operating system's threads where greenlets have taken
    its place, and else None."""
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
    """A thread for the length of a block, for what ``sync_to_async`` does in some contexts.

    It begins with the first of that, and closes its connections to databases as it ends. The
    process ends though it hangs.
    """

    def __init__(self) -> None:
        self._context = ThreadSensitiveContext()

    def __enter__(self) -> Self:
        SyncToAsync.context_to_thread_executor[self._context] = _Daemon()
        return self

    def __exit__(self, *exc_info: object) -> None:
        # Not left to asgiref, which waits for the thread: in older versions on the event loop.
        SyncToAsync.context_to_thread_executor.pop(self._context).shutdown(wait=False)

    def within(self, context: Context) -> Context:
        """Return a copy of a context in which the thread is used."""
        copied = context.copy()
        copied.run(SyncToAsync.thread_sensitive_context.set, self._context)
        return copied

    def give_up(self) -> None:
        """Take another thread for what comes, as where this one hangs, which ends after that."""
        self.__exit__()
        self.__enter__()


class _Daemon(Executor):
    """Runs jobs in one thread, one after the other, that is not waited for as the process ends: a
    ThreadPoolExecutor's are. Once nobody holds it any more, its thread ends."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._has_begun = False
        self._end = finalize(self, self._jobs.put, None)

    def submit(self, job: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        if not self._end.alive:
            raise RuntimeError("The thread has ended.")
        if not self._has_begun:
            Thread(target=_work_off, args=[self._jobs], daemon=True).start()
            self._has_begun = True
        done: Future[Any] = Future()
        self._jobs.put((done, partial(job, *args, **kwargs)))
        return done

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._end()


def _work_off(jobs: "SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]") -> None:
    try:
        while task := jobs.get():
            done, job = task
            if done.set_running_or_notify_cancel():
                try:
                    done.set_result(job())
                except BaseException as error:
                    done.set_exception(error)
            # Nothing of it is kept for as long as there is nothing to do.
            del task, done, job
    finally:
        connections.close_all()
