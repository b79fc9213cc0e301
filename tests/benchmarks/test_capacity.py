"""The capacity model adds up, and a deployment delivers what it counts."""

import shutil
from dataclasses import fields, replace
from pathlib import Path

import pytest

from tests import redis
from tests.benchmarks.capacity.constants import Constants
from tests.benchmarks.capacity.deployment import deploy
from tests.benchmarks.capacity.model import Machine, Site, demand, events_held, hearing, plan
from tests.benchmarks.machine import build
from tests.live.servers import unavailable

pytestmark = pytest.mark.once

FREE = Constants(**{field.name: 0.0 for field in fields(Constants)})


def test_a_group_of_one_is_heard_by_one_process() -> None:
    assert hearing(1, 1000) == pytest.approx(1)


def test_a_group_of_many_is_heard_by_all() -> None:
    assert hearing(100_000, 50) == pytest.approx(50)


def test_two_streams_are_in_the_same_process_now_and_then() -> None:
    # Of four ways to share two processes, two have both in one.
    assert hearing(2, 2) == pytest.approx(1.5)


def test_each_cost_is_that_of_its_own_part() -> None:
    site = Site(streams=1000, groups=1000, events=500, deploy_hours=24)
    process = demand(replace(FREE, event=200, delivery=100), site, 10, 2)
    assert process.process == pytest.approx(0.015)
    assert process.node == 0
    store = demand(replace(FREE, store_event=200, store_told=50), site, 10, 2)
    assert store.node == pytest.approx(0.0625)
    assert store.process == 0
    memory = demand(replace(FREE, process_memory=2048, stream_memory=10.24), site, 10, 2)
    assert memory.process_mib == pytest.approx(3)


def test_a_plan_has_not_one_process_too_many() -> None:
    costs = replace(
        FREE, event=100, delivery=10, store_event=100, store_told=20, process_memory=50_000
    )
    site = Site(streams=1_000_000, groups=10_000, events=5000, deploy_hours=24)
    machine = Machine()
    wanted = plan(costs, site, machine).demand
    assert wanted.process <= machine.busy
    assert wanted.node <= machine.busy
    assert wanted.streams <= machine.streams
    fewer = demand(costs, site, wanted.processes - 1, wanted.nodes)
    assert fewer.process > machine.busy or fewer.streams > machine.streams
    assert demand(costs, site, wanted.processes, wanted.nodes - 1).node > machine.busy


def test_a_site_that_no_number_of_processes_can_hold_is_refused() -> None:
    # Each of the processes hears of all events, and has to do too much with that alone.
    costs = replace(FREE, changed=100)
    site = Site(streams=100_000, groups=100_000, events=10_000, deploy_hours=24)
    with pytest.raises(ValueError, match="CPU of the processes"):
        plan(costs, site, Machine())


def test_more_cores_hold_more() -> None:
    costs = replace(FREE, event=300, delivery=10)
    # One process has one of the two cores; two of them have both.
    assert events_held(costs, 10, processes=1, nodes=1) == pytest.approx(2500)
    assert events_held(costs, 1, processes=2, nodes=1) == pytest.approx(2_000_000 / 310)


def test_a_deployment_counts_what_it_delivers(tmp_path: Path) -> None:
    if not redis.binary():
        unavailable("redis-server is not installed")
    if not shutil.which("cc"):
        unavailable("cc is not installed")
    load = build("load", tmp_path)
    with deploy(tmp_path, load, processes=2, nodes=3) as deployment:
        deployment.open("/3/%d/", 9)
        ran = deployment.push("of-3-", groups=3, readers=3, rate=100, seconds=0.5)
    assert ran.events == 50
    assert (ran.seen.received, ran.seen.missed, ran.seen.repeated) == (150, 0, 0)
    assert ran.wait > 0
    assert min(ran.server_seconds, ran.redis_seconds, ran.publisher_seconds) > 0
