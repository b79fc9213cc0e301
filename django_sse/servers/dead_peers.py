"""Closes connections of clients that vanished without closing them: no battery, or no network.

Bytes for such a client wait in the kernel, which sends them again for a quarter of an hour before
it gives up (tcp(7), ``tcp_retries2``). Heartbeats never fill its buffers, so no send takes too
long, and all that time the stream stays open and counts towards limits. With ``TCP_USER_TIMEOUT``
(RFC 5482) the kernel gives up sooner, and the server reports that like any other disconnect.

Behind a proxy, the peer is the proxy, and the proxy notices that a client has vanished.
"""

import asyncio
import socket
from array import array
from collections.abc import Container
from contextlib import suppress
from typing import Any, Final
from weakref import WeakKeyDictionary

from django_sse.concurrency.tasks import spawn
from django_sse.conf import conf
from django_sse.servers.sockets import borrowed, own_sockets

# Only Linux has it.
_OPTION: Final[int | None] = getattr(socket, "TCP_USER_TIMEOUT", None)

# The option takes milliseconds as a C int.
_LONGEST_SECONDS: Final = 2**31 // 1000

# How long new streams are collected before their sockets are looked for, all at once.
_GATHER_SECONDS: Final = 0.5
# Looking at a socket takes some microseconds. This many are looked at in one turn of the event
# loop, and per second on average.
_SOCKETS_A_TURN: Final = 200
_SOCKETS_PER_SECOND: Final = 2000

# The peers whose sockets are still to be found. While there are any, a task looks for them.
_wanted: Final = WeakKeyDictionary[asyncio.AbstractEventLoop, set[tuple[str, int]]]()

# The inodes of the sockets that were found, by descriptor; 0 for others. They need no other look.
_found: Final = array("Q")


def bound_silence(peer: Any) -> None:
    """Have the kernel close a connection when its client has acknowledged nothing for too long.

    Too long is ``SEND_TIMEOUT`` plus ``HEARTBEAT``. So the stream ends a slow client first, and a
    vanished client is noticed within two heartbeats and ``SEND_TIMEOUT``.

    ASGI does not show sockets, so the connection's socket is found by the address of its peer.

    Args:
        peer: The ``client`` of the ASGI scope, if there is one.
    """
    # Granian gives the port as a string. The port of an address from a proxy's header is 0.
    port = int(peer[1] or 0) if peer else 0
    if not port or _OPTION is None or not conf().SEND_TIMEOUT:
        return
    loop = asyncio.get_running_loop()
    if loop not in _wanted:
        _wanted[loop] = set()
        spawn(_find_wanted(loop, _OPTION))
    _wanted[loop].add((peer[0], port))


async def _find_wanted(loop: asyncio.AbstractEventLoop, option: int) -> None:
    try:
        await asyncio.sleep(_GATHER_SECONDS)
        while peers := _wanted[loop]:
            _wanted[loop] = set()
            looked_at = 0
            for descriptor, inode in own_sockets():
                if descriptor >= len(_found):
                    _found.extend([0] * (descriptor + 1 - len(_found)))
                if _found[descriptor] != inode and _bound_silence_of(descriptor, peers, option):
                    _found[descriptor] = inode
                looked_at += 1
                if not looked_at % _SOCKETS_A_TURN:
                    await asyncio.sleep(0)
            await asyncio.sleep(max(_GATHER_SECONDS, looked_at / _SOCKETS_PER_SECOND))
    finally:
        # Whatever has ended this task, the next stream starts another one.
        del _wanted[loop]


def _bound_silence_of(descriptor: int, peers: Container[tuple[str, int]], option: int) -> bool:
    """Bound the silence of a socket's peer if it is one of these, and return whether it is."""
    # An OSError means that the socket has no peer, or was closed meanwhile.
    with suppress(OSError), borrowed(descriptor) as connection:
        if connection.getpeername()[:2] in peers:
            seconds = conf().SEND_TIMEOUT + conf().HEARTBEAT
            milliseconds = round(min(seconds, _LONGEST_SECONDS) * 1000)
            connection.setsockopt(socket.IPPROTO_TCP, option, milliseconds)
            return True
    return False
