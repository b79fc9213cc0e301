"""Several processes on one database: servers side by side, and servers that are killed."""

import asyncio
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

import pytest

from tests.live.client import connect
from tests.live.reconnecting import Burst, EventSource, everyone_receives_more
from tests.live.servers import Server, manage, require, serve, start
from tests.ports import free_port

# What it shows is the servers' and the stores'.
pytestmark = pytest.mark.once

CLIENTS = 5


@pytest.mark.parametrize("name", ["daphne", "uvicorn"])
async def test_the_clients_of_two_servers_get_what_a_third_process_pushes(
    name: str, tmp_path: Path
) -> None:
    require(name)
    lines = [str(number) for number in range(200)]
    with serve(name, tmp_path) as server, serve(name, tmp_path) as another:
        async with AsyncExitStack() as stack:
            streams = [
                await stack.enter_async_context(connect(port, "/events/news/"))
                for port in (server.port, another.port) * CLIENTS
            ]
            for stream in streams:
                await stream.opened()
            await manage(tmp_path, "sse_push", "news", "-", input="\n".join(lines))
            await manage(tmp_path, "sse_cancel", "news")
            for stream in streams:
                *events, close = await stream.rest()
                assert [event.text for event in events] == lines
                assert len({event.id for event in events}) == len(lines)
                assert close.event == "close"


@pytest.mark.parametrize("name", ["uvicorn", "granian"])
async def test_no_event_is_lost_or_repeated_when_a_server_is_killed_in_a_burst(
    name: str, tmp_path: Path
) -> None:
    require(name)
    settings = '{"HISTORY_SIZE": 1000000, "RETRY": 100}'
    port = free_port()
    position = await manage(tmp_path, "sse_push", "news", "--id-only")
    clients = [EventSource([port], position.strip()) for _ in range(CLIENTS)]
    burst = Burst(await start(tmp_path, "sse_push", "news", "-", LIVE_DJANGO_SSE=settings))

    async def start_server(stack: ExitStack) -> Server:
        running = serve(name, tmp_path, port=port, LIVE_DJANGO_SSE=settings)
        return await asyncio.to_thread(stack.enter_context, running)

    with ExitStack() as stack:
        async with asyncio.TaskGroup() as tasks:
            publishing = tasks.create_task(burst.publish())
            for client in clients:
                tasks.create_task(client.run())
            for _ in range(2):
                server = await start_server(stack)
                await everyone_receives_more(clients)
                server.kill()
            await start_server(stack)
            await everyone_receives_more(clients)
            burst.stop()
            await publishing
            await manage(tmp_path, "sse_cancel", "news")
    for client in clients:
        assert client.received == list(range(burst.count))
