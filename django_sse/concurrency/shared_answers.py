"""One answer for all who ask within a second, in whichever thread or event loop."""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from math import inf
from threading import Lock
from time import monotonic
from typing import Final, Generic, TypeVar

from django_sse.concurrency.forks import forget_in_child
from django_sse.concurrency.tasks import spawn

Answer = TypeVar("Answer")

_SECONDS: Final = 1.0


class SharedAnswer(Generic[Answer]):
    """Asks a question at most once a second, however many want to know.

    Args:
        ask: Returns the answer. It has to limit its time.
    """

    def __init__(self, ask: Callable[[], Awaitable[Answer]]) -> None:
        self._ask = ask
        self.forget()
        forget_in_child(self)

    def forget(self) -> None:
        """Ask anew."""
        self._lock = Lock()
        self._asked_at = -inf
        self._answer: Future[Answer] | None = None

    async def get(self) -> Answer:
        """Return the answer to a question that is under way or was asked within the last second, or
        else ask.

        Raises:
            Exception: Whatever the question raises.
        """
        with self._lock:
            answer, now = self._answer, monotonic()
            if answer is None or (answer.done() and now >= self._asked_at + _SECONDS):
                answer = self._answer = Future()
                # From here on, nobody who leaves can cancel it for the others.
                answer.set_running_or_notify_cancel()
                self._asked_at = now
                spawn(self._settle(answer))
        return await asyncio.wrap_future(answer)

    async def _settle(self, answer: Future[Answer]) -> None:
        try:
            answer.set_result(await self._ask())
        except BaseException as error:
            # The others wait on other loops, which go on even if this one ends.
            answer.set_exception(error if isinstance(error, Exception) else TimeoutError())
            if not isinstance(error, Exception):
                raise
