"""The load client (``load.c``), as a process that takes commands."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile

from tests.benchmarks.machine import cores, pinned_to

# A store is compared with after five seconds at most: whatever was dropped is healed by then.
_QUIET_SECONDS = 7


@dataclass(frozen=True)
class Report:
    """What the load client has seen since ``expect``. Latencies are in milliseconds."""

    open: int
    failed: int
    received: int
    missed: int
    repeated: int
    ended: int
    p50: float
    p99: float
    worst: float
    seconds: float
    cpu: float

    @property
    def busy(self) -> float:
        """The share of its core that the load client has used."""
        return self.cpu / self.seconds if self.seconds else 0.0


class Load:
    """A running load client. Its streams stay open until ``close``."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def open(
        self, count: int, request: str, *, values: Path | None = None, in_flight: int = 20
    ) -> Report:
        """Open streams, and wait until all have their headers.

        Args:
            request: The HTTP request. ``%d`` is the stream's number, ``%s`` a line of ``values``.
            in_flight: How many may wait for their headers at a time.
        """
        return self._with_template("open", count, request, values, in_flight)

    def request(
        self, count: int, request: str, *, values: Path | None = None, in_flight: int = 20
    ) -> Report:
        """Send requests of one connection each, and read each to its end."""
        return self._with_template("request", count, request, values, in_flight)

    def expect(self) -> None:
        """Count anew: the next event of each stream is number 1."""
        self._ask("expect")

    def collect(self, events: int) -> Report:
        """Wait until so many events have come, or none has come for a while."""
        return self._ask(f"collect {events} {_QUIET_SECONDS * 1000}")

    def close(self) -> None:
        """Close all streams, with a reset."""
        self._ask("close")

    def _with_template(
        self, command: str, count: int, request: str, values: Path | None, in_flight: int
    ) -> Report:
        with NamedTemporaryFile("w", newline="") as file:
            file.write(request)
            file.flush()
            return self._ask(f"{command} {count} {in_flight} {file.name} {values or '-'}")

    def _ask(self, command: str) -> Report:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()
        return Report(**json.loads(self._process.stdout.readline()))


@contextmanager
def load_client(binary: Path, port: int) -> Iterator[Load]:
    """Run a load client against a port for the length of the block."""
    with subprocess.Popen(
        [binary, str(port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=pinned_to(cores()[1]),
    ) as process:
        try:
            yield Load(process)
        finally:
            process.kill()
