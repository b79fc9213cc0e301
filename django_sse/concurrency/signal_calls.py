"""Calls the receivers of this library's signals, so that they never delay an event loop."""

import asyncio
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import Context
from functools import cache
from typing import Any, Final

from django.dispatch import Signal

from django_sse.concurrency.forks import in_child
from django_sse.concurrency.tasks import spawn
from django_sse.concurrency.threads import CleanThreads

# Not `logs.logger`: `logs` imports this package.
_logger: Final = logging.getLogger("django_sse")

# One call at a time, so that receivers hear of an opening before its end.
_threads: Final = CleanThreads(at_once=1, most=1, most_each=1, patience=600.0)
# The event loop for which a thread works, if it does.
_of_thread: Final = threading.local()


@contextmanager
def working_for(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """Have signals that this thread sends be sent on an event loop, which waits for the thread."""
    _of_thread.loop = loop
    try:
        yield
    finally:
        _of_thread.loop = None


def is_heard(signal: Signal) -> bool:
    """Return whether anybody wants to know what a signal tells: a receiver, or the log."""
    # Not `has_listeners`, which takes several times as long: this is asked for each event.
    return bool(signal.receivers) or _logger.isEnabledFor(logging.DEBUG)


def send_signal(signal: Signal, sender: Any, **arguments: Any) -> None:
    """Send a signal whose receivers may wait and may raise.

    On a running event loop, or in a thread that works for one, they are called soon: synchronous
    ones in a thread, with database connections of their own. Elsewhere they are called now.
    """
    if not signal.has_listeners(sender):
        return

    def send_soon() -> None:
        spawn(signal.asend_robust(sender, **arguments), _context().copy())

    loop = getattr(_of_thread, "loop", None)
    if loop is not None:
        # The loop may have been closed meanwhile.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(send_soon)
        return
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        signal.send_robust(sender, **arguments)
    else:
        send_soon()


@cache
def _context() -> Context:
    return _threads.within(Context())


in_child(_context.cache_clear)
