"""What more streams cost: none of the figures should grow with them."""

import time

from tests.benchmarks.machine import raise_file_limit
from tests.benchmarks.scale import Scale
from tests.benchmarks.trial import Cell, Trial

_IDLE_SECONDS = 15
_EVENTS = 20
_GROUPS = 1000
# Files that a server has open beside its connections.
_OTHER_FILES = 200


def growth(trial: Trial, scale: Scale) -> dict[str, Cell]:
    """A connect, a second of an idle stream, a publish and a delivery, as streams become more."""
    cells = {}
    have = 0
    for count in scale.growth:
        wanted = min(count, raise_file_limit() - _OTHER_FILES)
        level = f" @ {wanted}"
        cells["connect, us" + level] = Cell(trial.open_more("/all/", wanted - have))
        have = wanted
        cells["idle, us a second" + level] = Cell(_idle(trial) / wanted)
        cells["publish, us" + level] = Cell(_publish(trial))
        trial.server.order("watch")
        cost, _, remark = trial.deliver(wanted * _EVENTS, "yielding", events=_EVENTS)
        hold = float(trial.server.order("longest_hold"))
        cells["delivery, us" + level] = Cell(cost, remark=remark)
        cells["loop held, ms" + level] = Cell(hold)
    return cells


def _idle(trial: Trial) -> float:
    begun, before = time.monotonic(), trial.server.cpu_seconds()
    time.sleep(_IDLE_SECONDS)
    return (trial.server.cpu_seconds() - before) / (time.monotonic() - begun) * 1e6


def _publish(trial: Trial) -> float:
    # To groups that nobody follows.
    before = trial.server.cpu_seconds()
    trial.server.order("each_async", groups=_GROUPS, events=1)
    return (trial.server.cpu_seconds() - before) / _GROUPS * 1e6
