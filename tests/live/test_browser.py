"""The demo in a real browser: what its pages ask the server for, and when they stop."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.live.browser import Browser
from tests.live.demo import Demo, Page, run

NEWS = "/events/news/?client={}"
PROGRESS = "/progress/?steps=20&delay=0.2"
NATIVE_PROGRESS = "/progress/?steps=2&delay=0"

RETRY = 0.5
# How long a browser that was stopped has to stay silent.
SILENCE_SECONDS = 6 * RETRY


@pytest.fixture(scope="module")
def demo(directory: Path) -> Iterator[Demo]:
    with run(directory, retry=RETRY) as demo:
        yield demo


@dataclass(frozen=True)
class Visit:
    """What a visit has left behind: its pages, still open, and what they have asked for."""

    news: Page
    job: Page
    demo: Demo


@pytest.fixture(scope="module")
def visit(browser: Browser, demo: Demo) -> Iterator[Visit]:
    """A headline came, two jobs were done, and the news was cancelled; then there was silence."""
    with demo.open(browser, "/last-word/") as news, demo.open(browser, "/job/") as job:
        news.wait_for_texts("#group .state", "open", "open")
        demo.manage("sse_push", "news", '{"title": "hi"}', "--event", "headline")
        news.wait_for(lambda: sum('{"title": "hi"}' in line for line in news.texts("#log li")) == 2)
        job.click("#job button")
        job.run("window.native = new EventSource(arguments[0])", NATIVE_PROGRESS)
        demo.manage("sse_cancel", "news")
        news.wait_for_texts("#group .state", "closed", "closed")
        job.wait_for_texts("#job-state", "closed")
        job.wait_for(lambda: job.run("return native.readyState === EventSource.CLOSED"))
        time.sleep(SILENCE_SECONDS)
        yield Visit(news, job, demo)


def test_after_a_cancel_the_browser_asks_once_more_and_then_never_again(visit: Visit) -> None:
    assert visit.demo.requests.statuses(NEWS.format("EventSource")) == [200, 204]


def test_after_a_cancel_the_librarys_client_never_asks_again(visit: Visit) -> None:
    assert visit.demo.requests.statuses(NEWS.format("EventStream")) == [200]


def test_a_job_runs_once(visit: Visit) -> None:
    assert visit.demo.requests.statuses(PROGRESS) == [200]
    assert visit.job.run("return document.querySelector('#progress').value") == 20
    assert visit.job.texts("#step") == ["Done."]


def test_a_job_runs_once_for_an_event_source(visit: Visit) -> None:
    assert visit.demo.requests.statuses(NATIVE_PROGRESS) == [200, 204]


def test_after_a_reopen_a_new_page_streams_again(
    browser: Browser, demo: Demo, visit: Visit
) -> None:
    demo.manage("sse_reopen", "news")
    with demo.open(browser, "/") as page:
        page.wait_for_element("event-stream[state=open]")
        demo.manage("sse_push", "news", '{"title": "back again"}', "--event", "headline")
        page.wait_for_texts("#headlines li", "back again", "hi")
