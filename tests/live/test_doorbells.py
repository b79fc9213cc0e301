"""A push by another process reaches the streams of a server, whatever there is to tell of it."""

from pathlib import Path

import pytest

from tests.live.client import connect
from tests.live.engines import running
from tests.live.servers import manage, require, serve

# What it shows is the servers', the kernel's and the stores'.
pytestmark = pytest.mark.once


@pytest.mark.parametrize(
    ("name", "engine"),
    [
        ("uvicorn", "sqlite"),
        ("daphne", "postgresql"),
        ("hypercorn", "postgresql-pubsub"),
        ("granian", "redis"),
        ("uvicorn", "redis-cluster"),
    ],
)
async def test_what_another_process_pushes_arrives_without_asking_the_store(
    name: str, engine: str, tmp_path: Path
) -> None:
    require(name)
    async with running(engine, tmp_path, SYNC_INTERVAL=3600) as environment:
        with serve(name, tmp_path, **environment) as server:  # type: ignore[arg-type]
            async with connect(server.port, "/events/news/") as stream:
                await stream.opened()
                for text in ("one", "two", "three"):
                    await manage(tmp_path, "sse_push", "news", text, **environment)
                    assert (await stream.event()).text == text
