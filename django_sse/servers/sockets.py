"""The sockets of this process, which ASGI hides from applications."""

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

_DESCRIPTORS: Final = "/dev/fd"


def own_sockets() -> Iterator[tuple[int, int]]:
    """Yield the descriptor and the inode of each socket of this process."""
    with suppress(OSError):
        for name in os.listdir(_DESCRIPTORS):
            with suppress(OSError):
                status = os.fstat(int(name))
                if stat.S_ISSOCK(status.st_mode):
                    yield int(name), status.st_ino


@contextmanager
def borrowed(descriptor: int) -> Iterator[socket.socket]:
    """Yield a socket object for a descriptor, and leave the descriptor open.

    Raises:
        OSError: The descriptor is not an open socket any more.
    """
    blocking = os.get_blocking(descriptor)
    connection = socket.socket(fileno=descriptor)
    try:
        yield connection
    finally:
        connection.detach()
        if socket.getdefaulttimeout() is not None:
            # With a default timeout, `socket.socket` has made it non-blocking.
            os.set_blocking(descriptor, blocking)
