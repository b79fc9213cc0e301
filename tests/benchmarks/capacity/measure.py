"""Measures the constants on this machine, with one process and one Redis."""

import time
from dataclasses import replace
from pathlib import Path

from tests.benchmarks.capacity.constants import Constants
from tests.benchmarks.capacity.deployment import Deployment, Ran, deploy

_MICROSECONDS = 1e6
_STREAMS = 2000
_SECONDS = 5
# As long as the interval of the heartbeats.
_REST_SECONDS = 15
_AT_ONCE = 1000
_SETTLE_SECONDS = 2
_WARM_UP = 200
_FEW = 20
_NAMES = 10_000
# Events a second that are published one by one.
_ALONE_RATE = 500
# Groups of one reader and of many, and about as many events a second as a process keeps up with.
_ONE_READER = (_STREAMS, 3000)
_MANY_READERS = (_STREAMS // 20, 2000)


def constants(directory: Path, load: Path) -> Constants:
    """Return the constants."""
    single, cluster = directory / "single", directory / "cluster"
    single.mkdir()
    cluster.mkdir()
    with deploy(single, load, processes=1, nodes=1) as deployment:
        costs, rate = _single(deployment)
    with deploy(cluster, load, processes=1, nodes=3) as deployment:
        _, redis_alone = _rest(deployment)
        deployment.open(f"/{_ONE_READER[0]}/%d/", _FEW)
        process_idle, store_idle = _rest(deployment)
        deployment.close()
        several = _aside(deployment, rate)
    return replace(
        costs,
        process_idle_cluster=process_idle * _MICROSECONDS,
        store_idle_cluster=max(store_idle - redis_alone, 0) * _MICROSECONDS,
        publish_many_cluster=_publishing(several),
        wait_cluster=several.wait,
    )


def _single(deployment: Deployment) -> tuple[Constants, float]:
    """Return the constants without those of a cluster, and the rate at which they hold."""
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
    deployment.close()
    deployment.open(path, _STREAMS)
    one = _push(deployment, *_ONE_READER)
    deployment.close()
    time.sleep(_SETTLE_SECONDS)
    unheard = _aside(deployment, one.rate)
    each = _aside(deployment, _ALONE_RATE, alone=True)
    name, store_name = deployment.look_through(_NAMES)
    state, store_state = deployment.ask_states(_NAMES)
    deployment.open(f"/{_MANY_READERS[0]}/%d/", _STREAMS)
    many = _push(deployment, *_MANY_READERS)
    deployment.close()
    event, delivery = _split(one, many, idle)
    store_event = unheard.redis_seconds / unheard.events
    costs = Constants(
        full=(_busy(one) + _busy(many)) / 2,
        process_memory=empty,
        stream_memory=memory,
        process_idle=few_idle * _MICROSECONDS,
        process_idle_cluster=0,
        stream_idle=max(idle - few_idle, 0) / (_STREAMS - _FEW) * _MICROSECONDS,
        event=event,
        delivery=delivery,
        name=name * _MICROSECONDS,
        state=state * _MICROSECONDS,
        connect=connect * _MICROSECONDS,
        reconnect=_reconnect(deployment),
        store_event=store_event * _MICROSECONDS,
        store_told=max(one.redis_seconds / one.events - store_event, 0) * _MICROSECONDS,
        store_name=store_name * _MICROSECONDS,
        store_state=store_state * _MICROSECONDS,
        store_idle=max(store_idle - redis_alone, 0) * _MICROSECONDS,
        store_idle_cluster=0,
        publish=_publishing(each),
        publish_many=_publishing(unheard),
        publish_many_cluster=0,
        wait=unheard.wait,
        wait_cluster=0,
        client=many.seen.cpu / many.seen.received * _MICROSECONDS,
    )
    return costs, one.rate


def _aside(deployment: Deployment, rate: float, *, alone: bool = False) -> Ran:
    """Publish to groups that nobody follows."""
    # The first run warms up.
    for _ in range(2):
        ran = deployment.push("aside-", _STREAMS, 0, rate, _SECONDS, alone=alone)
    return ran


def _rest(deployment: Deployment) -> tuple[float, float]:
    """Return what the server and Redis take in a second in which nothing happens."""
    server, store = deployment.rest(_REST_SECONDS)
    return server / _REST_SECONDS, store / _REST_SECONDS


def _push(deployment: Deployment, groups: int, rate: float) -> Ran:
    # Under load, more happens at once, so each event costs less.
    return deployment.push_most(f"of-{groups}-", groups, _STREAMS // groups, rate)


def _split(one: Ran, many: Ran, idle: float) -> tuple[float, float]:
    """Return what an event costs a process, and what each stream of it adds."""
    one_each = (one.server_seconds - idle * one.seen.seconds) / one.events
    many_each = (many.server_seconds - idle * many.seen.seconds) / many.events
    readers = many.seen.received / many.events
    delivery = (many_each - one_each) / (readers - 1)
    return (one_each - delivery) * _MICROSECONDS, delivery * _MICROSECONDS


def _busy(ran: Ran) -> float:
    """Return the share of a core that the server used."""
    return ran.server_seconds / ran.seen.seconds


def _publishing(ran: Ran) -> float:
    """Return what the publisher takes for an event."""
    return ran.publisher_seconds / ran.events * _MICROSECONDS


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
