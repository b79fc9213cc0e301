"""Who is there, over two servers: with several tabs, reloads, and a server that is killed."""

import asyncio
import json
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.live.client import SECONDS, Response, connect
from tests.live.servers import Server, manage, require, serve

# What it shows is the processes'.
pytestmark = pytest.mark.once

SETTINGS = json.dumps({"PRESENCE_GRACE": 4, "PRODUCER_TTL": 6, "RETRY": 100})


async def tab(stack: AsyncExitStack, server: Server, user: str) -> Response:
    opened = await stack.enter_async_context(connect(server.port, f"/room/news/?user={user}"))
    return await opened.opened()


async def until_present(server: Server, **expected: int) -> None:
    """Wait until these are there, with so many streams each."""
    async with asyncio.timeout(SECONDS):
        while True:
            async with connect(server.port, "/present/news/") as page:
                if json.loads(await page.body()) == expected:
                    return
            await asyncio.sleep(0.05)


async def told(server: Server, position: str) -> list[tuple[Any, ...]]:
    """Who came and went since a position, and how many were there then."""
    await manage(server.directory, "sse_cancel", "news")
    async with connect(server.port, "/events/news/", last_event_id=position) as stream:
        *events, _ = await stream.rest()
    return [
        (event.event, data["member"], data["count"])
        for event in events
        for data in [json.loads(event.data)]
    ]


@pytest.mark.parametrize("ends", ["kill", "terminate"])
async def test_who_is_there_is_told_once_though_a_server_ends_and_comes_back(
    ends: str, tmp_path: Path
) -> None:
    require("uvicorn")
    position = (await manage(tmp_path, "sse_push", "news", "--id-only")).strip()
    with serve("uvicorn", tmp_path, LIVE_DJANGO_SSE=SETTINGS) as staying:
        async with AsyncExitStack() as tabs:
            with serve("uvicorn", tmp_path, LIVE_DJANGO_SSE=SETTINGS) as ending:
                await tab(tabs, ending, "1")
                await until_present(staying, **{"1": 1})
                await tab(tabs, ending, "1")
                await tab(tabs, staying, "1")
                await until_present(staying, **{"1": 3})
                watching = await tab(tabs, staying, "2")
                await until_present(ending, **{"1": 3, "2": 1})
                await tab(tabs, ending, "3")
                await until_present(staying, **{"1": 3, "2": 1, "3": 1})
                # A reload at another server.
                async with AsyncExitStack() as before:
                    await tab(before, ending, "4")
                    await until_present(staying, **{"1": 3, "2": 1, "3": 1, "4": 1})
                await tab(tabs, staying, "4")
                getattr(ending, ends)()
                await until_present(staying, **{"1": 1, "2": 1, "4": 1})
                while (await watching.event()).event != "leave":
                    pass
            with serve("uvicorn", tmp_path, LIVE_DJANGO_SSE=SETTINGS) as restarted:
                await tab(tabs, restarted, "1")
                await tab(tabs, restarted, "3")
                await until_present(restarted, **{"1": 2, "2": 1, "3": 1, "4": 1})
                assert await told(restarted, position) == [
                    ("join", "1", 1),
                    ("join", "2", 2),
                    ("join", "3", 3),
                    ("join", "4", 4),
                    ("leave", "3", 3),
                    ("join", "3", 4),
                ]
