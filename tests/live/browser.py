"""Chromium, a page that follows event streams in it, and the log of what it asks a server for."""

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

from selenium import webdriver
from selenium.webdriver.support.expected_conditions import alert_is_present
from selenium.webdriver.support.wait import WebDriverWait

from tests.live.client import SECONDS
from tests.live.servers import unavailable

# So many reconnection times have to pass without a request of a browser that was stopped.
SILENT_TIMES = 6


@contextmanager
def chromium(directory: Path) -> Iterator[webdriver.Chrome]:
    """Run a headless Chromium, with a profile of its own in a directory."""
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not binary or not driver:
        unavailable("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    # Of servers with a certificate that they have made themselves.
    options.accept_insecure_certs = True
    for switch in (
        *("headless=new", "no-sandbox", "disable-gpu", "disable-quic", "disable-dev-shm-usage"),
        *("no-first-run", "disable-background-networking", "disable-component-update"),
        # Tabs in the background would reconnect less often.
        *("disable-background-timer-throttling", "disable-renderer-backgrounding"),
        *("disable-sync", f"user-data-dir={directory}"),
    ):
        options.add_argument(f"--{switch}")
    service = webdriver.ChromeService(driver, log_output=subprocess.DEVNULL)
    browser = webdriver.Chrome(options, service)
    browser.set_script_timeout(SECONDS)
    try:
        yield browser
    finally:
        browser.quit()


def wait_until(condition: Callable[[], object], what: Callable[[], object] | str) -> None:
    """Wait until something has become true; else fail, and show what there was."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, what() if callable(what) else what
        time.sleep(0.02)


@dataclass(frozen=True)
class Request:
    """What a server has been asked for, and what it has answered.

    ``at`` is the time, in seconds, at which it came; ``last_event_id`` is from the header or the
    query; ``status`` is None where there is no answer yet.
    """

    at: float
    last_event_id: str
    status: int | None


@dataclass(frozen=True)
class Requests:
    """The log that ``tests.asgi.RequestLog`` writes to a file."""

    path: Path

    def of(self, target: str) -> list[Request]:
        """Return the requests for a target, in the order they came in.

        Args:
            target: A path with its query, but for ``lastEventId``.
        """
        came: dict[str, Request] = {}
        for line in self.path.read_text().splitlines():
            number, what, at, of, last_event_id = json.loads(line)
            if of != target:
                continue
            if what == "request":
                came[number] = Request(at, last_event_id, None)
            else:
                came[number] = replace(came[number], status=what)
        return list(came.values())

    def statuses(self, target: str) -> list[int | None]:
        """Return the status of each request for a target."""
        return [request.status for request in self.of(target)]


@dataclass(frozen=True)
class Message:
    """An event as a page gets it; ``at`` is the time in seconds, by the clock of the machine."""

    type: str
    data: Any
    last_event_id: str
    at: float
    reason: str | None = None


# What EventSource.readyState says.
State = Literal["connecting", "open", "closed"]
STATES: tuple[State, ...] = ("connecting", "open", "closed")


class Tab:
    """A tab of a browser, with a page of a server; ``tests/event_sources.html`` follows streams."""

    def __init__(self, browser: webdriver.Chrome, handle: str) -> None:
        self._browser = browser
        self._handle = handle

    @classmethod
    @contextmanager
    def open(
        cls, browser: webdriver.Chrome, origin: str, path: str = "/event-sources/"
    ) -> Iterator[Self]:
        """Open a tab for the length of the block."""
        first = browser.window_handles[0]
        browser.switch_to.window(first)
        browser.switch_to.new_window("tab")
        tab = cls(browser, browser.current_window_handle)
        browser.get(f"{origin}{path}")
        try:
            yield tab
        finally:
            tab._switch()
            browser.close()
            browser.switch_to.window(first)

    def follow(self, url: str) -> "EventSource":
        """Open an EventSource."""
        self.run("follow(arguments[0])", url)
        return EventSource(self, url)

    def opened(self, url: str) -> "EventSource":
        """Open an EventSource, and wait until its stream is open."""
        source = self.follow(url)
        source.wait_for_state("open")
        return source

    def follow_event_stream(self, url: str, **options: Any) -> "EventSource":
        """Open the library's own client, an ``EventStream``."""
        name = f"{url} {options}"
        self.run(
            "return followEventStream(arguments[0], arguments[1], arguments[2])", name, url, options
        )
        return EventSource(self, name)

    def get(self, url: str) -> float:
        """Send a request with the host's cookies; return the time at which its answer came."""
        status, at = self.run(
            "return fetch(arguments[0]).then((response) => [response.status, Date.now() / 1000])",
            url,
        )
        assert status < 400, (url, status)
        return float(at)

    def run(self, script: str, *arguments: Any) -> Any:
        """Run a script in the page; return what it returns."""
        self._switch()
        return self._browser.execute_script(script, *arguments)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Let nothing run in it for the length of the block, as browsers do in the background."""
        self._set_lifecycle_state("frozen")
        try:
            yield
        finally:
            self._set_lifecycle_state("active")

    @contextmanager
    def showing_a_dialog(self) -> Iterator[None]:
        """Let nothing run in it for the length of the block, but a dialog."""
        self.run("setTimeout(alert)")
        WebDriverWait(self._browser, SECONDS).until(alert_is_present())
        try:
            yield
        finally:
            self._switch()
            self._browser.switch_to.alert.accept()

    def outlast(self, reconnection_seconds: float | None) -> None:
        """Wait as long as this tab takes to come back many times to a stream that only ends.

        Args:
            reconnection_seconds: What that stream says; None: nothing, so that it is as a client
                has it that was never told.
        """
        retry = "" if reconnection_seconds is None else f"?retry={reconnection_seconds * 1000:.0f}"
        times = 2 if reconnection_seconds is None else SILENT_TIMES
        self.run("return comeBack(arguments[0], arguments[1])", f"/ends/{retry}", times)

    def _set_lifecycle_state(self, state: Literal["frozen", "active"]) -> None:
        self._switch()
        self._browser.execute_cdp_cmd("Page.setWebLifecycleState", {"state": state})

    def _switch(self) -> None:
        self._browser.switch_to.window(self._handle)


@dataclass(frozen=True)
class EventSource:
    """An EventSource of a tab: what it is told, by a page that leaves it alone.

    Or an ``EventStream``, whose ``url`` is followed by its options.
    """

    tab: Tab
    url: str

    @property
    def state(self) -> State:
        state: int = self.tab.run("return sources[arguments[0]].source.readyState", self.url)
        return STATES[state]

    @property
    def last_event_id(self) -> str:
        """Where an ``EventStream`` would go on from."""
        return str(self.tab.run("return sources[arguments[0]].source.lastEventId", self.url))

    @property
    def messages(self) -> list[Message]:
        """The events that were received."""
        return [
            Message(*message)
            for message in self.tab.run("return sources[arguments[0]].messages", self.url)
        ]

    @property
    def received(self) -> list[tuple[str, str]]:
        """The type and the data of each event that was received."""
        return [(message.type, message.data) for message in self.messages]

    @property
    def errors(self) -> list[State]:
        """The state that each ``error`` was fired in: connecting again, or closed for good."""
        return [state for state, _ in self._errors()]

    @property
    def error_times(self) -> list[float]:
        """The time in seconds of each ``error``, of which the first one is the stream's end."""
        return [at for _, at in self._errors()]

    def close(self) -> None:
        """Close it, as a page does that has seen enough."""
        self.tab.run("sources[arguments[0]].source.close()", self.url)

    def wait_for_state(self, state: State) -> None:
        """Wait until it is connecting, open, or closed for good."""
        wait_until(lambda: self.state == state, self._account)

    def assert_stays_closed(self, reconnection_seconds: float) -> None:
        """Assert that it is closed for good, having been told a reconnection time."""
        self.wait_for_state("closed")
        self.tab.outlast(reconnection_seconds)
        assert self.state == "closed"

    def wait_for(self, type: str, data: str) -> Message:
        """Wait until an event has been received; return it."""
        wait_until(lambda: (type, data) in self.received, self._account)
        return self.messages[self.received.index((type, data))]

    def _errors(self) -> list[tuple[State, float]]:
        errors = self.tab.run("return sources[arguments[0]].errors", self.url)
        return [(STATES[state], at) for state, at in errors]

    def _account(self) -> str:
        return f"{self.url} is {self.state}: {self.received}, errors {self.errors}"
