"""The arithmetic: from what one stream and event costs to what a site needs.

All streams follow one group each, all groups have as many, and each process has a random part.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, expm1, log1p

from django_sse.doorbells.base import POLL_SECONDS_WITH_DOORBELL
from django_sse.stores.base import most_changes
from django_sse.stores.redis.keys import ClusterKeys
from tests.benchmarks.capacity.constants import Constants

_MICROSECONDS = 1e6
_REDIS = "CPU of Redis"
# More processes are not tried.
_MOST_PROCESSES = 20_000
# In so many slots the store keeps its groups.
_SLOTS = len(ClusterKeys.shards)


@dataclass(frozen=True)
class Site:
    """A site, as its operators describe it."""

    streams: int
    groups: int
    events: float
    """A second, to all groups together."""

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
    """Of the Redis server that has the most to do."""
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
    fullest: str
    """What is nearest to its limit."""
    deploy_core_seconds: float
    """CPU time that the reconnects of a deploy take, all processes together."""
    deploy_seconds: float
    """How long that takes if they have what the processes do not need otherwise."""


def hearing(readers: float, processes: int) -> float:
    """Return how many of the processes have a stream of a group, on average."""
    if processes == 1:
        return 1.0 if readers >= 1 else readers
    # 1 - (1 - 1 / processes) ** readers, which is 0 for a float if there are many processes.
    return -processes * expm1(readers * log1p(-1 / processes))


def demand(costs: Constants, site: Site, processes: int, nodes: int) -> Demand:
    """Return what a process and a Redis server have to do."""
    told = hearing(site.readers, processes)
    streams = site.streams / processes
    names, states = _looked_through(site, site.groups * told / processes)
    is_cluster = nodes > 1
    serving = (
        site.events * told * costs.event
        + site.deliveries * costs.delivery
        + site.streams * costs.stream_idle
        + processes * (costs.process_idle_cluster if is_cluster else costs.process_idle)
        + processes * (names * costs.name + states * costs.state)
    )
    storing = (
        site.events * (costs.store_event + told * costs.store_told)
        + processes * (costs.store_idle_cluster if is_cluster else costs.store_idle)
        + processes * (names * costs.store_name + states * costs.store_state)
    )
    # Groups are in so many slots, of which a server has some.
    fullest = ceil(_SLOTS / nodes) / _SLOTS
    return Demand(
        processes,
        nodes,
        serving / processes / _MICROSECONDS,
        storing * fullest / _MICROSECONDS,
        site.events * costs.publish / _MICROSECONDS,
        (costs.process_memory + streams * costs.stream_memory) / 1024,
        streams,
    )


def _looked_through(site: Site, followed: float) -> tuple[float, float]:
    """Return of how many groups a process gets the name in a second, and the state, as it compares
    itself with the store: if many more have changed than it follows, it asks for its own."""
    changed = min(site.groups, site.events * POLL_SECONDS_WITH_DOORBELL)
    if changed <= most_changes(range(round(followed))):
        return changed / POLL_SECONDS_WITH_DOORBELL, 0.0
    return 0.0, followed / POLL_SECONDS_WITH_DOORBELL


def plan(costs: Constants, site: Site, machine: Machine) -> Plan:
    """Return the fewest processes, machines and Redis servers that do it.

    Raises:
        ValueError: No number of them does.
    """
    processes, nodes = 1, 1
    while True:
        wanted = demand(costs, site, processes, nodes)
        part, times = max(_loads(wanted, machine), key=lambda load: load[1])
        if times <= 1:
            break
        if part != _REDIS:
            processes += 1
        else:
            # A cluster has at least three masters.
            nodes = max(nodes + 1, 3)
        if processes > _MOST_PROCESSES or nodes > _SLOTS:
            raise ValueError(f"No number of them suffices: {part}.")
    on_a_machine = min(machine.cores, int(machine.memory_gib * 1024 / wanted.process_mib))
    if not on_a_machine:
        raise ValueError(f"A process needs {wanted.process_mib:.0f} MiB, more than a machine has.")
    reconnects = site.streams * costs.reconnect / _MICROSECONDS
    left = processes * (1 - wanted.process)
    return Plan(wanted, ceil(processes / on_a_machine), part, reconnects, reconnects / left)


def _loads(wanted: Demand, machine: Machine) -> Iterator[tuple[str, float]]:
    """Give how full each part is, where 1 is its limit."""
    yield _REDIS, wanted.node / machine.busy
    yield "CPU of the processes", wanted.process / machine.busy
    yield "open files of the processes", wanted.streams / machine.streams


def events_held(costs: Constants, readers: float, processes: int, nodes: int) -> float:
    """Return how many events a second this machine holds.

    It has two cores. The load client, the publisher and Redis have the second one. A single process
    has the first one, and several have both.
    """
    told = hearing(readers, processes)
    serving = told * costs.event + readers * costs.delivery
    rest = (
        costs.store_event
        + told * costs.store_told
        + (costs.publish_many if nodes == 1 else costs.publish_many_cluster)
        + readers * costs.client
    )
    of_both = 0.0 if processes == 1 else (serving + rest) / 2
    of_one = serving if processes == 1 else 0.0
    return costs.full * _MICROSECONDS / max(of_one, rest, of_both)
