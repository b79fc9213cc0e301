"""A publisher of Mercure for Node publishes to streams of Django."""

import asyncio
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest

from tests import npm
from tests.contrib.http_publish import BOOK, SECRET
from tests.live.client import connect
from tests.live.servers import Server, require, serve

pytestmark = pytest.mark.once

DIRECTORY = Path(__file__).parent / "mercure"
OTHER = "https://example.com/books/2"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    require("uvicorn")
    npm.install(DIRECTORY)
    directory = tmp_path_factory.mktemp("server")
    with serve("uvicorn", directory, LIVE_URLCONF="tests.contrib.http_publish") as server:
        yield server


async def publish(
    server: Server, topics: list[str], data: str, selectors: list[str], **options: Any
) -> subprocess.CompletedProcess[str]:
    token = jwt.encode({"mercure": {"publish": selectors}}, SECRET, "HS256")
    arguments = (str(server.port), token, json.dumps(topics), data, json.dumps(options))
    return await asyncio.to_thread(
        subprocess.run,
        ["node", "publish.js", *arguments],
        cwd=DIRECTORY,
        capture_output=True,
        text=True,
        timeout=60,
    )


async def test_a_stream_gets_the_update_with_the_id_that_the_publisher_is_told(
    server: Server,
) -> None:
    async with connect(server.port, "/book/") as stream:
        await stream.opened()
        data = '{"isbn": "978-0",\n "title": "Grüße & +%"}'
        done = await publish(server, [BOOK, OTHER], data, ["*"], type="changed", retry=4000)
        assert done.returncode == 0, done.stdout + done.stderr
        event = await stream.event()
        assert (event.data, event.event, event.id) == (data, "changed", done.stdout.strip())
        assert stream.reconnection_time == 4000


async def test_a_topic_that_the_jwt_does_not_cover_is_refused(server: Server) -> None:
    done = await publish(server, [OTHER], "hi", [BOOK])
    assert done.returncode == 1
    assert done.stdout.startswith("403 Forbidden")
