"""Generators on each server: what ends them."""

import asyncio
from pathlib import Path

import pytest

from tests.live.client import SECONDS, connect, log_in, until_open
from tests.live.servers import SERVERS, require, serve

# What it shows is the servers'.
pytestmark = pytest.mark.once


@pytest.mark.parametrize("name", SERVERS)
async def test_a_generator_ends_with_its_client_its_login_and_its_server(
    name: str, tmp_path: Path
) -> None:
    require(name)
    with serve(name, tmp_path) as server:
        cookie = {"Cookie": await log_in(server.port)}
        async with connect(server.port, "/counted/", headers=cookie) as left:
            await left.event()
        await until_open(server.port, 0)
        async with (
            connect(server.port, "/counted/", headers=cookie) as own,
            connect(server.port, "/counted/") as of_a_stranger,
        ):
            for stream in (own, of_a_stranger):
                await stream.event()
            async with connect(server.port, "/logout/", headers=cookie) as answer:
                assert answer.status == 204
            close = await own.event()
            assert (close.event, close.json()) == ("close", {"reason": "logged out"})
            assert await own.rest() == []
            server.terminate()
            async with asyncio.timeout(SECONDS):
                assert await of_a_stranger.rest() == []
        assert of_a_stranger.last_event_id == "counted"
