"""Ports for the servers that the tests start."""

import random
import socket
import subprocess
import time
from typing import Final

_reserved: Final[list[socket.socket]] = []


def free_port() -> int:
    """Return a port that nobody listens on, and that no other process of the tests is given."""
    while True:
        # Below the ones that clients are given: none is taken before the server starts.
        port = random.randrange(20_000, 32_000)
        reserved = socket.socket(type=socket.SOCK_DGRAM)
        with socket.socket() as probe:
            try:
                # Of UDP, which is in nobody's way.
                reserved.bind(("127.0.0.1", port))
            except OSError:
                reserved.close()
                continue
            _reserved.append(reserved)
            if probe.connect_ex(("127.0.0.1", port)):
                return port


def wait_until_listening(process: subprocess.Popen[bytes], port: int) -> None:
    """Wait until a process listens on its port.

    Raises:
        RuntimeError: It has ended, or does not listen within a minute.
    """
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        with socket.socket() as probe:
            if not probe.connect_ex(("127.0.0.1", port)):
                return
        time.sleep(0.02)
    raise RuntimeError("The server does not listen.")
