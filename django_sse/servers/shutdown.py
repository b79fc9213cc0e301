"""Notices that the server is shutting down while streams are open.

A server waits for its open streams, and says ``lifespan.shutdown`` only when they have ended. But
the first thing that each one does is to close the sockets that it listens on, whatever has told it
to: a signal, its parent process, its own limit of requests. So these sockets are watched, and no
signal's handler is touched: they are the server's, and none is swallowed here.

Daphne does not wait: it cancels what runs, which is dealt with in ``django_sse.asgi``.
"""

import asyncio
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context
from typing import Final

from django_sse.logs import logger
from django_sse.servers.sockets import borrowed, own_sockets

# A look costs some microseconds for each socket that is listened on.
_WATCH_SECONDS: Final = 0.25
# To find them among ten thousand others takes a fifth of a second.
_PAUSE_FACTOR: Final = 4

_watches: Final[dict[asyncio.AbstractEventLoop, "_Watch"]] = {}


def call_at_shutdown(callback: Callable[[], None]) -> Callable[[], None]:
    """Call back once the server that runs this loop is shutting down, and again until taken back.

    Returns:
        What takes the callback back.
    """
    loop = asyncio.get_running_loop()
    if loop not in _watches:
        for closed in [other for other in list(_watches) if other.is_closed()]:
            _watches.pop(closed, None)
        _watches[loop] = _Watch(loop)
    watch = _watches[loop]
    watch.add(callback)
    return lambda: watch.discard(callback)


class _Watch:
    """Watches the sockets that the streams of an event loop came through."""

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
            # If it was another socket that was closed, this process goes on serving.
            self._find()
        if self._callbacks:
            pause = max(_WATCH_SECONDS, _PAUSE_FACTOR * (self._loop.time() - began))
            self._timer = self._loop.call_later(pause, self._look, context=Context())

    def _is_listening(self) -> bool:
        """Whether all sockets are open: a server may close one and wait before the next."""
        try:
            return bool(self._inodes) and all(
                os.fstat(descriptor).st_ino == inode for descriptor, inode in self._inodes.items()
            )
        except OSError:
            return False

    def _find(self) -> None:
        """Look for the listening sockets. Where none serves any more, the known ones count on."""
        listening = {}
        ports = {}
        accepted = set()
        for descriptor, inode in own_sockets():
            # It raises OSError for one that was closed meanwhile.
            with suppress(OSError), borrowed(descriptor) as connection:
                # An accepted socket has the port, or the path, of its listener.
                name = connection.getsockname()
                port = name[1] if isinstance(name, tuple) else name
                if connection.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    listening[descriptor] = inode
                    ports[descriptor] = port
                else:
                    accepted.add(port)
        # Others may be there for something else, such as metrics, and stay open.
        serving = {key: inode for key, inode in listening.items() if ports[key] in accepted}
        self._inodes = serving or self._inodes or listening
