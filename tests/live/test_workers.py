"""Workers of all kinds publish: what they say is heard at once, and they go on working."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from redis import Redis
from rq import Queue

from tests.live.client import Response, connect
from tests.live.engines import ENGINES, Services
from tests.live.servers import (
    ROOT,
    manage,
    project_environment,
    require,
    serve,
    unavailable,
)

# What it shows is the task queues', the layers' and the stores'.
pytestmark = pytest.mark.once

SECONDS = 60
GREENLETS = 20


@dataclass
class Heard:
    """A stream of the group ``news``, of a server that asks the store for nothing by itself."""

    stream: Response
    directory: Path
    services: Services
    environment: dict[str, str]

    async def run(self, *arguments: str) -> str:
        """Run Python as one of the project's processes."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *arguments,
            cwd=ROOT,
            env=project_environment(self.directory, **self.environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        output, errors = await asyncio.wait_for(process.communicate(), SECONDS)
        assert process.returncode == 0, errors.decode()
        assert b"Traceback" not in errors, errors.decode()
        return output.decode()

    async def is_told(self, *texts: str) -> None:
        """Wait for these events, in any order, of which it has to be told."""
        told = [(await self.stream.event()).text for _ in texts]
        assert sorted(told) == sorted(texts)


@asynccontextmanager
async def open_listeners(engine: str, directory: Path) -> AsyncIterator[Heard]:
    """Open a stream that only a doorbell can tell of what is published."""
    require("uvicorn")
    if lacking := ENGINES[engine].lacks():
        unavailable(f"{lacking} is not installed")
    with ENGINES[engine].run() as services:
        settings = {**json.loads(services.environment["LIVE_DJANGO_SSE"]), "SYNC_INTERVAL": 3600}
        environment = {**services.environment, "LIVE_DJANGO_SSE": json.dumps(settings)}
        if ENGINES[engine].layer:
            layers = json.loads(environment["LIVE_CHANNEL_LAYERS"])
            # A doorbell that is dropped would be missed.
            layers["default"]["CONFIG"].pop("capacity", None)
            environment["LIVE_CHANNEL_LAYERS"] = json.dumps(layers)
        await manage(directory, "migrate", "--verbosity", "0", **environment)
        with serve("uvicorn", directory, **environment) as server:  # type: ignore[arg-type]
            async with connect(server.port, "/events/news/") as stream:
                await stream.opened()
                yield Heard(stream, directory, services, environment)


# Greenlets


@pytest.mark.parametrize(
    ("engine", "options"),
    [
        ("redis", []),
        ("postgresql-pubsub", ["--config", "python:tests.live.gevent_preloaded"]),
    ],
)
async def test_a_gevent_worker_of_gunicorn_publishes_and_goes_on(
    engine: str, options: Sequence[str], tmp_path: Path
) -> None:
    async with open_listeners(engine, tmp_path) as heard:
        environment: Mapping[str, str] = {**heard.environment, "LIVE_URLCONF": "tests.live.jobs"}
        with serve(
            "gunicorn-gevent",
            tmp_path,
            application="tests.wsgi:application",
            options=options,
            **environment,  # type: ignore[arg-type]
        ) as server:
            limits = httpx.Limits(max_connections=GREENLETS)
            base = f"http://127.0.0.1:{server.port}/publish/news/"
            async with httpx.AsyncClient(limits=limits, timeout=SECONDS) as client:
                for turn in range(3):
                    texts = [f"{turn} {number}" for number in range(GREENLETS)]
                    answers = await asyncio.gather(
                        *(client.get(base, params={"data": text}) for text in texts)
                    )
                    assert {answer.status_code for answer in answers} == {204}, server.log()
                    await heard.is_told(*texts)


@pytest.mark.parametrize(
    ("engine", "green"),
    [
        ("redis", "import eventlet; eventlet.monkey_patch()"),
        ("redis", "from gevent import monkey; monkey.patch_all()"),
        ("postgresql-pubsub", "from gevent import monkey; monkey.patch_all()"),
    ],
)
async def test_greenlets_publish_at_once_and_keep_their_database(
    engine: str, green: str, tmp_path: Path
) -> None:
    # Eventlet warns of itself.
    code = (
        f"import warnings; warnings.simplefilter('ignore'); {green}\n"
        "from tests.live.jobs import publish_in_threads\n"
        f"publish_in_threads('news', {GREENLETS})"
    )
    async with open_listeners(engine, tmp_path) as heard:
        assert await heard.run("-c", code) == "0 users\n"
        await heard.is_told(*(str(number) for number in range(GREENLETS) for _ in range(3)))


# Processes that end without a word


JOBS = ["publish", "publish_in_transaction", "publish_and_leave"]


@pytest.mark.parametrize("kind", ["fork", "forkserver", "spawn"])
async def test_children_of_multiprocessing_are_heard_at_once(kind: str, tmp_path: Path) -> None:
    code = f"""
import multiprocessing
from tests.live import jobs
context = multiprocessing.get_context({kind!r})
for job in {JOBS}:
    process = context.Process(target=getattr(jobs, job), args=("news", job))
    process.start()
    process.join()
    assert process.exitcode == 0
"""
    async with open_listeners("postgresql-pubsub", tmp_path) as heard:
        await heard.run("-c", code)
        await heard.is_told(*JOBS)


@pytest.mark.parametrize("worker", ["Worker", "SpawnWorker"])
async def test_work_horses_of_rq_are_heard_at_once(worker: str, tmp_path: Path) -> None:
    code = f"""
import sys
from redis import Redis
from rq import Queue
from rq.worker import {worker}
connection = Redis.from_url(sys.argv[1])
{worker}([Queue(connection=connection)], connection=connection).work(burst=True)
"""
    async with open_listeners("postgresql-lists", tmp_path) as heard:
        assert heard.services.redis
        url = heard.services.redis.url
        with Redis.from_url(url) as connection:
            queue = Queue(connection=connection)
            # The project may be there before the horse is forked, or not.
            for before in ("", "import tests.live.jobs"):
                jobs = [
                    queue.enqueue(f"tests.live.jobs.{job}", "news", f"{job} {before}")
                    for job in JOBS[:2]
                ]
                await heard.run("-c", f"{before}\n{code}", url)
                assert {job.get_status(refresh=True).value for job in jobs} == {"finished"}
                await heard.is_told(*(f"{job} {before}" for job in JOBS[:2]))
