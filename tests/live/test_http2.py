"""Streams over HTTP/2: from a server that speaks it, and from nginx before one that does not."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.live import http2
from tests.live.browser import Browser, Tab
from tests.live.client import act, until_open
from tests.live.nginx import nginx
from tests.live.servers import Server, require, serve

# What it shows is the servers', the kernel's and the stores'.
pytestmark = pytest.mark.once

# More than the six connections that a browser opens to a host over HTTP/1.1.
STREAMS = 20
# RFC 9113, section 8.2.2.
FORBIDDEN = {"connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"}


@dataclass(frozen=True)
class Site:
    """The test project, and the port on which it is reached over HTTP/2."""

    server: Server
    port: int


@pytest.fixture(scope="module", params=["hypercorn", "nginx"])
def site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    if request.param == "nginx":
        require("uvicorn")
        with (
            serve("uvicorn", tmp_path_factory.mktemp("uvicorn")) as server,
            nginx(server.port, tmp_path_factory.mktemp("nginx")) as proxy,
        ):
            yield Site(server, proxy.http2_port)
    else:
        require("hypercorn")
        with serve("hypercorn", tmp_path_factory.mktemp("hypercorn")) as server:
            # The same port: it knows HTTP/2 by a connection's first bytes.
            yield Site(server, server.port)


async def test_many_streams_share_a_connection_and_have_each_event_at_once(
    site: Site, group: str
) -> None:
    async with http2.connect(site.port) as connection:
        streams = [await connection.get(f"/events/{group}/") for _ in range(STREAMS)]
        for stream in streams:
            assert stream.status == 200
            assert stream.headers["content-type"] == "text/event-stream; charset=utf-8"
            await stream.opened()
        for data in ("one", "two"):
            await act(site.server.port, f"/publish/{group}/", data=data)
            assert [(await stream.event()).data for stream in streams] == [data] * STREAMS


async def test_no_field_is_sent_that_is_forbidden(site: Site, group: str) -> None:
    async with http2.connect(site.port) as connection:
        stream = await connection.get(f"/events/{group}/")
        assert not FORBIDDEN & stream.headers.keys()
        progress = await connection.get("/progress/?steps=1&delay=0")
        assert not FORBIDDEN & progress.headers.keys()


async def test_a_stream_that_is_left_is_gone_for_the_server_and_the_others_go_on(
    site: Site, group: str
) -> None:
    await until_open(site.server.port, 0)
    async with http2.connect(site.port) as connection:
        left, other = [await connection.get(f"/events/{group}/") for _ in range(2)]
        await until_open(site.server.port, 2)
        left.leave()
        await until_open(site.server.port, 1)
        await other.opened()
        await act(site.server.port, f"/publish/{group}/", data="still there")
        assert (await other.event()).data == "still there"
    await until_open(site.server.port, 0)


async def test_the_position_the_end_and_204_pass(site: Site, group: str) -> None:
    async with http2.connect(site.port) as connection:
        stream = await (await connection.get(f"/events/{group}/")).opened()
        await act(site.server.port, f"/cancel/{group}/", reason="over")
        assert (await stream.event()).event == "close"
        await stream.end()
        again = await connection.get(f"/events/{group}/", last_event_id=stream.last_event_id)
        assert again.status == 204
        await again.end()


@pytest.mark.chromium("what nginx passes on is the same for all")
def test_a_page_follows_more_streams_than_it_had_connections(
    browser: Browser, tmp_path: Path, group: str
) -> None:
    require("uvicorn")
    directory = tmp_path / "nginx"
    directory.mkdir()
    with (
        serve("uvicorn", tmp_path) as server,
        nginx(server.port, directory) as proxy,
        Tab.open(browser, f"https://127.0.0.1:{proxy.tls_port}") as tab,
    ):
        paths = [f"/events/?group={group}&group={number}" for number in range(STREAMS)]
        sources = [tab.opened(path) for path in paths]
        asyncio.run(act(server.port, f"/publish/{group}/", data="hi"))
        for source in sources:
            source.wait_for("message", "hi")
        pages = "return performance.getEntriesByType('navigation')[0].nextHopProtocol"
        assert tab.run(pages) == "h2"
