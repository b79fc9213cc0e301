"""Servers that shut down, restart and reload while streams are open."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path

import pytest

from tests.live.client import SECONDS, EndOfStreamError, Response, connect
from tests.live.reconnecting import Burst, EventSource, everyone_receives_more
from tests.live.servers import ROOT, Server, manage, require, serve, start
from tests.ports import free_port

# Three are promised, to a machine that is not busy; left to themselves, these servers take half a
# minute, or never exit.
SECONDS_TO_EXIT = 15.0

CLIENTS = 8


@asynccontextmanager
async def streams_of(server: Server) -> AsyncIterator[list[Response]]:
    """Open streams of a group, and those of a generator, which stay in their requests."""
    async with AsyncExitStack() as stack:

        async def connect_all(path: str) -> list[Response]:
            connecting = [connect(server.port, path) for _ in range(CLIENTS)]
            return [await stack.enter_async_context(stream) for stream in connecting]

        groups = await connect_all("/events/news/")
        for stream in groups:
            await stream.opened()
        generators = await connect_all("/progress/?steps=1000&delay=0.05")
        for stream in generators:
            await stream.event()
        yield groups + generators


async def until_exited(server: Server) -> None:
    async with asyncio.timeout(SECONDS_TO_EXIT):
        while not server.has_exited():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("name", "options", "stop"),
    [
        pytest.param(
            name,
            options,
            stop,
            id=f"{stop.__name__} {' '.join([name, *options])}",
            # A newer Python serves with one of them.
            marks=[] if name == "uvicorn" else pytest.mark.once,
        )
        for stop in (Server.terminate, Server.interrupt)
        for name, options in [
            ("daphne", []),
            ("uvicorn", []),
            ("uvicorn", ["--workers", "2"]),
            ("hypercorn", []),
            # On uvloop, its worker's event loop may stand still after Ctrl-C, whatever it serves.
            ("granian", ["--loop", "uvloop" if stop is Server.terminate else "asyncio"]),
            ("gunicorn", []),
        ]
    ],
)
async def test_a_server_exits_and_its_clients_come_back_at_different_times(
    name: str, options: Sequence[str], stop: Callable[[Server], None], tmp_path: Path
) -> None:
    require(name)
    with serve(name, tmp_path, options=options) as server:
        async with streams_of(server) as streams:
            stop(server)
            await until_exited(server)
            for stream in streams:
                assert "close" not in [event.event for event in await stream.rest()]
                assert stream.complete
                assert stream.last_event_id != "~end"
            times = [stream.reconnection_time or 0 for stream in streams]
            assert min(times) >= 3000
            assert max(times) <= 6000
            assert max(times) - min(times) > 500


async def test_runserver_reloads_at_once(tmp_path: Path) -> None:
    urls = tmp_path / "reloaded_urls.py"
    urls.write_text("from tests.urls import urlpatterns\n")
    path = f"{tmp_path}:{ROOT}"
    with serve("runserver", tmp_path, PYTHONPATH=path, LIVE_URLCONF=urls.stem) as server:
        async with streams_of(server) as streams:
            # What has changed is seen once a second, by the time at which it was written.
            urls.write_text("from tests.urls import urlpatterns\n# changed\n")
            for stream in streams:
                await stream.rest()
        await until_served_again(server)


async def until_served_again(server: Server) -> None:
    async with asyncio.timeout(SECONDS):
        while True:
            try:
                async with connect(server.port, "/events/news/") as stream:
                    await stream.opened()
                    return
            except (OSError, EndOfStreamError):
                await asyncio.sleep(0.05)


@pytest.mark.once
async def test_a_rolling_restart_under_load_loses_nothing(tmp_path: Path) -> None:
    # One that waits for its streams, and one that cuts them off.
    names = {free_port(): "uvicorn", free_port(): "daphne"}
    for name in names.values():
        require(name)
    settings = '{"HISTORY_SIZE": 1000000, "RETRY": 100}'
    ports = list(names)
    position = (await manage(tmp_path, "sse_push", "news", "--id-only")).strip()
    clients = [EventSource(order, position) for order in (ports, ports[::-1]) * CLIENTS]
    burst = Burst(await start(tmp_path, "sse_push", "news", "-", LIVE_DJANGO_SSE=settings))
    with ExitStack() as stack:

        async def start_server(port: int) -> Server:
            running = serve(names[port], tmp_path, port=port, LIVE_DJANGO_SSE=settings)
            return await asyncio.to_thread(stack.enter_context, running)

        servers = [await start_server(port) for port in ports]
        async with asyncio.TaskGroup() as tasks:
            publishing = tasks.create_task(burst.publish())
            for client in clients:
                tasks.create_task(client.run())
            for server in servers:
                await everyone_receives_more(clients)
                server.terminate()
                await until_exited(server)
                await everyone_receives_more(clients)
                await start_server(server.port)
            await everyone_receives_more(clients)
            burst.stop()
            await publishing
            await manage(tmp_path, "sse_cancel", "news")
    for client in clients:
        assert client.received == list(range(burst.count))
        assert client.streams > 1
