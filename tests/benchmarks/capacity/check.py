"""Checks the model by runs here: with 1, 2 and 4 processes, and with 1 and 3 Redis servers."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

from tests.benchmarks.capacity.constants import Constants
from tests.benchmarks.capacity.deployment import Deployment, deploy
from tests.benchmarks.capacity.model import events_held

PROCESSES = (1, 2, 4)
NODES = (1, 3)
# With one reader each, and with many.
GROUPS = (2000, 100)
_STREAMS = 2000
_SECONDS = 4
_SETTLE_SECONDS = 2
# So late an event may be, 99 times in 100: then the deployment keeps up with its publisher.
_LATE_MILLISECONDS = 250
# Of the rate that is asked for.
_HELD = 0.97
_STEP = 1.12
_STEPS = 14


@dataclass(frozen=True)
class Check:
    """A prediction beside what was measured."""

    processes: int
    nodes: int
    readers: int
    what: str
    predicted: float
    measured: float

    @property
    def error(self) -> float:
        """How much the prediction is too high, as a fraction of what was measured."""
        return self.predicted / self.measured - 1


def checks(costs: Constants, directory: Path, load: Path) -> Iterator[Check]:
    """Run all of them."""
    for nodes in NODES:
        for processes in PROCESSES:
            place = Path(mkdtemp(dir=directory))
            with deploy(place, load, processes=processes, nodes=nodes) as deployment:
                yield from _of(deployment, costs, processes, nodes)


def _of(deployment: Deployment, costs: Constants, processes: int, nodes: int) -> Iterator[Check]:
    for groups in GROUPS:
        readers = _STREAMS // groups
        deployment.open(f"/{groups}/%d/", _STREAMS)
        time.sleep(_SETTLE_SECONDS)
        if groups == GROUPS[0]:
            yield Check(
                processes,
                nodes,
                readers,
                "memory, MiB",
                (processes * costs.process_memory + _STREAMS * costs.stream_memory) / 1024,
                deployment.server.memory_kilobytes() / 1024,
            )
        expected = events_held(costs, readers, processes, nodes)
        held = _held(deployment, groups, readers, expected)
        yield Check(
            processes,
            nodes,
            readers,
            "deliveries a second",
            expected * readers,
            held * readers,
        )
        half = deployment.push(f"of-{groups}-", groups, readers, held / 2, _SECONDS)
        yield Check(
            processes,
            nodes,
            readers,
            "publish at half of it, ms",
            costs.wait if nodes == 1 else costs.wait_cluster,
            half.wait,
        )
        deployment.close()
        time.sleep(_SETTLE_SECONDS)


def _held(deployment: Deployment, groups: int, readers: int, expected: float) -> float:
    """Return the highest rate, in events a second, at which the deployment keeps up."""

    def holds(rate: float) -> bool:
        ran = deployment.push(f"of-{groups}-", groups, readers, rate, _SECONDS)
        if lost := ran.events * readers - ran.seen.received:
            raise RuntimeError(f"{lost} events were lost.")
        kept = ran.events / ran.seconds >= rate * _HELD
        return kept and ran.seen.p99 <= _LATE_MILLISECONDS

    # The first run warms up.
    rate = expected / 2
    holds(rate)
    held = 0.0
    for _ in range(_STEPS):
        if holds(rate):
            held, rate = rate, rate * _STEP
        elif held:
            break
        else:
            rate /= _STEP**2
    return held
