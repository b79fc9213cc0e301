"""The library's logger, and functions that keep frequent messages from flooding the log."""

import inspect
import logging
import math
import time
import traceback
from collections import Counter
from collections.abc import Callable, Hashable
from functools import lru_cache
from typing import Any, Final

from django_sse.concurrency.forks import ForkSafeLock, forget_in_child


class _Logger(logging.LoggerAdapter[logging.Logger]):
    """Raises nothing: a project's filter or handler that fails must not keep a stream open that has
    to end."""

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        try:
            # The caller is above this method.
            self.logger.log(level, msg, *args, **{"stacklevel": 2, **kwargs})
        except Exception:
            if logging.raiseExceptions:
                # As `logging.Handler.handleError` does.
                traceback.print_exc()


logger: Final = _Logger(logging.getLogger("django_sse"))

# Each kind of repeated message is logged at most this often.
SELDOM_SECONDS: Final = 10.0
# How many of the newest occasions are remembered that were logged once.
_MAX_OCCASIONS: Final = 10_000


class LogThrottle:
    """Counts messages by their kind, and says when it is time to log one."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        """How often each kind has occurred since the process began."""
        self._logged: dict[str, tuple[float, int]] = {}
        self._occasions: dict[Hashable, None] = {}
        self._lock = ForkSafeLock()
        forget_in_child(self)

    def forget(self) -> None:
        """Reset the state in the child of a fork."""
        self.counts.clear()
        self._logged.clear()
        self._occasions.clear()

    def count(self, kind: str) -> int:
        """Count one occurrence.

        Args:
            kind: One of a small number of kinds, since each is kept.

        Returns:
            If it is time to log, how often this kind has occurred since it was last logged; or
            else 0.
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
        """Return whether an occasion is a new one, among those that are remembered."""
        with self._lock:
            if occasion in self._occasions:
                return False
            self._occasions[occasion] = None
            if len(self._occasions) > _MAX_OCCASIONS:
                del self._occasions[next(iter(self._occasions))]
        return True


_seldom: Final = LogThrottle()


def log_seldom(
    message: str, *args: object, level: int = logging.WARNING, exc_info: BaseException | None = None
) -> None:
    """Log a message that may occur very often, at most once in ten seconds.

    Args:
        message: The message, the same each time. Parts that differ belong in ``args``.
        args: The arguments of the message.
        level: The level of the message.
        exc_info: The exception whose traceback is logged.
    """
    if count := _seldom.count(message):
        whole = f"{message} (%d since this was last logged)"
        logger.log(level, whole, *args, count, exc_info=exc_info)


def log_first(occasion: Hashable, message: str, *args: object, exc_info: BaseException) -> None:
    """Log an error that may occur again on the same occasion, once for each occasion.

    Args:
        occasion: What the error occurs with, such as an event.
        message: The message.
        args: The arguments of the message.
        exc_info: The exception whose traceback is logged.
    """
    if _seldom.is_first(occasion):
        logger.error(message, *args, exc_info=exc_info)


def view_name(method: Callable[..., Any] | None) -> str:
    """Return the name of the view that a method belongs to, or the name of a plain function."""
    named = method if inspect.isfunction(method) else type(getattr(method, "__self__", method))
    return named.__qualname__


def forget_logged() -> None:
    """Log again what was logged once, or just now."""
    _seldom.forget()
    log_once.cache_clear()


@lru_cache(maxsize=256)
def log_once(message: str, *, level: int = logging.WARNING) -> None:
    """Log a lasting condition, once in the life of the process."""
    logger.log(level, message)
