"""The arithmetic: from what one stream and event costs to what a site needs.

All streams follow one group each, all groups have as many, and each process has a random part.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, expm1, log1p

from tests.benchmarks.capacity.constants import Constants

_MICROSECONDS = 1e6
_REDIS = "CPU of Redis"
# More than this many processes or servers are not tried.
_MOST = 20_000


@dataclass(frozen=True)
class Site:
    """A site, as its operators describe it."""

    streams: int
    groups: int
    events: float
    """A second, to all groups together."""
    deploy_hours: float
    """The time between two deploys."""

    @property
    def readers(self) -> float:
        """How many streams a group has."""
        return self.streams / self.groups

    @property
    def deliveries(self) -> float:
        """A second."""
        return self.events * self.readers


@dataclass(frozen=True)
class Machine:
    """What the operators run it on, and how full they let it be."""

    cores: int = 8
    memory_gib: float = 32
    busy: float = 0.6
    """The share of a core that a process may use: the rest is for peaks, and for reconnects."""
    streams: int = 20_000
    """What a process may have: each is an open file."""


@dataclass(frozen=True)
class Demand:
    """What so many processes and Redis servers have to do: shares of a core, and memory."""

    processes: int
    nodes: int
    process: float
    node: float
    publishers: float
    """All of them together."""
    process_mib: float
    streams: float
    """Of a process."""


@dataclass(frozen=True)
class Plan:
    """What a site needs."""

    demand: Demand
    machines: int
    full_first: str
    """What has to grow first."""
    deploy_core_seconds: float
    """CPU time that the reconnects of a deploy take, all processes together."""
    deploy_seconds: float
    """How long they take if they have what the processes do not need otherwise."""


def hearing(readers: float, processes: int) -> float:
    """Return how many of the processes have a stream of a group, on average."""
    if processes == 1:
        return 1.0 if readers >= 1 else readers
    # 1 - (1 - 1 / processes) ** readers, which is 0 for a float if there are many processes.
    return -processes * expm1(readers * log1p(-1 / processes))


def demand(costs: Constants, site: Site, processes: int, nodes: int) -> Demand:
    """Return what a process and a Redis server have to do."""
    told = hearing(site.readers, processes)
    others = processes - told
    streams = site.streams / processes
    serving = (
        site.events * (told * costs.event + others * costs.changed)
        + site.deliveries * costs.delivery
        + site.streams * costs.stream_idle
        + processes * costs.process_idle
    )
    storing = (
        site.events * (costs.store_event + told * costs.store_told + others * costs.store_changed)
        + processes * costs.store_idle
    )
    return Demand(
        processes,
        nodes,
        serving / processes / _MICROSECONDS,
        storing / nodes / _MICROSECONDS,
        site.events * costs.publish / _MICROSECONDS,
        (costs.process_memory + streams * costs.stream_memory) / 1024,
        streams,
    )


def plan(costs: Constants, site: Site, machine: Machine) -> Plan:
    """Return the fewest processes, machines and Redis servers that do it.

    Raises:
        ValueError: No number of them does.
    """
    processes, nodes = 1, 1
    reason = "nothing"
    while True:
        wanted = demand(costs, site, processes, nodes)
        part, times = max(_shortfalls(wanted, machine), key=lambda shortfall: shortfall[1])
        if times <= 1:
            break
        reason = part
        if part == _REDIS:
            nodes += 1
        else:
            processes += 1
        if processes > _MOST or nodes > _MOST:
            raise ValueError(f"No number of them suffices: {reason}.")
    reconnects = site.streams * costs.reconnect / _MICROSECONDS
    left = processes * max(1 - wanted.process, 0.01)
    of_memory = machine.memory_gib * 1024 / wanted.process_mib
    return Plan(
        wanted,
        ceil(processes / min(machine.cores, of_memory)),
        reason,
        reconnects,
        reconnects / left,
    )


def _shortfalls(wanted: Demand, machine: Machine) -> Iterator[tuple[str, float]]:
    """Give how many times too much each part has to do."""
    yield _REDIS, wanted.node / machine.busy
    yield "CPU of the processes", wanted.process / machine.busy
    yield "open files of the processes", wanted.streams / machine.streams


def events_held(
    costs: Constants, readers: float, processes: int, nodes: int, cores: int = 2
) -> float:
    """Return how many events a second this machine holds, where the load client, the publisher and
    Redis have the same cores.

    A single process has one core to itself.
    """
    told = hearing(readers, processes)
    others = processes - told
    serving = told * costs.event + others * costs.changed + readers * costs.delivery
    rest = (
        costs.store_event
        + told * costs.store_told
        + others * costs.store_changed
        + (costs.publish_many if nodes == 1 else costs.publish_many_cluster)
        + readers * costs.client
    )
    if processes == 1:
        return _MICROSECONDS / max(serving, rest / (cores - 1))
    return _MICROSECONDS * cores / (serving + rest)
