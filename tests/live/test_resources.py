"""What open streams cost a server, as the operating system counts it."""

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.live.client import SECONDS, Response, connect, log_in, until_open
from tests.live.servers import SERVERS, Server, require, serve

# What it shows is the servers', the kernel's and the stores'.
pytestmark = pytest.mark.once

STREAMS = 150
# A group's, and those of a generator that has read the database.
URLS = ("/members/news/", "/counted/")


async def stable(measure: Callable[[], tuple[int, int]]) -> tuple[int, int]:
    """Return what is measured once it has stayed the same for two seconds."""
    value, since = measure(), time.monotonic()
    async with asyncio.timeout(SECONDS):
        while time.monotonic() - since < 2:
            await asyncio.sleep(0.1)
            if (now := measure()) != value:
                value, since = now, time.monotonic()
    return value


async def open_many(
    stack: AsyncExitStack, server: Server, *, at_once: int = STREAMS
) -> list[Response]:
    """Open the streams of a user who is logged in."""
    cookies = await log_in(server.port)
    turns = asyncio.Semaphore(at_once)

    async def open_one(url: str) -> Response:
        async with turns:
            stream = await stack.enter_async_context(
                connect(server.port, url, headers={"Cookie": cookies})
            )
            assert stream.status == 200
            return await stream.opened()

    streams = await asyncio.gather(*(open_one(url) for url in URLS * (STREAMS // len(URLS))))
    await until_open(server.port, STREAMS)
    return streams


@pytest.mark.parametrize("name", SERVERS)
async def test_open_streams_hold_neither_threads_nor_database_connections(
    name: str, tmp_path: Path
) -> None:
    require(name)
    with serve(name, tmp_path) as server:

        def measure() -> tuple[int, int]:
            return server.threads(), server.connections()

        # One ordinary request before the first count.
        await log_in(server.port)
        threads, connections = await stable(measure)

        async with AsyncExitStack() as stack:
            streams = await open_many(stack, server, at_once=20)
            threads_with_streams, connections_with_streams = await stable(measure)
            assert threads_with_streams <= threads + 4
            assert connections_with_streams <= connections + 1

            # One half of the clients drops its connections, the other one closes them.
            for stream in streams[: STREAMS // 2]:
                stream.reset()
        await until_open(server.port, 0)


async def test_a_rush_of_clients_leaves_no_database_files_open(tmp_path: Path) -> None:
    require("uvicorn")
    with serve("uvicorn", tmp_path) as server:
        async with AsyncExitStack() as stack:
            await open_many(stack, server)
            async with asyncio.timeout(SECONDS):
                while server.database_files() > 1:
                    await asyncio.sleep(0.1)
