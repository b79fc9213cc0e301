"""Several processes on one database: servers side by side, and servers that are killed."""

import asyncio
from asyncio.subprocess import Process
from contextlib import AsyncExitStack, ExitStack, suppress
from pathlib import Path

import pytest

from tests.live.client import SECONDS, EndOfStreamError, connect
from tests.live.servers import Server, finish, manage, require, serve, start
from tests.ports import free_port

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


class EventSource:
    """A client that comes back with its last id whenever its stream ends, as a browser does."""

    def __init__(self, port: int, last_event_id: str) -> None:
        self.port = port
        self.last_event_id = last_event_id
        self.received: list[int] = []
        self.closed = False

    async def run(self) -> None:
        """Follow the group until it is cancelled."""
        while not self.closed:
            with suppress(ConnectionError, EndOfStreamError):
                await self._follow()
            await asyncio.sleep(0.05)

    async def _follow(self) -> None:
        async with connect(self.port, "/events/news/", last_event_id=self.last_event_id) as stream:
            while (event := await stream.event()).event != "close":
                self.received.append(int(event.text.split()[0]))
                self.last_event_id = event.id or ""
            self.closed = True


class Burst:
    """Events that another process publishes without a pause until it is told to stop."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._lasts = True
        self.count = 0

    async def publish(self) -> None:
        assert self._process.stdin
        while self._lasts:
            # Long lines, so that few of them wait in the pipe.
            self._process.stdin.write(b"%d %s\n" % (self.count, b"x" * 500))
            self.count += 1
            await self._process.stdin.drain()
        await finish(self._process)

    def stop(self) -> None:
        self._lasts = False


@pytest.mark.parametrize("name", ["uvicorn", "granian"])
async def test_no_event_is_lost_or_repeated_when_a_server_is_killed_in_a_burst(
    name: str, tmp_path: Path
) -> None:
    require(name)
    settings = '{"HISTORY_SIZE": 1000000}'
    port = free_port()
    position = await manage(tmp_path, "sse_push", "news", "--id-only")
    clients = [EventSource(port, position.strip()) for _ in range(CLIENTS)]
    burst = Burst(await start(tmp_path, "sse_push", "news", "-", LIVE_DJANGO_SSE=settings))

    async def start_server(stack: ExitStack) -> Server:
        running = serve(name, tmp_path, port=port, LIVE_DJANGO_SSE=settings)
        return await asyncio.to_thread(stack.enter_context, running)

    async def everyone_receives_more() -> None:
        before = [len(client.received) for client in clients]
        async with asyncio.timeout(SECONDS):
            while any(
                len(client.received) < count + 100
                for client, count in zip(clients, before, strict=True)
            ):
                await asyncio.sleep(0.01)

    with ExitStack() as stack:
        async with asyncio.TaskGroup() as tasks:
            publishing = tasks.create_task(burst.publish())
            for client in clients:
                tasks.create_task(client.run())
            for _ in range(2):
                server = await start_server(stack)
                await everyone_receives_more()
                server.kill()
            await start_server(stack)
            await everyone_receives_more()
            burst.stop()
            await publishing
            await manage(tmp_path, "sse_cancel", "news")
    for client in clients:
        assert client.received == list(range(burst.count))
