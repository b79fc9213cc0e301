"""Lets go of clients that have vanished without a word: no battery, no network, no goodbye.

What is sent to such a client waits in the kernel, which repeats it for a quarter of an hour before
it gives up (tcp(7), ``tcp_retries2``). Heartbeats never fill its buffers, so that no send takes too
long, and all the while the stream is held and counts. With ``TCP_USER_TIMEOUT`` (RFC 5482) the
kernel gives up sooner, and the server tells it as any other disconnect.

Behind a proxy the peer is the proxy, and the client's vanishing is noticed there.
"""

import asyncio
import socket
from collections.abc import Container
from contextlib import suppress
from typing import Any, Final
from weakref import WeakKeyDictionary

from django_sse.concurrency.tasks import spawn
from django_sse.conf import conf
from django_sse.servers.sockets import borrowed, own_sockets

# Linux alone has it.
_OPTION: Final[int | None] = getattr(socket, "TCP_USER_TIMEOUT", None)

# Its milliseconds are a C int.
_LONGEST_SECONDS: Final = 2**31 // 1000

# New streams gather for so long before their sockets are looked for, all at once.
_GATHER_SECONDS: Final = 0.5
# A look at a socket costs some ten microseconds; this many at a time, and on average per second.
_AT_A_TIME: Final = 200
_PER_SECOND: Final = 2000

# The peers whose sockets are still to be found; while there are any, a task looks for them.
_wanted: Final = WeakKeyDictionary[asyncio.AbstractEventLoop, set[tuple[str, int]]]()


def bound_silence(peer: Any) -> None:
    """Have a connection closed once its client has acknowledged nothing for too long.

    That is ``SEND_TIMEOUT`` and a heartbeat more, so that a slow client is ended by its stream
    first, and a vanished one noticed within two heartbeats and ``SEND_TIMEOUT``.

    ASGI shows no sockets, so the connection's own is looked for by the address of its peer.

    Args:
        peer: The ``client`` of the ASGI scope, if it has one.
    """
    # Granian gives the port as a string; 0 is that of an address from a proxy's header.
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
            for descriptor, _ in own_sockets():
                _bound_silence_of(descriptor, peers, option)
                looked_at += 1
                if not looked_at % _AT_A_TIME:
                    await asyncio.sleep(0)
            await asyncio.sleep(max(_GATHER_SECONDS, looked_at / _PER_SECOND))
    finally:
        # Whatever has ended it, the next stream begins it anew.
        del _wanted[loop]


def _bound_silence_of(descriptor: int, peers: Container[tuple[str, int]], option: int) -> None:
    # OSError: it has no peer, or was closed meanwhile.
    with suppress(OSError), borrowed(descriptor) as connection:
        if connection.getpeername()[:2] in peers:
            seconds = conf().SEND_TIMEOUT + conf().HEARTBEAT
            milliseconds = round(min(seconds, _LONGEST_SECONDS) * 1000)
            connection.setsockopt(socket.IPPROTO_TCP, option, milliseconds)
