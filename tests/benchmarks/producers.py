"""``python -m tests.benchmarks.producers``: prints what a word of a produced answer costs.

Beside it, what a word costs that is streamed to the one client that asked for the answer. That one
cannot be shared or resumed. There are 100 answers at a time, or ``BENCH_ANSWERS``: where the
core of the server is full, a delay is that of a queue.
"""

import argparse
import os
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from tests.benchmarks.apps.answers import ANSWERS
from tests.benchmarks.contenders import Contender
from tests.benchmarks.contenders.asgi import Asgi, DjangoSite
from tests.benchmarks.load import Report
from tests.benchmarks.machine import build, cores, description, pinned_to, raise_file_limit
from tests.benchmarks.trial import remark_on, trial

_APPS = "tests.benchmarks.apps"
_MILLISECONDS = 20


@dataclass(frozen=True)
class Turn:
    """A contender with so many readers of each answer."""

    contender: Contender
    readers: int
    path: str
    order: str = "answers"


def _turns() -> list[Turn]:
    site = f"{_APPS}.django_site.produced:application"
    starlette = f"{_APPS}.sse_starlette_answers:application"
    produced = [
        Turn(
            DjangoSite(
                store.lower(), f"django_sse, {store}", (), application=site, store=store.lower()
            ),
            readers,
            "/produced/%d/",
            "produced",
        )
        for store in ("SQLite", "PostgreSQL", "Redis")
        for readers in (1, 5)
    ]
    return [
        *produced,
        Turn(DjangoSite("plain", "StreamingHttpResponse", (), application=site), 1, "/plain/%d/"),
        Turn(
            Asgi(
                "sse-starlette",
                "sse-starlette",
                (),
                application=starlette,
                needs="sse_starlette",
            ),
            1,
            "/answers/%d/",
        ),
    ]


def main() -> int:
    """Return 1 where something could not be measured."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.producers")
    parser.add_argument("--words", type=int, default=500, help="of each answer")
    words = parser.parse_args().words
    raise_file_limit()
    # The core of the server is the server's alone.
    pinned_to(cores()[1])()
    print(f"{description()}; Python {sys.version.split()[0]}; load {os.getloadavg()[0]:.1f}")
    print(f"{ANSWERS} answers, each of {words} words, one every {_MILLISECONDS} ms")
    print("| contender | readers | µs of CPU a word | core | delay p50 | p99 | remark |")
    print("|---|---|---|---|---|---|---|")
    lacking = 0
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as place:
        load = build("load", Path(place))
        for turn in _turns():
            if lacks := turn.contender.lacks():
                print(f"| {turn.contender.title} | skipped, since {lacks} |")
                lacking = 1
            else:
                print(_line(turn, *_measure(turn, words, load, Path(tempfile.mkdtemp(dir=place)))))
    return lacking


def _measure(turn: Turn, words: int, load: Path, directory: Path) -> tuple[float, Report, str]:
    streams = ANSWERS * turn.readers
    with trial(turn.contender, directory, load) as running:
        running.open(turn.path, streams)
        cost, report, _ = running.deliver(
            streams * words, turn.order, words=words, milliseconds=_MILLISECONDS
        )
    # That streams end with their answers is as it should be.
    return cost, report, remark_on(replace(report, ended=0), streams * words)


def _line(turn: Turn, cost: float, report: Report, remark: str) -> str:
    busy = cost * report.received / 1e6 / report.seconds
    return (
        f"| {turn.contender.title} | {turn.readers} | {cost * turn.readers:.0f} | {busy:.0%} "
        f"| {report.p50:.1f} ms | {report.p99:.1f} ms | {remark} |"
    )


if __name__ == "__main__":
    sys.exit(main())
