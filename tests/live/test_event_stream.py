"""The library's client in a browser: EventSource's interface, and what EventSource does not do."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from django_sse.position import format_position
from tests.live.browser import STATES, Browser, EventSource, Tab, wait_until
from tests.live.sites import RETRY, Site, run

OVER = '{"reason":"over"}'
# What `/foreign/` sends.
FOREIGN = "<b>foreign</b>"


@pytest.fixture(scope="module")
def site(directory: Path) -> Iterator[Site]:
    with run(directory, HEARTBEAT=0.2) as site:
        yield site
        assert "Traceback" not in site.server.log()


@pytest.fixture
def tab(browser: Browser, site: Site) -> Iterator[Tab]:
    with Tab.open(browser, site.origin) as tab:
        yield tab


def opened(tab: Tab, url: str, **options: object) -> EventSource:
    stream = tab.follow_event_stream(url, **options)
    stream.wait_for_state("open")
    return stream


def test_it_has_the_interface_of_event_source(tab: Tab, site: Site, group: str) -> None:
    opened(tab, f"/events/{group}/")
    (name,) = tab.run("return Object.keys(sources)")
    missing = tab.run(
        "const stream = sources[arguments[0]].source;"
        "const members = Object.getOwnPropertyNames(EventSource.prototype);"
        "return members.filter((member) => !(member in stream))",
        name,
    )
    assert missing == []
    assert (
        tab.run("return sources[arguments[0]].source.url", name) == f"{site.origin}/events/{group}/"
    )


def test_events_come_with_their_names_texts_and_ids(tab: Tab, site: Site, group: str) -> None:
    stream = opened(tab, f"/events/{group}/")
    for text in ("one", "two\nlines", "\n", "", "ünïcödé \u2028 🎉"):
        site.publish(group, text)
        message = stream.wait_for("message", text)
        assert message.last_event_id
    assert len({message.last_event_id for message in stream.messages}) == 5


def test_an_address_that_is_none_is_refused(tab: Tab) -> None:
    error = tab.run(
        "return import('/static/django_sse/event-stream.js')"
        "  .then(({ EventStream }) => new EventStream('http://'))"
        "  .then(() => null, (error) => error.name)"
    )
    assert error == "TypeError"


# Ends


def test_close_ends_it_and_says_why(tab: Tab, site: Site, group: str) -> None:
    stream = opened(tab, f"/events/{group}/")
    site.publish(group, "last")
    site.cancel(group, "over")
    stream.assert_stays_closed(RETRY)
    assert stream.received == [("message", "last"), ("close", OVER)]
    assert stream.messages[-1].reason == "over"
    # Unlike EventSource it does not have to come back to be told.
    assert site.statuses(f"/events/{group}/") == [200]
    assert stream.errors == []


def test_a_204_ends_it(tab: Tab, site: Site, group: str) -> None:
    site.cancel(group, "over")
    stream = tab.follow_event_stream(f"/events/{group}/")
    stream.assert_stays_closed(RETRY)
    assert [(message.type, message.reason) for message in stream.messages] == [("close", "204")]
    assert site.statuses(f"/events/{group}/") == [204]


@pytest.mark.parametrize(("path", "status"), [("/members/{}/", 403), ("/nowhere/{}/", 404)])
def test_what_is_final_ends_it(tab: Tab, site: Site, group: str, path: str, status: int) -> None:
    stream = tab.follow_event_stream(path.format(group))
    stream.assert_stays_closed(RETRY)
    assert [message.reason for message in stream.messages] == [str(status)]
    assert site.statuses(path.format(group)) == [status]


def test_after_its_own_close_nothing_comes(tab: Tab, site: Site, group: str) -> None:
    stream = opened(tab, f"/events/{group}/")
    stream.close()
    assert stream.state == "closed"
    site.publish(group, "unseen")
    wait_until(lambda: site.open_streams() == 0, "the stream is still open")
    tab.outlast(RETRY)
    assert stream.received == []
    assert site.statuses(f"/events/{group}/") == [200]


# Coming back


def test_it_goes_on_where_it_was(tab: Tab, site: Site, group: str) -> None:
    stream = opened(tab, f"/events/{group}/")
    site.publish(group, "seen")
    stream.wait_for("message", "seen")
    with site.network.cut():
        stream.wait_for_state("connecting")
        site.publish(group, "missed")
    stream.wait_for("message", "missed")
    assert stream.state == "open"
    assert stream.received == [("message", "seen"), ("message", "missed")]


def test_a_client_that_has_received_nothing_goes_on_too(tab: Tab, site: Site, group: str) -> None:
    stream = opened(tab, f"/events/{group}/")
    wait_until(lambda: stream.last_event_id, "no position")
    with site.network.cut():
        stream.wait_for_state("connecting")
        site.publish(group, "missed")
    stream.wait_for("message", "missed")


def test_it_comes_back_after_a_bad_gateway(tab: Tab, site: Site, group: str) -> None:
    stream = opened(tab, f"/events/{group}/", maxDelay=300)
    wait_until(lambda: stream.last_event_id, "no position")
    refused = len(site.network.refused)
    with site.network.without_server():
        wait_until(lambda: len(site.network.refused) >= refused + 5, "it does not come back")
        site.publish(group, "missed")
    stream.wait_for("message", "missed")
    waits = [after - before for before, after in pairwise(site.network.refused[refused:])]
    assert waits
    assert all(wait >= RETRY for wait in waits)


def test_it_gives_up_if_told_to(browser: Browser, site: Site, group: str) -> None:
    with Tab.open(browser, site.origin) as tab:
        stream = opened(tab, f"/events/{group}/", maxRetries=2)
        refused = len(site.network.refused)
        with site.network.without_server():
            stream.wait_for_state("closed")
        assert [message.reason for message in stream.messages] == ["max retries"]
        assert len(site.network.refused) - refused == 2


def test_a_server_that_only_says_when_to_come_back_is_given_up(tab: Tab) -> None:
    """As one does that has too many streams, or no store."""
    stream = tab.follow_event_stream("/ends/?retry=10", maxRetries=3)
    stream.wait_for_state("closed")
    assert [message.reason for message in stream.messages] == ["max retries"]
    assert stream.errors == ["connecting"] * 3


def test_told_to_come_back_at_once_it_comes_later_and_later(tab: Tab) -> None:
    stream = tab.follow_event_stream("/ends/?retry=0", maxRetries=10)
    stream.wait_for_state("closed")
    times = stream.error_times
    assert times[-1] - times[0] > 0.25


def test_a_time_that_is_too_long_for_a_timer_is_not_none(tab: Tab, site: Site) -> None:
    url = f"/ends/?retry={2**31}"
    tab.follow_event_stream(url, silence=2**31)
    wait_until(lambda: site.statuses(url) == [200], "it does not come")
    tab.outlast(RETRY)
    assert site.statuses(url) == [200]


def test_a_silent_connection_is_given_up(tab: Tab, site: Site, group: str) -> None:
    stream = opened(tab, f"/events/{group}/", silence=3000)
    with site.network.silent():
        stream.wait_for_state("connecting")
        site.publish(group, "missed")
    stream.wait_for("message", "missed")


def test_heartbeats_are_no_silence(tab: Tab, site: Site, group: str) -> None:
    stream = opened(tab, f"/events/{group}/", silence=3000)
    # Longer than it may be silent.
    tab.run("return new Promise((resolve) => setTimeout(resolve, 3500))")
    assert stream.errors == []


def test_while_its_page_is_hidden_it_may_pause(tab: Tab, site: Site, group: str) -> None:
    stream = opened(tab, f"/events/{group}/", pauseWhenHidden=True)
    tab.run(
        "document.addEventListener('visibilitychange',"
        "  () => (window.whenHidden ??= sources[arguments[0]].source.readyState))",
        stream.url,
    )
    with tab.hidden():
        wait_until(lambda: site.open_streams() == 0, "the stream is still open")
        site.publish(group, "while hidden")
    stream.wait_for("message", "while hidden")
    # Asked when it was hidden: a tab that is asked by this test is shown.
    assert STATES[tab.run("return whenHidden")] == "connecting"
    assert stream.errors == []


@pytest.mark.chromium("freezing takes the protocol of its debugger")
def test_a_page_that_is_thawed_goes_on_at_once(tab: Tab, site: Site, group: str) -> None:
    stream = opened(tab, f"/events/{group}/")
    wait_until(lambda: stream.last_event_id, "no position")
    with tab.frozen():
        wait_until(lambda: site.open_streams() == 0, "the stream is still open")
        site.publish(group, "while frozen")
    stream.wait_for("message", "while frozen")
    assert stream.errors == []


# Redirects


def redirected(origin: str, to: str) -> str:
    """Return the path of a redirect."""
    return f"{origin}/foreign/?{urlencode({'to': to})}"


def until_it_has_come_back(site: Site, redirect: str) -> None:
    path = redirect[redirect.index("/foreign/") :]
    wait_until(lambda: len(site.statuses(path)) > 1, "it does not come back")


def test_a_redirect_within_its_origin_is_followed(tab: Tab, site: Site, group: str) -> None:
    stream = opened(tab, f"/events/{group}", withCredentials=True)
    site.publish(group, "one")
    stream.wait_for("message", "one")
    assert site.statuses(f"/events/{group}") == [301]


def test_a_redirect_within_another_origin_is_followed(tab: Tab, site: Site) -> None:
    stream = tab.follow_event_stream(redirected(site.other_origin, "/foreign/"))
    stream.wait_for("message", FOREIGN)


@pytest.mark.parametrize("options", [{"withCredentials": True}, {"origins": ["https://a.example"]}])
def test_a_redirect_from_the_pages_origin_to_another_one_is_not_followed_with_cookies_or_mistrust(
    tab: Tab, site: Site, options: dict[str, Any]
) -> None:
    there = f"/foreign/?from=own&{next(iter(options))}"
    redirect = redirected("", f"{site.other_origin}{there}")
    stream = tab.follow_event_stream(redirect, **options)
    until_it_has_come_back(site, redirect)
    assert site.statuses(there) == []
    assert stream.received == []


def test_a_redirect_from_another_origin_is_not_followed_with_cookies(tab: Tab, site: Site) -> None:
    there = "/foreign/?from=other&cookies"
    redirect = redirected(site.other_origin, f"{site.origin_of('localhost')}{there}")
    stream = tab.follow_event_stream(redirect, withCredentials=True)
    until_it_has_come_back(site, redirect)
    assert site.statuses(there) == []
    assert stream.received == []


@pytest.mark.parametrize("from_other", [True, False])
def test_a_redirect_to_another_origin_is_followed_without_cookies(
    tab: Tab, site: Site, from_other: bool
) -> None:
    there = f"{site.origin_of('localhost')}/foreign/"
    stream = tab.follow_event_stream(redirected(site.other_origin if from_other else "", there))
    stream.wait_for("message", FOREIGN)


def test_what_an_origin_answers_that_is_not_listed_is_not_read(tab: Tab, site: Site) -> None:
    redirect = redirected(site.other_origin, f"{site.origin_of('localhost')}/foreign/?listed")
    stream = tab.follow_event_stream(redirect, origins=[site.other_origin])
    until_it_has_come_back(site, redirect)
    assert stream.received == []


# What it makes of the events


def test_json_is_parsed_if_asked_for(tab: Tab, site: Site, group: str) -> None:
    stream = opened(tab, f"/events/{group}/", json=True)
    for text in ('{"a": [1, null]}', "null", "no JSON"):
        site.publish(group, text)
    stream.wait_for("message", "no JSON")
    assert stream.received == [
        ("message", {"a": [1, None]}),
        ("message", None),
        ("message", "no JSON"),
    ]


def test_lost_events_are_a_reset(tab: Tab, site: Site, group: str) -> None:
    site.publish(group, "one")
    stream = tab.follow_event_stream(f"/events/{group}/", lastEventId=format_position({group: 1}))
    stream.wait_for("reset", "{}")
    site.publish(group, "two")
    stream.wait_for("message", "two")
