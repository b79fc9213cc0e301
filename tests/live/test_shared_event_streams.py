"""One connection for all tabs of a browser, whichever of them come and go."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from threading import Event, Thread

import pytest

from django_sse.groups.position import format_position
from tests.live.browser import Browser, EventSource, Tab, is_webkit, wait_until
from tests.live.client import SECONDS
from tests.live.sites import RETRY, Site

pytestmark = pytest.mark.in_turn

TABS = 20
# WebKit takes seconds for each window.
WINDOWS = 8
BURST = [str(number) for number in range(500)]
BURST_LEFT = 200
CONNECTIONS_OF_A_HOST = 6
SLOW_SECONDS = 15
# The one that comes first reads for all.
LEADER = 0

CONNECT_LATE = """
    const late = new Promise((resolve) => (window.letItConnect = resolve));
    const fetchNow = window.fetch;
    window.fetch = async (...all) => (await late, fetchNow(...all));
"""


# What Firefox does of it where a page may store nothing.
REFUSE = {
    "BroadcastChannel": """
        window.BroadcastChannel = class {
          constructor() {
            throw new DOMException("insecure", "SecurityError");
          }
        };
    """,
    "locks": """
        Object.defineProperty(navigator, "locks", {
          get() {
            throw new DOMException("insecure", "SecurityError");
          },
        });
    """,
    "request": """
        navigator.locks.request = async () => {
          throw new DOMException("insecure", "SecurityError");
        };
    """,
}


# Well within what a tab may be silent that shows a dialog.
SITE = {"HEARTBEAT": 0.5}


class Tabs:
    """Tabs of one browser, each with the same shared stream."""

    def __init__(self, browser: Browser, site: Site, url: str) -> None:
        self._browser = browser
        self._site = site
        self._url = url
        self._open: list[tuple[EventSource, ExitStack]] = []

    @property
    def streams(self) -> list[EventSource]:
        return [stream for stream, _ in self._open]

    def open(self, script: str = "", *, waits: bool = True, **options: object) -> EventSource:
        """Open one more, after a script was run in it; wait until its stream has a position."""
        stack = ExitStack()
        tab = stack.enter_context(Tab.open(self._browser, self._site.origin))
        tab.run(script)
        stream = tab.follow_event_stream(self._url, shared=True, **options)
        self._open.append((stream, stack))
        if waits:
            stream.wait_for_state("open")
            wait_until(lambda: stream.last_event_id, "no position")
        return stream

    def close(self, index: int) -> None:
        self._open.pop(index)[1].close()

    def close_all(self) -> None:
        while self._open:
            self.close(0)


@pytest.fixture
def tabs(browser: Browser, site: Site, group: str) -> Iterator[Tabs]:
    tabs = Tabs(browser, site, f"/events/{group}/")
    yield tabs
    tabs.close_all()
    wait_until(lambda: site.open_streams() == 0, "a stream is still open")


def texts(stream: EventSource) -> list[str]:
    return [message.data for message in stream.messages if message.type == "message"]


def until_one_is_open(site: Site) -> None:
    wait_until(lambda: site.open_streams() == 1, lambda: f"{site.open_streams()} are open")


# WebKit takes seconds for each of the windows where others test beside it.
@pytest.mark.timeout(300)
def test_twenty_tabs_lose_nothing_when_the_one_that_reads_for_all_is_closed_in_a_burst(
    tabs: Tabs, browser: Browser, site: Site, group: str
) -> None:
    for _ in range(WINDOWS if is_webkit(browser) else TABS):
        tabs.open()
    until_one_is_open(site)
    closed = Event()
    with site.pushing(group) as push:

        def push_the_rest() -> None:
            for text in BURST[BURST_LEFT:]:
                if text == BURST[-1]:
                    # However slow the browser is, the burst is not over before.
                    closed.wait(SECONDS)
                push(text)
                time.sleep(0.005)

        for text in BURST[:BURST_LEFT]:
            push(text)
        leader = tabs.streams[LEADER]
        wait_until(lambda: texts(leader), "the burst does not come")
        pushing = Thread(target=push_the_rest)
        pushing.start()
        tabs.close(LEADER)
        closed.set()
        pushing.join()
    for stream in tabs.streams:
        stream.wait_for("message", BURST[-1])
        assert texts(stream) == BURST
    until_one_is_open(site)


def test_a_tab_that_comes_later_gets_what_it_has_missed(tabs: Tabs, site: Site, group: str) -> None:
    first = tabs.open()
    wait_until(lambda: first.last_event_id, "no position")
    here = first.last_event_id
    for text in ("one", "two"):
        site.publish(group, text)
        first.wait_for("message", text)

    later = tabs.open(lastEventId=here)
    later.wait_for("message", "two")
    until_one_is_open(site)
    site.publish(group, "three")
    for stream in (first, later):
        stream.wait_for("message", "three")
        assert texts(stream) == ["one", "two", "three"]


def test_a_cancel_ends_all_tabs(tabs: Tabs, site: Site, group: str) -> None:
    for _ in range(3):
        tabs.open()
    until_one_is_open(site)
    site.publish(group, "last")
    site.cancel(group, "over")
    for stream in tabs.streams:
        stream.wait_for_state("closed")
        assert [message.reason for message in stream.messages] == [None, "over"]
    asked = len(site.statuses(f"/events/{group}/"))
    tabs.streams[0].assert_stays_closed(RETRY)
    assert len(site.statuses(f"/events/{group}/")) == asked


def test_all_tabs_go_on_after_the_server_was_away(tabs: Tabs, site: Site, group: str) -> None:
    for _ in range(3):
        tabs.open()
    until_one_is_open(site)
    site.publish(group, "seen")
    for stream in tabs.streams:
        stream.wait_for("message", "seen")
    with site.network.without_server():
        for stream in tabs.streams:
            stream.wait_for_state("connecting")
        site.publish(group, "missed")
    for stream in tabs.streams:
        stream.wait_for("message", "missed")
        stream.wait_for_state("open")
        assert texts(stream) == ["seen", "missed"]
    until_one_is_open(site)


def test_a_tab_that_closes_its_stream_leaves_the_others_theirs(
    tabs: Tabs, site: Site, group: str
) -> None:
    for _ in range(3):
        tabs.open()
    until_one_is_open(site)
    tabs.streams[LEADER].close()
    site.publish(group, "later")
    for stream in tabs.streams[1:]:
        stream.wait_for("message", "later")
    assert texts(tabs.streams[LEADER]) == []
    until_one_is_open(site)


def test_a_new_visitor_that_was_reset_shares_too(tabs: Tabs, site: Site, group: str) -> None:
    site.publish(group, "one")
    tabs.open()
    lost = tabs.open(lastEventId=format_position({group: 1}))
    lost.wait_for("reset", "{}")
    until_one_is_open(site)
    site.publish(group, "two")
    for stream in tabs.streams:
        stream.wait_for("message", "two")
        assert texts(stream) == ["two"]


def test_the_one_that_reads_for_all_is_not_in_want_of_a_connection(
    tabs: Tabs, site: Site, group: str
) -> None:
    """HTTP/1.1 has six for a host: the tabs that came first must not keep them."""
    tabs.open(CONNECT_LATE, waits=False)
    for _ in range(CONNECTIONS_OF_A_HOST + 1):
        tabs.open(waits=False)
    tabs.streams[LEADER].tab.run("letItConnect()")
    for stream in tabs.streams:
        stream.wait_for_state("open")
    until_one_is_open(site)
    site.publish(group, "one")
    for stream in tabs.streams:
        stream.wait_for("message", "one")
        assert texts(stream) == ["one"]


def test_a_new_tab_does_not_wait_for_the_one_that_comes_back_late(
    tabs: Tabs, site: Site, group: str
) -> None:
    first = tabs.open()
    with site.network.without_server():
        # So many times longer it waits at each.
        wait_until(lambda: len(first.errors) > 4, "it does not try")
    tabs.open()
    first.wait_for_state("open")
    until_one_is_open(site)


@pytest.mark.chromium("freezing takes the protocol of its debugger")
def test_a_tab_that_is_frozen_does_not_stop_the_others(tabs: Tabs, site: Site, group: str) -> None:
    for _ in range(3):
        tabs.open()
    until_one_is_open(site)
    with tabs.streams[LEADER].tab.frozen():
        site.publish(group, "one")
        for stream in tabs.streams[1:]:
            stream.wait_for("message", "one")
        until_one_is_open(site)
    for stream in tabs.streams:
        stream.wait_for("message", "one")
        assert texts(stream) == ["one"]
    until_one_is_open(site)


def test_a_tab_that_shows_a_dialog_does_not_stop_the_others(
    tabs: Tabs, site: Site, group: str
) -> None:
    for _ in range(3):
        tabs.open(silence=2000)
    until_one_is_open(site)
    # They tell the server, since WebKit's driver leaves no tab that shows a dialog.
    told = [f"/ends/?{group}&{number}" for number, _ in enumerate(tabs.streams)]
    for stream, url in zip(tabs.streams, told, strict=True):
        stream.tab.run(
            "const [name, url] = arguments;"
            "sources[name].source.addEventListener('message', () => fetch(url))",
            stream.url,
            url,
        )
    with tabs.streams[LEADER].tab.showing_a_dialog():
        site.publish(group, "one")
        wait_until(lambda: all(site.statuses(url) for url in told[1:]), "they are not told")
        assert not site.statuses(told[LEADER])
    for stream in tabs.streams:
        stream.wait_for("message", "one")
        assert texts(stream) == ["one"]


def test_a_tab_that_is_being_left_does_not_stop_the_others(
    tabs: Tabs, site: Site, group: str
) -> None:
    """In WebKit it connects to nothing any more, and waits for its next page with the lock."""
    for _ in range(3):
        tabs.open()
    until_one_is_open(site)
    leader, *others = tabs.streams
    url = f"/slow-page/?seconds={SLOW_SECONDS}"
    asked = len(site.statuses(url))
    # Later: Chromium's driver would wait for the page.
    leader.tab.run("setTimeout((url) => (location.href = url), 300, arguments[0])", url)
    wait_until(lambda: len(site.statuses(url)) > asked, "it does not leave")
    left_at = site.requests.of(url)[-1].at
    site.publish(group, "one")
    for stream in others:
        # By the clock: the driver may wait for the page that is not there yet.
        assert stream.wait_for("message", "one").at - left_at < SLOW_SECONDS
        assert texts(stream) == ["one"]


def test_a_204_ends_those_alone_that_have_everything(tabs: Tabs, site: Site, group: str) -> None:
    before = tabs.open()
    wait_until(lambda: before.last_event_id, "no position")
    here = before.last_event_id
    tabs.close(0)

    new = tabs.open(CONNECT_LATE, waits=False)
    old = tabs.open(lastEventId=here, waits=False)
    wait_until(lambda: site.open_streams() == 0, "it does not make way")
    for text in ("one", "two"):
        site.publish(group, text)
    site.cancel(group, "over")
    new.tab.run("letItConnect()")
    old.wait_for("close", '{"reason":"over"}')
    assert texts(old) == ["one", "two"]
    new.wait_for("close", '{"reason":"204"}')


def test_what_others_post_to_the_tabs_is_ignored(
    browser: Browser, tabs: Tabs, site: Site, group: str
) -> None:
    for _ in range(3):
        tabs.open("window.uncaught = []; onerror = (message) => uncaught.push(message)")
    until_one_is_open(site)
    here = tabs.streams[LEADER].last_event_id
    asked = site.statuses(f"/events/{group}/")
    foreign: list[object] = [
        *(None, True, 5, "text", [], {}, {"hello": "world"}),
        *({"asks": 1}, {"asks": "me", "at": here, "open": True}),
        *({"at": 7, "open": True}, {"at": None, "open": True}, {"at": here, "open": "yes"}),
        *({"at": here, "state": "lost"}, {"at": here, "open": False, "state": ["lost"]}),
        *(
            {"at": here, "state": "ended"},
            {"at": here, "open": False, "state": "ended", "reason": 7},
        ),
        {"at": here, "open": True, "block": None},
        {"at": here, "open": True, "block": "text"},
        {"at": here, "open": True, "block": {"type": "message", "data": "no origin"}},
        {"at": here, "open": True, "block": {"type": "message", "data": 7, "origin": site.origin}},
        {
            "at": here,
            "open": True,
            "block": {"type": ["close"], "data": "{}", "origin": site.origin},
        },
        {"at": here, "open": True, "block": {"id": 7, "type": "message", "origin": site.origin}},
        {"at": here, "block": {"type": "message", "data": "not open", "origin": site.origin}},
        {"at": here, "open": False, "state": "lost", "pace": {"retry": "1"}},
        "last",
    ]
    pace = {"retry": 0, "failures": 0}
    foreign = [{"pace": pace, **one} if isinstance(one, dict) else one for one in foreign]
    name = f"django_sse same-origin {site.origin}/events/{group}/"
    for stream in tabs.streams:
        # Made after that of the stream, so it hears after it.
        stream.tab.run(
            "window.listener = new BroadcastChannel(arguments[0]);"
            "listener.onmessage = ({ data }) => (window.hasHeard ||= data === 'last')",
            name,
        )
    with Tab.open(browser, site.origin) as other:
        other.run(
            "const channel = new BroadcastChannel(arguments[0]);"
            "for (const message of arguments[1]) channel.postMessage(message)",
            name,
            foreign,
        )
        for stream in tabs.streams:
            wait_until(partial(stream.tab.run, "return window.hasHeard"), "not heard")
    for stream in tabs.streams:
        assert stream.tab.run("return uncaught") == []
        assert (stream.received, stream.errors, stream.state) == ([], [], "open")
    assert site.statuses(f"/events/{group}/") == asked
    site.publish(group, "one")
    for stream in tabs.streams:
        stream.wait_for("message", "one")
        assert texts(stream) == ["one"]
    until_one_is_open(site)


def test_where_there_are_no_locks_each_tab_has_its_own(tabs: Tabs, site: Site, group: str) -> None:
    """As on a page that came over http, from a host that is not this machine."""
    for _ in range(2):
        tabs.open("Object.defineProperty(navigator, 'locks', { value: undefined })")
    wait_until(lambda: site.open_streams() == 2, "they are not two")
    site.publish(group, "one")
    for stream in tabs.streams:
        stream.wait_for("message", "one")
        assert texts(stream) == ["one"]


@pytest.mark.parametrize("refused", ["BroadcastChannel", "locks", "request"])
def test_where_cookies_are_blocked_each_tab_has_its_own(
    tabs: Tabs, site: Site, group: str, refused: str
) -> None:
    for _ in range(2):
        tabs.open(REFUSE[refused])
    wait_until(lambda: site.open_streams() == 2, "they are not two")
    site.publish(group, "one")
    with site.network.cut():
        for stream in tabs.streams:
            stream.wait_for_state("connecting")
        site.publish(group, "two")
    for stream in tabs.streams:
        stream.wait_for("message", "two")
        assert texts(stream) == ["one", "two"]
