"""Caddy and HAProxy before uvicorn, as ``docs/servers-and-proxies.md`` sets them up."""

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.live.client import SECONDS, act, connect, until_open
from tests.live.proxies import PROXIES, proxy
from tests.live.servers import Server, launch, manage, require, serve
from tests.ports import free_port

pytestmark = pytest.mark.once

# Much less than a proxy would keep anything for the next heartbeat.
AT_ONCE_SECONDS = 12
SETTINGS = """{
    "BACKLOG_BYTES": 100000, "SEND_TIMEOUT": 2, "HEARTBEAT": 50,
    "MAX_STREAMS_PER_ADDRESS": 2, "TRUSTED_PROXIES": ["127.0.0.1"]
}"""
EVENT_SOURCE = {"Accept": "text/event-stream"}


@dataclass(frozen=True)
class Site:
    """The test project, and the port of a proxy before it."""

    server: Server
    port: int


@pytest.fixture(scope="module", params=PROXIES)
def site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    require("uvicorn")
    directory = tmp_path_factory.mktemp(request.param)
    with (
        # Its own look at the header would hide what the proxy makes of it.
        serve(
            "uvicorn", directory, options=["--no-proxy-headers"], LIVE_DJANGO_SSE=SETTINGS
        ) as server,
        proxy(request.param, server.port, directory) as port,
    ):
        yield Site(server, port)


async def test_the_first_bytes_and_each_event_pass_at_once(site: Site, group: str) -> None:
    async with connect(site.port, f"/events/{group}/") as stream:
        async with asyncio.timeout(AT_ONCE_SECONDS):
            await stream.opened()
        assert stream.status == 200
        assert stream.headers["content-type"] == "text/event-stream; charset=utf-8"
        for data in ("one", "x" * 50_000, "three"):
            await act(site.server.port, f"/publish/{group}/", data=data)
            async with asyncio.timeout(AT_ONCE_SECONDS):
                assert (await stream.event()).data == data


async def test_the_end_the_position_and_204_pass(site: Site, group: str) -> None:
    async with connect(site.port, f"/events/{group}/") as stream:
        await stream.opened()
        position = stream.last_event_id
    await act(site.server.port, f"/publish/{group}/", data="missed")
    await act(site.server.port, f"/cancel/{group}/", reason="over")
    async with connect(site.port, f"/events/{group}/", last_event_id=position) as stream:
        assert [event.event for event in await stream.rest()] == [None, "close"]
        position = stream.last_event_id
    async with connect(site.port, f"/events/{group}/", last_event_id=position) as stream:
        assert stream.status == 204


async def test_a_client_that_leaves_is_gone_for_the_server(site: Site, group: str) -> None:
    await until_open(site.server.port, 0)
    async with connect(site.port, f"/events/{group}/") as stream:
        await stream.opened()
        await until_open(site.server.port, 1)
    async with asyncio.timeout(AT_ONCE_SECONDS):
        await until_open(site.server.port, 0)


async def test_a_client_that_reads_nothing_is_ended_by_the_server(site: Site, group: str) -> None:
    await until_open(site.server.port, 0)
    async with connect(site.port, f"/events/{group}/", receive_bytes=4096) as stream:
        await stream.opened()
        await until_open(site.server.port, 1)
        lines = f"{'x' * 200_000}\n" * 100
        await manage(site.server.directory, "sse_push", group, "-", input=lines)
        await until_open(site.server.port, 0)


async def test_the_host_and_each_address_are_the_clients(site: Site, group: str) -> None:
    # The origin is the host's, so a page of it may ask.
    origin = f"http://127.0.0.1:{site.port}"

    async def statuses(address: str, count: int) -> list[int]:
        """Open streams from an address of this machine; return what they are answered."""
        transport = httpx.AsyncHTTPTransport(local_address=address)
        async with (
            httpx.AsyncClient(transport=transport, headers={"Origin": origin}) as client,
            AsyncExitStack() as open_streams,
        ):
            requests = [
                client.stream("GET", f"{origin}/events/{group}/", timeout=SECONDS)
                for _ in range(count)
            ]
            answers = [await open_streams.enter_async_context(request) for request in requests]
            # While others have as many streams as they may.
            others = await statuses("127.0.0.3", 1) if count > 1 else []
            return [answer.status_code for answer in answers] + others

    await until_open(site.server.port, 0)
    assert await statuses("127.0.0.2", 3) == [200, 200, 503, 200]


@pytest.mark.parametrize("name", PROXIES)
async def test_an_event_source_is_sent_back_while_the_server_is_away(
    name: str, tmp_path: Path, group: str
) -> None:
    require("uvicorn")
    port = free_port()
    with proxy(name, port, tmp_path) as proxied:
        async with connect(proxied, f"/events/{group}/", headers=EVENT_SOURCE) as stream:
            assert stream.status == 200
            assert stream.headers["content-type"].startswith("text/event-stream")
            assert stream.headers["cache-control"] == "no-store"
            assert await stream.rest() == []
            assert stream.reconnection_time == 200
        async with connect(proxied, "/") as page:
            assert page.status in (502, 503)
        with launch("uvicorn", tmp_path, port, "tests.asgi:application"):
            async with connect(proxied, f"/events/{group}/", headers=EVENT_SOURCE) as stream:
                await stream.opened()
                await act(port, f"/publish/{group}/", data="back")
                assert (await stream.event()).data == "back"
