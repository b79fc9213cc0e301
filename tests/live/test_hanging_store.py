"""A server whose store hangs: every client is answered in time, and pages are served meanwhile."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from demo_project import settings as demo
from django_sse.http.refusals import REFUSED_STATUS
from tests import postgresql
from tests import redis as redis_server
from tests.live.client import SECONDS, act, connect
from tests.live.network import Network
from tests.live.servers import Server, database_of, launch, manage, require, unavailable
from tests.ports import free_port

# What it shows is the servers', the kernel's and the stores'.
pytestmark = pytest.mark.once

CLIENTS = 200
# One after the other they would wait for many minutes. A busy machine takes some seconds by itself.
ANSWER_SECONDS = 30.0
EVENT_SOURCE = {"Accept": "text/event-stream"}

Hang = Callable[[], AbstractContextManager[None]]


@contextmanager
def paused(server: redis_server.RedisServer) -> Iterator[None]:
    server.pause()
    try:
        yield
    finally:
        server.resume()


@pytest.fixture
def on_redis() -> Iterator[tuple[Hang, dict[str, Any], dict[str, str]]]:
    if not redis_server.binary():
        unavailable("redis-server is not installed")
    with redis_server.serve() as server:
        store = {"BACKEND": "redis", "OPTIONS": {"url": server.url}}
        yield lambda: paused(server), store, {}


@pytest.fixture
def on_postgresql(tmp_path: Path) -> Iterator[tuple[Hang, dict[str, Any], dict[str, str]]]:
    """A database of the store's own, from which nothing comes any more."""
    directory = postgresql.binaries()
    if not directory:
        unavailable("PostgreSQL is not installed")
    with postgresql.serve(directory) as port, Network.to(port) as network:
        databases = {
            "default": {**demo.DATABASES["default"], "NAME": str(database_of(tmp_path))},
            "events": {
                "ENGINE": "django.db.backends.postgresql",
                "NAME": "postgres",
                "USER": "postgres",
                "HOST": "127.0.0.1",
                "PORT": network.port,
            },
        }
        store = {"BACKEND": "database", "OPTIONS": {"using": "events"}}
        yield network.silent, store, {"LIVE_DATABASES": json.dumps(databases)}


async def refusal(server: Server, group: str) -> float:
    """Ask for a stream, which is refused softly; return the seconds that it took."""
    began = time.monotonic()
    async with connect(server.port, f"/events/{group}/", headers=EVENT_SOURCE) as response:
        assert (response.status, response.headers[REFUSED_STATUS]) == (200, "503")
        assert (await response.body()).startswith(b"retry: ")
    return time.monotonic() - began


async def pages(server: Server) -> list[float]:
    """Load pages until cancelled; return the seconds that each of them took."""
    took = []
    try:
        while True:
            began = time.monotonic()
            # One of them keeps its visitor's login in the project's database.
            for page in ("/event-sources/", "/login/"):
                await act(server.port, page)
            took.append(time.monotonic() - began)
    except asyncio.CancelledError:
        return took


async def serves(server: Server, group: str) -> None:
    """Wait until the server streams again what is published."""
    async with asyncio.timeout(SECONDS):
        while True:
            async with connect(server.port, f"/events/{group}/", headers=EVENT_SOURCE) as stream:
                if REFUSED_STATUS not in stream.headers:
                    await stream.opened()
                    await act(server.port, f"/publish/{group}/", data="here again")
                    assert (await stream.event()).data == "here again"
                    return
            await asyncio.sleep(0.1)


@pytest.mark.parametrize("engine", ["on_redis", "on_postgresql"])
async def test_every_client_is_answered_and_pages_are_served_while_the_store_hangs(
    engine: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    require("uvicorn")
    hang, store, environment = request.getfixturevalue(engine)
    environment["LIVE_DJANGO_SSE"] = json.dumps({"STORE": store})
    if "LIVE_DATABASES" in environment:
        await manage(tmp_path, "migrate", "--database", "events", "--verbosity", "0", **environment)
    with launch(
        "uvicorn", tmp_path, free_port(), "tests.asgi:application", **environment
    ) as server:
        await serves(server, "before")
        threads = server.threads()
        with hang():
            loading = asyncio.create_task(pages(server))
            for of_round in range(3):
                groups = [f"group{of_round}-{n}" for n in range(CLIENTS)]
                took = await asyncio.gather(*(refusal(server, group) for group in groups))
                assert max(took) < ANSWER_SECONDS
            # Those of requests end with these; what hangs does not pile up.
            async with asyncio.timeout(SECONDS):
                while server.threads() > threads + 10:
                    await asyncio.sleep(0.1)
            loading.cancel()
            page_seconds = await loading
        assert page_seconds
        assert max(page_seconds) < ANSWER_SECONDS
        await serves(server, "after")
        print(server.log())  # noqa: T201
