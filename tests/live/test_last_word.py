"""The server has the last word: what a browser asks for after each way to end a stream.

The page leaves its EventSources alone, so that all that ends them for good is the server's answer.
"""

import asyncio
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

from django_sse.groups.position import TERMINAL_MARK, parse_position
from tests import redis
from tests.live.browser import Browser, EventSource, Request, Tab, wait_until
from tests.live.servers import manage, unavailable
from tests.live.sites import JITTERED_RETRY, RETRY, Site, run
from tests.redis import RedisServer

# How often a client that cannot be served is seen to come back.
TRIES = 3
# How exact the clock of a page is.
PAGE_CLOCK_SECONDS = 0.005

OVER = '{"reason":"over"}'

in_one_browser = pytest.mark.chromium("how each of them comes back is seen where a stream ages out")


# A group is cancelled


def test_a_cancel_ends_the_stream_and_stops_its_client(tab: Tab, site: Site, group: str) -> None:
    source = tab.opened(f"/events/{group}/")
    site.publish(group, "last")
    site.cancel(group, "over")

    source.assert_stays_closed(RETRY)
    assert site.statuses(source.url) == [200, 204]
    assert source.received == [("message", "last"), ("close", OVER)]
    assert source.errors == ["connecting", "closed"]


def test_a_client_that_was_away_gets_what_it_missed_and_is_stopped(
    tab: Tab, site: Site, group: str
) -> None:
    source = tab.opened(f"/events/{group}/")
    site.publish(group, "seen")
    source.wait_for("message", "seen")
    with site.network.cut():
        source.wait_for_state("connecting")
        site.publish(group, "missed")
        site.cancel(group, "over")

    source.assert_stays_closed(RETRY)
    assert site.statuses(source.url) == [200, 200, 204]
    assert source.received == [("message", "seen"), ("message", "missed"), ("close", OVER)]
    assert source.errors[-2:] == ["connecting", "closed"]


def test_a_new_visitor_is_shown_the_history_of_a_cancelled_group_and_stopped(
    tab: Tab, site: Site, group: str
) -> None:
    site.publish(group, "one")
    site.publish(group, "two")
    site.cancel(group, "over")
    source = tab.follow(f"/history/{group}/")

    source.assert_stays_closed(RETRY)
    assert site.statuses(source.url) == [200, 204]
    assert source.received == [("message", "one"), ("message", "two"), ("close", OVER)]
    assert source.errors == ["connecting", "closed"]


def test_a_stream_of_several_groups_goes_on_until_all_of_them_are_cancelled(
    tab: Tab, site: Site, group: str
) -> None:
    first, second = f"{group}.1", f"{group}.2"
    source = tab.opened(f"/events/?group={first}&group={second}")
    site.publish(first, "one")
    site.cancel(first, "the first is over")
    site.publish(second, "two")
    source.wait_for("message", "two")
    tab.outlast(RETRY)
    assert source.state == "open"
    assert site.statuses(source.url) == [200]
    site.cancel(second, "over")

    source.assert_stays_closed(RETRY)
    assert site.statuses(source.url) == [200, 204]
    assert source.received == [("message", "one"), ("message", "two"), ("close", OVER)]
    assert source.errors == ["connecting", "closed"]


def test_a_new_visitor_of_several_groups_follows_those_that_are_not_cancelled(
    tab: Tab, site: Site, group: str
) -> None:
    first, second = f"{group}.1", f"{group}.2"
    site.cancel(first, "the first is over")
    source = tab.opened(f"/events/?group={first}&group={second}")
    site.publish(second, "two")
    source.wait_for("message", "two")
    site.cancel(second, "over")

    source.assert_stays_closed(RETRY)
    assert site.statuses(source.url) == [200, 204]
    assert source.received == [("message", "two"), ("close", OVER)]


def test_after_a_reopen_a_client_goes_on_where_it_was(tab: Tab, site: Site, group: str) -> None:
    source = tab.opened(f"/events/{group}/")
    site.publish(group, "one")
    source.wait_for("message", "one")
    with site.network.cut():
        source.wait_for_state("connecting")
        site.publish(group, "two")
        site.cancel(group, "for now")
        site.reopen(group)
        site.publish(group, "three")
    source.wait_for("message", "three")
    site.publish(group, "four")
    source.wait_for("message", "four")

    assert site.statuses(source.url) == [200, 200]
    assert source.received == [("message", data) for data in ("one", "two", "three", "four")]
    one, two, three, four = (
        parse_position(message.last_event_id, [group])[group] for message in source.messages
    )
    # The number between two and three is that of the cancel.
    assert [two - one, three - two, four - three] == [1, 2, 1]


def test_after_a_reopen_a_new_visitor_is_shown_the_history_and_streams(
    tab: Tab, site: Site, group: str
) -> None:
    site.publish(group, "one")
    site.cancel(group, "for now")
    site.reopen(group)
    site.publish(group, "two")
    source = tab.opened(f"/history/{group}/")
    source.wait_for("message", "two")
    site.publish(group, "three")
    source.wait_for("message", "three")

    assert site.statuses(source.url) == [200]
    assert source.received == [("message", data) for data in ("one", "two", "three")]


# A view has come to its end


def test_a_generator_view_that_returns_stops_its_client(tab: Tab, site: Site) -> None:
    source = tab.follow("/progress/?steps=2&delay=0.01")

    source.assert_stays_closed(RETRY)
    assert site.statuses(source.url) == [200, 204]
    *steps, close = source.received
    assert [json.loads(data)["step"] for _, data in steps] == [1, 2]
    assert close == ("close", '{"reason":"complete"}')
    # No state is kept of it: the client itself says that it is over.
    assert [request.last_event_id for request in site.requests.of(source.url)] == [
        "",
        TERMINAL_MARK,
    ]
    assert source.errors == ["connecting", "closed"]


# The server cannot serve it now, or not go on


@dataclass(frozen=True)
class Fallible:
    """The test project on an event store that can be killed, and that forgets everything then."""

    site: Site
    store: RedisServer


@pytest.fixture(scope="module")
def fallible(directory: Path) -> Iterator[Fallible]:
    if not redis.binary():
        unavailable("redis-server is not installed")
    with redis.serve() as store:
        subdirectory = directory / "fallible"
        subdirectory.mkdir()
        setting = {"BACKEND": "redis", "OPTIONS": {"url": store.url}}
        with run(subdirectory, STORE=setting) as site:
            yield Fallible(site, store)


@in_one_browser
def test_while_the_store_is_down_a_client_tries_again_at_times_of_its_own(
    browser: Browser, fallible: Fallible, group: str
) -> None:
    site = fallible.site
    wait_until(lambda: site.open_streams() == 0, "The streams of another test do not end.")
    with Tab.open(browser, site.origin) as tab:
        fallible.store.kill()
        source = tab.follow(f"/events/{group}/")
        wait_until(lambda: len(site.statuses(source.url)) > TRIES, "The client does not come back.")
        assert source.received == []
        fallible.store.start()
        wait_until(site.open_streams, "The client is not served.")
        site.publish(group, "one")
        source.wait_for("message", "one")

        assert_is_served_at_last(source, site.requests.of(source.url), site)


def assert_is_served_at_last(source: EventSource, requests: Sequence[Request], site: Site) -> None:
    """Assert that a client came back at times of its own until it was served, and then no more."""
    source.tab.outlast(RETRY)
    assert source.state == "open"
    assert site.requests.of(source.url) == requests
    assert {request.status for request in requests} == {200}
    assert all(later.at - earlier.at >= JITTERED_RETRY for earlier, later in pairwise(requests))
    assert source.received == [("message", "one")]
    assert source.errors == ["connecting"] * (len(requests) - 1)


@pytest.fixture(scope="module")
def limited(directory: Path) -> Iterator[Site]:
    """The test project with room for two streams, and a middleware that may fail."""
    environment = {"LIVE_MIDDLEWARE": "tests.middleware.FailsAtFirst"}
    subdirectory = directory / "limited"
    subdirectory.mkdir()
    with run(subdirectory, environment=environment, MAX_STREAMS=2) as site:
        yield site


@in_one_browser
def test_one_stream_too_many_waits_until_there_is_room(
    browser: Browser, limited: Site, group: str
) -> None:
    wait_until(lambda: limited.open_streams() == 0, "The streams of another test do not end.")
    limited.publish(group, "one")
    with Tab.open(browser, limited.origin) as tab:
        first, second = (tab.follow(f"/history/{group}/?stream={number}") for number in (1, 2))
        first.wait_for("message", "one")
        second.wait_for("message", "one")
        third = tab.follow(f"/history/{group}/?stream=3")
        wait_until(
            lambda: len(limited.statuses(third.url)) > TRIES, "The client does not come back."
        )
        assert third.received == []
        first.close()
        third.wait_for("message", "one")

        assert_is_served_at_last(third, limited.requests.of(third.url), limited)
        assert second.state == "open"
        assert limited.statuses(second.url) == [200]


@in_one_browser
def test_where_a_middleware_fails_a_client_tries_again(
    browser: Browser, limited: Site, group: str
) -> None:
    wait_until(lambda: limited.open_streams() == 0, "The streams of another test do not end.")
    limited.publish(group, "one")
    with Tab.open(browser, limited.origin) as tab:
        source = tab.follow(f"/history/{group}/?fail={TRIES}")
        source.wait_for("message", "one")

        requests = limited.requests.of(source.url)
        assert len(requests) == TRIES + 1
        assert_is_served_at_last(source, requests, limited)


@in_one_browser
def test_a_client_whose_history_is_lost_in_mid_life_comes_back_once_and_is_told(
    browser: Browser, fallible: Fallible, group: str
) -> None:
    site = fallible.site
    with Tab.open(browser, site.origin) as tab:
        source = tab.opened(f"/events/{group}/")
        site.publish(group, "one")
        source.wait_for("message", "one")
        fallible.store.kill()
        fallible.store.start()
        source.wait_for("reset", "{}")
        site.publish(group, "two")
        source.wait_for("message", "two")
        tab.outlast(RETRY)

        assert source.state == "open"
        assert site.statuses(source.url) == [200, 200]
        assert source.received == [("message", "one"), ("reset", "{}"), ("message", "two")]
        assert source.errors == ["connecting"]


# What is final from the start


@pytest.fixture(scope="module")
def visitors(browser: Browser, site: Site) -> Iterator[Tab]:
    """New clients which are refused for good, after a time in which they could have come back."""
    site.cancel("visitors-cancelled", "over")
    with Tab.open(browser, site.origin) as tab:
        for url in (CANCELLED, *REFUSED, REDIRECTED):
            tab.follow(url)
        # They were never told a reconnection time.
        tab.outlast(None)
        yield tab


CANCELLED = "/events/visitors-cancelled/"
REFUSED = {
    "/unauthorized/visitors/": 401,
    "/members/visitors/": 403,
    "/events/not a group/": 404,
}
REDIRECTED = "/redirected/visitors/"


def assert_was_closed_at_once(source: EventSource) -> None:
    assert source.state == "closed"
    assert source.errors == ["closed"]
    assert source.received == []


def test_a_new_visitor_of_a_cancelled_group_asks_once(visitors: Tab, site: Site) -> None:
    assert_was_closed_at_once(EventSource(visitors, CANCELLED))
    assert site.statuses(CANCELLED) == [204]


@pytest.mark.parametrize("url", REFUSED)
def test_a_client_that_is_refused_asks_once(visitors: Tab, site: Site, url: str) -> None:
    assert_was_closed_at_once(EventSource(visitors, url))
    assert site.statuses(url) == [REFUSED[url]]


def test_a_redirect_to_a_login_page_is_followed_and_then_final(visitors: Tab, site: Site) -> None:
    """Why a view for users answers 401: what the client gets here is a page of HTML."""
    assert_was_closed_at_once(EventSource(visitors, REDIRECTED))
    assert site.statuses(REDIRECTED) == [302]
    assert site.statuses(f"/event-sources/?next={REDIRECTED}") == [200]


# A stream ends, and its client goes on where it was


def test_aged_out_streams_go_on_where_they_were(
    browser: Browser, tmp_path: Path, group: str
) -> None:
    with run(tmp_path, MAX_AGE=0.5) as site, Tab.open(browser, site.origin) as tab:
        source = tab.opened(f"/events/{group}/")
        published = 0
        while len(site.statuses(source.url)) <= TRIES:
            site.publish(group, str(published))
            published += 1
            time.sleep(0.01)
            assert published < 10_000, "The stream has no end."
        site.cancel(group, "over")

        source.assert_stays_closed(RETRY)
        *served, last = site.requests.of(source.url)
        assert len(served) > TRIES
        assert [request.status for request in served] == [200] * len(served)
        assert last.status == 204
        messages = [("message", str(number)) for number in range(published)]
        assert source.received == [*messages, ("close", OVER)]
        assert source.errors == [*["connecting"] * len(served), "closed"]
        assert_came_back_at_times_of_its_own(source, served)


def test_a_client_of_a_server_that_is_restarted_goes_on_where_it_was(
    browser: Browser, tmp_path: Path, group: str
) -> None:
    with run(tmp_path) as site, Tab.open(browser, site.origin) as tab:
        source = tab.opened(f"/events/{group}/")
        site.publish(group, "one")
        source.wait_for("message", "one")
        site.server.terminate()
        wait_until(site.server.has_exited, "The server does not end.")
        source.wait_for_state("connecting")
        asyncio.run(manage(tmp_path, "sse_push", group, "two"))
        with run(tmp_path, port=site.server.port) as restarted:
            source.wait_for("message", "two")
            restarted.publish(group, "three")
            source.wait_for("message", "three")
            tab.outlast(RETRY)

            assert source.state == "open"
            assert site.statuses(source.url) == [200, 200]
            assert source.received == [("message", data) for data in ("one", "two", "three")]
            # While no server was there, it tried in vain.
            assert set(source.errors) == {"connecting"}
            assert_came_back_at_times_of_its_own(source, site.requests.of(source.url))


def assert_came_back_at_times_of_its_own(source: EventSource, requests: Sequence[Request]) -> None:
    """Assert that after each end the client waited as long as it was told in that moment."""
    ends = source.error_times
    came = [request.at for request in requests[1:]]
    assert all(
        min(again for again in (*ends, *came) if again > end) - end
        >= JITTERED_RETRY - PAGE_CLOCK_SECONDS
        for end in ends[: len(came)]
    )
