"""A client that does not read costs bounded memory, is let go, and has lost nothing."""

import asyncio
import json
import time
from collections.abc import Awaitable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import psutil
import pytest

from django_sse import Event
from django_sse.conf import Conf
from tests.live.client import connect, until_open
from tests.live.servers import SERVERS, finish, require, serve, start

# What it shows is the servers', the kernel's and the stores'.
pytestmark = pytest.mark.once

EVENT_BYTES = 64 * 1024
EVENTS = 20 * 1024 * 1024 // EVENT_BYTES
# Published, and not yet received by the client that reads.
AHEAD = 4


def number_of(event: Event) -> int:
    number, text = event.text.split()
    assert len(text) == EVENT_BYTES
    return int(number)


@pytest.mark.parametrize(
    ("name", "bounds"),
    [
        *((name, {"BACKLOG_BYTES": 4 * AHEAD * EVENT_BYTES}) for name in SERVERS),
        ("uvicorn", {"BACKLOG_BYTES": 10**9, "SEND_TIMEOUT": 1}),
    ],
)
async def test_a_client_that_does_not_read_is_ended_and_resumes_later(
    name: str, bounds: dict[str, int], tmp_path: Path
) -> None:
    require(name)
    settings = json.dumps({"SYNC_INTERVAL": 0.02, **bounds})
    with serve(name, tmp_path, LIVE_DJANGO_SSE=settings) as server:
        async with (
            connect(server.port, "/events/news/") as slow,
            connect(server.port, "/events/news/") as fast,
        ):
            await slow.opened()
            await fast.opened()
            await until_open(server.port, 2)

            pushing = await start(tmp_path, "sse_push", "news", "-", LIVE_DJANGO_SSE=settings)
            assert pushing.stdin
            for number in range(EVENTS + AHEAD):
                if number < EVENTS:
                    pushing.stdin.write(b"%d %s\n" % (number, b"x" * EVENT_BYTES))
                if number >= AHEAD:
                    assert number_of(await fast.event()) == number - AHEAD
            await finish(pushing)

            await until_open(server.port, 1)
            received = [number_of(event) for event in await slow.rest()]
            assert len(received) < EVENTS
            position = slow.last_event_id

        async with connect(server.port, "/events/news/", last_event_id=position) as resumed:
            received += [number_of(event) for event in await resumed.events(EVENTS - len(received))]
        assert received == list(range(EVENTS))


# A load test: no client reads

CLIENTS = 200
LARGE_EVENTS = 60
LARGE_EVENT_BYTES = 250_000
BACKLOG_BYTES = Conf().BACKLOG_BYTES
# What is below granian takes several messages, of whatever size, before it lets one wait.
OF_THE_SERVER = {"granian": BACKLOG_BYTES}
# All of them are held at the same time, however long that takes to come about.
PATIENT = json.dumps({"SEND_TIMEOUT": 600})


def bytes_held(processes: Sequence[psutil.Process]) -> int:
    return sum(each.memory_info().rss for each in processes)


async def most_bytes_held(processes: Sequence[psutil.Process], meanwhile: Awaitable[object]) -> int:
    """Return the most that processes have held until they have not grown for two seconds."""
    most, since = 0, time.monotonic()
    doing = asyncio.ensure_future(meanwhile)
    while not doing.done() or time.monotonic() - since < 2:
        if (now := bytes_held(processes)) > most + 1024 * 1024:
            most, since = now, time.monotonic()
        await asyncio.sleep(0.02)
    await doing
    return most


async def push_large_events(directory: Path) -> None:
    pushing = await start(directory, "sse_push", "news", "-")
    await finish(pushing, f"{'x' * LARGE_EVENT_BYTES}\n" * LARGE_EVENTS)


@pytest.mark.parametrize(
    # What is replayed reaches each server as what comes live does.
    ("phase", "name"),
    [("replay", "uvicorn"), *(("live", name) for name in SERVERS)],
)
async def test_many_clients_that_read_nothing_cost_a_backlog_each(
    name: str, phase: str, tmp_path: Path
) -> None:
    require(name)
    with serve(name, tmp_path, LIVE_DJANGO_SSE=PATIENT) as server:
        async with connect(server.port, "/events/news/") as stream:
            position = (await stream.opened()).last_event_id
        await until_open(server.port, 0)
        # Found once: to look for them takes the time of a hundred looks at what they hold.
        processes = server.processes()
        before = bytes_held(processes)
        if phase == "replay":
            await push_large_events(tmp_path)

        async with AsyncExitStack() as stack:

            async def open_all() -> None:
                for _ in range(CLIENTS):
                    # With the buffers of a network, so that it is the server that has to wait.
                    stream = connect(
                        server.port, "/events/news/", last_event_id=position, receive_bytes=2048
                    )
                    await stack.enter_async_context(stream)
                await until_open(server.port, CLIENTS)
                if phase == "live":
                    await push_large_events(tmp_path)

            most = await most_bytes_held(processes, open_all())
            bytes_each = BACKLOG_BYTES + LARGE_EVENT_BYTES + OF_THE_SERVER.get(name, 0)
            assert most - before < CLIENTS * bytes_each
            print(f"{name}, {phase}: {(most - before) / CLIENTS / 1024:.0f} KiB a client")  # noqa: T201
