"""Measures the constants on this machine, with one process, and one Redis or a cluster."""

import time
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.capacity.constants import Constants, RedisCosts
from tests.benchmarks.capacity.deployment import Deployment, Ran, deploy
from tests.benchmarks.capacity.model import Machine

_MICROSECONDS = 1e6
_STREAMS = 2000
_SECONDS = 6
# As long as the interval of the heartbeats.
_REST_SECONDS = 15
_AT_ONCE = 1000
_SETTLE_SECONDS = 2
_WARM_UP = 200
_FEW = 20
_NAMES = 10_000
# Groups of one reader and of many, each with about the events a second that make the fuller core as
# busy as in a plan.
_ONE_READER = (_STREAMS, 1000)
_MANY_READERS = (_STREAMS // 20, 600)


@dataclass(frozen=True)
class _Streams:
    """What streams cost without events: CPU seconds of a connect, and those of a second."""

    process_memory: float
    stream_memory: float
    connect: float
    few_idle: float
    idle: float
    """Of the server, with all streams."""
    store_idle: float


def constants(directory: Path, load: Path) -> Constants:
    """Return the constants."""
    single, cluster = directory / "single", directory / "cluster"
    single.mkdir()
    cluster.mkdir()
    with deploy(single, load, processes=1, nodes=1) as deployment:
        streams = _opened(deployment)
        one, client = _redis_costs(deployment, streams)
        name, store_name = deployment.look_through(_NAMES)
        state, store_state = deployment.ask_states(_NAMES)
        reconnect = _reconnect(deployment)
    with deploy(cluster, load, processes=1, nodes=3) as deployment:
        several, _ = _redis_costs(deployment, _opened(deployment))
    return Constants(
        one=one,
        cluster=several,
        process_memory=streams.process_memory,
        stream_memory=streams.stream_memory,
        stream_idle=max(streams.idle - streams.few_idle, 0) / (_STREAMS - _FEW) * _MICROSECONDS,
        name=name * _MICROSECONDS,
        state=state * _MICROSECONDS,
        connect=streams.connect * _MICROSECONDS,
        reconnect=reconnect,
        store_name=store_name * _MICROSECONDS,
        store_state=store_state * _MICROSECONDS,
        client=client,
    )


def _opened(deployment: Deployment) -> _Streams:
    """Open streams of a group each, and return what they cost."""
    server = deployment.server
    path = f"/{_ONE_READER[0]}/%d/"
    deployment.open(path, _WARM_UP)
    deployment.close()
    time.sleep(_SETTLE_SECONDS)
    empty = server.memory_kilobytes()
    _, redis_alone = _rest(deployment)
    deployment.open(path, _FEW)
    few_idle, store_idle = _rest(deployment)
    connect = deployment.open(path, _STREAMS - _FEW)
    time.sleep(_SETTLE_SECONDS)
    memory = (server.memory_kilobytes() - empty) / _STREAMS
    idle, _ = _rest(deployment)
    return _Streams(empty, memory, connect, few_idle, idle, max(store_idle - redis_alone, 0))


def _redis_costs(deployment: Deployment, streams: _Streams) -> tuple[RedisCosts, float]:
    """Return the costs with the deployment's Redis, and that of the load client."""
    one = _push(deployment, *_ONE_READER)
    half = deployment.push(f"of-{_ONE_READER[0]}-", _ONE_READER[0], 1, one.rate / 2, _SECONDS)
    deployment.close()
    time.sleep(_SETTLE_SECONDS)
    unheard = _aside(deployment, one.rate)
    deployment.open(f"/{_MANY_READERS[0]}/%d/", _STREAMS)
    many = _push(deployment, *_MANY_READERS)
    deployment.close()
    event, delivery = _split(one, many, streams.idle)
    store_event = unheard.redis_seconds / unheard.events
    costs = RedisCosts(
        process_idle=streams.few_idle * _MICROSECONDS,
        event=event,
        delivery=delivery,
        store_idle=streams.store_idle * _MICROSECONDS,
        store_event=store_event * _MICROSECONDS,
        store_told=max(one.redis_seconds / one.events - store_event, 0) * _MICROSECONDS,
        publish=one.publisher_seconds / one.events * _MICROSECONDS,
        wait=half.wait,
    )
    return costs, many.seen.cpu / many.seen.received * _MICROSECONDS


def _aside(deployment: Deployment, rate: float) -> Ran:
    """Publish to groups that nobody follows."""
    # The first run warms up.
    for _ in range(2):
        ran = deployment.push("aside-", _STREAMS, 0, rate, _SECONDS)
    return ran


def _rest(deployment: Deployment) -> tuple[float, float]:
    """Return what the server and Redis take in a second in which nothing happens."""
    server, store = deployment.rest(_REST_SECONDS)
    return server / _REST_SECONDS, store / _REST_SECONDS


def _push(deployment: Deployment, groups: int, rate: float) -> Ran:
    # The more happens at once, the less each event costs.
    return deployment.push_until(Machine.busy, f"of-{groups}-", groups, _STREAMS // groups, rate)


def _split(one: Ran, many: Ran, idle: float) -> tuple[float, float]:
    """Return what an event costs a process, and what each stream of it adds."""
    one_each = (one.server_seconds - idle * one.seen.seconds) / one.events
    many_each = (many.server_seconds - idle * many.seen.seconds) / many.events
    readers = many.seen.received / many.events
    delivery = (many_each - one_each) / (readers - 1)
    return (one_each - delivery) * _MICROSECONDS, delivery * _MICROSECONDS


def _reconnect(deployment: Deployment) -> float:
    """Return what a stream costs that comes back with a ticket."""
    server = deployment.server
    cookies, path = server.cookies, "/resumable/1/1/"
    assert cookies
    ticketed = cookies.with_name("tickets")
    lines = cookies.read_text().splitlines()
    ticketed.write_text("".join(server.with_ticket(line, path) for line in lines))
    server.cookies = ticketed
    # A ticket is for a client that has been here.
    header = f"Last-Event-ID: {server.get('/position/')}"
    try:
        deployment.open(path, _WARM_UP, header)
        return deployment.open(path, _STREAMS, header, in_flight=_AT_ONCE) * _MICROSECONDS
    finally:
        server.cookies = cookies
