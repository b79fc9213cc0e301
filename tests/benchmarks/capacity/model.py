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
_MOST_EVENTS = 1e6
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
    serving, storing = _work(costs, site, processes, nodes)
    streams = site.streams / processes
    # Groups are in so many slots, of which a server has some.
    fullest = ceil(_SLOTS / nodes) / _SLOTS
    return Demand(
        processes,
        nodes,
        serving / processes,
        storing * fullest,
        site.events * costs.redis(nodes).publish / _MICROSECONDS,
        (costs.process_memory + streams * costs.stream_memory) / 1024,
        streams,
    )


def _work(costs: Constants, site: Site, processes: int, nodes: int) -> tuple[float, float]:
    """Return what all processes have to do, and all Redis servers: shares of a core."""
    told = hearing(site.readers, processes)
    names, states = _looked_through(site, site.groups * told / processes)
    redis = costs.redis(nodes)
    serving = (
        site.events * told * redis.event
        + site.deliveries * redis.delivery
        + site.streams * costs.stream_idle
        + processes * (redis.process_idle + names * costs.name + states * costs.state)
    )
    storing = site.events * (redis.store_event + told * redis.store_told) + processes * (
        redis.store_idle + names * costs.store_name + states * costs.store_state
    )
    return serving / _MICROSECONDS, storing / _MICROSECONDS


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


def busy(serving: float, beside: float, processes: int) -> float:
    """Return how busy the fullest core of a machine of two is.

    Redis, the publisher and the load client are on the second one. A single process has the first
    one to itself, and several have both.

    Args:
        serving: What all processes do: a share of a core.
        beside: What all the others do.
    """
    return max(serving, beside) if processes == 1 else (serving + beside) / 2


def events_at(
    costs: Constants, streams: int, groups: int, processes: int, nodes: int, share: float
) -> float:
    """Return at how many events a second such a machine is so busy."""
    low, high = 0.0, _MOST_EVENTS
    while high - low > 1:
        site = Site(streams, groups, (low + high) / 2)
        serving, storing = _work(costs, site, processes, nodes)
        publishing = site.events * costs.redis(nodes).publish
        beside = storing + (publishing + site.deliveries * costs.client) / _MICROSECONDS
        if busy(serving, beside, processes) > share:
            high = site.events
        else:
            low = site.events
    return low
