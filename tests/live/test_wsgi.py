"""A site on WSGI whose streams are served by a second process, as the documentation has it."""

import re
from collections.abc import Iterator

import pytest

from tests.live.client import act, connect, log_in
from tests.live.nginx import nginx
from tests.live.proxies import documented
from tests.live.servers import ROOT, launch, require, serve
from tests.ports import free_port

pytestmark = pytest.mark.once

PAGE = ROOT / "docs/beside-a-wsgi-site.md"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of nginx before a process of each kind."""
    require("gunicorn")
    require("uvicorn")
    directory = tmp_path_factory.mktemp("site")
    pages = free_port()
    with (
        launch(
            "gunicorn", directory, pages, "tests.wsgi:application", options=["--worker-class=sync"]
        ),
        serve("uvicorn", directory) as streams,
    ):
        text = documented("Beside a WSGI site", "nginx", PAGE)
        text = text.replace(":8001", f":{pages}").replace(":8000", f":{streams.port}")
        # The test's nginx has a location for all that is not named.
        everything = re.match(
            r"location / \{\n *proxy_pass (.*?);\n(.*?)^\}\n", text, re.DOTALL | re.MULTILINE
        )
        assert everything
        assert everything[1] == f"http://127.0.0.1:{pages}"
        with nginx(
            pages,
            tmp_path_factory.mktemp("nginx"),
            settings=everything[2],
            more=text[everything.end() :],
        ) as proxy:
            yield proxy.port


async def test_what_a_page_publishes_reaches_the_streams(site: int, group: str) -> None:
    async with connect(site, f"/events/{group}/") as stream:
        await stream.opened()
        await act(site, f"/publish/{group}/", data="of a page")
        assert (await stream.event()).data == "of a page"
        await act(site, f"/cancel/{group}/", reason="over")
        assert [event.event for event in await stream.rest()] == ["close"]


async def test_a_logout_of_a_page_ends_the_streams_of_its_session(site: int, group: str) -> None:
    cookies = {"Cookie": await log_in(site)}
    async with connect(site, f"/events/{group}/", headers=cookies) as stream:
        await stream.opened()
        async with connect(site, "/logout/", headers=cookies) as answer:
            assert answer.status < 400
        assert [event.event for event in await stream.rest()] == ["close"]
