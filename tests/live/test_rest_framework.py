"""A stream behind Django REST framework, as a client with a token and as a browser see it."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.live.browser import Tab, wait_until
from tests.live.client import SECONDS, connect
from tests.live.sites import Site, run

API = {"LIVE_URLCONF": "tests.live.api"}


@pytest.fixture
def one_site(tmp_path: Path) -> Iterator[Site]:
    with run(tmp_path, environment=API, RECHECK_INTERVAL=1) as site:
        yield site
        assert "Traceback" not in site.server.log()


@pytest.fixture(scope="module")
def site(directory: Path) -> Iterator[Site]:
    with run(directory, environment=API) as site:
        yield site
        assert "Traceback" not in site.server.log()


async def test_a_client_with_a_token_reads_until_its_user_is_out(one_site: Site) -> None:
    port = one_site.server.port
    async with connect(port, "/api/news/") as refused:
        assert refused.status == 401
        assert refused.headers["WWW-Authenticate"] == 'Bearer realm="api"'
    async with httpx.AsyncClient(base_url=one_site.other_origin, timeout=SECONDS) as pages:
        ticket = (await pages.get("/ticket/ada/")).text
        headers = {"Authorization": f"Bearer {ticket}"}
        async with connect(port, "/api/news/", headers=headers) as stream:
            assert stream.headers["Content-Type"] == "text/event-stream; charset=utf-8"
            await stream.opened()
            await pages.get("/publish/news/", params={"data": "hi"})
            assert (await stream.event()).data == "hi"
            await pages.get("/deactivate/", params={"user": "ada"})
            assert await stream.rest() == []
    async with connect(port, "/api/news/", headers=headers) as refused:
        assert refused.status == 401


@pytest.mark.in_turn
def test_a_browser_shows_the_events_of_a_stream(tab: Tab, site: Site, group: str) -> None:
    def shown() -> str:
        return str(tab.run("return document.querySelector('#event-stream')?.textContent ?? ''"))

    tab.run("return fetch('/login/').then((answer) => answer.status)")
    tab.run(f"location = '/api/{group}/'")
    wait_until(lambda: "open" in shown(), shown)
    site.act(f"/publish/{group}/", data="<b>hi</b>", event="headline")
    wait_until(lambda: "headline <b>hi</b>" in shown(), shown)
