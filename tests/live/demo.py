"""The demo, served as `make demo` does, and its pages in a browser."""

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.common.by import By

from tests.live.browser import Requests, wait_until
from tests.live.servers import Server, manage, serve


@dataclass(frozen=True)
class Page:
    """A page of the demo, in a tab of its own."""

    browser: webdriver.Chrome
    handle: str

    def run(self, script: str, *arguments: Any) -> Any:
        """Run a script in the page; return what it returns."""
        self._switch()
        return self.browser.execute_script(script, *arguments)

    def click(self, selector: str) -> None:
        self._switch()
        self.browser.find_element(By.CSS_SELECTOR, selector).click()

    def fill(self, selector: str, text: str) -> None:
        """Type into an empty field."""
        self._switch()
        self.browser.find_element(By.CSS_SELECTOR, selector).send_keys(text)

    def reload(self) -> None:
        self._switch()
        self.browser.refresh()

    def texts(self, selector: str) -> list[str]:
        """Return the text of each element."""
        texts: list[str] = self.run(
            "return [...document.querySelectorAll(arguments[0])]"
            ".map((element) => element.textContent.trim())",
            selector,
        )
        return texts

    def wait_for(self, condition: Callable[[], object]) -> None:
        """Wait until something has become true of the page."""
        live = "return (document.querySelector('.live') ?? document.body).innerText"
        wait_until(condition, lambda: str(self.run(live)))

    def wait_for_texts(self, selector: str, *texts: str) -> None:
        """Wait until the elements are these and no others."""
        wait_until(lambda: self.texts(selector) == [*texts], lambda: str(self.texts(selector)))

    def wait_for_element(self, selector: str) -> None:
        self.wait_for(lambda: self.run("return document.querySelector(arguments[0])", selector))

    def close(self) -> None:
        self._switch()
        self.browser.close()
        self.browser.switch_to.window(self.browser.window_handles[0])

    def _switch(self) -> None:
        self.browser.switch_to.window(self.handle)


@dataclass(frozen=True)
class Demo:
    """The demo on a server, with a log of all requests that reach it."""

    server: Server
    requests: Requests

    @contextmanager
    def open(self, browser: webdriver.Chrome, path: str) -> Iterator[Page]:
        """Open a page for the length of the block."""
        browser.switch_to.window(browser.window_handles[0])
        browser.switch_to.new_window("tab")
        page = Page(browser, browser.current_window_handle)
        try:
            browser.get(f"http://127.0.0.1:{self.server.port}{path}")
            yield page
        finally:
            page.close()

    def manage(self, *arguments: str, input: str = "") -> None:
        """Run a management command, as in a second terminal."""
        asyncio.run(manage(self.server.directory, *arguments, input=input))


@contextmanager
def run(directory: Path, *, retry: float) -> Iterator[Demo]:
    """Run the demo on the database in a directory.

    Args:
        retry: Seconds that a client waits before it comes back.
    """
    requests = directory / "requests"
    with serve(
        "runserver",
        directory,
        options=["--noreload"],
        LIVE_URLCONF="demo_project.urls",
        LIVE_REQUEST_LOG=str(requests),
        LIVE_DJANGO_SSE=json.dumps({"RETRY": retry}),
    ) as server:
        yield Demo(server, Requests(requests))
