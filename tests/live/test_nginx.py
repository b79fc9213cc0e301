"""Each server behind nginx: its defaults and no other setting, as the README has it."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.live.client import SECONDS, connect
from tests.live.nginx import Nginx, nginx
from tests.live.servers import Server, launch, require, serve
from tests.ports import free_port

# Much less than nginx would keep anything for the next heartbeat.
AT_ONCE_SECONDS = 5


@pytest.fixture(scope="module")
def running_proxy(
    running_server: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Nginx]:
    with nginx(running_server.port, tmp_path_factory.mktemp("nginx")) as proxy:
        yield proxy


@pytest.fixture
def proxy(server: Server, running_proxy: Nginx) -> Nginx:
    """nginx before each of the servers."""
    return running_proxy


async def act(server: Server, path: str, **query: str) -> str:
    """Let a view of the server do something, not through the proxy; return its answer."""
    async with httpx.AsyncClient() as client:
        response = await client.get(f"http://127.0.0.1:{server.port}{path}", params=query)
        return response.raise_for_status().text


async def open_streams_become(server: Server, count: int) -> None:
    async with asyncio.timeout(SECONDS):
        while int(await act(server, "/open-streams/")) != count:
            await asyncio.sleep(0.02)


async def test_the_first_bytes_and_each_event_pass_at_once(
    server: Server, proxy: Nginx, group: str
) -> None:
    async with connect(proxy.port, f"/events/{group}/") as stream:
        async with asyncio.timeout(AT_ONCE_SECONDS):
            await stream.opened()
        assert stream.status == 200
        assert stream.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert "content-encoding" not in stream.headers
        for data in ("one", "two", "three"):
            await act(server, f"/publish/{group}/", data=data)
            async with asyncio.timeout(AT_ONCE_SECONDS):
                assert (await stream.event()).data == data


async def test_an_event_larger_than_the_buffer_of_a_response_passes_whole(
    server: Server, proxy: Nginx, group: str
) -> None:
    data = "x" * 12_000
    async with connect(proxy.port, f"/events/{group}/") as stream:
        await stream.opened()
        await act(server, f"/publish/{group}/", data=data)
        assert (await stream.event()).data == data


async def test_the_position_passes(server: Server, proxy: Nginx, group: str) -> None:
    async with connect(proxy.port, f"/events/{group}/") as stream:
        await stream.opened()
        position = stream.last_event_id
    await act(server, f"/publish/{group}/", data="missed")
    async with connect(proxy.port, f"/events/{group}/", last_event_id=position) as stream:
        assert (await stream.event()).data == "missed"


async def test_the_end_and_204_pass(server: Server, proxy: Nginx, group: str) -> None:
    async with connect(proxy.port, f"/events/{group}/") as stream:
        await stream.opened()
        await act(server, f"/cancel/{group}/", reason="over")
        assert [event.event for event in await stream.rest()] == ["close"]
        assert stream.complete
        position = stream.last_event_id
    async with connect(proxy.port, f"/events/{group}/", last_event_id=position) as stream:
        assert stream.status == 204


async def test_a_client_that_leaves_is_gone_for_the_server(
    server: Server, proxy: Nginx, group: str
) -> None:
    await open_streams_become(server, 0)
    async with connect(proxy.port, f"/events/{group}/") as stream:
        await stream.opened()
        await open_streams_become(server, 1)
    await open_streams_become(server, 0)


async def test_heartbeats_outlast_the_time_that_nginx_gives_a_silent_server(
    tmp_path: Path, group: str
) -> None:
    # A minute by default, and a heartbeat each quarter of it.
    patience = 2
    require("uvicorn")
    directory = tmp_path / "nginx"
    directory.mkdir()
    settings = f"proxy_read_timeout {patience}s;"
    with (
        serve("uvicorn", tmp_path, LIVE_DJANGO_SSE='{"HEARTBEAT": 0.5}') as server,
        nginx(server.port, directory, settings=settings) as proxy,
    ):
        async with connect(proxy.port, f"/events/{group}/") as stream:
            await stream.opened()
            await asyncio.sleep(patience + 1)
            await act(server, f"/publish/{group}/", data="still there")
            assert (await stream.event()).data == "still there"


async def test_a_server_that_comes_back_is_found_again(tmp_path: Path, group: str) -> None:
    require("uvicorn")
    port = free_port()
    directory = tmp_path / "nginx"
    directory.mkdir()
    with nginx(port, directory) as proxy:
        async with connect(proxy.port, f"/events/{group}/") as response:
            assert response.status == 502
        with launch("uvicorn", tmp_path, port, "tests.asgi:application"):
            async with connect(proxy.port, f"/events/{group}/") as stream:
                await stream.opened()
                assert stream.status == 200
