"""The benchmark itself: its load client counts what it should, and its workloads lose nothing."""

import asyncio
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.benchmarks import report
from tests.benchmarks.apps.payload import BYTES, payload
from tests.benchmarks.contenders import CONTENDERS
from tests.benchmarks.load import Report, load_client
from tests.benchmarks.machine import build
from tests.benchmarks.results import Results
from tests.benchmarks.run import run
from tests.benchmarks.scale import QUICK, small
from tests.benchmarks.trial import Cell
from tests.live.servers import unavailable

pytestmark = pytest.mark.once

_OK = "200 OK"
_STREAMS = 5


@pytest.fixture
def load(tmp_path: Path) -> Path:
    if not shutil.which("cc"):
        unavailable("cc is not installed")
    return build("load", tmp_path)


async def _seen(load: Path, numbers: Sequence[int], status: str = _OK) -> Report:
    """Return what the load client sees of streams that have events with these numbers."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 {status}\r\n\r\n".encode())
        if status == _OK:
            await go_on.wait()
        for character in "".join(f"data: {payload(number)}\n\n" for number in numbers):
            # In pieces, so that a mark is cut in two.
            writer.write(character.encode())
        with suppress(ConnectionError):
            await reader.read()
        writer.close()

    def count(port: int) -> Report:
        with load_client(load, port) as client:
            opened = client.open(_STREAMS, "GET / HTTP/1.1\r\n\r\n")
            if opened.failed:
                return opened
            client.expect()
            loop.call_soon_threadsafe(go_on.set)
            return client.collect(_STREAMS * len(numbers))

    go_on, loop = asyncio.Event(), asyncio.get_running_loop()
    server = await asyncio.start_server(answer, "127.0.0.1")
    async with server:
        return await asyncio.to_thread(count, server.sockets[0].getsockname()[1])


async def test_the_load_client_counts_every_event(load: Path) -> None:
    seen = await _seen(load, range(1, 51))
    assert (seen.received, seen.missed, seen.repeated) == (50 * _STREAMS, 0, 0)
    assert 0 < seen.p50 <= seen.p99


async def test_the_load_client_tells_what_is_missing_and_what_comes_twice(load: Path) -> None:
    seen = await _seen(load, [1, 2, 4, 4, 5])
    assert (seen.received, seen.missed, seen.repeated) == (5 * _STREAMS, _STREAMS, _STREAMS)


async def test_the_load_client_tells_who_was_refused(load: Path) -> None:
    seen = await _seen(load, [1], status="503 Service Unavailable")
    assert (seen.open, seen.failed) == (0, _STREAMS)


def test_the_payload_is_as_long_as_it_says() -> None:
    assert len(payload(1)) == len(payload(99_999_999)) == BYTES


@pytest.mark.usefixtures("load")
def test_the_floors_and_ours_deliver_everything() -> None:
    contenders = [each for each in CONTENDERS if each.key in ("floor", "bare", "ours")]
    workloads = ["burst", "yielding", "groups-of-one"]
    saved: list[Results] = []
    results = run(contenders, workloads, small(_STREAMS, QUICK), rounds=1, save=saved.append)
    assert saved == [results] * len(contenders)
    assert results.complaints == []
    for contender in contenders:
        for column in ("burst", "yielding", "groups of one"):
            cell = results.cell(contender.key, column)
            assert cell
            assert cell.value > 0
            assert "lost" not in cell.remark
            assert "twice" not in cell.remark


def test_the_pages_say_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "_DOCS", tmp_path)
    results = Results(
        {"Date": "today"}, {"bare": None, "ours": "bare"}, {"bare": "Bare", "ours": "Ours"}
    )
    results.cells["bare", "burst"] = [Cell(1.0), Cell(2.0), Cell(30.0)]
    results.cells["ours", "burst"] = [Cell(1.0, remark="7 lost")]
    results.save(tmp_path / "results.json")
    report.write(Results.load(tmp_path / "results.json"))
    page = (tmp_path / "benchmarks.md").read_text()
    assert "| Bare | 2.00" in page
    assert "| Ours | 1.00 = 0.50x (7 lost)" in page
    ElementTree.parse(tmp_path / "benchmarks.svg")
