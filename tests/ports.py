"""Ports for the servers that the tests start."""

import random
import socket


def free_port() -> int:
    """Return a port that nobody listens on."""
    while True:
        # Below the ones that clients are given: none is taken before the server starts.
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port
