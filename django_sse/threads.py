"""Threads of the library's own: for what blocks, such as the database, and for an event loop."""

import _thread
import asyncio
import sys
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from contextvars import Context, copy_context
from threading import Thread
from types import SimpleNamespace
from typing import Any, TypeVar

from asgiref.sync import SyncToAsync, ThreadSensitiveContext
from django.core.cache import caches
from django.db import connections

from django_sse.forks import ForkSafeLock, forget_in_child

Result = TypeVar("Result")


class WorkerThread:
    """Runs jobs in one thread of its own, which begins with the first of them."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = ForkSafeLock()
        self.forget()
        forget_in_child(self)

    def forget(self) -> None:
        """Begin anew, as the child of a fork, in which there is no such thread."""
        self._executor: ThreadPoolExecutor | None = None

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
