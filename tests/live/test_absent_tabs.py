"""A tab that is killed, or left and come back to, or without a network: nothing is lost."""

import pytest

from tests.live.browser import Browser, EventSource, Tab, wait_until
from tests.live.sites import Site


def opened(tab: Tab, url: str, **options: object) -> EventSource:
    stream = tab.follow_event_stream(url, **options)
    wait_until(lambda: stream.last_event_id, "no position")
    return stream


@pytest.mark.chromium("the drivers of the others end with the first tab that is killed")
def test_a_tab_that_is_killed_does_not_stop_the_others(
    browser: Browser, site: Site, group: str
) -> None:
    url = f"/events/{group}/"
    with Tab.open(browser, site.origin) as leader, Tab.open(browser, site.origin) as other:
        opened(leader, url, shared=True)
        stream = opened(other, url, shared=True)
        wait_until(lambda: site.open_streams() == 1, "they share none")
        leader.kill()
        site.publish(group, "one")
        stream.wait_for("message", "one")


def test_a_page_that_is_come_back_to_misses_nothing(
    browser: Browser, site: Site, group: str
) -> None:
    with Tab.open(browser, site.origin) as tab:
        stream = opened(tab, f"/events/{group}/")
        tab.go(f"{site.origin}/ends/")
        wait_until(lambda: site.open_streams() == 0, "the stream is still open")
        site.publish(group, "one")
        tab.back()
        # Firefox keeps no page that has a stream: it is a new one.
        was_kept = tab.run("return Object.keys(sources).length > 0")
        assert was_kept == (browser.name != "firefox")
        if was_kept:
            stream.wait_for("message", "one")


def test_a_tab_without_a_network_misses_nothing(browser: Browser, site: Site, group: str) -> None:
    with Tab.open(browser, site.origin) as tab:
        stream = opened(tab, f"/events/{group}/")
        with tab.offline(site.network):
            stream.wait_for_state("connecting")
            site.publish(group, "one")
        stream.wait_for("message", "one")
        assert stream.received == [("message", "one")]
