"""Runs the programs that read streams, and says what they saw."""

import json
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django_sse.event import Decoder
from tests.lines import whole_lines
from tests.live.browser import Browser, Tab
from tests.live.readers import npm
from tests.live.servers import ROOT, unavailable

PROGRAMS = Path(__file__).with_name("programs")


class Reader(ABC):
    """A program that follows a stream."""

    @property
    @abstractmethod
    def reports(self) -> list[dict[str, str]]:
        """What it has reported: an ``event``, an ``error`` after which it goes on, the ``end``."""

    @property
    def events(self) -> list[tuple[str, str]]:
        """The type and the data of each event that it has received."""
        return [
            (report["type"], report["data"]) for report in self.reports if report["what"] == "event"
        ]

    @property
    def has_failed(self) -> bool:
        """Whether it has met with an error after which it goes on."""
        return any(report["what"] == "error" for report in self.reports)

    @property
    def has_ended(self) -> bool:
        """Whether it is over, so that it will never ask again."""
        return any(report["what"] == "end" for report in self.reports)

    def take_in(self) -> None:
        """Wait until it has taken in what has been sent to it.

        Nothing to wait for where a connection's end is read after what came before it.
        """


@dataclass(frozen=True)
class Stage:
    """Where programs run: the origin of their streams, a directory, and a browser if asked for."""

    origin: str
    directory: Path
    browser: Callable[[], Browser]


class Program(ABC):
    """A program that follows a stream, to be run; ``source`` is its file, if it has one.

    ``require`` gets what it needs, or skips the test.
    """

    source: str
    require: Callable[[], None]

    @abstractmethod
    def ready(self, stage: Stage) -> AbstractContextManager[Callable[[str, bool], Reader]]:
        """Make all ready; the function given starts it, and the end of the block ends it.

        The function takes a URL, and whether the program does more than its client's README shows.
        """


class ProcessReader(Reader):
    """A process that prints its reports as lines of JSON; it is over when it has exited."""

    def __init__(self, process: subprocess.Popen[bytes], output: Path, errors: Path) -> None:
        self.process = process
        self.output = output
        self.errors = errors

    @property
    def reports(self) -> list[dict[str, str]]:
        return [json.loads(line) for line in whole_lines(self.output)]

    @property
    def has_ended(self) -> bool:
        return self.process.poll() is not None


class CurlReader(ProcessReader):
    """curl prints the stream itself, and what it complains of."""

    @property
    def reports(self) -> list[dict[str, str]]:
        reports = [
            {"what": "event", "type": event.event or "message", "data": event.text}
            for event in Decoder().feed(self.output.read_bytes())
        ]
        if self.errors.read_bytes():
            reports.append({"what": "error"})
        return reports


@dataclass(frozen=True)
class Command(Program):
    """A program that is a process; ``own_lines`` are more arguments of it."""

    words: Sequence[str]
    require: Callable[[], None]
    source: str = ""
    own_lines: Sequence[str] = ("own-lines",)
    reader: type[ProcessReader] = ProcessReader

    @contextmanager
    def ready(self, stage: Stage) -> Iterator[Callable[[str, bool], Reader]]:
        output, errors = stage.directory / "output", stage.directory / "errors"
        processes = []

        def start(url: str, own_lines: bool) -> Reader:
            with output.open("wb") as stdout, errors.open("wb") as stderr:
                process = subprocess.Popen(
                    [*self.words, url, *(self.own_lines if own_lines else ())],
                    cwd=ROOT,
                    stdin=subprocess.DEVNULL,
                    stdout=stdout,
                    stderr=stderr,
                )
            processes.append(process)
            return self.reader(process, output, errors)

        try:
            yield start
        finally:
            for process in processes:
                process.kill()
                process.wait()
                # Shown by pytest where a test has failed.
                print(*(file.read_text(errors="replace") for file in (output, errors)))  # noqa: T201


class PageReader(Reader):
    """A page, which keeps its reports."""

    def __init__(self, browser: Browser) -> None:
        self.browser = browser

    @property
    def reports(self) -> list[dict[str, str]]:
        reports: Any = self.browser.execute_script("return window.reports")
        return list(reports)

    def take_in(self) -> None:
        # A browser drops what a page has not read of a response when its connection breaks. What
        # is asked for now is read after it.
        self.browser.execute_async_script(
            "fetch('/ends/').then((response) => response.text()).then(arguments[0])"
        )


@dataclass(frozen=True)
class Page(Program):
    """A program that is a page, served beside the streams."""

    source: str
    require: Callable[[], None]

    @contextmanager
    def ready(self, stage: Stage) -> Iterator[Callable[[str, bool], Reader]]:
        browser = stage.browser()
        # A tab of its own: one that only leaves the page might keep its stream for a way back.
        with Tab.open(browser, stage.origin, f"/programs/{self.source}"):

            def start(url: str, own_lines: bool) -> Reader:
                browser.execute_script("follow(...arguments)", url, own_lines)
                return PageReader(browser)

            yield start


def python(name: str) -> Program:
    """Return a program in Python, by the name of its module."""
    words = [sys.executable, "-m", f"tests.live.readers.programs.{name}"]
    return Command(words, require=_nothing, source=f"{name}.py")


def node(source: str) -> Program:
    """Return a program for Node that uses an npm package."""
    return Command(["node", str(PROGRAMS / source)], require=npm.install, source=source)


def web_page(source: str) -> Program:
    """Return a page that uses an npm package."""
    return Page(source, require=npm.install)


def _nothing() -> None:
    """What a program requires that comes with the tests."""


def _curl() -> None:
    if not shutil.which("curl"):
        unavailable("curl is not installed")


EVENT_SOURCE = Page("event_source.html", require=_nothing)
EVENT_STREAM = Page("event_stream.html", require=_nothing)

CURL = Command(
    ["curl", "--no-buffer", "--no-progress-meter"],
    require=_curl,
    own_lines=["--fail", "--retry", "9", "--retry-delay", "1", "--retry-all-errors"],
    reader=CurlReader,
)
