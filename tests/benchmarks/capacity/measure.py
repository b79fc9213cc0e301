"""Measures the constants on this machine, with one process and one Redis."""

import time
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
_ASIDE_RATE = 1000
# The first ones warm up, and find the rate.
_TRIES = 4
# Groups of one reader and of many, and events a second to begin with.
_ONE_READER = (_STREAMS, 2000)
_MANY_READERS = (_STREAMS // 20, 1000)
# The share of its core that a process uses when an event is measured: under load, more happens at
# once, so each event costs less.
_BUSY = 0.8


def constants(directory: Path, load: Path) -> Constants:
    """Return the constants."""
    single, cluster = directory / "single", directory / "cluster"
    single.mkdir()
    cluster.mkdir()
    with deploy(cluster, load, processes=1, nodes=3) as deployment:
        for _ in range(2):
            # Nobody follows these groups.
            in_cluster = deployment.push("aside-", _STREAMS, 0, _ASIDE_RATE, _SECONDS)
        wait_cluster = deployment.push("aside-", _STREAMS, 0, 50, _SECONDS).wait
    with deploy(single, load, processes=1, nodes=1) as deployment:
        return _single(deployment, in_cluster, wait_cluster)


def _single(deployment: Deployment, in_cluster: Ran, wait_cluster: float) -> Constants:
    server = deployment.server
    for _ in range(2):
        unheard = deployment.push("aside-", _STREAMS, 0, _ASIDE_RATE, _SECONDS)
    single = deployment.push("aside-", _STREAMS, 0, 50, _SECONDS)
    path = f"/{_ONE_READER[0]}/%d/"
    deployment.open(path, _WARM_UP)
    deployment.close()
    time.sleep(_SETTLE_SECONDS)
    empty = server.memory_kilobytes()
    _, redis_alone = _rest(deployment)
    deployment.open(path, _FEW)
    few_idle, store_idle = _rest(deployment)
    passed_by = deployment.push("aside-", _STREAMS, 0, _ASIDE_RATE, _SECONDS)
    connect = deployment.open(path, _STREAMS - _FEW)
    time.sleep(_SETTLE_SECONDS)
    memory = (server.memory_kilobytes() - empty) / _STREAMS
    idle, _ = _rest(deployment)
    deployment.close()
    deployment.open(path, _STREAMS)
    one = _push(deployment, *_ONE_READER)
    deployment.close()
    deployment.open(f"/{_MANY_READERS[0]}/%d/", _STREAMS)
    many = _push(deployment, *_MANY_READERS)
    deployment.close()
    event, delivery = _split(one, many, idle)
    return Constants(
        process_memory=empty,
        stream_memory=memory,
        process_idle=few_idle * _MICROSECONDS,
        stream_idle=max(idle - few_idle, 0) / (_STREAMS - _FEW) * _MICROSECONDS,
        event=event,
        delivery=delivery,
        changed=max(passed_by.server_seconds / passed_by.events - few_idle / _ASIDE_RATE, 0)
        * _MICROSECONDS,
        connect=connect * _MICROSECONDS,
        reconnect=_reconnect(deployment),
        store_event=unheard.redis_seconds / unheard.events * _MICROSECONDS,
        store_told=max(one.redis_seconds / one.events - unheard.redis_seconds / unheard.events, 0)
        * _MICROSECONDS,
        store_changed=max(passed_by.redis_seconds - unheard.redis_seconds, 0)
        / passed_by.events
        * _MICROSECONDS,
        store_idle=max(store_idle - redis_alone, 0) * _MICROSECONDS,
        publish=_publish(single),
        publish_many=unheard.publisher_seconds / unheard.events * _MICROSECONDS,
        publish_many_cluster=in_cluster.publisher_seconds / in_cluster.events * _MICROSECONDS,
        wait=single.wait,
        wait_cluster=wait_cluster,
        client=many.client_seconds / many.seen.received * _MICROSECONDS,
    )


def _rest(deployment: Deployment) -> tuple[float, float]:
    """Return what the server and Redis take in a second in which nothing happens."""
    server, store = deployment.rest(_REST_SECONDS)
    return server / _REST_SECONDS, store / _REST_SECONDS


def _push(deployment: Deployment, groups: int, rate: float) -> Ran:
    readers = _STREAMS // groups
    for _ in range(_TRIES):
        ran = deployment.push(f"of-{groups}-", groups, readers, rate, _SECONDS)
        rate *= _BUSY / (ran.server_seconds / ran.seen.seconds)
    return ran


def _split(one: Ran, many: Ran, idle: float) -> tuple[float, float]:
    """Return what an event costs a process, and what each stream of it adds."""
    one_each = (one.server_seconds - idle * one.seen.seconds) / one.events
    many_each = (many.server_seconds - idle * many.seen.seconds) / many.events
    readers = many.seen.received / many.events
    delivery = (many_each - one_each) / (readers - 1)
    return (one_each - delivery) * _MICROSECONDS, delivery * _MICROSECONDS


def _publish(ran: Ran) -> float:
    # At so few events a second each turn publishes one by itself.
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
