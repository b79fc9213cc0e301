"""Calls the receivers of this library's signals, so that they never delay an event loop."""

import asyncio
from contextvars import Context
from functools import cache
from typing import Any, Final

from django.dispatch import Signal

from django_sse.concurrency.forks import in_child
from django_sse.concurrency.tasks import spawn
from django_sse.concurrency.threads import CleanThreads

# One call at a time, so that receivers hear of an opening before its end.
_threads: Final = CleanThreads(at_once=1, most=1, most_each=1, patience=600.0)


def send_signal(signal: Signal, sender: Any, **arguments: Any) -> None:
    """Send a signal whose receivers may wait and may raise.

    On a running event loop they are called soon: synchronous ones in a thread, with database
    connections of their own. Elsewhere they are called now.
    """
    if not signal.has_listeners(sender):
        return
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        signal.send_robust(sender, **arguments)
    else:
        spawn(signal.asend_robust(sender, **arguments), _context().copy())


@cache
def _context() -> Context:
    return _threads.within(Context())


in_child(_context.cache_clear)
