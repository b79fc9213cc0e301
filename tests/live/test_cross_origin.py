"""Pages of other origins in a real browser: what they may read, and how often they ask for it."""

import asyncio
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver.support.wait import WebDriverWait

from tests.live.browser import Browser, Requests
from tests.live.client import SECONDS, connect
from tests.live.servers import Server, manage, serve

FIRST_BYTES = """
async function read(url, headers) {
  const abort = new AbortController();
  const response = await fetch(url, {headers, signal: abort.signal});
  const {value} = await response.body.getReader().read();
  abort.abort();
  return response.status + " " + new TextDecoder().decode(value);
}
return read(...arguments);
"""
PAGE = b"""<!doctype html><title>A page of another origin</title><script>
var sources = {};
function open_stream(name, url, withCredentials) {
  const source = sources[name] = new EventSource(url, {withCredentials});
  source.messages = [];
  source.onmessage = (event) => source.messages.push(event.data);
}
async function send_blindly(url) {
  // As an image does: the page may not read the answer, and the browser takes all of it.
  await fetch(url, {mode: "no-cors", credentials: "include"});
}
</script>"""
CLOSED = 2


class Page(BaseHTTPRequestHandler):
    """Serves the page at every path."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(PAGE)

    def log_message(self, *args: Any) -> None:
        """Log nothing."""


@contextmanager
def pages() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@dataclass(frozen=True)
class Visitor:
    """A browser that visits pages, and what their server is asked for by it."""

    server: Server
    browser: Browser
    requests: Requests
    allowed: int
    other: int

    def visit(self, origin: str) -> None:
        self.browser.get(f"{origin}/")

    def log_in(self) -> None:
        """Log in from a page of the server's own: Firefox's driver waits for more than a 204."""
        self.visit_own_page()
        self.browser.execute_script("return fetch('/login/').then(() => null)")

    def visit_own_page(self) -> None:
        self.browser.get(f"http://127.0.0.1:{self.server.port}/event-sources/")

    def open(self, name: str, path: str, *, credentials: bool = False) -> None:
        self.browser.execute_script(
            "open_stream(...arguments)",
            name,
            f"http://127.0.0.1:{self.server.port}{path}",
            credentials,
        )

    def wait_for(self, condition: str) -> None:
        WebDriverWait(self.browser, SECONDS, 0.05).until(
            lambda browser: browser.execute_script(f"return {condition}"), condition
        )

    def wait_for_message(self, name: str, data: str) -> None:
        self.wait_for(f"sources.{name}.messages.includes({json.dumps(data)})")

    def wait_until_closed(self, name: str) -> None:
        """Wait until the browser has given up: from then on it never asks again."""
        self.wait_for(f"sources.{name}.readyState === {CLOSED}")

    def manage(self, *arguments: str) -> None:
        asyncio.run(manage(self.server.directory, *arguments))

    def statuses(self, path: str) -> list[int | None]:
        """Return the status of each request for a path."""
        return self.requests.statuses(path)


@pytest.fixture(scope="module")
def visitor(browser: Browser, directory: Path) -> Iterator[Visitor]:
    requests = directory / "requests"
    with pages() as allowed, pages() as other:
        keys = {
            "ALLOWED_ORIGINS": [f"http://localhost:{allowed}", f"http://127.0.0.1:{allowed}"],
            "ALLOW_CREDENTIALS": True,
            "MAX_STREAMS_PER_GROUP": 1,
            "RETRY": 500,
        }
        with serve(
            "uvicorn",
            directory,
            LIVE_REQUEST_LOG=str(requests),
            LIVE_DJANGO_SSE=json.dumps(keys),
        ) as server:
            yield Visitor(server, browser, Requests(requests), allowed, other)
            # The page would go on asking for its streams.
            browser.get("about:blank")


@pytest.fixture
def elsewhere(visitor: Visitor) -> Visitor:
    """A visit to a page of another site, which is allowed."""
    visitor.visit(f"http://localhost:{visitor.allowed}")
    return visitor


def test_a_page_of_another_site_reads_a_stream_until_it_is_over(elsewhere: Visitor) -> None:
    elsewhere.open("news", "/events/news/")
    elsewhere.wait_for("sources.news.readyState === 1")
    elsewhere.manage("sse_push", "news", "hi")
    elsewhere.wait_for_message("news", "hi")
    # EventSource needs no preflight.
    assert elsewhere.statuses("/events/news/") == [200]
    elsewhere.manage("sse_cancel", "news")
    elsewhere.wait_until_closed("news")
    assert elsewhere.statuses("/events/news/") == [200, 204]


def test_cookies_go_along_only_where_the_page_says_so(visitor: Visitor) -> None:
    # Another origin of the same site: from another site, browsers send no cookie such as this.
    visitor.log_in()
    visitor.visit(f"http://127.0.0.1:{visitor.allowed}")
    visitor.open("without", "/members/without/")
    visitor.wait_until_closed("without")
    assert visitor.statuses("/members/without/") == [403]
    visitor.open("within", "/members/within/", credentials=True)
    visitor.wait_for("sources.within.readyState === 1")
    visitor.manage("sse_push", "within", "for members")
    visitor.wait_for_message("within", "for members")
    assert visitor.statuses("/members/within/") == [200]


@pytest.mark.parametrize("credentials", [True, False])
def test_a_page_that_is_not_allowed_is_refused_and_asks_once(
    visitor: Visitor, credentials: bool
) -> None:
    group = f"secret-{credentials}"
    visitor.visit(f"http://localhost:{visitor.other}")
    visitor.open("secret", f"/events/{group}/", credentials=credentials)
    visitor.wait_until_closed("secret")
    assert visitor.statuses(f"/events/{group}/") == [403]


@pytest.mark.parametrize("page", ["allowed", "other"])
def test_a_foreign_page_takes_no_place_of_the_user_who_visits_it(
    visitor: Visitor, page: str
) -> None:
    path, generator = f"/members/{page}-page/", f"/progress/?page={page}"
    # Of the same site, so that her cookie goes along.
    origin = f"http://127.0.0.1:{getattr(visitor, page)}"
    visitor.log_in()
    visitor.visit(origin)
    for url in (path, path, generator):
        visitor.browser.execute_async_script(
            "const [url, done] = arguments; send_blindly(url).then(done)",
            f"http://127.0.0.1:{visitor.server.port}{url}",
        )
    assert visitor.statuses(path) == [403, 403]
    assert visitor.statuses(generator) == [403]

    # Room for one. Her own page asks for it by itself.
    visitor.visit_own_page()
    answer = visitor.browser.execute_script(FIRST_BYTES, path, {"Accept": "text/event-stream"})
    assert "id: " in answer
    assert visitor.statuses(path)[2:] == [200]


def test_a_polyfill_may_send_headers_of_its_own(elsewhere: Visitor) -> None:
    url = f"http://127.0.0.1:{elsewhere.server.port}/events/polyfill/"
    headers = {"Last-Event-ID": "x", "Cache-Control": "no-cache", "Accept": "text/event-stream"}
    answer = elsewhere.browser.execute_script(FIRST_BYTES, url, headers)
    assert re.match(r"200 retry: \d+\n", answer)
    # The preflight, which django_sse answers before Django's view, and the request.
    assert elsewhere.statuses("/events/polyfill/") == [204, 200]


def test_a_browser_that_is_refused_for_now_comes_back_until_there_is_room(
    elsewhere: Visitor,
) -> None:
    async def crowd_out() -> None:
        async with connect(elsewhere.server.port, "/events/crowded/") as first:
            await first.opened()
            await asyncio.to_thread(elsewhere.open, "crowded", "/events/crowded/")
            async with asyncio.timeout(SECONDS):
                # Its own request, and three of the browser's.
                while elsewhere.statuses("/events/crowded/").count(200) < 4:
                    await asyncio.sleep(0.05)

    asyncio.run(crowd_out())

    def has_room(browser: Browser) -> bool:
        # A refusal opens the EventSource as well, so only an event tells.
        elsewhere.manage("sse_push", "crowded", "there is room")
        return bool(browser.execute_script("return sources.crowded.messages.length"))

    WebDriverWait(elsewhere.browser, SECONDS).until(has_room)
    assert set(elsewhere.statuses("/events/crowded/")) == {200}


def test_a_browser_survives_a_503_of_the_projects_own(elsewhere: Visitor) -> None:
    elsewhere.open("unavailable", "/unavailable/")
    WebDriverWait(elsewhere.browser, SECONDS, 0.05).until(
        lambda _: elsewhere.statuses("/unavailable/").count(200) >= 3
    )
    assert not elsewhere.browser.execute_script(
        f"return sources.unavailable.readyState === {CLOSED}"
    )
    elsewhere.browser.execute_script("sources.unavailable.close()")
