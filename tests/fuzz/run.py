"""Runs sessions one after the other, and notices whatever goes wrong besides."""

import asyncio
import gc
import logging
import os
import random
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from types import TracebackType
from typing import Any, Final

from django.core.exceptions import RequestAborted
from django.test import override_settings

from django_sse.asgi import get_asgi_application
from django_sse.streaming.hub import open_streams
from tests.fuzz.session import Session

_SETTINGS: Final[dict[str, Any]] = {
    "ROOT_URLCONF": "tests.fuzz.views",
    # All of a new project's, and compression; sessions in cookies, so that forged ones are read.
    "MIDDLEWARE": [
        "django.middleware.gzip.GZipMiddleware",
        "django.middleware.security.SecurityMiddleware",
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.common.CommonMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.middleware.clickjacking.XFrameOptionsMiddleware",
    ],
    "SESSION_ENGINE": "django.contrib.sessions.backends.signed_cookies",
    "ALLOWED_HOSTS": ["testserver"],
    "DEBUG": False,
}
MAX_BYTES: Final = 2000
"""What a session is chosen by, at the most."""

# After the last session everything has to be gone within this time.
_SECONDS_TO_END: Final = 2.0
# What a process keeps, once: the thread of synchronous code, and that of doorbells, with its loop.
_KEPT: Final = Counter(
    {
        "thread ThreadPoolExecutor": 1,
        "thread django-sse-doorbell": 1,
        "anon_inode": 1,
        "socket": 2,
    }
)


class Complaints(logging.Handler):
    """Collects what nobody may hear of: errors, and tracebacks of any kind."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        # What Django says of a request that it answers with 400 is its own.
        if record.name.startswith("django.") and getattr(record, "status_code", 500) < 500:
            return
        # That a plain message was refused is an error of who has sent it.
        is_error = record.levelno >= logging.ERROR and "was refused" not in record.msg
        if record.exc_info or is_error:
            self.found.append(logging.Formatter().format(record))


class Fuzzer:
    """Runs sessions on one event loop. Use it as a context manager.

    ``tally`` counts what was tried.
    """

    def __init__(self) -> None:
        self.tally: Counter[str] = Counter()
        self._complaints = Complaints()
        self._settings = override_settings(**_SETTINGS)

    def __enter__(self) -> "Fuzzer":
        self._settings.enable()
        self._runner = asyncio.Runner()
        self._loop = self._runner.get_loop()
        self._loop.set_exception_handler(self._complain_of_loop)
        self._hooks = sys.unraisablehook, threading.excepthook
        sys.unraisablehook = lambda raised: self._complain(repr(raised.exc_value))
        threading.excepthook = lambda raised: self._complain(repr(raised.exc_value))
        logging.getLogger().addHandler(self._complaints)
        self._application = get_asgi_application()
        self._before = held()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        logging.getLogger().removeHandler(self._complaints)
        sys.unraisablehook, threading.excepthook = self._hooks
        self._runner.close()
        self._settings.disable()

    def session(self, chosen: bytes) -> None:
        """Run what some bytes choose; fail with an AssertionError where anything is wrong."""
        try:
            self._loop.run_until_complete(Session(self._application, chosen, self.tally).run())
        finally:
            # What was logged says most.
            self._assert_silence()
        self.tally["sessions"] += 1

    def assert_nothing_is_left(self) -> None:
        """Fail if a stream, a task, a thread or a connection is left two seconds later."""
        self._loop.run_until_complete(asyncio.sleep(_SECONDS_TO_END))
        gc.collect()
        self._assert_silence()
        assert not open_streams()
        assert self.tally["streams"] or self.tally["sessions"] < 100, "nothing was streamed"
        assert not asyncio.all_tasks(self._loop)
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        assert held() <= self._before + _KEPT, f"{held()}, and {self._before} at the beginning"

    def _assert_silence(self) -> None:
        found, self._complaints.found = self._complaints.found, []
        assert not found, "\n".join(found)

    def _complain(self, what: str) -> None:
        self._complaints.found.append(what)

    def _complain_of_loop(self, loop: Any, context: dict[str, Any]) -> None:
        # Django's own, of a client that leaves just as its request is done.
        if not isinstance(context.get("exception"), RequestAborted):
            self._complain(f"{context['message']}: {context.get('exception')!r}")


def chosen_at_random(seed: int, count: int) -> Iterator[bytes]:
    """Return bytes for some sessions, the same ones for the same seed."""
    for number in range(count):
        chance = random.Random(f"{seed} {number}")
        yield chance.randbytes(chance.randrange(MAX_BYTES))


def held() -> Counter[str]:
    """Return how many threads, sockets and other files the process has."""
    kinds = Counter(
        f"thread {thread.name.rstrip('0123456789_-')}" for thread in threading.enumerate()
    )
    for number in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            kinds[os.readlink(f"/proc/self/fd/{number}").partition(":")[0]] += 1
    return kinds
