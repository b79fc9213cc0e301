"""The demo page in a real browser: what its EventSources ask the server for, and when they stop."""

import asyncio
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from tests.live.browser import Requests
from tests.live.client import SECONDS
from tests.live.servers import Server, manage, serve

NEWS = "/events/news/latest/"
PROGRESS = "/progress/?steps=20&delay=0.2"

RETRY = 0.5
# How long a browser that was stopped has to stay silent.
SILENCE_SECONDS = 6 * RETRY


@dataclass(frozen=True)
class Demo:
    """The demo served to a browser, with a log of all requests that reach the server."""

    server: Server
    browser: webdriver.Chrome
    requests: Requests

    def open(self) -> None:
        self.browser.get(f"http://127.0.0.1:{self.server.port}/")
        self.wait_for("#news[data-state=open]")

    def click(self, selector: str) -> None:
        self.browser.find_element(By.CSS_SELECTOR, selector).click()

    def wait_for(self, selector: str) -> None:
        WebDriverWait(self.browser, SECONDS).until(
            lambda browser: browser.find_elements(By.CSS_SELECTOR, selector), selector
        )

    def wait_for_headline(self, title: str) -> None:
        WebDriverWait(self.browser, SECONDS).until(
            lambda browser: title in browser.find_element(By.ID, "headlines").text, title
        )

    def manage(self, *arguments: str) -> None:
        asyncio.run(manage(self.server.directory, *arguments))


@pytest.fixture(scope="module")
def demo(browser: webdriver.Chrome, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    directory = tmp_path_factory.mktemp("demo")
    requests = directory / "requests"
    with serve(
        "runserver",
        directory,
        options=["--noreload"],
        LIVE_URLCONF="demo_project.urls",
        LIVE_REQUEST_LOG=str(requests),
        LIVE_DJANGO_SSE=json.dumps({"RETRY": RETRY}),
    ) as server:
        yield Demo(server, browser, Requests(requests))
        # The page would go on asking for its streams.
        browser.get("about:blank")


@pytest.fixture(scope="module")
def visit(demo: Demo) -> Demo:
    """The demo after a visit: a headline came, a job was done, the news was cancelled; silence."""
    demo.open()
    demo.manage("sse_push", "news", '{"title": "hi"}', "--event", "headline")
    demo.wait_for_headline("hi")
    demo.click("#start")
    demo.manage("sse_cancel", "news")
    demo.wait_for("#news[data-state=closed]")
    demo.wait_for("#job-connection[data-state=closed]")
    time.sleep(SILENCE_SECONDS)
    return demo


def test_after_a_cancel_the_browser_asks_once_more_and_then_never_again(visit: Demo) -> None:
    assert visit.requests.statuses(NEWS) == [200, 204]


def test_a_job_runs_once(visit: Demo) -> None:
    assert visit.requests.statuses(PROGRESS) == [200, 204]
    visit.wait_for("#progress[value='20']")


def test_after_a_reopen_a_new_page_streams_again(visit: Demo) -> None:
    visit.manage("sse_reopen", "news")
    visit.open()
    visit.manage("sse_push", "news", '{"title": "back again"}', "--event", "headline")
    visit.wait_for_headline("back again")
