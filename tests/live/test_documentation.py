"""The HTML of ``docs/in-the-browser.md`` and ``docs/job-progress.md`` does in a browser what the
pages say."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.docs.pages import blocks
from tests.live.browser import Browser, Tab, wait_until
from tests.live.documentation import PAGE
from tests.live.servers import manage
from tests.live.sites import Site, run

pytestmark = pytest.mark.chromium("tests of their own show what other browsers make of it")

URLS = {"LIVE_URLCONF": "tests.live.documentation"}


@pytest.fixture(scope="module")
def site(browser: Browser, directory: Path) -> Iterator[Site]:
    with run(directory, environment=URLS) as site:
        yield site
        assert "Traceback" not in site.server.log()


Show = Callable[[str], Tab]


@pytest.fixture
def show(browser: Browser, site: Site) -> Iterator[Show]:
    """Open the page with the block that contains a text."""
    with Tab.open(browser, site.origin) as tab:

        def show(text: str) -> Tab:
            [number] = [n for n, block in enumerate(blocks("html", PAGE)) if text in block]
            # That of the test before has gone.
            until_open(site, 0)
            tab.go(f"{site.origin}/documented/{number}/")
            return tab

        yield show
        site.reopen("news")


def push(site: Site, data: str) -> None:
    command = ["sse_push", "news", data, "--event", "headline"]
    asyncio.run(manage(site.server.directory, *command))


def printed(tab: Tab) -> list[str]:
    return list(tab.run("return printed"))


def until_open(site: Site, count: int = 1) -> None:
    wait_until(lambda: site.open_streams() == count, f"{count} streams are not open")


def test_the_element_swaps_in_what_is_published(show: Show, site: Site) -> None:
    tab = show('target="#headlines"')
    until_open(site)
    push(site, "<li>Hello</li>")
    wait_until(
        lambda: (
            tab.run("return document.querySelector('#headlines').innerHTML") == "<li>Hello</li>"
        ),
        lambda: tab.run("return document.body.innerHTML"),
    )


@pytest.mark.parametrize("client", ["new EventStream(", 'new EventSource("/events/")'])
def test_a_script_prints_the_title_and_then_why_it_is_over(
    show: Show, site: Site, client: str
) -> None:
    tab = show(client)
    until_open(site)
    push(site, '{"title": "hi"}')
    wait_until(lambda: [line.split()[-1] for line in printed(tab)] == ["hi"], lambda: printed(tab))
    site.cancel("news", "over")
    wait_until(lambda: printed(tab)[1:] == ["over"], lambda: printed(tab))


def test_a_page_goes_on_from_what_it_shows(show: Show) -> None:
    tab = show("event_stream_position")
    assert tab.run("return document.querySelector('li').textContent") == "of the database"
    wait_until(lambda: printed(tab) == ["published meanwhile"], lambda: printed(tab))


def test_a_prompt_is_posted_with_a_token_and_answered(browser: Browser, site: Site) -> None:
    with Tab.open(browser, site.origin, "/documented/request/") as tab:
        wait_until(lambda: printed(tab) == ["Bearer a token: Why?"], lambda: printed(tab))
        assert 200 in site.statuses("/answers/")


TOKEN = "a" * 32


@pytest.fixture
def job(browser: Browser, site: Site) -> Iterator[Callable[[str], Tab]]:
    """Start a job, and open its page."""
    with Tab.open(browser, site.origin) as tab:
        tab.run("return fetch('/login/').then(() => null)")
        # After the login, which makes another one.
        tab.run("document.cookie = `csrftoken=${arguments[0]}; path=/`", TOKEN)

        def start(rows: str) -> Tab:
            page = tab.run(
                """
                const [rows, token] = arguments;
                const body = new URLSearchParams({ rows });
                const headers = { "X-CSRFToken": token };
                return fetch("/imports/", { method: "POST", body, headers }).then(({ url }) => url);
                """,
                rows,
                TOKEN,
            )
            tab.go(page)
            return tab

        yield start


def bar(tab: Tab) -> list[Any]:
    """Return how far the bar is, and what is said beside it."""
    return list(tab.run("return [bar.value, bar.max, said.textContent]"))


def until_shown(tab: Tab, *expected: Any) -> None:
    wait_until(lambda: bar(tab) == [*expected], lambda: bar(tab))


def test_a_page_shows_the_progress_of_a_job_and_its_end(
    job: Callable[[str], Tab], site: Site
) -> None:
    tab = job("one\ntwo")
    site.act("/documented/let-import/")
    until_shown(tab, 1, 2, "1 of 2")
    tab.go(tab.run("return location.href"))
    until_shown(tab, 1, 2, "1 of 2")
    site.act("/documented/let-import/")
    until_shown(tab, 2, 2, "complete")
    assert tab.run("return document.querySelector('#stop').disabled")
    tab.go(tab.run("return location.href"))
    until_shown(tab, 2, 2, "complete")


def test_a_page_stops_its_job(job: Callable[[str], Tab], site: Site) -> None:
    tab = job("one\ntwo\nthree")
    site.act("/documented/let-import/")
    until_shown(tab, 1, 3, "1 of 3")
    tab.run("document.querySelector('#stop').click()")
    until_shown(tab, 1, 3, "stopped")
    # The job notices once it has done the next row.
    site.act("/documented/let-import/")
