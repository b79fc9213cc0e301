"""The capacity model adds up, and a deployment delivers what it counts."""

import shutil
from dataclasses import fields, replace
from pathlib import Path

import pytest

from tests import redis
from tests.benchmarks.capacity.constants import Constants, RedisCosts
from tests.benchmarks.capacity.deployment import Deployment, Ran, deploy
from tests.benchmarks.capacity.model import Machine, Site, demand, events_at, hearing, plan
from tests.benchmarks.load import Report
from tests.benchmarks.machine import build
from tests.live.servers import unavailable

pytestmark = pytest.mark.once

REDIS = {field.name for field in fields(RedisCosts)}
NOTHING = RedisCosts(**dict.fromkeys(REDIS, 0.0))
FREE = Constants(NOTHING, NOTHING, *[0.0] * (len(fields(Constants)) - 2))


def costing(**costs: float) -> Constants:
    """All else is free. One server costs what a cluster does."""
    redis = {name: costs.pop(name) for name in REDIS & costs.keys()}
    return replace(FREE, one=replace(NOTHING, **redis), cluster=replace(NOTHING, **redis), **costs)


def test_a_group_of_one_is_heard_by_one_process() -> None:
    assert hearing(1, 1000) == pytest.approx(1)


def test_a_group_of_many_is_heard_by_all() -> None:
    assert hearing(100_000, 50) == pytest.approx(50)


def test_two_streams_are_in_the_same_process_now_and_then() -> None:
    # Of four ways to share two processes, two have both in one.
    assert hearing(2, 2) == pytest.approx(1.5)


def test_each_cost_is_that_of_its_own_part() -> None:
    site = Site(streams=1000, groups=1000, events=500)
    process = demand(costing(event=200, delivery=100), site, 10, 2)
    assert process.process == pytest.approx(0.015)
    assert process.node == 0
    store = demand(costing(store_event=200, store_told=50), site, 10, 2)
    assert store.node == pytest.approx(0.0625)
    assert store.process == 0
    memory = demand(costing(process_memory=2048, stream_memory=10.24), site, 10, 2)
    assert memory.process_mib == pytest.approx(3)


def test_a_cluster_has_three_servers_of_which_one_may_have_more_to_do() -> None:
    costs = costing(store_event=100)
    site = Site(streams=1000, groups=1000, events=10_000)
    assert demand(costs, site, 1, 1).node == pytest.approx(1)
    # 11 of 32 slots.
    assert demand(costs, site, 1, 3).node == pytest.approx(11 / 32)
    assert plan(replace(costs, process_memory=50_000), site, Machine()).demand.nodes == 3


def test_a_process_asks_for_its_own_groups_if_many_more_have_changed() -> None:
    costs = costing(name=1, state=100, store_name=1, store_state=10)
    few = Site(streams=20_000, groups=20_000, events=1000)
    # 5,000 names each 5 seconds, in each of 10 processes.
    assert demand(costs, few, 10, 1).process == pytest.approx(0.001)
    assert demand(costs, few, 10, 1).node == pytest.approx(0.01)
    many = Site(streams=1000, groups=1_000_000, events=100_000)
    # A process has 100 of the groups, and each of these has 1/1000 of a stream.
    own = 1_000_000 * hearing(0.001, 10) / 10
    assert demand(costs, many, 10, 1).process == pytest.approx(own * 100 / 5 / 1e6)


def test_a_plan_has_not_one_process_too_many() -> None:
    costs = costing(event=100, delivery=10, store_event=100, store_told=20, process_memory=50_000)
    site = Site(streams=1_000_000, groups=10_000, events=5000)
    machine = Machine()
    whole = plan(costs, site, machine)
    wanted = whole.demand
    assert wanted.process <= machine.busy
    assert wanted.node <= machine.busy
    assert wanted.streams <= machine.streams
    fewer = demand(costs, site, wanted.processes - 1, wanted.nodes)
    assert fewer.process > machine.busy or fewer.streams > machine.streams
    assert demand(costs, site, wanted.processes, wanted.nodes - 1).node > machine.busy
    assert whole.machines == -(-wanted.processes // machine.cores)


def test_a_plan_says_what_is_fullest() -> None:
    costs = costing(stream_idle=1, process_memory=1000)
    site = Site(streams=100_000, groups=1, events=0.1)
    assert plan(costs, site, Machine()).fullest == "open files of the processes"


def test_a_machine_has_no_part_of_a_process() -> None:
    costs = costing(process_memory=450 * 1024)
    site = Site(streams=180_000, groups=1, events=0.1)
    # Nine processes, of which 2 GiB have room for four.
    assert plan(costs, site, Machine(memory_gib=2)).machines == 3
    with pytest.raises(ValueError, match="more than a machine has"):
        plan(costs, site, Machine(memory_gib=0.4))


def test_a_deploy_takes_what_its_reconnects_do() -> None:
    costs = costing(reconnect=3000, process_memory=1000)
    wanted = plan(costs, Site(streams=20_000, groups=1, events=0.1), Machine())
    assert wanted.deploy_core_seconds == pytest.approx(60)
    assert wanted.deploy_seconds == pytest.approx(60)


def test_a_site_that_no_number_of_processes_can_hold_is_refused() -> None:
    # Each of the processes has to do too much without any stream.
    costs = costing(process_idle=700_000, process_memory=1000)
    site = Site(streams=1, groups=1, events=1)
    with pytest.raises(ValueError, match="CPU of the processes"):
        plan(costs, site, Machine())


def test_a_cluster_has_costs_of_its_own() -> None:
    costs = replace(FREE, one=replace(NOTHING, event=100), cluster=replace(NOTHING, event=300))
    site = Site(streams=1000, groups=1000, events=1000)
    assert demand(costs, site, 1, 1).process == pytest.approx(0.1)
    assert demand(costs, site, 1, 3).process == pytest.approx(0.3)


def test_one_process_fills_a_core_and_several_share_both() -> None:
    costs = costing(event=300, delivery=10)
    # Of 10 readers each.
    assert events_at(costs, 1000, 100, 1, 1, 0.8) == pytest.approx(2000, abs=1)
    # Each event is told to one process.
    assert events_at(costs, 1000, 1000, 2, 1, 0.62) == pytest.approx(4000, abs=1)
    # Redis and the processes share both.
    assert events_at(costing(event=100, store_event=300), 1000, 1000, 2, 1, 0.8) == pytest.approx(
        4000, abs=1
    )
    # Redis has the second one.
    assert events_at(costing(event=1, store_event=400), 1000, 1000, 1, 1, 0.8) == pytest.approx(
        2000, abs=1
    )


def test_what_there_is_without_events_leaves_less_for_them() -> None:
    costs = costing(event=100, process_idle=100_000, stream_idle=100)
    assert events_at(costs, 1000, 1000, 1, 1, 0.6) == pytest.approx(4000, abs=1)


class Imagined(Deployment):
    """It keeps up with 1,000 events a second, which take all of its core."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def push(self, prefix: str, groups: int, readers: int, rate: float, seconds: float) -> Ran:
        self.rates.append(rate)
        events = round(min(rate, 1000) * seconds)
        done = Report(groups, 0, events * readers, 0, 0, 0, 1, 1, 1, seconds, 0)
        return Ran(1, events, seconds, done, events / 1000, 0, 0, 1)


@pytest.mark.parametrize("expected", [600, 100, 50_000])
def test_a_deployment_is_pushed_until_it_is_as_busy_as_wanted(expected: float) -> None:
    deployment = Imagined()
    ran = deployment.push_until(0.6, "of-1-", 1, 1, expected)
    assert (ran.rate, ran.busy) == pytest.approx((600, 0.6), rel=0.1)
    # The first run warms up.
    assert len(deployment.rates) > 1


def test_a_deployment_that_is_never_so_busy_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="200% busy"):
        Imagined().push_until(2, "of-1-", 1, 1, 500)


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
