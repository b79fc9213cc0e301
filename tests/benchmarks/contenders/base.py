"""What a contender is, and a running server."""

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path

import psutil

from tests.benchmarks.machine import cores, cpu_seconds, memory_kilobytes, pinned_to
from tests.live.servers import ROOT
from tests.ports import wait_until_listening

_ORDER_SECONDS = 300


@dataclass
class Running:
    """A running server."""

    port: int
    pid: int
    environment: dict[str, str] = field(default_factory=dict)
    """What its processes have in theirs beside the usual."""
    cookies: Path | None = None
    """A file with a session cookie a line, for servers that want a login."""

    def cpu_seconds(self) -> float:
        """The CPU time that all of its processes have used."""
        return cpu_seconds(self.pids())

    def memory_kilobytes(self) -> int:
        """The memory of all of its processes."""
        return memory_kilobytes(self.pids())

    def open_files(self) -> int:
        """How many files its processes have open, connections included."""
        return sum(psutil.Process(pid).num_fds() for pid in self.pids())

    def pids(self) -> list[int]:
        """The ids of its processes."""
        children = psutil.Process(self.pid).children(recursive=True)
        return [self.pid, *(child.pid for child in children)]

    def order(self, what: str, **arguments: int) -> str:
        """Give an order (see ``apps/orders.py``); return the answer once it is carried out."""
        query = "&".join(f"{name}={value}" for name, value in arguments.items())
        return self.get(f"/orders/{what}?{query}")

    def get(self, path: str) -> str:
        """Return what a path answers."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=_ORDER_SECONDS)
        with closing(connection):
            connection.request("GET", path, headers={"Connection": "close"})
            response = connection.getresponse()
            answer = response.read().decode()
        if response.status != 200:
            raise RuntimeError(f"{path}: {response.status} {answer}")
        return answer

    def with_ticket(self, cookie: str, path: str = "/resumable/") -> str:
        """Return the line of a session's cookie, with the ticket that its stream is given."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=_ORDER_SECONDS)
        with closing(connection):
            headers = {"Cookie": cookie, "Accept": "text/event-stream", "Host": "127.0.0.1"}
            connection.request("GET", path, headers=headers)
            ticket = connection.getresponse().headers["Set-Cookie"]
        return f"{cookie}; {ticket.partition(';')[0]}\n"

    def request(self, path: str, *headers: str) -> str:
        """Return the request for a path, as the load client sends it."""
        lines = [f"GET {path} HTTP/1.1", "Host: 127.0.0.1", "Accept: text/event-stream", *headers]
        if self.cookies:
            lines.append("Cookie: %s")
        return "\r\n".join([*lines, "", ""])


@dataclass(frozen=True)
class Contender:
    """Something that streams."""

    key: str
    title: str
    workloads: tuple[str, ...]
    floor: str | None = None
    """The contender whose figures its own are divided by."""
    rounds: int = 5
    """In so many rounds at most, it takes part."""

    def lacks(self) -> str | None:
        """Return why it cannot run here, if it cannot. Installs what can be installed."""
        return None

    def run(self, directory: Path) -> AbstractContextManager[Running]:
        """Run it for the length of the block, with its files in a directory."""
        raise NotImplementedError


@contextmanager
def process_of(
    command: list[str], port: int, environment: Mapping[str, str] | None = None
) -> Iterator[int]:
    """Run a server on its core for the length of the block, once it listens; gives its pid."""
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        preexec_fn=pinned_to(cores()[0]),
    ) as process:
        try:
            wait_until_listening(process, port)
            yield process.pid
        finally:
            if process.poll() is None:
                for child in psutil.Process(process.pid).children(recursive=True):
                    child.kill()
                process.kill()
