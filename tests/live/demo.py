"""The demo, served as `make demo` does, and its pages in a browser."""

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from selenium.webdriver.common.by import By

from tests.live.browser import Browser, Requests, Tab, wait_until
from tests.live.servers import Server, manage, serve


class Page(Tab):
    """A page of the demo, in a tab of its own."""

    def click(self, selector: str) -> None:
        self._switch()
        self._browser.find_element(By.CSS_SELECTOR, selector).click()

    def fill(self, selector: str, text: str) -> None:
        """Type into an empty field."""
        self._switch()
        self._browser.find_element(By.CSS_SELECTOR, selector).send_keys(text)

    def reload(self) -> None:
        self._switch()
        self._browser.refresh()

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


@dataclass(frozen=True)
class Demo:
    """The demo on a server, with a log of all requests that reach it."""

    server: Server
    requests: Requests

    def open(
        self, browser: Browser, path: str, host: str = "127.0.0.1"
    ) -> AbstractContextManager[Page]:
        """Open a page for the length of the block.

        Args:
            host: Another name has cookies, and so a session, of its own.
        """
        return Page.open(browser, f"http://{host}:{self.server.port}", path)

    def manage(self, *arguments: str, input: str = "") -> None:
        """Run a management command, as in a second terminal."""
        asyncio.run(manage(self.server.directory, *arguments, input=input))


@contextmanager
def run(
    directory: Path, *, retry: float, port: int | None = None, **settings: float
) -> Iterator[Demo]:
    """Run the demo on the database in a directory.

    Args:
        retry: Seconds that a client waits before it comes back.
        port: Where an earlier one was, which its pages come back to.
        settings: More of ``DJANGO_SSE``.
    """
    requests = directory / "requests"
    with serve(
        "runserver",
        directory,
        port=port,
        options=["--noreload"],
        LIVE_URLCONF="demo_project.urls",
        LIVE_REQUEST_LOG=str(requests),
        LIVE_DJANGO_SSE=json.dumps({"RETRY": round(retry * 1000), **settings}),
    ) as server:
        yield Demo(server, Requests(requests))
