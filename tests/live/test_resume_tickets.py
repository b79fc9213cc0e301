"""Clients that all come back at once after a restart of the server, past Django."""

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.live.client import Response, act, connect, log_in
from tests.live.servers import SERVERS, manage, require, serve
from tests.streams import data

# What it shows is the servers'.
pytestmark = pytest.mark.once

CLIENTS = 200
# How many requests are under way at once before the storm.
_AT_ONCE = 20


class Client:
    """A browser that is logged in, and follows a stream."""

    def __init__(self, cookies: str) -> None:
        self.cookies = cookies
        self.last_event_id = ""

    @property
    def headers(self) -> Mapping[str, str]:
        return {"Cookie": self.cookies, "Accept": "text/event-stream"}

    async def open(self, port: int, streams: AsyncExitStack) -> Response:
        connected = connect(
            port, "/resumed/storm/", headers=self.headers, last_event_id=self.last_event_id
        )
        return await streams.enter_async_context(connected)


@pytest.mark.parametrize("name", SERVERS)
async def test_all_clients_of_a_restarted_server_come_back_past_django(
    name: str, tmp_path: Path
) -> None:
    require(name)
    at_once = asyncio.Semaphore(_AT_ONCE)
    with serve(name, tmp_path) as server:
        port = server.port

        async def let_in() -> Client:
            async with at_once, AsyncExitStack() as streams:
                client = Client(await log_in(port))
                response = await client.open(port, streams)
                await response.opened()
                client.last_event_id = response.last_event_id
                ticket = response.headers["set-cookie"].partition(";")[0]
                assert ticket.startswith("sse_resume_")
                client.cookies += f"; {ticket}"
                return client

        clients = await asyncio.gather(*(let_in() for _ in range(CLIENTS)))
        server.terminate()

    await manage(tmp_path, "sse_push", "storm", "while it was away")
    with serve(name, tmp_path, port=port):
        async with AsyncExitStack() as streams:
            back = await asyncio.gather(*(client.open(port, streams) for client in clients))
            for response in back:
                assert response.status == 200
                # Django would have given it another one.
                assert "set-cookie" not in response.headers
            missed = await asyncio.gather(*(response.events(1) for response in back))
            await act(port, "/publish/storm/", data="new")
            new = await asyncio.gather(*(response.events(1) for response in back))
    for events in (missed, new):
        assert {tuple(data(some)) for some in events} == {tuple(data(events[0]))}
    assert data(missed[0]) == ["while it was away"]
    assert data(new[0]) == ["new"]
