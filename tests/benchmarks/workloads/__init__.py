"""The workloads. Each is a function that makes a trial, and returns the cells of its columns."""

from collections.abc import Callable
from dataclasses import dataclass

from tests.benchmarks.scale import Scale
from tests.benchmarks.trial import Cell, Trial
from tests.benchmarks.workloads import connect, delivery, growth, idle, publish


@dataclass(frozen=True)
class Workload:
    """What is measured, and whether on a server that has done nothing else."""

    measure: Callable[[Trial, Scale], dict[str, Cell]]
    fresh: bool = False
    rounds: int = 5
    """In so many rounds at most, it is measured: it takes long, or does not vary."""


WORKLOADS = {
    "burst": Workload(delivery.burst),
    "yielding": Workload(delivery.yielding),
    "paced": Workload(delivery.paced),
    "groups-of-one": Workload(delivery.groups_of_one),
    "groups-of-one-async": Workload(delivery.groups_of_one_async),
    "idle": Workload(idle.idle, fresh=True, rounds=1),
    "connect": Workload(connect.connect, fresh=True, rounds=3),
    "floor-of-connects": Workload(connect.floor_of_connects, fresh=True, rounds=3),
    "storm": Workload(connect.storm, fresh=True, rounds=1),
    "storm-with-tickets": Workload(connect.storm_with_tickets, fresh=True, rounds=1),
    "publish": Workload(publish.publish, fresh=True, rounds=3),
    "growth": Workload(growth.growth, fresh=True, rounds=1),
    "growth-of-groups": Workload(growth.growth_of_groups, fresh=True, rounds=1),
}
