"""``python -m tests.benchmarks.bloat``: prints how large PostgreSQL's tables become under load.

Two processes publish events of 100 bytes, a hundred at a time to each of 50 groups in turn. Events
stay for a minute. Nobody reads, so that only publishers trim. PostgreSQL has its default settings.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import psycopg
from psycopg.sql import SQL, Identifier

from tests import postgresql
from tests.benchmarks.machine import description
from tests.live.servers import ROOT

_PROCESSES = 2
_GROUPS = 50
_KEPT_SECONDS = 60
_START_SECONDS = 60
_FLOOD = [sys.executable, "-m", "tests.benchmarks.apps.flood"]
_TABLES = "django_sse_storedevent", "django_sse_eventgroup"


@dataclass(frozen=True)
class _Size:
    """What a table has, and what became of it since the server started."""

    inserted: int
    rows: int
    dead: int
    vacuums: int
    mib: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 1 where PostgreSQL is not installed, or a publisher failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.bloat")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--rate", type=float, default=10_000, help="events a second, at most")
    parser.add_argument("--every", type=float, default=60, help="seconds from row to row")
    options = parser.parse_args(arguments)
    binaries = postgresql.binaries()
    if not binaries:
        print("PostgreSQL is not installed.")
        return 1
    print(f"{description()}; Python {sys.version.split()[0]}; load {os.getloadavg()[0]:.1f}")
    with postgresql.serve(binaries, fsync=True) as port, ExitStack() as stack:
        environment = {**os.environ, "BENCH_SETTINGS": json.dumps(_settings(port))}
        subprocess.run([*_FLOOD, "migrate"], cwd=ROOT, env=environment, check=True)
        flood = [*_FLOOD, str(options.rate / _PROCESSES), str(_GROUPS)]
        floods = []
        for _ in range(_PROCESSES):
            process = stack.enter_context(subprocess.Popen(flood, cwd=ROOT, env=environment))
            # Otherwise the end of the block would wait for it.
            stack.callback(process.kill)
            floods.append(process)
        session = stack.enter_context(
            psycopg.connect(f"host=127.0.0.1 port={port} user=postgres", autocommit=True)
        )
        print("| minute | events a second | kept | dead | vacuums | MiB | groups: dead | MiB |")
        print("|---|---|---|---|---|---|---|---|")
        for line in _lines(session, options.minutes, options.every):
            print(line, flush=True)
            if any(process.poll() is not None for process in floods):
                break
        else:
            return 0
    print("A publisher has failed.")
    return 1


def _lines(session: psycopg.Connection, minutes: float, every: float) -> Iterator[str]:
    """Give the rows of the table, from the first event on."""
    deadline = time.monotonic() + _START_SECONDS
    while not (inserted := _size(session, _TABLES[0]).inserted) and time.monotonic() < deadline:
        time.sleep(0.1)
    begun = time.monotonic()
    for row in range(1, round(minutes * 60 / every) + 1):
        time.sleep(max(begun + row * every - time.monotonic(), 0))
        events, groups = (_size(session, table) for table in _TABLES)
        yield (
            f"| {row * every / 60:g} | {(events.inserted - inserted) / every:,.0f} "
            f"| {events.rows:,} | {events.dead:,} | {events.vacuums} | {events.mib:.0f} "
            f"| {groups.dead:,} | {groups.mib:.1f} |"
        )
        inserted = events.inserted


def _size(session: psycopg.Connection, table: str) -> _Size:
    statement = SQL("""
        SELECT n_tup_ins, (SELECT count(*) FROM {}), n_dead_tup, autovacuum_count,
            pg_total_relation_size(relid) / 1048576.0
        FROM pg_stat_user_tables WHERE relname = {}
    """).format(Identifier(table), table)
    row = session.execute(statement).fetchone()
    assert row
    inserted, rows, dead, vacuums, mib = row
    return _Size(inserted, rows, dead, vacuums, float(mib))


def _settings(port: int) -> dict[str, object]:
    database = {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": "postgres",
        "USER": "postgres",
        "HOST": "127.0.0.1",
        "PORT": port,
        "CONN_MAX_AGE": None,
    }
    return {
        "DATABASES": {"default": database},
        "DJANGO_SSE": {"HISTORY_AGE": _KEPT_SECONDS, "HISTORY_SIZE": 1_000_000},
        "INSTALLED_APPS": ["django.contrib.auth", "django.contrib.contenttypes", "django_sse"],
        "SECRET_KEY": "only for benchmarks",
        "USE_TZ": True,
    }


if __name__ == "__main__":
    sys.exit(main())
