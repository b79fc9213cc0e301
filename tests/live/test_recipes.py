"""The demo's recipes in a browser: what their pages show, and what the server was asked for."""

import json
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import httpx
import pytest

from django_sse.groups.position import TERMINAL_MARK
from tests import npm
from tests.live.browser import Browser, Request, Tab, is_webkit, wait_until
from tests.live.client import SECONDS
from tests.live.network import Network
from tests.live.servers import ROOT, launch
from tests.live.sites import REQUEST_LOG, RETRY, Site
from tests.ports import free_port

pytestmark = pytest.mark.chromium("the libraries of the recipes are not the project's")

PACKAGES = ROOT / "demo_project"

# Longer than any of these clients waits before it asks again.
SILENCE_SECONDS = 2

# A line of a connection's log: what happened, the data, and the readyState after it.
Line = tuple[str, str, str]

OPEN: Line = ("open", "", "OPEN")
LOST: Line = ("error", "", "CONNECTING")
STOPPED: Line = ("error", "", "CLOSED")
CLOSED_BY_PAGE: Line = ("close()", "", "CLOSED")


def event(type: str, data: Any) -> Line:
    text = data if isinstance(data, str) else json.dumps(data, separators=(",", ":"))
    return (type, text, "OPEN")


# A stream whose generator has returned, followed by a page that leaves it alone.
COMPLETE = [event("close", {"reason": "complete"}), LOST, STOPPED]


@dataclass(frozen=True)
class Page:
    """A recipe's page in a tab of its own."""

    tab: Tab

    @property
    def logs(self) -> dict[str, list[Line]]:
        """The log of each connection, by its URL, as it is shown."""
        logs = self.tab.run(
            "return [...document.querySelectorAll('#connections > div')].map((connection) => ["
            "  connection.querySelector('.url').textContent,"
            "  [...connection.querySelectorAll('li')].map((line) =>"
            "    [...line.children].map((cell) => cell.textContent)"
            "  )"
            "])"
        )
        return {url: [(what, data, state) for _, what, data, state in log] for url, log in logs}

    @property
    def log(self) -> list[Line]:
        """The log of its one connection."""
        [log] = self.logs.values() or [[]]
        return log

    @property
    def ready_states(self) -> list[str]:
        """The readyState that is shown of each connection."""
        return self.texts("#connections .state")

    def events(self, type: str) -> list[str]:
        """Return the data of the events of a type, as they are shown."""
        return [data for what, data, _ in self.log if what == type]

    def texts(self, selector: str) -> list[str]:
        """Return the texts of some elements."""
        texts = self.tab.run(
            "return [...document.querySelectorAll(arguments[0])].map((one) => one.textContent)",
            selector,
        )
        return list(texts)

    def press(self, button: str, **fields: str) -> None:
        """Fill the fields of the page's form, and click one of its buttons."""
        self.tab.run(
            "for (const [name, value] of Object.entries(arguments[1])) {"
            "  document.querySelector(`form [name=${name}]`).value = value;"
            "}"
            "[...document.querySelectorAll('form button')]"
            "  .find((button) => button.textContent === arguments[0]).click()",
            button,
            fields,
        )

    def wait_for_log(self, log: list[Line]) -> None:
        """Wait until its one connection's log is this and no more."""
        wait_until(lambda: self.log == log, lambda: f"{self.log}\nis not\n{log}")

    def wait_for_logs(self, logs: dict[str, list[Line]]) -> None:
        """Wait until the logs of its connections, by their URLs, are these and no more."""
        wait_until(lambda: self.logs == logs, lambda: f"{self.logs}\nis not\n{logs}")

    def wait_for_ready_state(self, state: str) -> None:
        wait_until(lambda: self.ready_states == [state], lambda: f"{self.logs}")

    def wait_for_texts(self, selector: str, texts: list[str]) -> None:
        wait_until(
            lambda: self.texts(selector) == texts, lambda: f"{self.texts(selector)}, not {texts}"
        )


@dataclass
class Visitor:
    """Visits the pages of the recipes."""

    browser: Browser
    site: Site
    tabs: ExitStack
    stopped: dict[str, list[Request]] = field(default_factory=dict)

    @contextmanager
    def visit(self, recipe: str, origin: str = "") -> Iterator[Page]:
        """Open a page for the length of the block."""
        # A name of its own, since a browser has but six connections to each, and others are open.
        origin = origin or self.site.origin_of(f"{recipe}.localhost")
        with Tab.open(self.browser, origin, path_of(recipe)) as tab:
            yield Page(tab)

    def open(self, recipe: str, origin: str = "") -> Page:
        """Open a page, and leave it open."""
        return self.tabs.enter_context(self.visit(recipe, origin))

    def press(self, recipe: str, action: str, **fields: str) -> None:
        """Press a button of a page in another browser, which the network is not in the way of."""
        url = f"http://127.0.0.1:{self.site.server.port}{path_of(recipe)}"
        with httpx.Client(timeout=SECONDS) as client:
            client.get(url).raise_for_status()
            fields["csrfmiddlewaretoken"] = client.cookies["csrftoken"]
            client.post(f"{url}{action}/", data=fields).raise_for_status()

    def requests_of_stopped(self, target: str, statuses: Sequence[int | None]) -> list[Request]:
        """Wait until the server has been asked for a stream so often; it never is again."""
        wait_until(
            lambda: self.site.statuses(target) == statuses,
            lambda: f"{self.site.statuses(target)}, not {statuses}",
        )
        self.stopped[target] = self.site.requests.of(target)
        return self.stopped[target]

    def assert_nobody_has_come_back(self) -> None:
        """Assert that those who were stopped are silent, while their pages are still open."""
        time.sleep(SILENCE_SECONDS)
        assert {of: self.site.requests.of(of) for of in self.stopped} == self.stopped


def path_of(recipe: str) -> str:
    return f"/recipes/{recipe}/"


@pytest.fixture(scope="module")
def site(directory: Path) -> Iterator[Site]:
    """The demo, with what its pages take from npm if it is there, behind a network to be cut."""
    # Before the demo is started, which looks for it then.
    with suppress(pytest.skip.Exception):
        npm.install(PACKAGES)
    port = free_port()
    with Network.to(port) as network:
        origins = [f"http://{host}:{network.port}" for host in ("localhost", "127.0.0.1")]
        settings = {
            "RETRY": round(RETRY * 1000),
            "ALLOWED_ORIGINS": origins,
            "ALLOW_CREDENTIALS": True,
        }
        with launch(
            "runserver",
            directory,
            port,
            "",
            options=["--noreload"],
            LIVE_URLCONF="demo_project.urls",
            LIVE_REQUEST_LOG=str(directory / REQUEST_LOG),
            LIVE_DJANGO_SSE=json.dumps(settings),
        ) as server:
            yield Site(server, network)
            # Shown by pytest where a test has failed.
            print(server.log())  # noqa: T201
            assert "Traceback" not in server.log()


@pytest.fixture(scope="module")
def packages(site: Site) -> None:
    """What the pages take from npm, without which the test is skipped."""
    npm.install(PACKAGES)


@pytest.fixture(scope="module")
def visitor(browser: Browser, site: Site) -> Iterator[Visitor]:
    with ExitStack() as tabs:
        visitor = Visitor(browser, site, tabs)
        yield visitor
        visitor.assert_nobody_has_come_back()


@pytest.fixture(scope="module", autouse=True)
def server_time(visitor: Visitor) -> Page:
    """The page of the recipe that takes longest, beside the others, whose network is cut."""
    return visitor.open("server-time", f"http://127.0.0.1:{visitor.site.server.port}")


# The tutorials


def test_three_digits_a_bye_and_the_end(visitor: Visitor) -> None:
    page = visitor.open("digits")
    digits = [event("message", digit) for digit in "123"]
    page.wait_for_log([OPEN, *digits, event("bye", "bye-bye"), *COMPLETE])
    assert page.ready_states == ["2 CLOSED"]
    assert page.texts("title") == ["bye-bye"]
    requests = visitor.requests_of_stopped("/recipes/digits/stream/", [200, 204])
    assert [request.last_event_id for request in requests] == ["", TERMINAL_MARK]


def test_a_message_that_closes_is_heeded_in_its_grace(visitor: Visitor) -> None:
    page = visitor.open("close-message")
    stream, maintenance = "/recipes/close-message/stream/", "/recipes/close-message/maintenance/"
    wait_until(lambda: page.ready_states == ["2 CLOSED"] * 2, lambda: f"{page.logs}")
    progress = [event("message", {"type": "progress", "percent": done}) for done in (0, 50, 100)]
    close = event("message", {"type": "close"})
    assert page.logs[stream] == [OPEN, *progress, close, CLOSED_BY_PAGE]
    assert page.logs[maintenance] == [*[OPEN, LOST] * 3, CLOSED_BY_PAGE]
    visitor.requests_of_stopped(stream, [200])
    visitor.requests_of_stopped(maintenance, [200] * 3)


def test_who_joins_and_leaves_is_seen_in_each_tab(visitor: Visitor) -> None:
    pages = [visitor.open("join-leave") for _ in range(2)]
    for page in pages:
        page.wait_for_ready_state("1 OPEN")
    log = [OPEN]
    for page, button, name, names in (
        (pages[0], "Join", "Ada", "Ada"),
        (pages[1], "Join", "<b>Grace</b>", "Ada, <b>Grace</b>"),
        (pages[0], "Leave", "Ada", "<b>Grace</b>"),
    ):
        page.press(button, name=name)
        log.append(event(button.lower(), {"name": name}))
        for seen in pages:
            seen.wait_for_log(log)
            assert seen.texts("#names") == [names]
    assert visitor.site.statuses("/recipes/join-leave/stream/") == [200] * 2


def test_lines_come_as_they_were_given(visitor: Visitor) -> None:
    page = visitor.open("lines")
    texts = [
        "first line\nsecond line",
        '{\n  "msg": "hello world",\n  "id": 12345\n}',
        "<ul>\n  <li>indented</li>\n\n  <li>after an empty line</li>\n</ul>\n",
    ]
    page.wait_for_log([OPEN, *[event("message", text) for text in texts], *COMPLETE])
    assert page.texts("title") == ["hello world"]
    visitor.requests_of_stopped("/recipes/lines/stream/", [200, 204])


def test_another_origin_is_read_with_its_cookies_where_the_page_says_so(visitor: Visitor) -> None:
    path = "/recipes/cross-origin/stream/"
    # The two hosts are sites of their own, and WebKit sends no cookies to another site.
    who = None if is_webkit(visitor.browser) else "Ada"
    hosts = ("localhost", "127.0.0.1")
    for host, other in (hosts, reversed(hosts)):
        page = visitor.open("cross-origin", visitor.site.origin_of(host))
        streams = {path: who, f"{path}?stranger": None}
        expected = {
            f"{visitor.site.origin_of(other)}{url}": [
                OPEN,
                event(
                    "message",
                    {
                        "you read": f"{other}:{visitor.site.network.port}",
                        "from a page of": visitor.site.origin_of(host),
                        "as": guest,
                    },
                ),
                *COMPLETE,
            ]
            for url, guest in streams.items()
        }
        page.wait_for_logs(expected)
    visitor.requests_of_stopped(path, [200, 204] * 2)
    visitor.requests_of_stopped(f"{path}?stranger", [200, 204] * 2)

    # A third name of this machine, which is not allowed.
    page = visitor.open("cross-origin", visitor.site.origin_of("elsewhere.localhost"))
    stream = f"{visitor.site.origin_of('localhost')}{path}"
    page.wait_for_logs({stream: [STOPPED], f"{stream}?stranger": [STOPPED]})
    visitor.requests_of_stopped(path, [200, 204] * 2 + [403])
    visitor.requests_of_stopped(f"{path}?stranger", [200, 204] * 2 + [403])


def test_a_stream_that_breaks_goes_on_by_last_event_id(visitor: Visitor) -> None:
    page = visitor.open("last-event-id")
    runs = [[OPEN, *(event("message", n) for n in run), LOST] for run in ("123", "456", "789")]
    page.wait_for_log([*chain(*runs), STOPPED])
    requests = visitor.requests_of_stopped("/recipes/last-event-id/stream/", [200, 200, 200, 204])
    assert [request.last_event_id for request in requests] == ["", "3", "6", "9"]


def test_what_was_missed_meanwhile_comes_once_and_in_order(visitor: Visitor) -> None:
    page = visitor.open("missed-events")
    page.wait_for_ready_state("1 OPEN")
    page.press("Publish", text="seen")
    wait_until(lambda: len(page.events("message")) == 1, lambda: f"{page.log}")
    with visitor.site.network.cut():
        page.wait_for_ready_state("0 CONNECTING")
        visitor.press("missed-events", "tick", text="missed")
        visitor.press("missed-events", "tick", text="missed, too")
    texts = [f'{{"text":"{text}"}}' for text in ("seen", "missed", "missed, too")]
    wait_until(lambda: page.events("message") == texts, lambda: f"{page.log}")
    assert page.ready_states == ["1 OPEN"]
    requests = visitor.site.requests.of("/recipes/missed-events/stream/")
    assert [request.status for request in requests] == [200, 200]
    assert requests[1].last_event_id


def test_a_204_stops_the_browser_and_who_comes_later(visitor: Visitor) -> None:
    stream = "/recipes/no-content/stream/"
    page = visitor.open("no-content")
    page.wait_for_ready_state("1 OPEN")
    page.press("Sell out")
    page.wait_for_log([OPEN, event("close", {"reason": "sold out"}), LOST, STOPPED])
    assert page.texts("title") == ["Sold out"]
    visitor.requests_of_stopped(stream, [200, 204])

    later = visitor.open("no-content")
    later.wait_for_log([STOPPED])
    visitor.requests_of_stopped(stream, [200, 204, 204])

    later.press("Restock")
    with visitor.visit("no-content") as again:
        again.wait_for_ready_state("1 OPEN")
    visitor.requests_of_stopped(stream, [200, 204, 204, 200])


def test_another_answer_ends_both_and_one_says_what_it_was(visitor: Visitor) -> None:
    page = visitor.open("another-answer")
    urls = {
        "/recipes/another-answer/not-there/": ("404", 404),
        "/recipes/another-answer/no-stream/": ("no event stream, but application/json", 200),
    }
    logs = {}
    for url, (reason, _) in urls.items():
        logs[f"{url}?EventSource"] = [STOPPED]
        said = json.dumps({"reason": reason}, separators=(",", ":"))
        logs[url] = [("close", said, "CLOSED")]
    page.wait_for_logs(logs)
    for url, (_, status) in urls.items():
        visitor.requests_of_stopped(url, [status])
        visitor.requests_of_stopped(f"{url}?EventSource", [status])


# HTML over the wire


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize(
    ("recipe", "query", "statuses_at_the_end"),
    [
        # It closes at the last word, which keeps it from the 204 that it would not heed.
        ("htmx", "", []),
        ("turbo", "", [204]),
        # Without signals; it takes the end of a stream for the end.
        ("datastar", "?datastar=%7B%7D", []),
    ],
)
def test_html_is_put_into_the_page_until_the_end(
    visitor: Visitor, recipe: str, query: str, statuses_at_the_end: list[int | None]
) -> None:
    stream = f"/recipes/{recipe}/stream/{query}"
    page = visitor.open(recipe)
    wait_until(lambda: visitor.site.statuses(stream) == [200], lambda: f"{page.logs}")
    page.press("Tell", title="one")
    page.wait_for_texts("#stories strong", ["one"])

    with visitor.site.network.cut():
        visitor.press(recipe, "tell", title="missed")
    if recipe == "datastar" and is_webkit(visitor.browser):
        # To a page in WebKit, a connection that breaks is a stream that ends.
        page.wait_for_ready_state("2 CLOSED")
        visitor.requests_of_stopped(stream, [200])
        return
    page.wait_for_texts("#stories strong", ["missed", "one"])

    # A line of its own, which a form does not send: it must not be one of the protocol's.
    visitor.press(recipe, "tell", title="<em>escaped</em>\nselector body")
    stories = ["<em>escaped</em>\nselector body", "missed", "one"]
    page.wait_for_texts("#stories strong", stories)
    # The template's lines are all there.
    assert re.fullmatch(r"\s+one\n\n  at \d\d:\d\d:\d\d UTC\s+", page.texts("#stories li")[2])

    page.press("End")
    page.wait_for_ready_state("2 CLOSED")
    visitor.requests_of_stopped(stream, [200, 200, *statuses_at_the_end])
    assert page.texts("#stories strong") == stories


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize(("recipe", "query"), [("htmx", ""), ("datastar", "?datastar=%7B%7D")])
def test_what_takes_no_204_for_the_end_stops_on_a_page_that_is_opened_after_it(
    visitor: Visitor, recipe: str, query: str
) -> None:
    stream = f"/recipes/{recipe}/stream/{query}"
    before = visitor.site.statuses(stream)
    visitor.press(recipe, "begin")
    visitor.press(recipe, "tell", title="the last one")
    visitor.press(recipe, "end")
    page = visitor.open(recipe)
    page.wait_for_ready_state("2 CLOSED")
    assert page.texts("#stories strong")[0] == "the last one"
    visitor.requests_of_stopped(stream, [*before, 200])


# The tutorial that takes longest


def test_the_time_ten_times_and_ten_seconds_before_it_is_asked_for_again(
    visitor: Visitor, server_time: Page
) -> None:
    wait_until(lambda: server_time.log[-3:] == COMPLETE, lambda: f"{server_time.log}")
    opened, *times, last = server_time.log[:-3]
    assert opened == OPEN
    assert len(times) == 10
    for what, data, _ in times:
        assert (what, re.sub(r"\d", "0", data)) == ("message", "The server time is 00:00:00 UTC.")
    assert last == event("message", "Transmission ends.")
    assert server_time.texts("#time") == ["Transmission ends."]
    stream = "/recipes/server-time/stream/"
    first, second = visitor.requests_of_stopped(stream, [200, 204])
    # A second after each of the ten, and what `retry` says.
    assert second.at - first.at >= 10 + 10
