"""Each server behind nginx: its defaults and no other setting, as the documentation has it."""

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from tests.live.browser import Browser, Tab, wait_until
from tests.live.client import SECONDS, act, connect, until_open
from tests.live.nginx import Nginx, nginx
from tests.live.proxies import documented
from tests.live.servers import Server, launch, manage, require, serve
from tests.ports import free_port

pytestmark = pytest.mark.once

# Less than nginx would keep anything for the next heartbeat.
AT_ONCE_SECONDS = 12


APPLICATION = "tests.asgi:application"
# Clients come back soon.
SOON = {"LIVE_DJANGO_SSE": '{"RETRY": 200}'}


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


@contextmanager
def proxied(directory: Path, server_port: int, **directives: str) -> Iterator[Nginx]:
    """Run nginx in a directory beneath that of a server."""
    require("uvicorn")
    directory = directory / "nginx"
    directory.mkdir()
    with nginx(server_port, directory, **directives) as proxy:
        yield proxy


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
            await act(server.port, f"/publish/{group}/", data=data)
            async with asyncio.timeout(AT_ONCE_SECONDS):
                assert (await stream.event()).data == data


async def test_an_event_larger_than_the_buffer_of_a_response_passes_whole(
    server: Server, proxy: Nginx, group: str
) -> None:
    data = "x" * 12_000
    async with connect(proxy.port, f"/events/{group}/") as stream:
        await stream.opened()
        await act(server.port, f"/publish/{group}/", data=data)
        assert (await stream.event()).data == data


async def test_the_position_passes(server: Server, proxy: Nginx, group: str) -> None:
    async with connect(proxy.port, f"/events/{group}/") as stream:
        await stream.opened()
        position = stream.last_event_id
    await act(server.port, f"/publish/{group}/", data="missed")
    async with connect(proxy.port, f"/events/{group}/", last_event_id=position) as stream:
        assert (await stream.event()).data == "missed"


async def test_the_end_and_204_pass(server: Server, proxy: Nginx, group: str) -> None:
    async with connect(proxy.port, f"/events/{group}/") as stream:
        await stream.opened()
        await act(server.port, f"/cancel/{group}/", reason="over")
        assert [event.event for event in await stream.rest()] == ["close"]
        assert stream.complete
        position = stream.last_event_id
    async with connect(proxy.port, f"/events/{group}/", last_event_id=position) as stream:
        assert stream.status == 204


async def test_a_client_that_leaves_is_gone_for_the_server(
    server: Server, proxy: Nginx, group: str
) -> None:
    await until_open(server.port, 0)
    async with connect(proxy.port, f"/events/{group}/") as stream:
        await stream.opened()
        await until_open(server.port, 1)
    await until_open(server.port, 0)


async def test_a_client_that_reads_nothing_is_ended_by_the_server(
    tmp_path: Path, group: str
) -> None:
    # nginx would keep it all for this client, in files, if it buffered.
    # A stream that reads from the store, page by page, is ended by its send timeout.
    settings = '{"BACKLOG_BYTES": 100000, "SEND_TIMEOUT": 2}'
    with (
        serve("uvicorn", tmp_path, LIVE_DJANGO_SSE=settings) as server,
        proxied(tmp_path, server.port) as proxy,
    ):
        async with connect(proxy.port, f"/events/{group}/", receive_bytes=4096) as stream:
            await stream.opened()
            await until_open(server.port, 1)
            lines = f"{'x' * 200_000}\n" * 100
            await manage(tmp_path, "sse_push", group, "-", input=lines)
            await until_open(server.port, 0)


async def test_heartbeats_outlast_the_time_that_nginx_gives_a_silent_server(
    tmp_path: Path, group: str
) -> None:
    # A minute by default, and a heartbeat each quarter of it.
    patience = 6
    settings = f"proxy_read_timeout {patience}s;"
    with (
        serve("uvicorn", tmp_path, LIVE_DJANGO_SSE='{"HEARTBEAT": 0.5}') as server,
        proxied(tmp_path, server.port, settings=settings) as proxy,
    ):
        async with connect(proxy.port, f"/events/{group}/") as stream:
            await stream.opened()
            await asyncio.sleep(patience + 1)
            await act(server.port, f"/publish/{group}/", data="still there")
            assert (await stream.event()).data == "still there"


async def test_a_server_that_comes_back_is_found_again(tmp_path: Path, group: str) -> None:
    port = free_port()
    with proxied(tmp_path, port) as proxy:
        async with connect(proxy.port, f"/events/{group}/") as response:
            assert response.status == 502
        with launch("uvicorn", tmp_path, port, APPLICATION):
            async with connect(proxy.port, f"/events/{group}/") as stream:
                await stream.opened()
                assert stream.status == 200


def documented_configuration(server_port: int) -> str:
    """Return what the documentation has, but for the port and for how soon an EventSource asks."""
    block = documented("nginx", "nginx")
    return block.replace(":8000", f":{server_port}").replace("retry: 5000", "retry: 200")


@pytest.mark.chromium("what nginx passes on is the same for all")
def test_an_event_source_outlasts_a_server_that_is_away_if_nginx_answers_for_it(
    browser: Browser, tmp_path: Path
) -> None:
    port = free_port()
    with (
        proxied(tmp_path, port, more=documented_configuration(port)) as proxy,
        ExitStack() as running,
    ):
        server = running.enter_context(launch("uvicorn", tmp_path, port, APPLICATION, **SOON))
        tab = running.enter_context(Tab.open(browser, f"http://127.0.0.1:{proxy.port}"))
        source = tab.opened("/events/away/")
        # It is open with the headers. Its position comes after them.
        asyncio.run(act(port, "/publish/away/", data="seen"))
        source.wait_for("message", "seen")
        server.kill()
        # The end of its stream, and then that of each answer of nginx's own.
        wait_until(lambda: len(source.errors) > 3, "it does not come back")
        running.enter_context(launch("uvicorn", tmp_path, port, APPLICATION, **SOON))
        asyncio.run(act(port, "/publish/away/", data="back"))
        source.wait_for("message", "back")
        assert source.received == [("message", "seen"), ("message", "back")]


async def test_behind_the_documented_nginx_the_host_and_each_address_are_the_clients(
    tmp_path: Path, group: str
) -> None:
    settings = '{"MAX_STREAMS_PER_ADDRESS": 1, "TRUSTED_PROXIES": ["127.0.0.1"]}'
    with (
        serve("uvicorn", tmp_path, LIVE_DJANGO_SSE=settings) as server,
        proxied(tmp_path, server.port, more=documented_configuration(server.port)) as proxy,
    ):
        origin = f"http://127.0.0.1:{proxy.port}"

        async def statuses(address: str) -> list[int]:
            """Open two streams from an address of this machine; return what they are answered."""
            transport = httpx.AsyncHTTPTransport(local_address=address)
            answers = []
            async with (
                httpx.AsyncClient(transport=transport, headers={"Origin": origin}) as client,
                AsyncExitStack() as open_streams,
            ):
                for _ in range(2):
                    request = client.stream("GET", f"{origin}/events/{group}/", timeout=SECONDS)
                    answers.append((await open_streams.enter_async_context(request)).status_code)
            return answers

        assert await statuses("127.0.0.2") == [200, 503]
        async with connect(proxy.port, f"/events/{group}/", headers={"Origin": origin}) as stream:
            await stream.opened()
            assert await statuses("127.0.0.3") == [200, 503]


@pytest.mark.chromium("what nginx passes on is the same for all")
def test_an_event_source_is_over_after_a_502(browser: Browser, tmp_path: Path) -> None:
    port = free_port()
    with (
        proxied(tmp_path, port) as proxy,
        launch("uvicorn", tmp_path, port, APPLICATION, **SOON) as server,
        Tab.open(browser, f"http://127.0.0.1:{proxy.port}") as tab,
    ):
        source = tab.opened("/events/away/")
        server.kill()
        source.wait_for_state("closed")


@pytest.mark.chromium("what nginx passes on is the same for all")
def test_an_event_stream_comes_back_by_itself_and_misses_nothing(
    browser: Browser, tmp_path: Path
) -> None:
    port = free_port()
    with proxied(tmp_path, port) as proxy, ExitStack() as running:
        server = running.enter_context(launch("uvicorn", tmp_path, port, APPLICATION, **SOON))
        tab = running.enter_context(Tab.open(browser, f"http://127.0.0.1:{proxy.port}"))
        stream = tab.follow_event_stream("/events/away/")
        wait_until(lambda: stream.last_event_id, "no position")
        server.kill()
        # Its stream's end, and then a 502 for each attempt.
        wait_until(lambda: len(stream.errors) > 3, "it does not come back")
        missed = ["one", "two", "three"]
        asyncio.run(manage(tmp_path, "sse_push", "away", "-", input="\n".join(missed) + "\n"))
        running.enter_context(launch("uvicorn", tmp_path, port, APPLICATION, **SOON))
        stream.wait_for("message", missed[-1])
        assert stream.received == [("message", text) for text in missed]
