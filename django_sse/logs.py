"""The library's log, and ways not to flood it with what may happen a thousand times a second."""

import logging
import math
import time
from collections import Counter
from functools import lru_cache
from typing import Final

from django_sse.forks import ForkSafeLock, forget_in_child

logger: Final = logging.getLogger("django_sse")

# What happens again and again is logged this often at the most, each kind of it.
SELDOM_SECONDS: Final = 10.0


class Occasions:
    """Counts what happens, by its kind, and says when it is time to log it."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        """How often it has happened since the process began, by kind."""
        self._logged: dict[str, tuple[float, int]] = {}
        self._lock = ForkSafeLock()
        forget_in_child(self)

    def forget(self) -> None:
        """Begin anew, as the child of a fork."""
        self.counts.clear()
        self._logged.clear()

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


_seldom: Final = Occasions()


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


@lru_cache(maxsize=256)
def log_once(message: str, *, level: int = logging.WARNING) -> None:
    """Log what stays as it is: once in the life of the process."""
    logger.log(level, message)
