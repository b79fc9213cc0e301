"""Clients that vanish without a word, like a phone in a tunnel, are noticed soon."""

import asyncio
import sys
from pathlib import Path

import pytest

from tests.live.client import connect, until_open
from tests.live.servers import SERVERS, require, serve

# What it shows is the servers', the kernel's and the stores'.
pytestmark = pytest.mark.once

SETTINGS = '{"HEARTBEAT": 1, "SEND_TIMEOUT": 1}'
# Two heartbeats and the send timeout, and a slow machine; without us, a quarter of an hour.
SECONDS_TO_LET_GO = 3 + 10


@pytest.mark.skipif(sys.platform != "linux", reason="Only Linux can vanish, and notice it.")
@pytest.mark.parametrize("name", SERVERS)
async def test_a_stream_whose_client_has_vanished_is_ended(name: str, tmp_path: Path) -> None:
    require(name)
    with serve(name, tmp_path, LIVE_DJANGO_SSE=SETTINGS) as server:
        async with connect(server.port, "/events/news/") as stays:
            await stays.opened()
            async with connect(server.port, "/events/news/") as vanishes:
                await vanishes.opened()
                await until_open(server.port, 2)
                vanishes.vanish()
                async with asyncio.timeout(SECONDS_TO_LET_GO):
                    await until_open(server.port, 1)
            async with connect(server.port, "/group-send/news/?data=still+there") as sent:
                assert sent.status == 204
            assert (await stays.event()).data == "still there"
