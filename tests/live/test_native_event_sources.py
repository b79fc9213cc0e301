"""Where EventSource differs between browsers, or ``EventStream`` from it: docs/clients.md."""

from itertools import pairwise

import pytest

from tests.live.browser import Browser, Tab, is_webkit, wait_until
from tests.live.sites import Site

# Firefox waits so many seconds at least, whatever the server says, and so many if it says nothing.
FIREFOXS_LEAST_RETRY = 0.5
FIREFOXS_RETRY = 5
# How exact two clocks are.
CLOCK_SECONDS = 0.01


def test_loading_that_is_stopped_ends_an_event_source_and_no_event_stream(
    browser: Browser, tab: Tab, site: Site, group: str
) -> None:
    source = tab.opened(f"/events/{group}/?source")
    stream = tab.follow_event_stream(f"/events/{group}/")
    wait_until(lambda: stream.last_event_id, "no position")
    tab.run("window.stop()")
    wait_until(lambda: stream.errors, "it is not lost")
    site.publish(group, "one")
    stream.wait_for("message", "one")
    # WebKit stops none.
    assert source.state == ("open" if is_webkit(browser) else "closed")


def test_an_address_that_is_none_is_another_error_than_with_event_source(tab: Tab) -> None:
    errors = tab.run(
        "return import('/static/django_sse/event-stream.js').then(({ EventStream }) =>"
        "  [EventSource, EventStream].map((client) => {"
        "    try { new client('http://') } catch (error) { return error.name }"
        "  }))"
    )
    assert errors == ["SyntaxError", "TypeError"]


@pytest.mark.parametrize(
    ("url", "times", "firefoxs_seconds"),
    [("/ends/?retry=1", 4, FIREFOXS_LEAST_RETRY), ("/ends/", 2, FIREFOXS_RETRY)],
)
def test_firefoxs_event_source_waits_longer(
    browser: Browser, tab: Tab, site: Site, url: str, times: int, firefoxs_seconds: float
) -> None:
    source = tab.follow(url)
    wait_until(lambda: len(site.statuses(url)) > times, "it does not come back")
    source.close()
    came = [request.at for request in site.requests.of(url)]
    shortest = min(after - before for before, after in pairwise(came))
    assert (shortest > firefoxs_seconds - CLOCK_SECONDS) == (browser.name == "firefox")
