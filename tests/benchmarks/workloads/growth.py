"""What more streams cost: none of the figures should grow with them."""

import time

from tests.benchmarks.machine import raise_file_limit
from tests.benchmarks.scale import Scale
from tests.benchmarks.trial import Cell, Trial

_IDLE_SECONDS = 15
_EVENTS = 20
_GROUPS = 1000
# Of CPU, to open the streams of one level, if a connect grows with the streams. Where it does not
# grow, 10,000 of them take a quarter of that.
_MOST_SECONDS = 240
# Files that a server has open beside its connections.
_OTHER_FILES = 200


def growth(trial: Trial, scale: Scale) -> dict[str, Cell]:
    """Streams of one group become more: what each costs, and a broadcast to them."""
    return _grow(trial, scale, "/all/", "yielding", events=_EVENTS)


def growth_of_groups(trial: Trial, scale: Scale) -> dict[str, Cell]:
    """Streams of a group each become more: what each costs, and an event to each group."""
    return _grow(trial, scale, "/one/%d/", "each", events=5)


def _grow(trial: Trial, scale: Scale, path: str, order: str, events: int) -> dict[str, Cell]:
    cells = {}
    # What the first streams load is not the streams' own.
    trial.open(path, 20)
    trial.close()
    have, connect, empty = 0, 0.0, trial.server.memory_kilobytes()
    for count in scale.growth:
        wanted = min(count, raise_file_limit() - _OTHER_FILES)
        if have and connect * (wanted / have) * (wanted - have) > _MOST_SECONDS * 1e6:
            # The line bends so much that the rest of it would take too long. The goals say so.
            break
        level = f" @ {wanted}"
        connect = trial.open_more(path, wanted - have)
        cells["connect, us" + level] = Cell(connect)
        have = wanted
        cells["idle, us a second" + level] = Cell(_idle(trial) / wanted)
        memory = (trial.server.memory_kilobytes() - empty) / wanted
        cells["memory, KB" + level] = Cell(memory)
        cells["publish, us" + level] = Cell(_publish(trial))
        groups = {"groups": wanted} if order == "each" else {}
        trial.deliver(wanted, order, events=1, **groups)
        trial.server.order("watch")
        cost, _, remark = trial.deliver(wanted * events, order, events=events, **groups)
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
    trial.server.order("aside", events=_GROUPS)
    return (trial.server.cpu_seconds() - before) / _GROUPS * 1e6
