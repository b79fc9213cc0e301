"""What django_sse is to reach, and what it has reached."""

from collections.abc import Iterator
from dataclasses import dataclass

from tests.benchmarks.results import Results, quotient

_SERVERS = {"ours-daphne": "daphne", "ours-granian": "granian", "ours-hypercorn": "hypercorn"}
_STORES = {"ours-sqlite": "SQLite", "ours-postgresql": "PostgreSQL", "ours-redis": "Redis"}
_YIELDING, _PACED, _ONE, _IDLE = "yielding", "paced", "groups of one", "KB per idle stream"
# Figures that differ by less are the same.
_SAME = 1.15
_GROWING = ("connect, us", "idle, us a second", "memory, KB", "publish, us", "delivery, us")


@dataclass(frozen=True)
class Goal:
    """A figure, and the bound that it is to keep: "at most", unless ``at_least``."""

    work: str
    bound: float
    reached: float | None
    at_least: bool = False

    @property
    def met(self) -> bool | None:
        """Whether it is met, or None if it was not measured."""
        if self.reached is None:
            return None
        return self.reached >= self.bound if self.at_least else self.reached <= self.bound


def goals(results: Results) -> list[Goal]:
    """Return all goals, with what was measured."""
    return [*_delivery(results), *_at_scale(results), *_publishing(results), *_processes(results)]


def _delivery(results: Results) -> Iterator[Goal]:
    faults = sum(
        bool(cell.remark and "client" not in cell.remark)
        for (key, _), cells in results.cells.items()
        if key.startswith(("ours", "two"))
        for cell in cells
    )
    yield Goal("runs in which an event was lost, came twice, or a stream ended", 0, faults)
    bare = "times bare ASGI"
    yield Goal(f"burst of 200 to 1,000 streams, {bare}", 0.04, results.times("ours", "burst"))
    yield Goal(f"200, yielding after each, {bare}", 0.5, results.times("ours", _YIELDING))
    yield Goal(f"paced, {bare}", 1.15, results.times("ours", _PACED))
    ours, nchan = results.cell("ours", _PACED), results.cell("nchan", _PACED)
    late = quotient(ours.more[1], nchan.more[1]) if ours and nchan else None
    yield Goal("paced, p99 in times of nchan's", 1.2, late)
    yield Goal(f"1,000 groups of one, publish included, {bare}", 1.3, results.times("ours", _ONE))
    yield Goal(
        "1,000 groups of one, in times of better-sse",
        1.0,
        quotient(results.value("ours", _ONE), results.value("better-sse", _ONE)),
    )
    yield Goal(f"memory of an idle stream, {bare}", 1.35, results.times("ours", _IDLE))
    yield Goal("idle CPU of 5,000 streams, % of a core", 1.0, results.value("ours", "idle CPU %"))
    for key, server in _SERVERS.items():
        yield Goal(f"{server}: yielding, {bare} on it", 0.5, results.times(key, _YIELDING))
        yield Goal(f"{server}: paced, {bare} on it", 1.15, results.times(key, _PACED))
        yield Goal(f"{server}: groups of one, {bare} on it", 1.3, results.times(key, _ONE))
        yield Goal(f"{server}: memory, {bare} on it", 1.35, results.times(key, _IDLE))
    for column in ("burst", _YIELDING, _PACED, _ONE):
        share = quotient(results.times("ours-other", column), results.times("ours", column))
        yield Goal(f"the oldest Python: {column}, in times of the newest's ratio", 1.25, share)


def _at_scale(results: Results) -> Iterator[Goal]:
    levels = _levels(results, "ours")
    if levels:
        most = f" @ {levels[-1]}"
        yield Goal(
            f"{levels[-1]:,} streams: a broadcast, times bare ASGI",
            1.15,
            results.times("ours", f"delivery, us{most}"),
        )
        yield Goal(
            f"{levels[-1]:,} streams: the loop is held for, ms",
            20,
            results.value("ours", f"loop held, ms{most}"),
        )
    yield Goal(
        "5,000 that come back at once, times a plain view",
        0.125,
        results.times("ours", "reconnect, us"),
    )
    yield Goal(
        "... with resume tickets",
        0.125,
        results.times("ours", "reconnect with a ticket, us"),
    )
    yield Goal(
        "fresh connect, logged in, times a plain view",
        1.1,
        results.times("ours", "fresh connect, us"),
    )
    for key, who in (("ours", "one user"), ("ours-many", "as many users and groups")):
        levels = _levels(results, key)
        for what in _GROWING:
            if levels:
                grown = quotient(
                    results.value(key, f"{what} @ {levels[-1]}"),
                    results.value(key, f"{what} @ {levels[0]}"),
                )
                work = f"{what}: {levels[-1]:,} streams of {who}, in times of {levels[0]:,}"
                yield Goal(work, _SAME, grown)


def _levels(results: Results, key: str) -> list[int]:
    """Return the numbers of streams with which a contender was measured."""
    columns = (column for contender, column in results.cells if contender == key)
    return sorted({int(column.split(" @ ")[1]) for column in columns if " @ " in column})


def _publishing(results: Results) -> Iterator[Goal]:
    def of(key: str, column: str, other: str) -> float | None:
        return quotient(results.value(key, column), results.value(key, other))

    for key in ("ours-sqlite", "ours-postgresql"):
        store = _STORES[key]
        yield Goal(f"{store}: publish, times an ORM create", 2, of(key, "publish", "ORM create"))
        yield Goal(
            f"{store}: publish in a transaction, the user's part, times an ORM create",
            1.5,
            of(key, "... the user's part", "ORM create"),
        )
        yield Goal(
            f"{store}: publish in a transaction, all of it, times an ORM create",
            3,
            of(key, "publish in a transaction", "ORM create"),
        )
        yield Goal(
            f"{store}: publish_many, share of executemany's speed",
            0.6,
            of(key, "executemany", "publish_many"),
            at_least=True,
        )
    redis = "ours-redis"
    yield Goal("Redis: publish, times an XADD", 1.5, of(redis, "publish", "XADD"))
    yield Goal(
        "Redis: publish_many, share of a pipelined XADD's speed",
        0.8,
        of(redis, "XADD, pipelined", "publish_many"),
        at_least=True,
    )
    for key, store in {"ours": "memory", **_STORES}.items():
        work = f"{store}: publish with 100,000 groups, in times of a publish without them"
        yield Goal(work, _SAME, of(key, "publish, many groups", "publish"))


def _processes(results: Results) -> Iterator[Goal]:
    two = quotient(results.value("two-processes", _PACED), results.value("ours-sqlite", _PACED))
    yield Goal("two processes, paced, in times of one", 1.1, two)
    for key, store in _STORES.items():
        for column in (_YIELDING, _PACED):
            share = quotient(results.value(key, column), results.value("ours", column))
            yield Goal(f"{store}: {column}, in times of the memory store", _SAME, share)
