"""Ports for the servers that the tests start."""

import random
import socket
import subprocess
import time


def free_port() -> int:
    """Return a port that nobody listens on."""
    while True:
        # Below the ones that clients are given: none is taken before the server starts.
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe:
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
