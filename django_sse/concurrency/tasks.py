"""Tasks of the library's own, that outlive the request in which they start."""

import asyncio
import logging
import sys
from collections.abc import Awaitable, Coroutine
from contextlib import suppress
from contextvars import Context
from typing import Any, Final, TypeVar

# How long a loop that never waits may hold up the others, and how much it may send meanwhile.
_TURN_SECONDS: Final = 0.005
_TURN_BYTES: Final = 64 * 1024

# How many rounds a loop has at least made before something is late.
_ROUNDS: Final = 40

# Not that of `logs`, which forgets by way of this package what the child of a fork must not know.
_logger: Final = logging.getLogger("django_sse")

Result = TypeVar("Result")

_running: Final[set[asyncio.Task[Any]]] = set()


def spawn(coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """Run a coroutine on the running loop, held strongly, its exception logged."""
    task = start_eagerly(coroutine)
    if not task.done():
        _running.add(task)
    task.add_done_callback(_finished)
    return task


def start_eagerly(coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """Run a coroutine on the running loop, at once up to its first wait where Python can.

    The caller holds the task; the coroutine handles its own exceptions.
    """
    loop = asyncio.get_running_loop()
    # In an empty context: a task that inherits a request's one keeps the request's thread.
    if sys.version_info >= (3, 12):
        return asyncio.Task(coroutine, loop=loop, context=Context(), eager_start=True)
    return loop.create_task(coroutine, context=Context())


async def in_time(answer: Awaitable[Result], seconds: float) -> Result:
    """Return what is answered in time. Time in which the event loop itself is behind is no delay.

    A thousand clients that come back at once keep the loop busy for seconds. What was answered
    meanwhile comes late, and would else be taken for what hangs.

    Raises:
        TimeoutError: It is not answered in time.
    """
    answering = asyncio.ensure_future(answer)
    try:
        for _ in range(_ROUNDS):
            await asyncio.wait([answering], timeout=seconds / _ROUNDS)
            if answering.done():
                return answering.result()
        raise TimeoutError
    finally:
        answering.cancel()


def must_propagate(error: BaseException) -> bool:
    """Say whether what was raised is no failure: it ends the process, or the task that runs."""
    if isinstance(error, asyncio.CancelledError):
        # What waits for something that was cancelled is not cancelled itself; nor is a thread.
        with suppress(RuntimeError):
            task = asyncio.current_task()
            return task is not None and bool(task.cancelling())
        return False
    return isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit)


class Turns:
    """Lets others on the event loop have their turns amid what may never wait by itself."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._begin()

    async def give_way(self, size: int) -> None:
        """Let others run, if it is time.

        Args:
            size: The bytes that were dealt with since the last call.
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
