"""The child of a fork begins anew: it has all of its parent's memory, and none of its threads."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as django_settings

from tests import redis
from tests.live.servers import unavailable

PROCESS = """
import asyncio, json, os, signal, sys, threading
from contextlib import ExitStack

import django
from django.conf import settings

signal.alarm(60)
store, database = sys.argv[1:]
settings.configure(
    SECRET_KEY="only for the demo",
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "django_sse"],
    USE_TZ=True,
    ALLOWED_HOSTS=["*"],
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": database,
            "OPTIONS": {
                "transaction_mode": "IMMEDIATE",
                "init_command": "PRAGMA journal_mode=WAL",
            },
        }
    },
    DJANGO_SSE={
        "STORE": json.loads(store),
        "MAX_STREAMS": 1,
        "SYNC_INTERVAL": 3600,
    },
)
django.setup()

from django.core.management import call_command
from django.db import connections
from django.test import AsyncRequestFactory

from django_sse import publish
from django_sse.concurrency import forks
from django_sse.streaming.hub import open_streams
from django_sse.streaming.tally import refusals
from django_sse.stores import get_store
from django_sse.stores.memory import MemoryStore
from django_sse.views import EventStreamView

call_command("migrate", verbosity=0)
connections.close_all()


async def stream(opened, *expected):
    \"\"\"Follow the group until all that is expected has come.\"\"\"
    response = await EventStreamView.as_view(groups=["news"])(AsyncRequestFactory().get("/"))
    assert response.status_code == 200, response.status_code
    got = b""
    async for chunk in response:
        got += chunk
        if b"id: " in got and opened:
            # It has its position, and the hub follows the group.
            await asyncio.sleep(0)
            opened, begun = None, opened
            begun()
        if all(b"data: %s" % text in got for text in expected):
            return


def streaming(*expected):
    \"\"\"Follow the group in a thread, with a loop of its own; return once it is open.\"\"\"
    opened = threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(stream(opened.set, *expected)))
    thread.start()
    assert opened.wait(30)
    return thread


def fork(child):
    \"\"\"Run a function in a child, which leaves as a work horse does.\"\"\"
    pid = os.fork()
    if not pid:
        try:
            signal.alarm(30)
            child()
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
"""

STREAMS = """
def child():
    assert open_streams() == 0
    assert not refusals.counts
    mine = streaming(b"child")
    assert open_streams() == 1
    publish("news", "child")
    mine.join(30)
    assert not mine.is_alive()

refusals.note("test")
# What a child keeps in its memory, nobody else hears of.
others = [] if json.loads(store) == "memory" else [b"child"]
stream_of_parent = streaming(*others, b"parent")
assert open_streams() == 1
fork(child)
assert open_streams() == 1
publish("news", "parent")
stream_of_parent.join(30)
assert not stream_of_parent.is_alive()
"""

LOCKS = """
def child():
    assert open_streams() == 0
    mine = streaming(b"child")
    publish("news", "child")
    mine.join(30)
    assert not mine.is_alive()

# What a thread of the parent is amid of, just as another one forks.
publish("news", "before")
connections.close_all()
stream_of_parent = streaming(b"after")
held, go_on, kept_in = threading.Event(), threading.Event(), get_store()


def hold():
    with ExitStack() as stack:
        for lock in list(forks._forgetful):
            if isinstance(lock, forks.ForkSafeLock):
                stack.enter_context(lock)
        if isinstance(kept_in, MemoryStore):
            stack.enter_context(kept_in._lock)
        held.set()
        go_on.wait()


holder = threading.Thread(target=hold)
holder.start()
held.wait()
fork(child)
go_on.set()
holder.join()
publish("news", "after")
stream_of_parent.join(30)
assert not stream_of_parent.is_alive()
"""


@pytest.fixture(params=["database", "memory", "redis"])
def store(request: pytest.FixtureRequest) -> Iterator[Any]:
    """What goes into ``STORE``."""
    if request.param != "redis":
        yield request.param
        return
    if not redis.binary():
        unavailable("Redis is not installed")
    with redis.serve() as server:
        yield {"BACKEND": "redis", "OPTIONS": {"url": server.url}}


def run(code: str, store: Any, directory: Path) -> None:
    subprocess.run(
        [sys.executable, "-c", PROCESS + code, json.dumps(store), str(directory / "db")],
        cwd=django_settings.BASE_DIR,
        check=True,
        timeout=120,
    )


def test_a_child_counts_nothing_of_its_parents_and_streams_by_itself(
    store: Any, tmp_path: Path
) -> None:
    run(STREAMS, store, tmp_path)


def test_a_lock_that_a_thread_of_the_parent_holds_is_free_in_the_child(
    store: Any, tmp_path: Path
) -> None:
    run(LOCKS, store, tmp_path)
