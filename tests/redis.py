"""Redis servers of the tests' own, which can be killed, restarted and paused."""

import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.ports import free_port

_START_SECONDS = 30


def binary() -> str | None:
    """Return the path of redis-server, where it is installed."""
    return shutil.which("redis-server")


class RedisServer:
    """A server on a port of its own, with its data in a directory.

    ``options`` are those of redis.conf: ``{"appendonly": "yes", "appendfsync": "always"}``.
    """

    def __init__(self, directory: Path, **options: str) -> None:
        self.port = free_port()
        self._directory = directory
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The address of its first database."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it, with the data that it had."""
        server = binary()
        assert server
        options = {"port": str(self.port), "bind": "127.0.0.1", "save": "", **self._options}
        arguments = [text for key, value in options.items() for text in (f"--{key}", value)]
        with (self._directory / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(
                [server, *arguments], cwd=self._directory, stdout=log, stderr=log
            )
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((self._directory / "redis.log").read_text())
            time.sleep(0.02)

    def kill(self) -> None:
        """Kill it with SIGKILL: what it has not written to its files is lost."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Let it end in good order."""
        self._end(signal.SIGTERM)

    def pause(self) -> None:
        """Let it answer nobody, with its connections open, until ``resume``."""
        assert self._process
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """End a pause."""
        assert self._process
        self._process.send_signal(signal.SIGCONT)

    def _end(self, how: signal.Signals) -> None:
        if self._process:
            self._process.send_signal(how)
            # A paused one would never end.
            self._process.send_signal(signal.SIGCONT)
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                # While it loads its data, the answer is another one.
                return connection.recv(64).startswith(b"+PONG")
        except OSError:
            return False


@contextmanager
def serve(**options: str) -> Iterator[RedisServer]:
    """Run a server for the length of the block."""
    with TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        server = RedisServer(Path(directory), **options)
        server.start()
        try:
            yield server
        finally:
            server.kill()
