"""Checks the model by runs here: with 1, 2 and 4 processes, and with 1 and 3 Redis servers."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

from tests.benchmarks.capacity.constants import Constants
from tests.benchmarks.capacity.deployment import Deployment, deploy
from tests.benchmarks.capacity.model import Machine, events_at

PROCESSES = (1, 2, 4)
NODES = (1, 3)
# With one reader each, and with many.
GROUPS = (2000, 100)
_STREAMS = 2000
_SECONDS = 4
_SETTLE_SECONDS = 2


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
        share = Machine.busy
        expected = events_at(costs, _STREAMS, groups, processes, nodes, share)
        ran = deployment.push_until(share, f"of-{groups}-", groups, readers, expected)
        held = ran.rate * share / ran.busy
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
            costs.redis(nodes).wait,
            half.wait,
        )
        deployment.close()
        time.sleep(_SETTLE_SECONDS)
