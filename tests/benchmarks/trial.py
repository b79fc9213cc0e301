"""One contender's turn: its server, the load client, and the streams that are open."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.contenders import Contender, Running
from tests.benchmarks.load import Load, Report, load_client

_LET_GO_SECONDS = 60
_OTHER_FILES = 20


@dataclass(frozen=True)
class Cell:
    """A figure, or several that belong together, and what has to be said beside it."""

    value: float
    more: tuple[float, ...] = ()
    remark: str = ""
    times: float | None = None
    """A quotient that counts in place of the one with the floor."""


class Trial:
    """A contender that runs, and the load client in front of it."""

    def __init__(self, contender: Contender, server: Running, load: Load) -> None:
        self.contender = contender
        self.server = server
        self.load = load
        self._open: tuple[str, int] | None = None
        self._files = self.server.open_files()

    def open(self, path: str, count: int) -> None:
        """Have so many streams open on a path, and no others."""
        if self._open != (path, count):
            self.close()
            self.open_more(path, count)

    def open_more(self, path: str, count: int, *headers: str, in_flight: int = 20) -> float:
        """Open so many streams beside those that are open.

        Returns:
            CPU microseconds of the server for each.
        """
        before = self.server.cpu_seconds()
        request = self.server.request(path, *headers)
        report = self.load.open(count, request, values=self.server.cookies, in_flight=in_flight)
        if report.failed:
            raise RuntimeError(f"{report.failed} of {count} streams could not be opened")
        self._open = (path, count + (self._open[1] if self._open else 0))
        return (self.server.cpu_seconds() - before) / count * 1e6

    def ask(self, path: str, count: int) -> float:
        """Send so many requests, of a connection each.

        Returns:
            CPU microseconds of the server for each.
        """
        before = self.server.cpu_seconds()
        request = self.server.request(path, "Connection: close")
        report = self.load.request(count, request, values=self.server.cookies)
        if report.failed:
            raise RuntimeError(f"{report.failed} of {count} requests failed")
        return (self.server.cpu_seconds() - before) / count * 1e6

    def close(self) -> None:
        """Close all streams, and wait until the server has noticed."""
        # Of files that a server has come to keep meanwhile.
        slack = _OTHER_FILES
        if self._open:
            slack += self._open[1] // 20
            self.load.close()
            self._open = None
        deadline = time.monotonic() + _LET_GO_SECONDS
        while self.server.open_files() > self._files + slack and time.monotonic() < deadline:
            time.sleep(0.05)

    def deliver(self, total: int, order: str, **arguments: int) -> tuple[float, Report, str]:
        """Have events delivered.

        Args:
            total: How many events are to arrive, at all streams together.

        Returns:
            CPU microseconds of the server for each that arrives; what the client saw; and a remark,
            if anything was lost or came twice, or the client was the bottleneck.
        """
        self.load.expect()
        before = self.server.cpu_seconds()
        self.server.order(order, **arguments)
        report = self.load.collect(total)
        spent = self.server.cpu_seconds() - before
        return spent / max(report.received, 1) * 1e6, report, remark_on(report, total)


def remark_on(report: Report, total: int) -> str:
    """Return what has to be said of a run in which so many events should have come."""
    remarks = []
    if lost := total - report.received + report.repeated:
        remarks.append(f"{lost} lost")
    if report.repeated:
        remarks.append(f"{report.repeated} twice")
    if report.ended:
        remarks.append(f"{report.ended} streams ended")
    if report.busy > 0.95:
        remarks.append(f"client {report.busy:.0%} busy")
    return ", ".join(remarks)


@contextmanager
def trial(contender: Contender, directory: Path, load: Path) -> Iterator[Trial]:
    """Run a contender, and a load client built at ``load``, for the length of the block."""
    with contender.run(directory) as server, load_client(load, server.port) as client:
        yield Trial(contender, server, client)
