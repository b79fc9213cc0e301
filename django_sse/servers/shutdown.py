"""Notices that the server is shutting down while streams are open.

A server waits for its open streams, and sends ``lifespan.shutdown`` only after they have ended. But
every server first closes its listening sockets, whatever has told it to stop: a signal, its parent
process, or its own limit of requests. So this module watches the listening sockets. It touches no
signal handlers: they belong to the server, and no signal is swallowed here.

Daphne does not wait, but cancels running requests. ``django_sse.asgi`` handles that. It sends no
``lifespan.shutdown`` either, but it is made with Twisted, which waits for who asks for it.
"""

import asyncio
import os
import socket
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from contextvars import Context
from functools import partial
from typing import Any, Final
from weakref import WeakSet

from django_sse.concurrency.loops import ByLoop
from django_sse.logs import logger
from django_sse.servers.sockets import borrowed, own_sockets

# How often to look. A look takes some microseconds for each listening socket.
_WATCH_SECONDS: Final = 0.25
# A pause is at least this many times as long as the look before it: to find listening sockets among
# ten thousand others takes a fifth of a second.
_PAUSE_FACTOR: Final = 4

_watches: Final[ByLoop["_Watch"]] = ByLoop()
# The loops of daphne that were asked to wait.
_awaited: Final[WeakSet[asyncio.AbstractEventLoop]] = WeakSet()


def call_at_shutdown(callback: Callable[[], None]) -> Callable[[], None]:
    """Call back when the server that runs this loop shuts down, repeatedly until unregistered.

    Returns:
        A function that unregisters the callback.
    """
    loop = asyncio.get_running_loop()
    watch = _watches.of(loop, partial(_Watch, loop))
    watch.add(callback)
    return lambda: watch.discard(callback)


def await_before_daphne_ends(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Have daphne wait for some work before its event loop ends, if it runs this loop.

    https://docs.twisted.org/en/stable/api/twisted.internet.interfaces.IReactorCore.html
    """
    loop = asyncio.get_running_loop()
    reactor: Any = sys.modules.get("twisted.internet.reactor")
    if loop in _awaited or getattr(reactor, "_asyncioEventloop", None) is not loop:
        return
    from twisted.internet.defer import Deferred

    _awaited.add(loop)
    reactor.addSystemEventTrigger(
        "before", "shutdown", lambda: Deferred.fromFuture(asyncio.ensure_future(work()))
    )


class _Watch:
    """Watches the listening sockets that accepted the streams of an event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._callbacks: set[Callable[[], None]] = set()
        self._inodes: dict[int, int] = {}
        self._timer: asyncio.Handle | None = None

    def add(self, callback: Callable[[], None]) -> None:
        self._callbacks.add(callback)
        if len(self._callbacks) > 1:
            return
        if not self._is_listening():
            self._find()
        if self._inodes:
            self._timer = self._loop.call_soon(self._look, context=Context())

    def discard(self, callback: Callable[[], None]) -> None:
        self._callbacks.discard(callback)
        if self._timer and not self._callbacks:
            self._timer.cancel()

    def _look(self) -> None:
        began = self._loop.time()
        if not self._is_listening():
            for callback in list(self._callbacks):
                try:
                    callback()
                except Exception:
                    logger.exception("Streams could not be told that the server shuts down.")
            # If a different socket was closed, this process goes on serving.
            self._find()
        if self._callbacks:
            pause = max(_WATCH_SECONDS, _PAUSE_FACTOR * (self._loop.time() - began))
            self._timer = self._loop.call_later(pause, self._look, context=Context())

    def _is_listening(self) -> bool:
        """Whether all sockets are open. A server may close one and wait before the next."""
        try:
            return bool(self._inodes) and all(
                os.fstat(descriptor).st_ino == inode for descriptor, inode in self._inodes.items()
            )
        except OSError:
            return False

    def _find(self) -> None:
        """Find the listening sockets. If none serves any more, the known ones are kept."""
        listening = {}
        ports = {}
        accepted = set()
        for descriptor, inode in own_sockets():
            # An OSError means that the socket was closed meanwhile.
            with suppress(OSError), borrowed(descriptor) as connection:
                # An accepted socket has the port or path of its listening socket.
                name = connection.getsockname()
                port = name[1] if isinstance(name, tuple) else name
                if connection.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    listening[descriptor] = inode
                    ports[descriptor] = port
                else:
                    accepted.add(port)
        # Other listening sockets may be for something else, such as metrics, and stay open.
        serving = {key: inode for key, inode in listening.items() if ports[key] in accepted}
        self._inodes = serving or self._inodes or listening
