"""The library's threads: for blocking calls, such as those to the database, and for event loops."""

import _thread
import asyncio
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from contextvars import Context, copy_context
from functools import partial
from queue import SimpleQueue
from threading import Thread, Timer, current_thread
from time import monotonic
from types import SimpleNamespace
from typing import Any, Final, Self, TypeVar
from weakref import finalize

from asgiref.sync import AsyncToSync, SyncToAsync, ThreadSensitiveContext, sync_to_async
from django import db
from django.core.cache import caches
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from django_sse.concurrency.forks import ForkSafeLock, forget_in_child

Result = TypeVar("Result")

# What is entered round a call in another thread.
Around = Callable[[], AbstractContextManager[object]]

# After how long a call counts as slow.
_SLOW_SECONDS: Final = 1.0


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
    return without_thread(kept)


def without_thread(context: Context) -> Context:
    """Return a context that has forgotten the thread that waits for the request below a sync
    middleware, and that is gone once the response is there."""
    with suppress(AttributeError):
        context.run(delattr, AsyncToSync.executors, "current")
    return context


def _forget_resources() -> None:
    for handler in (connections, caches):
        for alias in handler:
            with suppress(AttributeError):
                del handler[alias]


def unpooled(alias: str) -> BaseDatabaseWrapper:
    """Return a connection to a database that is outside the project's pool.

    A thread that hangs would keep one of the few connections of the pool. And a pool hands on what
    others have set in a connection, such as a tenant.
    """
    pooled: BaseDatabaseWrapper = connections[alias]
    options = {
        name: value for name, value in pooled.settings_dict["OPTIONS"].items() if name != "pool"
    }
    # Not a deep copy: an option may be something that cannot be copied, such as an SSLContext.
    return type(pooled)({**pooled.settings_dict, "OPTIONS": options}, alias)


def leave_pools() -> None:
    """Have this thread connect to each database outside the project's pool."""
    for alias, of_alias in connections.settings.items():
        if of_alias.get("OPTIONS", {}).get("pool"):
            # A database whose driver is missing is one that nobody uses.
            with suppress(Exception):
                connections[alias] = unpooled(alias)


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


# What publishes what waits for a commit, of each who shares the thread of `sync_to_async`.
_sharing: Final[list[Callable[[], None]]] = []


@contextmanager
def shared_thread(publish: Callable[[], None]) -> Iterator[None]:
    """Have what is asked about logins and permissions use the thread of ``sync_to_async``.

    In a test, that thread has the test's transaction open, which no other thread sees.

    Args:
        publish: Publishes what waits for the commit of that transaction, which never comes.
            It is called in that thread.
    """
    _sharing.append(publish)
    try:
        yield
    finally:
        _sharing.remove(publish)


def shares_thread() -> bool:
    """Whether the thread of ``sync_to_async`` is to be used in place of a separate one."""
    return bool(_sharing)


async def publish_waiting() -> None:
    """Publish what waits for the commit of a test, if one shares its thread."""
    for publish in dict.fromkeys(_sharing):
        await sync_to_async(publish)()


def close_old_connections() -> None:
    """Close connections of this thread that are broken or too old, as Django does before and after
    a request; unless a test has the thread, whose transaction would be lost."""
    if not shares_thread():
        db.close_old_connections()


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
        if shares_thread():
            return copied
        copied.run(SyncToAsync.thread_sensitive_context.set, self._context)
        return copied

    def give_up(self) -> None:
        """Use another thread for later calls, if this one may hang. It ends after its last call."""
        self.__exit__()
        self.__enter__()


class CleanThreads:
    """Runs blocking calls of many contexts, each call in a new thread.

    So a call finds nothing that another one has left: no tenant, no transaction, no setting of a
    database connection. Its connections are closed when it is over.

    Callers take turns, and none has all threads, so that none keeps the others waiting.

    Args:
        at_once: How many calls run at the same time; one less of each caller. Those that take
            longer than a second do not count, so that slow calls do not delay others.
        most: How many calls run at the same time, slow ones included. While there are so many, a
            call that waits for ``patience`` seconds fails with a TimeoutError.
        most_each: The same for each caller.
        patience: How many seconds a call waits at most.
    """

    def __init__(self, at_once: int, most: int, most_each: int, patience: float) -> None:
        self._at_once = at_once
        self._most = most
        self._most_each = most_each
        self._patience = patience
        self._lock = ForkSafeLock()
        self.forget()
        forget_in_child(self)

    def forget(self) -> None:
        """Reset the state in the child of a fork, which does not have the threads."""
        # The calls that run, by thread, and those that wait, by caller: whose turn it is, first.
        self._running: dict[Thread, _Call] = {}
        self._waiting: dict[str, deque[_Call]] = {}
        self._looks_again = False

    def within(self, context: Context, caller: str = "", around: Around = nullcontext) -> Context:
        """Return a copy of a context whose calls run in these threads, one after the other.

        Args:
            context: The context.
            caller: Who makes the calls, such as a user.
            around: Returns a context manager that is entered round each call, in its thread.
        """
        # Held by the copy alone.
        key = ThreadSensitiveContext()
        SyncToAsync.context_to_thread_executor[key] = _CleanExecutor(self, caller, around)
        copied = context.copy()
        copied.run(SyncToAsync.thread_sensitive_context.set, key)
        return copied

    def start(self, call: "_Call") -> None:
        """Run a call as soon as there is room."""
        self._add_waiting(call)
        self._start_waiting()

    def _start_waiting(self) -> None:
        # In a loop: the calls of one context that all find no thread may be many.
        while failed := self._start_those_with_room():
            for call, why in failed:
                self._fail(call, why)

    def _fail(self, call: "_Call", why: Exception) -> None:
        call.fail(why)
        self._queue_next(call.executor)

    def _queue_next(self, executor: "_CleanExecutor") -> None:
        if call := executor.take_next():
            self._add_waiting(call)

    def _add_waiting(self, call: "_Call") -> None:
        with self._lock:
            call.since = monotonic()
            self._waiting.setdefault(call.executor.caller, deque()).append(call)

    def _start_those_with_room(self) -> "list[tuple[_Call, Exception]]":
        """Start the calls for which there is room. Return those that found no thread, and why."""
        failed: list[tuple[_Call, Exception]] = []
        with self._lock:
            while call := self._take_waiting():
                thread = Thread(target=self._run, args=[call], daemon=True)
                call.since = monotonic()
                self._running[thread] = call
                try:
                    thread.start()
                except Exception as error:
                    del self._running[thread]
                    failed.append((call, error))
            if self._waiting and not self._looks_again:
                # A call that runs now may be slow, and no longer count by then.
                again = Timer(_SLOW_SECONDS, self._look_again)
                again.daemon = True
                with suppress(RuntimeError, MemoryError):
                    again.start()
                    self._looks_again = True
        return failed

    def _take_waiting(self) -> "_Call | None":
        """Return the call whose turn it is, if there is one, and room for it."""
        quick = self._callers(monotonic() - _SLOW_SECONDS)
        if len(self._running) >= self._most or quick.total() >= self._at_once:
            return None
        running = self._callers()
        # Few callers can have all that they may have; the last thread is for who has none.
        caller = next(
            (
                name
                for name in self._waiting
                if quick[name] < max(self._at_once - 1, 1) and running[name] < self._most_each
            ),
            None,
        )
        if caller is None:
            return None
        calls = self._waiting.pop(caller)
        call = calls.popleft()
        if calls:
            # Behind all others.
            self._waiting[caller] = calls
        return call

    def _callers(self, since: float = 0.0) -> Counter[str]:
        """Return how many calls run of each caller that have begun after a time."""
        return Counter(
            call.executor.caller for call in self._running.values() if call.since > since
        )

    def _fail_waiting(self) -> None:
        """Let the calls fail that have waited for too long behind too many slow ones. Drop those
        that nobody waits for any more."""
        failed: set[_Call] = set()
        with self._lock:
            since = monotonic() - self._patience
            all_stuck, running = len(self._running) >= self._most, self._callers()
            for caller, calls in self._waiting.items():
                is_stuck = all_stuck or running[caller] >= self._most_each
                failed |= {
                    call
                    for call in calls
                    if call.done.cancelled() or (is_stuck and call.since < since)
                }
            left = {
                caller: deque(call for call in calls if call not in failed)
                for caller, calls in self._waiting.items()
            }
            self._waiting = {caller: calls for caller, calls in left.items() if calls}
        for call in failed:
            self._fail(call, TimeoutError("Too many slow calls run at the same time."))

    def _look_again(self) -> None:
        # If the process was stopped meanwhile, the one that has started this may not be done yet.
        with self._lock:
            self._looks_again = False
        self._fail_waiting()
        self._start_waiting()

    def _run(self, call: "_Call") -> None:
        try:
            try:
                leave_pools()
            except BaseException as error:
                call.fail(error)
            else:
                call.run()
                connections.close_all()
        finally:
            with self._lock:
                self._running.pop(current_thread(), None)
            self._queue_next(call.executor)
            self._start_waiting()


class _Call:
    """A blocking call that waits for its thread, or runs in it."""

    def __init__(self, executor: "_CleanExecutor", job: Callable[[], Any]) -> None:
        self.done: Future[Any] = Future()
        self.executor = executor
        # When it has begun to wait, and then to run.
        self.since = 0.0
        self._job: Callable[[], Any] | None = job

    def run(self) -> None:
        if self.done.set_running_or_notify_cancel():
            try:
                assert self._job
                with self.executor.around():
                    result = self._job()
            except BaseException as error:
                self.done.set_exception(error)
            else:
                self.done.set_result(result)
        # The thread may be slow to end.
        self._job = None

    def fail(self, error: BaseException) -> None:
        if self.done.set_running_or_notify_cancel():
            self.done.set_exception(error)


class _CleanExecutor(Executor):
    """Runs the calls of one context, one after the other."""

    def __init__(self, threads: CleanThreads, caller: str, around: Around) -> None:
        self.caller = caller
        self.around = around
        self._threads = threads
        self._lock = ForkSafeLock()
        self._later: deque[_Call] = deque()
        self._is_busy = False

    def submit(self, job: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        call = _Call(self, partial(job, *args, **kwargs))
        with self._lock:
            if self._is_busy:
                self._later.append(call)
                return call.done
            self._is_busy = True
        self._threads.start(call)
        return call.done

    def take_next(self) -> _Call | None:
        """Return the next call of the context, which is to run now, if there is one."""
        with self._lock:
            self._is_busy = bool(self._later)
            return self._later.popleft() if self._later else None


class _DaemonThreadExecutor(Executor):
    """Runs jobs one after the other in one daemon thread.

    A process that ends does not wait for this thread, as it does for those of a ThreadPoolExecutor.
    The thread ends once nobody holds the executor any more.
    """

    def __init__(self) -> None:
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
        self._jobs.put((done, partial(job, *args, **kwargs)))
        return done

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._end()


def _run_jobs(jobs: "SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]") -> None:
    try:
        leave_pools()
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
