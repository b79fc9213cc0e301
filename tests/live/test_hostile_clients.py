"""Clients that mean harm, or are broken: the server goes on serving others and keeps nothing."""

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import psutil
import pytest

from tests.live.client import SECONDS, connect, until_open
from tests.live.servers import SERVERS, Server, finish, require, serve, start

# What it shows is the servers', the kernel's and the stores'.
pytestmark = pytest.mark.once

BACKLOG_BYTES = 256 * 1024
EVENT_BYTES = 16 * 1024
BURST_BYTES = 24 * 1024 * 1024
TRICKLING = 5
# So few that the server ends no client that is slow for a moment.
FEW = BACKLOG_BYTES // EVENT_BYTES // 2
SETTINGS = json.dumps(
    {"HEARTBEAT": 1, "SEND_TIMEOUT": 1, "BACKLOG_BYTES": BACKLOG_BYTES, "SYNC_INTERVAL": 0.05}
)
# Two heartbeats and the send timeout, and a slow machine.
SECONDS_TO_LET_GO = 3 + 10


@pytest.fixture(scope="module", params=SERVERS)
def running_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    require(request.param)
    directory = tmp_path_factory.mktemp(request.param)
    with serve(request.param, directory, LIVE_DJANGO_SSE=SETTINGS) as server:
        yield server


@asynccontextmanager
async def raw(server: Server) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection that nothing has been sent on."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


def head(group: str, *lines: str, version: str = "1.1") -> bytes:
    request = [f"GET /events/{group}/ HTTP/{version}", "Host: 127.0.0.1", *lines]
    return "\r\n".join([*request, "", ""]).encode()


async def assert_others_are_served(server: Server) -> None:
    async with connect(server.port, "/events/others/") as stream:
        await stream.opened()
        async with connect(server.port, "/group-send/others/?data=hi") as sent:
            assert sent.status == 204
        assert (await stream.event()).data == "hi"


async def status_of(reader: asyncio.StreamReader) -> int | None:
    """Return the status of the answer; None if the connection was dropped without one."""
    async with asyncio.timeout(SECONDS):
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            return int((await reader.readuntil(b"\r\n")).split()[1])
    return None


def abort(writer: asyncio.StreamWriter) -> None:
    """Drop the connection with a RST."""
    connection: socket.socket = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def bytes_held(server: Server) -> int:
    process = psutil.Process(server.pid)
    processes = [process, *process.children(recursive=True)]
    return sum(each.memory_info().rss for each in processes)


async def push(server: Server, group: str, count: int) -> None:
    pushing = await start(server.directory, "sse_push", group, "-", LIVE_DJANGO_SSE=SETTINGS)
    await finish(pushing, f"{'x' * EVENT_BYTES}\n" * count)


async def test_headers_one_byte_at_a_time_hold_up_nobody(server: Server, group: str) -> None:
    # The first request of a server takes long, and Hypercorn waits five seconds for a head.
    await assert_others_are_served(server)
    async with raw(server) as (reader, writer):
        for number, byte in enumerate(head(group)):
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0.005)
            if number == 20:
                await assert_others_are_served(server)
        assert await status_of(reader) == 200
        await until_open(server.port, 1)
    await until_open(server.port, 0)


async def test_headers_that_never_end_hold_up_nobody(server: Server, group: str) -> None:
    async with raw(server) as (_, writer):
        writer.write(head(group)[:-2])
        await writer.drain()
        await assert_others_are_served(server)
        await until_open(server.port, 0)


async def test_a_client_that_has_stopped_is_let_go_and_costs_little_until_then(
    server: Server, group: str
) -> None:
    async with connect(server.port, f"/events/{group}/", receive_bytes=2048) as stopped:
        await stopped.opened()
        await until_open(server.port, 1)
        before = bytes_held(server)
        pushing = asyncio.create_task(push(server, group, BURST_BYTES // EVENT_BYTES))
        async with asyncio.timeout(SECONDS_TO_LET_GO):
            await until_open(server.port, 0)
        await pushing
        assert bytes_held(server) - before < BURST_BYTES
        await assert_others_are_served(server)


@pytest.mark.parametrize("count", [1, 1000])
async def test_clients_that_read_a_little_now_and_then_are_let_go_and_cost_little_until_then(
    server: Server, group: str, count: int
) -> None:
    async with AsyncExitStack() as stack:
        trickling = [
            await stack.enter_async_context(
                connect(server.port, f"/events/{group}/", receive_bytes=2048)
            )
            for _ in range(TRICKLING)
        ]
        for stream in trickling:
            await stream.opened()
        await until_open(server.port, TRICKLING)
        before = bytes_held(server)
        reading = [asyncio.create_task(stream.trickle(count)) for stream in trickling]
        pushing = asyncio.create_task(push(server, group, BURST_BYTES // EVENT_BYTES))
        async with asyncio.timeout(SECONDS_TO_LET_GO):
            await assert_others_are_served(server)
            await until_open(server.port, 0)
        await pushing
        await assert_others_are_served(server)
        assert bytes_held(server) - before < BURST_BYTES
        for task in reading:
            task.cancel()
        await asyncio.wait(reading)


async def test_a_reset_at_any_time_leaves_no_stream(server: Server, group: str) -> None:
    for milliseconds in range(12):
        async with raw(server) as (_, writer):
            writer.write(head(group))
            await writer.drain()
            await asyncio.sleep(milliseconds / 1000)
            abort(writer)
    await until_open(server.port, 0)


async def test_a_reset_in_the_middle_of_a_burst_leaves_no_stream(
    server: Server, group: str
) -> None:
    async with (
        connect(server.port, f"/events/{group}/") as broken,
        connect(server.port, f"/events/{group}/") as steady,
    ):
        await broken.opened()
        await steady.opened()
        pushing = asyncio.create_task(push(server, group, FEW))
        await broken.event()
        broken.reset()
        assert len(await steady.events(FEW)) == FEW
        await pushing
        await until_open(server.port, 1)
    await until_open(server.port, 0)


@pytest.mark.parametrize(
    ("lines", "accepting"),
    [
        pytest.param(["X-Bomb: " + "x" * 100_000], {"uvicorn", "granian"}, id="of 100 KB"),
        pytest.param(
            [f"X-Bomb-{number}: x" for number in range(10_000)], {"uvicorn"}, id="10,000 of them"
        ),
    ],
)
async def test_a_bomb_of_headers_breaks_nothing(
    server: Server, group: str, lines: list[str], accepting: set[str]
) -> None:
    async with raw(server) as (reader, writer):
        with suppress(ConnectionError):
            writer.write(head(group, *lines))
            await writer.drain()
        status = await status_of(reader)
        if server.name in accepting:
            assert status == 200
        else:
            assert status is None or 400 <= status < 500
        await assert_others_are_served(server)
    await until_open(server.port, 0)


@pytest.mark.parametrize("garbage", [b"\0\xff" * 500, head("more") * 50, b"x" * 100_000])
async def test_garbage_behind_a_request_breaks_nothing(
    server: Server, group: str, garbage: bytes
) -> None:
    async with raw(server) as (reader, writer):
        with suppress(ConnectionError):
            writer.write(head(group) + garbage)
            await writer.drain()
        assert await status_of(reader) in (None, 200, 400)
        await assert_others_are_served(server)
    await until_open(server.port, 0)


async def test_an_http_1_0_client_gets_its_stream(server: Server, group: str) -> None:
    async with raw(server) as (reader, writer):
        writer.write(head(group, version="1.0"))
        fields = (await reader.readuntil(b"\r\n\r\n")).lower()
        assert b" 200 " in fields
        # Uvicorn chunks its answer all the same.
        assert server.name == "uvicorn" or b"transfer-encoding" not in fields
        async with asyncio.timeout(SECONDS):
            await reader.readuntil(b"id: ")
            async with connect(server.port, f"/group-send/{group}/?data=hi") as sent:
                assert sent.status == 204
            await reader.readuntil(b"data: hi\n\n")
    await until_open(server.port, 0)
