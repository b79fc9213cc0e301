"""The tables of the capacity model, and the page of the documentation that has them."""

from collections.abc import Sequence
from string import Template

from tests.benchmarks.capacity.check import Check
from tests.benchmarks.capacity.constants import Constants, RedisCosts
from tests.benchmarks.capacity.model import Machine, Site, plan
from tests.benchmarks.machine import HERE
from tests.benchmarks.table import markdown, number
from tests.live.servers import ROOT

_PAGE = "how-far-it-goes.md"
# From a small site to a million streams.
SITES = (
    Site(10_000, 10_000, 1_000),
    Site(100_000, 100_000, 5_000),
    Site(100_000, 1_000, 500),
    Site(1_000_000, 1_000_000, 20_000),
    Site(1_000_000, 10_000, 1_000),
    Site(1_000_000, 100, 10),
)


def costs_table(costs: Constants) -> str:
    """Return what was measured."""
    both = costs.one, costs.cluster
    rows = [
        ["what", "one Redis", "a cluster of three"],
        ["a process without streams, MiB", number(costs.process_memory / 1024), ""],
        ["a stream, KiB", number(costs.stream_memory), ""],
        ["a stream with its heartbeats, us a second", number(costs.stream_idle), ""],
        _row("a process to which nothing happens, us a second", "process_idle", *both),
        _row("an event, for each process that has streams of its group, us", "event", *both),
        _row("an event, for each stream of the group, us", "delivery", *both),
        ["to look through the name of a group that has changed, us", number(costs.name), ""],
        ["to ask for the state of a group, us", number(costs.state), ""],
        ["a connect, logged in, us", number(costs.connect), ""],
        ["a reconnect with a resume ticket, us", number(costs.reconnect), ""],
        _row("Redis, all servers: an event, us", "store_event", *both),
        _row("Redis: to tell a process of an event, us", "store_told", *both),
        ["Redis: the name of a group that has changed, us", number(costs.store_name), ""],
        ["... and the state of a group, us", number(costs.store_state), ""],
        _row(
            "Redis, all servers: a process to which nothing happens, us a second",
            "store_idle",
            *both,
        ),
        _row("`publish`, us of the publisher", "publish", *both),
        _row("`publish`, waits for, ms", "wait", *both),
    ]
    return markdown(rows)


def _row(what: str, name: str, *costs: RedisCosts) -> list[str]:
    return [what, *(number(getattr(each, name)) for each in costs)]


def checks_table(done: Sequence[Check]) -> str:
    """Return the predictions beside what was measured."""
    rows = [["processes", "Redis", "readers of a group", "what", "predicted", "measured", "error"]]
    rows += [
        [
            str(check.processes),
            str(check.nodes),
            str(check.readers),
            check.what,
            number(check.predicted),
            number(check.measured),
            f"{check.error:+.0%}",
        ]
        for check in done
    ]
    return markdown(rows)


def plans_table(costs: Constants, sites: Sequence[Site], machine: Machine) -> str:
    """Return what sites need."""
    rows = [
        [
            "streams",
            "groups",
            "events a second",
            "deliveries a second",
            "processes",
            "machines",
            "Redis servers",
            "publishers: cores",
            "fullest",
            "a process: CPU, memory, streams",
            "a deploy with resume tickets: CPU, reconnected in",
        ]
    ]
    for site in sites:
        wanted = plan(costs, site, machine)
        each = wanted.demand
        rows.append(
            [
                f"{site.streams:,}",
                f"{site.groups:,}",
                f"{site.events:,.0f}",
                f"{site.deliveries:,.0f}",
                f"{each.processes:,}",
                f"{wanted.machines:,}",
                str(each.nodes),
                number(each.publishers),
                wanted.fullest,
                f"{each.process:.0%}, {each.process_mib:,.0f} MiB, {each.streams:,.0f}",
                f"{wanted.deploy_core_seconds:,.0f} s, {number(wanted.deploy_seconds)} s",
            ]
        )
    return markdown(rows)


def write(costs: Constants, done: Sequence[Check], about: str) -> None:
    """Write the page.

    Args:
        about: Where and when it was measured.
    """
    page = Template((HERE / "capacity" / _PAGE).read_text()).substitute(
        about=about,
        costs=costs_table(costs),
        checks=checks_table(done),
        worst=f"{max(abs(check.error) for check in done):.0%}",
        sites=plans_table(costs, SITES, Machine()),
    )
    (ROOT / "docs" / _PAGE).write_text(page)
