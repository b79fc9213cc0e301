"""Producers in real processes: readers get all of it once, whatever happens to the processes."""

import asyncio
import json
import os
import signal
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from django_sse import Event
from tests.live.client import SECONDS, EndOfStreamError, act, connect
from tests.live.servers import SERVERS, Server, database_of, require, serve
from tests.views import runs_of

# What it shows is the servers', the kernel's and the stores'.
pytestmark = pytest.mark.once

SETTINGS = {"PRODUCER_TTL": 6, "SYNC_INTERVAL": 0.1}

Running = Callable[[str], tuple[Server, Server]]


@contextmanager
def two_servers(name: str, directory: Path, **settings: Any) -> Iterator[tuple[Server, Server]]:
    require(name)
    all_settings = json.dumps({**SETTINGS, **settings})
    with ExitStack() as stack:
        one, other = (
            stack.enter_context(serve(name, directory, LIVE_DJANGO_SSE=all_settings))
            for _ in range(2)
        )
        yield one, other


@pytest.fixture(scope="module")
def two_running(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Running]:
    """Gives two servers by their name, for all tests that leave them running."""
    with ExitStack() as running:

        @cache
        def start(name: str) -> tuple[Server, Server]:
            return running.enter_context(two_servers(name, tmp_path_factory.mktemp(name)))

        yield start


async def ask(port: int, group: str, *, words: int = 100, delay: float = 0.01) -> int:
    path = f"/ask/{group}/?words={words}&delay={delay}"
    async with connect(port, path) as response:
        return response.status


class Reader:
    """A client that comes back to one server after the other, until it is told that this is all."""

    def __init__(self, *ports: int, path: str = "/answers/{}/") -> None:
        self.ports = ports
        self.path = path
        self.last_event_id = ""
        self.words: list[int] = []
        self.closes: list[Event] = []

    @property
    def reason(self) -> str:
        [close] = self.closes
        reason: str = close.json()["reason"]
        return reason

    async def read(self, group: str, at_a_time: int = 1000) -> "Reader":
        """Read to the end, and leave after so many words each time."""
        attempt = 0
        async with asyncio.timeout(SECONDS):
            while not self.closes:
                port = self.ports[attempt % len(self.ports)]
                attempt += 1
                try:
                    await self._read_some(port, group, at_a_time)
                except (ConnectionError, EndOfStreamError):
                    await asyncio.sleep(0.05)
        path, position = self.path.format(group), self.last_event_id
        async with connect(self.ports[-1], path, last_event_id=position) as response:
            assert response.status == 204
        return self

    async def _read_some(self, port: int, group: str, count: int) -> None:
        path, position = self.path.format(group), self.last_event_id
        async with connect(port, path, last_event_id=position) as stream:
            while count:
                event = await stream.event()
                self.last_event_id = event.id or self.last_event_id
                if event.event == "close":
                    self.closes.append(event)
                    return
                self.words.append(int(event.text))
                count -= 1


def runs(server: Server, group: str) -> list[str]:
    return runs_of(server.directory, group).read_text().split()


async def until_closed(server: Server, group: str, times: int = 1) -> None:
    async with asyncio.timeout(SECONDS):
        while runs(server, group).count("closed") < times:
            await asyncio.sleep(0.01)


async def pause(server: Server) -> None:
    """Stop a server between its transactions: stopped in one, it would lock SQLite's file.

    SIGCONT lets it go on.
    """
    async with asyncio.timeout(SECONDS):
        while True:
            os.kill(server.pid, signal.SIGSTOP)
            # All its threads: one may still be about to lock.
            os.waitid(os.P_PID, server.pid, os.WSTOPPED)
            if not is_locked(database_of(server.directory)):
                return
            os.kill(server.pid, signal.SIGCONT)
            await asyncio.sleep(0.01)


def is_locked(database: Path) -> bool:
    with closing(sqlite3.connect(database, timeout=1, isolation_level=None)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return True
        return False


async def until_reading(readers: Sequence[Reader]) -> None:
    async with asyncio.timeout(SECONDS):
        while not all(reader.words for reader in readers):
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("name", SERVERS)
async def test_readers_of_all_kinds_get_all_of_it_once(
    name: str, two_running: Running, group: str
) -> None:
    one, other = two_running(name)
    assert await ask(one.port, group, words=200) == 202
    readers = await asyncio.gather(
        Reader(one.port).read(group),
        Reader(other.port).read(group),
        # Reloads five times, and comes to the other process.
        Reader(one.port, other.port).read(group, at_a_time=40),
    )
    late = await Reader(other.port).read(group)
    for reader in [*readers, late]:
        assert reader.words == list(range(200))
        assert reader.reason == "complete"
    assert runs(one, group) == ["begun", "closed"]


@pytest.mark.parametrize("name", SERVERS)
async def test_another_process_stops_it(name: str, two_running: Running, group: str) -> None:
    one, other = two_running(name)
    assert await ask(one.port, group, words=10_000) == 202
    reading = [asyncio.create_task(Reader(s.port).read(group)) for s in (one, other)]
    async with connect(other.port, f"/answers/{group}/") as stream:
        await stream.events(5)
    await act(other.port, f"/cancel/{group}/", reason="stopped")
    # A second by far, without an assertion that a slow machine could fail.
    await until_closed(one, group)
    for reader in await asyncio.gather(*reading):
        assert reader.words == list(range(len(reader.words)))
        assert reader.reason == "stopped"
    assert await ask(one.port, group) == 409


async def test_of_two_posts_at_the_same_time_one_runs(two_running: Running) -> None:
    one, other = two_running("uvicorn")
    for number in range(200):
        group = f"answer-{number}"
        statuses = await asyncio.gather(
            *(ask(port, group, words=1, delay=0) for port in (one.port, other.port) * 2)
        )
        assert sorted(statuses) == [202, 409, 409, 409]
        await until_closed(one, group)
        assert runs(one, group) == ["begun", "closed"]


@pytest.mark.parametrize("name", SERVERS)
async def test_readers_are_told_that_its_process_was_killed(name: str, tmp_path: Path) -> None:
    with two_servers(name, tmp_path) as (one, other):
        assert await ask(one.port, "answer", words=10_000) == 202
        readers = [Reader(one.port, other.port), Reader(other.port), Reader(other.port)]
        reading = [asyncio.create_task(reader.read("answer")) for reader in readers]
        await until_reading(readers)
        one.kill()
        async with asyncio.timeout(SECONDS):
            await asyncio.gather(*reading)
        for reader in readers:
            assert reader.words == list(range(len(reader.words)))
            assert reader.reason == "interrupted"
        assert len({len(reader.words) for reader in readers}) == 1


async def test_what_a_process_writes_that_was_paused_for_too_long_is_refused(
    tmp_path: Path,
) -> None:
    with two_servers("uvicorn", tmp_path) as (one, other):
        assert await ask(one.port, "answer", words=10_000) == 202
        reader = Reader(other.port)
        reading = asyncio.create_task(reader.read("answer"))
        await until_reading([reader])
        await pause(one)
        await reading
        assert reader.reason == "interrupted"
        # Somebody begins another answer there.
        await act(other.port, "/reopen/answer/")
        assert await ask(other.port, "answer", words=200) == 202
        os.kill(one.pid, signal.SIGCONT)
        await until_closed(one, "answer", times=2)
        second = await Reader(one.port).read("answer")
        assert second.reason == "complete"
        assert second.words == reader.words + list(range(200))


@pytest.mark.parametrize("name", SERVERS)
async def test_readers_are_told_that_its_server_was_shut_down(name: str, tmp_path: Path) -> None:
    # So long that it has to say so itself.
    with two_servers(name, tmp_path, PRODUCER_TTL=600, PRODUCER_GRACE=0.5) as (one, other):
        assert await ask(one.port, "answer", words=10_000) == 202
        reader = Reader(other.port)
        reading = asyncio.create_task(reader.read("answer"))
        await until_reading([reader])
        one.terminate()
        await reading
        assert reader.reason == "interrupted"
        assert reader.words == list(range(len(reader.words)))


@pytest.mark.parametrize("name", SERVERS)
async def test_a_server_that_shuts_down_lets_it_finish(name: str, tmp_path: Path) -> None:
    with two_servers(name, tmp_path, PRODUCER_GRACE=SECONDS) as (one, other):
        assert await ask(one.port, "answer", words=200) == 202
        reader = Reader(one.port, other.port)
        reading = asyncio.create_task(reader.read("answer"))
        await until_reading([reader])
        one.terminate()
        await reading
        assert (reader.reason, reader.words) == ("complete", list(range(200)))


@pytest.mark.parametrize("name", SERVERS)
async def test_a_job_goes_on_in_another_process_when_its_server_shuts_down(
    name: str, tmp_path: Path
) -> None:
    with two_servers(name, tmp_path) as (one, other):
        path = "/job/{}/?words=300"
        first, second = Reader(one.port, other.port, path=path), Reader(other.port, path=path)
        reading = [asyncio.create_task(first.read("job"))]
        await until_reading([first])
        reading.append(asyncio.create_task(second.read("job")))
        await until_reading([second])
        one.terminate()
        for reader in await asyncio.gather(*reading):
            assert reader.words == list(range(300))
            assert reader.reason == "complete"
        assert runs(one, "job") == ["begun", "closed", "begun", "closed"]


async def test_what_nobody_reads_in_any_process_is_stopped(
    two_running: Running, group: str
) -> None:
    one, other = two_running("uvicorn")
    path = "/paid/{}/?words=10000"
    async with connect(one.port, path.format(group)) as starter:
        await starter.event()
    async with connect(other.port, f"/answers/{group}/") as stream:
        # For longer than it would go on unread.
        async with asyncio.timeout(SECONDS):
            while (await stream.event()).text != "500":
                pass
        assert runs(one, group) == ["begun"]
    await until_closed(one, group)
    late = await Reader(other.port).read(group)
    assert late.reason == "unread"
    assert late.words == list(range(len(late.words)))
