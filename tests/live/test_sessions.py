"""Streams end with the permission to follow them: what browsers do after a logout and the like.

Another host name stands for another browser: it has cookies, and so a session, of its own. Another
port of the same host, which is another process here, has the same.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count

import pytest

from tests.live.browser import Browser, EventSource, Tab, wait_until
from tests.live.sites import JITTERED_RETRY, RETRY, Site, run

# The longest reconnection time that a client is told which is to come back at a time of its own.
LONGEST_RETRY = 2 * JITTERED_RETRY

pytestmark = pytest.mark.chromium("what ends a stream here is the server's")

_numbers = count(1)

Open = Callable[[Site, str], Tab]


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, Site]]:
    """Two processes of the test project, on one database."""
    directory = tmp_path_factory.mktemp("processes")
    with run(directory) as site, run(directory) as another:
        yield site, another
        for process in (site, another):
            assert "Traceback" not in process.server.log()


@pytest.fixture(scope="module")
def site(processes: tuple[Site, Site]) -> Site:
    return processes[0]


@pytest.fixture(scope="module")
def another_process(processes: tuple[Site, Site]) -> Site:
    return processes[1]


@pytest.fixture
def open_tab(browser: Browser) -> Iterator[Open]:
    """Opens tabs, which are closed after the test."""
    with ExitStack() as tabs:
        yield lambda site, host: tabs.enter_context(Tab.open(browser, site.origin_of(host)))


@pytest.fixture
def host() -> str:
    return a_host()


@pytest.fixture
def another_host() -> str:
    return a_host()


def a_host() -> str:
    """Return a name of this machine for which no browser has cookies yet."""
    return f"host-{next(_numbers)}.localhost"


def log_in(tab: Tab, user: str) -> Tab:
    tab.get(f"/login/?user={user}")
    return tab


def assert_was_stopped(source: EventSource, site: Site, reason: str) -> None:
    """Assert that a client was told that it is over, asked once more, and never again."""
    source.assert_stays_closed(RETRY)
    assert site.statuses(source.url) == [200, 204]
    assert source.received == [("close", f'{{"reason":"{reason}"}}')]
    assert source.errors == ["connecting", "closed"]


def assert_goes_on(source: EventSource, site: Site, group: str) -> None:
    """Assert that a stream was never interrupted, and still is one."""
    site.publish(group, "it goes on")
    source.wait_for("message", "it goes on")
    assert source.received == [("message", "it goes on")]
    assert site.statuses(source.url) == [200]
    assert source.errors == []


# A user is cancelled


def test_a_cancelled_user_is_stopped_in_every_process(
    open_tab: Open, site: Site, another_process: Site, host: str, another_host: str, group: str
) -> None:
    tab = log_in(open_tab(site, host), group)
    source = tab.opened(f"/members/{group}/?tab=1")
    of_another_process = open_tab(another_process, host).opened(f"/members/{group}/?tab=2")
    other = log_in(open_tab(site, another_host), f"{group}.other")
    of_another_user = other.opened(f"/members/{group}/?tab=3")
    site.act("/cancel-user/", user=group, reason="over")

    assert_was_stopped(source, site, "over")
    assert_was_stopped(of_another_process, another_process, "over")
    assert_goes_on(of_another_user, site, group)

    again = tab.follow(f"/members/{group}/?tab=4")
    again.wait_for_state("closed")
    assert site.statuses(again.url) == [204]


def test_a_session_that_began_after_the_cancel_streams(
    open_tab: Open, site: Site, host: str, group: str
) -> None:
    tab = log_in(open_tab(site, host), group)
    source = tab.opened(f"/members/{group}/?session=1")
    site.act("/cancel-user/", user=group, reason="over")
    assert_was_stopped(source, site, "over")

    tab.get("/logout/")
    log_in(tab, group)
    assert_goes_on(tab.opened(f"/members/{group}/?session=2"), site, group)


def test_a_user_who_is_cancelled_in_one_group_goes_on_with_the_others(
    open_tab: Open, site: Site, host: str, another_host: str, group: str
) -> None:
    first, second = f"{group}.1", f"{group}.2"
    tab = log_in(open_tab(site, host), group)
    of_both = tab.opened(f"/events/?group={first}&group={second}&tab=1")
    of_the_first = tab.opened(f"/events/?group={first}&tab=1")
    other = log_in(open_tab(site, another_host), f"{group}.other")
    of_another_user = other.opened(f"/events/?group={first}&group={second}&tab=2")
    site.act(f"/cancel-user/{first}/", user=group, reason="over")

    assert_was_stopped(of_the_first, site, "over")
    site.publish(first, "of the first")
    site.publish(second, "of the second")
    of_another_user.wait_for("message", "of the first")
    of_another_user.wait_for("message", "of the second")
    of_both.wait_for("message", "of the second")
    tab.outlast(RETRY)
    assert of_both.received == [("message", "of the second")]
    assert of_both.state == "open"
    # It has come back, to be served without the group.
    assert site.statuses(of_both.url) == [200, 200]
    assert site.statuses(of_another_user.url) == [200]


# A session ends


def test_a_logout_ends_the_streams_of_the_other_tabs_of_its_session(
    open_tab: Open, site: Site, host: str, another_host: str, group: str
) -> None:
    tab = log_in(open_tab(site, host), group)
    source = open_tab(site, host).opened(f"/members/{group}/?tab=2")
    of_another_browser = log_in(open_tab(site, another_host), group).opened(
        f"/members/{group}/?tab=3"
    )
    tab.get("/logout/")

    assert_was_stopped(source, site, "logged out")
    assert_goes_on(of_another_browser, site, group)


def test_a_logout_ends_the_streams_of_its_session_in_another_process(
    open_tab: Open, site: Site, another_process: Site, host: str, another_host: str, group: str
) -> None:
    tab = log_in(open_tab(site, host), group)
    source = open_tab(another_process, host).opened(f"/members/{group}/?tab=2")
    of_another_browser = log_in(open_tab(another_process, another_host), group).opened(
        f"/members/{group}/?tab=3"
    )
    tab.get("/logout/")

    assert_was_stopped(source, another_process, "logged out")
    assert_goes_on(of_another_browser, another_process, group)


# A user loses the permission


def test_a_user_who_was_deactivated_without_a_signal_is_stopped(
    open_tab: Open, site: Site, host: str, another_host: str, group: str
) -> None:
    source = log_in(open_tab(site, host), group).opened(f"/members/{group}/?tab=1")
    of_another_user = log_in(open_tab(site, another_host), f"{group}.other").opened(
        f"/members/{group}/?tab=2"
    )
    site.act("/deactivate/", user=group)

    assert_was_stopped(source, site, "logged out")
    assert_goes_on(of_another_user, site, group)


def test_a_changed_password_leaves_the_session_that_changed_it_alone(
    open_tab: Open, site: Site, host: str, another_host: str, group: str
) -> None:
    tab = log_in(open_tab(site, host), group)
    source = tab.opened(f"/members/{group}/?tab=1")
    of_another_browser = log_in(open_tab(site, another_host), group).opened(
        f"/members/{group}/?tab=2"
    )
    site.publish(group, "before")
    source.wait_for("message", "before")
    of_another_browser.wait_for("message", "before")
    tab.get("/change-password/")
    of_another_browser.assert_stays_closed(LONGEST_RETRY)
    wait_until(lambda: source.state == "open", "The session that changed it does not stream on.")
    site.publish(group, "after")
    source.wait_for("message", "after")

    assert source.received == [("message", "before"), ("message", "after")]
    assert site.statuses(source.url) == [200, 200]
    assert site.statuses(of_another_browser.url) == [200, 204]
    assert of_another_browser.received == [("message", "before")]
