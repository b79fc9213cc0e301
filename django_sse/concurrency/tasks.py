"""The library's asyncio tasks, which outlive the request in which they start."""

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable, Collection, Coroutine, Generator, Iterable
from contextlib import suppress
from contextvars import Context, copy_context
from functools import partial
from typing import Any, Final, Generic, TypeVar

# How long a task that never waits may block other tasks, and how much it may handle meanwhile.
_TURN_SECONDS: Final = 0.005
_TURN_BYTES: Final = 64 * 1024

# How many times `in_time` lets the event loop run before it raises TimeoutError.
_ROUNDS: Final = 40

# Not `logs.logger`: `logs` imports this package.
_logger: Final = logging.getLogger("django_sse")

Key = TypeVar("Key")
Result = TypeVar("Result")

_running: Final[set[asyncio.Task[Any]]] = set()


def spawn(coroutine: Coroutine[Any, Any, Any], context: Context | None = None) -> asyncio.Task[Any]:
    """Run a coroutine on the running loop. Hold its task strongly, and log its exception.

    Args:
        coroutine: The coroutine.
        context: The context to run it in; None for an empty one.
    """
    task = start_eagerly(coroutine, asyncio.get_running_loop(), context)
    if not task.done():
        _running.add(task)
    task.add_done_callback(_finished)
    return task


def start_eagerly(
    coroutine: Coroutine[Any, Any, Any],
    loop: asyncio.AbstractEventLoop,
    context: Context | None = None,
) -> asyncio.Task[Any]:
    """Run a coroutine on a loop, which must be the running one.

    On Python 3.12 or newer, it runs at once up to its first wait. The caller has to hold the task,
    and the coroutine has to handle its own exceptions.
    """
    # Not the context of a request: a task that inherits that keeps the request's thread.
    context = context or Context()
    if sys.version_info >= (3, 12):
        return asyncio.Task(coroutine, loop=loop, context=context, eager_start=True)
    return loop.create_task(coroutine, context=context)


async def in_own_context(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine in the current task, in a copy of its context.

    So what the coroutine sets in its context does not last as long as the task.

    Args:
        coroutine: The coroutine. It has not begun.

    Raises:
        BaseException: Whatever the coroutine raises.
    """
    run = copy_context().run
    try:
        awaited = run(coroutine.send, None)
    except StopIteration as end:
        result: Result = end.value
        return result
    return await go_on(coroutine, awaited, run)


async def go_on(
    coroutine: Coroutine[Any, Any, Result], awaited: Any, run: Callable[..., Any] | None = None
) -> Result:
    """Go on, in the current task, with a coroutine that was begun outside of any.

    A task costs more than what a coroutine does that does not wait.

    Args:
        coroutine: The coroutine.
        awaited: What ``coroutine.send(None)`` has returned: it waits for that.
        run: ``Context.run`` of the context to run it in; None for that of the task.

    Raises:
        BaseException: Whatever the coroutine raises.
    """
    while True:
        try:
            await _Yielded(awaited)
        except BaseException as error:
            step = partial(coroutine.throw, error)
        else:
            step = partial(coroutine.send, None)
        try:
            awaited = run(step) if run else step()
        except StopIteration as end:
            result: Result = end.value
            return result
        finally:
            # It may hold an error, whose traceback holds this frame.
            del step


async def limited(work: Awaitable[Result], seconds: float | None) -> Result:
    """Await work for at most so many seconds; None for no limit.

    A time limit costs more than work that does not wait, so it begins with the first wait.

    Raises:
        TimeoutError: The work took too long.
        BaseException: Whatever the work raises.
    """
    if not isinstance(work, Coroutine):
        async with asyncio.timeout(seconds):
            return await work
    result: Result
    try:
        awaited = work.send(None)
    except StopIteration as end:
        result = end.value
        return result
    async with asyncio.timeout(seconds):
        result = await go_on(work, awaited)
        return result


class _Yielded:
    """Waits for what a coroutine has yielded to the event loop, as its own task would."""

    __slots__ = ("_awaited",)

    def __init__(self, awaited: Any) -> None:
        self._awaited = awaited

    def __await__(self) -> Generator[Any, Any, None]:
        yield self._awaited


async def in_time(answer: Awaitable[Result], seconds: float) -> Result:
    """Return an answer if it comes in time. A delay of the event loop itself does not count.

    A thousand clients that come back at once keep the loop busy for seconds. An answer that came
    meanwhile is seen late, and must not be taken for one that hangs.

    An answer that is there at once is returned before anything else runs, on Python 3.12 and newer.

    Args:
        answer: The answer to wait for. It is cancelled if it takes too long.
        seconds: How long it may take.

    Raises:
        TimeoutError: The answer took too long.
    """
    answering: asyncio.Future[Result]
    if isinstance(answer, Coroutine):
        # Many answers need no wait.
        answering = start_eagerly(answer, asyncio.get_running_loop(), copy_context())
    else:
        answering = asyncio.ensure_future(answer)
    try:
        for _ in range(_ROUNDS):
            if answering.done():
                break
            await asyncio.wait([answering], timeout=seconds / _ROUNDS)
        if not answering.done():
            raise TimeoutError
        return answering.result()
    finally:
        answering.cancel()


async def heeding_cancel(work: Awaitable[Result]) -> Result:
    """Await work of redis-py, which has been seen to swallow a cancellation.

    Raises:
        asyncio.CancelledError: The running task was cancelled meanwhile.
        BaseException: Whatever the work raises.
    """
    task = asyncio.current_task()
    cancelling = task.cancelling() if task else 0
    try:
        return await work
    finally:
        if task and task.cancelling() > cancelling:
            raise asyncio.CancelledError


def must_propagate(error: BaseException) -> bool:
    """Return whether an exception is not a failure, but ends the process or the running task."""
    if isinstance(error, asyncio.CancelledError):
        # A task that waits for a cancelled one is not itself cancelled. Nor is a thread.
        with suppress(RuntimeError):
            task = asyncio.current_task()
            return task is not None and bool(task.cancelling())
        return False
    return isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit)


class Coalescer(Generic[Key, Result]):
    """Asks one question for all callers that come while another question is being answered.

    Args:
        ask: Returns the answer about some keys. It has to limit its time.
        when_idle: Called once nobody waits for an answer any more.
        pause: How many seconds a question waits for more keys that others are still to add, if it
            follows another one.
    """

    def __init__(
        self,
        ask: Callable[[Collection[Key]], Awaitable[Result]],
        when_idle: Callable[[], Awaitable[None]] | None = None,
        *,
        pause: float = 0.0,
    ) -> None:
        self._ask = ask
        self._when_idle = when_idle
        self._pause = pause
        self._keys: set[Key] = set()
        self._next: asyncio.Future[Result] | None = None
        self._is_asking = False

    def add(self, keys: Iterable[Key]) -> asyncio.Future[Result]:
        """Ask about some keys soon.

        Returns:
            The answer about these and others. Callers share it, so whoever awaits it has to shield
            it. It is the question's exception if that has failed.
        """
        self._keys.update(keys)
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
        answer = self._next
        if not self._is_asking:
            self._is_asking = True
            spawn(self._ask_all())
        return answer

    async def _ask_all(self) -> None:
        try:
            while answer := self._next:
                keys, self._keys, self._next = self._keys, set(), None
                try:
                    answer.set_result(await self._ask(keys))
                except BaseException as error:
                    if must_propagate(error):
                        answer.cancel()
                        raise
                    answer.set_exception(error)
                    # Mark the exception as retrieved, in case nobody waits any more.
                    answer.exception()
                if self._next and self._pause:
                    await asyncio.sleep(self._pause)
        finally:
            self._is_asking = False
            if self._next:
                # This task was cancelled, or the process ends. Nobody would ask for those who wait.
                # Whoever comes next asks about their keys, too.
                self._next.cancel()
                self._next = None
        if self._when_idle:
            await self._when_idle()


class Turns:
    """Lets other tasks of the event loop run during work that may never wait by itself."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._begin()

    async def give_way(self, size: int) -> None:
        """Let other tasks run, if it is time.

        Args:
            size: How many bytes were handled since the last call.
        """
        self._bytes += size
        if self._bytes >= _TURN_BYTES or self._loop.time() >= self._ends_at:
            await asyncio.sleep(0)
            self._begin()

    def _begin(self) -> None:
        self._bytes = 0
        self._ends_at = self._loop.time() + _TURN_SECONDS


def _finished(task: asyncio.Task[Any]) -> None:
    _running.discard(task)
    if not task.cancelled() and (error := task.exception()):
        _logger.error("A task of django_sse failed.", exc_info=error)
