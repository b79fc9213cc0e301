"""A store that hangs is a store that is away: whoever asks for a stream is sent back in time."""

import asyncio
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, cast

import pytest
from django.db import connections
from django.http.response import HttpResponseBase
from pytest_django import Settings

from django_sse import apublish, publish
from django_sse.decorators import no_content_when_cancelled
from django_sse.groups.entries import Entry, GroupState
from django_sse.http.refusals import REFUSED_STATUS
from django_sse.stores import get_store, timed_thread
from django_sse.stores.database import DatabaseStore
from django_sse.stores.memory import MemoryStore
from django_sse.stores.timed_thread import TimedThread
from django_sse.streaming.rechecks import _ThreadConnections
from django_sse.testing.threads import in_thread
from django_sse.views import EventStreamView
from tests import mysql, postgresql
from tests.live.network import Network
from tests.redis import RedisServer
from tests.stores.conftest import MYSQL, POSTGRESQL
from tests.streams import get, open_stream

pytestmark = pytest.mark.once

# What everybody is promised.
ANSWER_SECONDS = 10.0
# Generous: nothing takes nearly as long, unless it never comes.
SECONDS = 60.0

Hang = Callable[[], AbstractContextManager[None]]

view = EventStreamView.as_view(groups=["news"])


def threads_of_store() -> list[threading.Thread]:
    """Return the threads of this test: those of earlier ones may still wait for work."""
    return [
        thread
        for thread in threading.enumerate()
        if thread.name.startswith("django-sse-store") and thread not in _earlier
    ]


_earlier: set[threading.Thread] = set()


@pytest.fixture(autouse=True)
def threads_of_earlier_tests() -> None:
    _earlier.clear()
    _earlier.update(threads_of_store())


@pytest.fixture(params=[POSTGRESQL, MYSQL])
def alias(request: pytest.FixtureRequest, settings: Settings) -> str:
    settings.DJANGO_SSE = {
        "STORE": {"BACKEND": "database", "OPTIONS": {"using": request.param}},
        "SYNC_INTERVAL": 0.1,
    }
    return str(request.param)


@pytest.fixture
async def black_hole(alias: str, everything_ends: None) -> AsyncIterator[Hang]:
    """A database that takes connections and answers nothing."""
    port = connections.settings[alias]["PORT"]
    with Network.to(int(port)) as network:
        connections.settings[alias]["PORT"] = network.port
        try:
            yield network.silent
        finally:
            await get_store().aclose()
            connections.settings[alias]["PORT"] = port


@pytest.fixture
async def lock(alias: str, everything_ends: None) -> Hang:
    """A table that somebody has locked, as a migration does."""
    statements = {
        postgresql.ALIAS: ["BEGIN", "LOCK TABLE django_sse_eventgroup"],
        mysql.ALIAS: ["LOCK TABLES django_sse_eventgroup WRITE"],
    }

    @contextmanager
    def hang() -> Iterator[None]:
        locked, finish = threading.Event(), threading.Event()

        def hold() -> None:
            with connections[alias].cursor() as cursor:
                for statement in statements[alias]:
                    cursor.execute(statement)
                locked.set()
                finish.wait(SECONDS)
                cursor.execute("ROLLBACK" if alias == postgresql.ALIAS else "UNLOCK TABLES")
            connections[alias].close()

        holding = threading.Thread(target=hold)
        holding.start()
        assert locked.wait(SECONDS)
        yield
        finish.set()
        holding.join()

    return hang


@pytest.fixture
async def paused_redis(
    redis_server: RedisServer, settings: Settings, everything_ends: None
) -> Hang:
    options = {"url": redis_server.url}
    settings.DJANGO_SSE = {"STORE": {"BACKEND": "redis", "OPTIONS": options}}

    @contextmanager
    def hang() -> Iterator[None]:
        redis_server.pause()
        try:
            yield
        finally:
            redis_server.resume()

    return hang


@pytest.fixture(params=["black_hole", "lock", "paused_redis"])
def _hang(request: pytest.FixtureRequest) -> Hang:
    return cast("Hang", request.getfixturevalue(request.param))


async def answer(view: Any = view, **headers: str) -> tuple[float, HttpResponseBase]:
    """Return an answer, as an EventSource gets it, and the seconds that it took."""
    began = time.monotonic()
    response = await view(get(headers={"Accept": "text/event-stream", **headers}))
    return time.monotonic() - began, response


async def refusals(count: int, view: Any = view) -> None:
    """Ask for so many streams at once: all are refused in time, and softly."""
    answers = await asyncio.gather(*(answer(view) for _ in range(count)))
    for seconds, response in answers:
        assert response.status_code == 200
        assert response[REFUSED_STATUS] == "503"
        assert seconds < ANSWER_SECONDS


async def comes_back() -> None:
    """Wait until a stream is served as ever."""
    async with asyncio.timeout(SECONDS):
        while (await answer())[1].has_header(REFUSED_STATUS):
            await asyncio.sleep(0.05)
    async with open_stream(view) as stream:
        await apublish("news", "here again")
        assert (await stream.next_event()).data == "here again"


async def every_client_is_sent_back_until_it_answers_again(hang: Hang) -> None:
    await apublish("news", "before")
    async with open_stream(view):
        pass
    with hang():
        for _ in range(3):
            await refusals(50)
            assert len(threads_of_store()) <= 4
    await comes_back()
    async with asyncio.timeout(SECONDS):
        while len(threads_of_store()) > 1:
            await asyncio.sleep(0.05)


async def test_a_database_that_answers_nothing_keeps_nobody_waiting(black_hole: Hang) -> None:
    await every_client_is_sent_back_until_it_answers_again(black_hole)


async def test_a_locked_table_keeps_nobody_waiting(lock: Hang) -> None:
    await every_client_is_sent_back_until_it_answers_again(lock)


@pytest.mark.django_db(transaction=True)
async def test_a_redis_that_is_paused_keeps_nobody_waiting(paused_redis: Hang) -> None:
    await every_client_is_sent_back_until_it_answers_again(paused_redis)


async def test_a_stream_that_is_open_hears_what_was_published_once_the_store_answers(
    lock: Hang,
) -> None:
    async with open_stream(view) as stream:
        with lock():
            # Who follows the same group is served from memory.
            async with open_stream(view):
                pass
            await refusals(1, EventStreamView.as_view(groups=["sport"]))
            publishing = asyncio.create_task(in_thread(lambda: publish("news", "a")))
        await publishing
        assert (await stream.next_event()).data == "a"


@pytest.fixture
def small_pool(alias: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The connections of a project: one for who locks the table, one for a page."""
    # The one of this thread is not from it.
    connections[alias].close()
    options = connections.settings[alias]["OPTIONS"]
    monkeypatch.setitem(options, "pool", {"min_size": 1, "max_size": 2, "timeout": 10})
    yield
    cast("Any", connections[alias]).close_pool()


@pytest.mark.parametrize("alias", [POSTGRESQL], indirect=True)
@pytest.mark.parametrize("connect", ["of_store", "of_logins"])
async def test_threads_that_hang_take_nothing_of_the_projects_pool(
    connect: str, alias: str, small_pool: None, lock: Hang, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timed_thread, "READ_SECONDS", 0.5)
    of_store = cast("DatabaseStore", get_store())._connection.open
    thread = TimedThread("tested", of_store if connect == "of_store" else _ThreadConnections)

    def query(sql: str) -> None:
        with connections[alias].cursor() as cursor:
            cursor.execute(sql)

    with lock():
        for _ in range(3):
            with pytest.raises(TimeoutError):
                await thread.run(lambda: query("SELECT 1 FROM django_sse_eventgroup"))
        await in_thread(lambda: query("SELECT 1"))
    async with asyncio.timeout(SECONDS):
        while [t for t in threading.enumerate() if t.name == "tested"]:
            await asyncio.sleep(0.01)


# Any store


class HangingStore(MemoryStore):
    """One of a project's own, which does nothing about it."""

    hangs = ""

    async def _hang(self, what: str) -> None:
        if what in self.hangs:
            await asyncio.Event().wait()

    async def astates(self, groups: Any) -> dict[str, GroupState]:
        await self._hang("states of " + " ".join(groups))
        return await super().astates(groups)

    async def aread(self, group: str, after: int, limit: int) -> list[Entry]:
        await self._hang("entries")
        return await super().aread(group, after, limit)


@pytest.fixture
def hanging(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, memory_store: None
) -> HangingStore:
    settings.DJANGO_SSE = {"STORE": f"{__name__}.HangingStore"}
    monkeypatch.setattr("django_sse.streaming.store_reader.READ_SECONDS", 0.2)
    store = get_store()
    assert isinstance(store, HangingStore)
    return store


async def test_no_read_of_a_request_waits_for_ever(
    hanging: HangingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = [await apublish("news", n) for n in range(2)]
    guarded = no_content_when_cancelled("news")(view)
    with monkeypatch.context() as patch:
        patch.setattr(HangingStore, "hangs", "states of news")
        await refusals(3)
        assert (await answer(guarded))[1][REFUSED_STATUS] == "503"
        patch.setattr(HangingStore, "hangs", "entries")
        bounded = EventStreamView.as_view(groups=["news"], replay_age=60)
        first = published[0].id
        assert first
        assert (await answer(bounded, **{"Last-Event-ID": first}))[1][REFUSED_STATUS] == "503"
    async with open_stream(view):
        pass


async def test_a_store_that_hangs_as_a_stream_begins_is_away(
    hanging: HangingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The status has gone out: the client is sent back by what follows."""
    response = await view(get())
    with monkeypatch.context() as patch:
        patch.setattr(HangingStore, "hangs", "states of news")
        async with asyncio.timeout(ANSWER_SECONDS):
            chunks = [chunk async for chunk in cast("AsyncIterator[bytes]", response)]
    assert [chunk.partition(b":")[0] for chunk in chunks] == [b"retry"]


# The thread


class Connection:
    """As Django's, on a socket that the other end says nothing on."""

    def __init__(self) -> None:
        self.connection, self.other_end = socket.socketpair()

    def close(self) -> None:
        self.connection.close()
        self.other_end.close()


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timed_thread, "READ_SECONDS", 0.5)


@pytest.fixture
async def made() -> AsyncIterator[list[Connection]]:
    """The connections of a thread, in the order in which they were made."""
    made: list[Connection] = []
    yield made
    for connection in made:
        with suppress(OSError):
            connection.other_end.sendall(b"x")
    async with asyncio.timeout(SECONDS):
        while [t for t in threading.enumerate() if t.name == "tested"]:
            await asyncio.sleep(0.01)


@pytest.fixture
async def thread(quickly: None, made: list[Connection]) -> AsyncIterator[TimedThread]:
    def connect() -> Any:
        made.append(Connection())
        return made[-1]

    thread = TimedThread("tested", connect, most=2)
    yield thread
    await thread.aclose()


def hang(made: list[Connection]) -> bytes:
    """Wait for an answer on the connection of this thread."""
    return made[-1].connection.recv(1)


async def hangs(thread: TimedThread, made: list[Connection]) -> None:
    with pytest.raises(TimeoutError):
        await thread.run(lambda: hang(made))


async def test_what_waits_behind_a_job_that_hangs_is_done_by_another_thread(
    thread: TimedThread, made: list[Connection]
) -> None:
    hanging = asyncio.create_task(thread.run(lambda: hang(made)))
    await asyncio.sleep(0)
    names = await asyncio.gather(*(thread.run(threading.current_thread) for _ in range(10)))
    assert len(set(names)) == 1
    with pytest.raises(TimeoutError):
        await hanging
    assert len(made) == 2


async def test_jobs_that_take_long_together_are_not_what_hangs(
    thread: TimedThread, made: list[Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timed_thread, "READ_SECONDS", 2)
    jobs = (thread.run(lambda: time.sleep(0.1)) for _ in range(30))
    await asyncio.gather(*jobs)
    assert len(made) == 1


async def test_threads_that_hang_are_few_and_others_fail_at_once(
    thread: TimedThread, made: list[Connection]
) -> None:
    for _ in range(2):
        await hangs(thread, made)
    for _ in range(20):
        with pytest.raises(TimeoutError, match="2 threads"):
            await thread.run(threading.get_ident)
    assert len(made) == 2
    # One of them gets its answer, and ends.
    made[0].other_end.sendall(b"x")
    async with asyncio.timeout(SECONDS):
        while True:
            with suppress(TimeoutError):
                await thread.run(threading.get_ident)
                break
            await asyncio.sleep(0.01)
    assert len(made) == 3
    assert made[0].connection.fileno() == -1


async def test_a_connection_that_never_answers_is_cut_at_last(
    thread: TimedThread, made: list[Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        await hangs(thread, made)
    monkeypatch.setattr(timed_thread, "_CUT_SECONDS", 0.3)
    async with asyncio.timeout(SECONDS):
        while True:
            with suppress(TimeoutError):
                await thread.run(threading.get_ident)
                break
            await asyncio.sleep(0.01)


async def test_who_does_not_wait_any_more_leaves_nothing_to_be_done(
    thread: TimedThread, made: list[Connection]
) -> None:
    done = []
    running, finish = threading.Event(), threading.Event()

    def wait() -> None:
        running.set()
        finish.wait(SECONDS)

    under_way = asyncio.create_task(thread.run(wait))
    await asyncio.to_thread(running.wait, SECONDS)
    waiting = asyncio.create_task(thread.run(lambda: done.append("waiting")))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    finish.set()
    await under_way
    await thread.run(lambda: done.append("later"))
    assert done == ["later"]


async def test_closing_waits_for_nothing_that_hangs(
    thread: TimedThread, made: list[Connection]
) -> None:
    hanging = asyncio.create_task(thread.run(lambda: hang(made)))
    await asyncio.sleep(0)
    async with asyncio.timeout(SECONDS):
        await thread.aclose()
        with pytest.raises(TimeoutError):
            await hanging


_EXIT = """
import asyncio, socket
from asgiref.sync import sync_to_async
from contextvars import Context
from django.conf import settings
settings.configure(DATABASES={"default": {
    "ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"
}})
import django
django.setup()
from django_sse.access.owners import Login
from django_sse.streaming.rechecks import Rechecks
from django_sse.stores import timed_thread
from django_sse.concurrency.threads import OwnThread

timed_thread.READ_SECONDS = 2.0
ends = socket.socketpair()

def hang(*args):
    print("hangs", flush=True)
    ends[0].recv(1)

async def of_store():
    await timed_thread.TimedThread("hangs", lambda: None).run(hang)

async def of_logins():
    rechecks = Rechecks((), None, None, lambda: 1.0)
    async for _ in rechecks._ask_each_tenant({"": [Login("1", "", "")]}, hang):
        pass

async def of_views():
    with OwnThread() as thread:
        hanging = asyncio.create_task(sync_to_async(hang)(), context=thread.within(Context()))
        await asyncio.wait_for(hanging, 2.0)

async def main():
    try:
        await KIND()
    except TimeoutError:
        print("left behind")

asyncio.run(main())
"""


@pytest.mark.parametrize("kind", ["of_store", "of_logins", "of_views"])
def test_a_process_ends_though_a_thread_hangs(kind: str) -> None:
    program = [sys.executable, "-c", _EXIT.replace("KIND", kind)]
    ended = subprocess.run(program, capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout == "hangs\nleft behind\n"
