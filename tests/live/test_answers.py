"""Answers that pages start, follow and stop, in the browsers."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.live.browser import Browser, EventSource, Tab, wait_until
from tests.live.sites import RETRY, Site, run
from tests.views import runs_of

pytestmark = pytest.mark.in_turn

TOKEN = "a" * 32


@pytest.fixture
def other_site(directory: Path, site: Site) -> Iterator[Site]:
    """The same project in another process."""
    with run(directory) as other:
        yield other


@pytest.fixture
def csrf(tab: Tab) -> Iterator[None]:
    tab.run("document.cookie = `csrftoken=${arguments[0]}; path=/`", TOKEN)
    yield
    tab.run("document.cookie = 'csrftoken=; path=/; max-age=0'")


def words_of(stream: EventSource) -> list[int]:
    return [int(message.data) for message in stream.messages if message.type == "message"]


def until_it_has_begun(stream: EventSource) -> None:
    wait_until(lambda: words_of(stream), "no word comes")


def reason_of(stream: EventSource) -> str | None:
    wait_until(lambda: stream.state == "closed", lambda: f"it goes on: {stream.received[-3:]}")
    [close] = [message for message in stream.messages if message.type == "close"]
    return close.reason


def runs(site: Site, group: str) -> list[str]:
    """Return when the generator began and was closed, each time that it ran."""
    return runs_of(site.server.directory, group).read_text().split()


def test_each_page_shows_all_of_it_however_often_it_is_reloaded(
    browser: Browser,
    another_profile: Browser,
    tab: Tab,
    site: Site,
    other_site: Site,
    group: str,
) -> None:
    url = f"/produced/{group}/?words=400"
    with (
        Tab.open(browser, site.origin) as second,
        Tab.open(another_profile, other_site.origin) as other,
    ):
        for _ in range(5):
            stream = tab.follow_event_stream(url)
            until_it_has_begun(stream)
            tab.go(f"{site.origin}/event-sources/")
        native = tab.follow(url)
        for page in (tab, second, other):
            stream = page.follow_event_stream(url)
            assert reason_of(stream) == "complete"
            assert words_of(stream) == list(range(400))
        native.wait_for_state("closed")
        assert words_of(native) == list(range(400))
    assert runs(site, group) == ["begun", "closed"]


@pytest.mark.usefixtures("csrf")
def test_a_post_starts_it_and_a_lost_connection_goes_on_by_get(
    tab: Tab, site: Site, group: str
) -> None:
    url = f"/produced/{group}/?words=300&delay=0.02"
    stream = tab.follow_event_stream(url, method="POST", csrf=True)
    until_it_has_begun(stream)
    with site.network.cut():
        wait_until(lambda: stream.errors, "it is not lost")
    assert reason_of(stream) == "complete"
    assert words_of(stream) == list(range(300))
    assert runs(site, group) == ["begun", "closed"]


@pytest.mark.usefixtures("csrf")
def test_a_page_stops_it_for_all_in_any_process(
    browser: Browser, tab: Tab, site: Site, other_site: Site, group: str
) -> None:
    url = f"/produced/{group}/?words=10000"
    starter = tab.follow_event_stream(url)
    with Tab.open(browser, other_site.origin) as other:
        # Cookies are those of all ports of a host.
        stopper = other.follow_event_stream(url)
        for stream in (starter, stopper):
            until_it_has_begun(stream)
        assert other.run(
            "return sources[arguments[0]].source.stop().then(() => 'stopped')", stopper.url
        )
        assert reason_of(stopper) == "stopped"
    assert reason_of(starter) == "stopped"
    wait_until(lambda: runs(site, group) == ["begun", "closed"], "its generator is not closed")
    tab.outlast(RETRY)
    # The last one is the DELETE.
    assert site.statuses(url) == [200, 200, 204]
    assert len(words_of(starter)) < 10000


@pytest.mark.usefixtures("csrf")
def test_a_page_stops_it_at_a_url_of_its_choice(tab: Tab, site: Site, group: str) -> None:
    stream = tab.follow_event_stream(f"/produced/{group}/?words=10000")
    until_it_has_begun(stream)
    tab.run("return sources[arguments[0]].source.stop(arguments[1])", stream.url, f"/stop/{group}/")
    assert reason_of(stream) == "stopped"
    assert site.statuses(f"/stop/{group}/") == [204]


def test_a_stop_that_is_refused_stops_nothing(tab: Tab, site: Site, group: str) -> None:
    stream = tab.follow_event_stream(f"/produced/{group}/?words=10000")
    until_it_has_begun(stream)
    stop = "return sources[arguments[0]].source.stop().catch((error) => error.message)"
    assert tab.run(stop, stream.url) == "403"
    seen = len(words_of(stream))
    wait_until(lambda: len(words_of(stream)) > seen, "it does not go on")
    site.cancel(group, "over")


def test_a_button_stops_it_without_a_script(tab: Tab, site: Site, group: str) -> None:
    tab.go(f"{site.origin}/answer-page/{group}/")

    def shown(script: str) -> Callable[[], object]:
        return lambda: tab.run(f"return document.querySelector('event-stream').{script}")

    wait_until(shown("textContent.startsWith('012')"), "no word is shown")
    tab.run("document.querySelector('button').click()")
    wait_until(shown("getAttribute('state') === 'closed'"), "it is not stopped")
    # The page is what it was.
    assert shown("textContent.startsWith('012')")()
    wait_until(lambda: runs(site, group) == ["begun", "closed"], "its generator is not closed")
