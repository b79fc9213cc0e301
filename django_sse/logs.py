"""The library's log, and ways not to flood it with what may happen a thousand times a second."""

import inspect
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Hashable
from functools import lru_cache
from typing import Any, Final

from django_sse.concurrency.forks import ForkSafeLock, forget_in_child

logger: Final = logging.getLogger("django_sse")

# What happens again and again is logged this often at the most, each kind of it.
SELDOM_SECONDS: Final = 10.0
# Of what is logged once, the newest so many are remembered.
_REMEMBERED: Final = 10_000


class LogThrottle:
    """Counts what happens, by its kind, and says when it is time to log it."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        """How often it has happened since the process began, by kind."""
        self._logged: dict[str, tuple[float, int]] = {}
        self._met: dict[Hashable, None] = {}
        self._lock = ForkSafeLock()
        forget_in_child(self)

    def forget(self) -> None:
        """Begin anew, as the child of a fork."""
        self.counts.clear()
        self._logged.clear()
        self._met.clear()

    def count(self, kind: str) -> int:
        """Count what has happened; return how often it has since it was last logged, if it is to be
        logged now, and else 0.

        Args:
            kind: One of a few: each is kept.
        """
        with self._lock:
            self.counts[kind] += 1
            count, now = self.counts[kind], time.monotonic()
            logged_at, logged = self._logged.get(kind, (-math.inf, 0))
            if now - logged_at < SELDOM_SECONDS:
                return 0
            self._logged[kind] = now, count
        return count - logged

    def is_first(self, occasion: Hashable) -> bool:
        """Say whether something happens for the first time, as far as is remembered."""
        with self._lock:
            if occasion in self._met:
                return False
            self._met[occasion] = None
            if len(self._met) > _REMEMBERED:
                del self._met[next(iter(self._met))]
        return True


_seldom: Final = LogThrottle()


def log_seldom(
    message: str, *args: object, level: int = logging.WARNING, exc_info: BaseException | None = None
) -> None:
    """Log what may happen very often: each message every ten seconds at the most.

    Args:
        message: What has happened, without what differs from one time to the next.
        args: What goes into the message.
        level: How bad it is.
        exc_info: The exception whose traceback is logged.
    """
    if count := _seldom.count(message):
        whole = f"{message} (%d since this was last logged)"
        logger.log(level, whole, *args, count, exc_info=exc_info)


def log_first(occasion: Hashable, message: str, *args: object, exc_info: BaseException) -> None:
    """Log an error that comes again with the same occasion: once for each.

    Args:
        occasion: What it happens with, such as an event.
        message: What has happened.
        args: What goes into the message.
        exc_info: The exception whose traceback is logged.
    """
    if _seldom.is_first(occasion):
        logger.error(message, *args, exc_info=exc_info)


def view_name(method: Callable[..., Any] | None) -> str:
    """Return the name of the view whose method this is, or the name of a function of none."""
    named = method if inspect.isfunction(method) else type(getattr(method, "__self__", method))
    return named.__qualname__


@lru_cache(maxsize=256)
def log_once(message: str, *, level: int = logging.WARNING) -> None:
    """Log what stays as it is: once in the life of the process."""
    logger.log(level, message)
