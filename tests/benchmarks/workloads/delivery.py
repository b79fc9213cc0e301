"""What a delivered event costs: CPU microseconds of the server."""

from tests.benchmarks.scale import Scale
from tests.benchmarks.trial import Cell, Trial

_PACE_MILLISECONDS = 100


def burst(trial: Trial, scale: Scale) -> dict[str, Cell]:
    """A burst to all streams, whose publisher does not give way."""
    return _to_all(trial, scale, "burst")


def yielding(trial: Trial, scale: Scale) -> dict[str, Cell]:
    """As many events, whose publisher gives way after each."""
    return _to_all(trial, scale, "yielding")


def paced(trial: Trial, scale: Scale) -> dict[str, Cell]:
    """Ten events a second to all streams, and how late they come (p50 and p99, milliseconds)."""
    trial.open("/all/", scale.streams)
    cost, report, remark = trial.deliver(
        scale.streams * scale.paced_events,
        "paced",
        events=scale.paced_events,
        milliseconds=_PACE_MILLISECONDS,
    )
    return {"paced": Cell(cost, (report.p50, report.p99), remark)}


def groups_of_one(trial: Trial, scale: Scale) -> dict[str, Cell]:
    """A stream for each group, and an event to each group in turn: publishing is included."""
    return {"groups of one": _to_each(trial, scale, "each")}


def groups_of_one_async(trial: Trial, scale: Scale) -> dict[str, Cell]:
    """The same, where an async publisher waits for each event in turn."""
    return {"groups of one, async": _to_each(trial, scale, "each_async")}


def _to_each(trial: Trial, scale: Scale, order: str) -> Cell:
    trial.open("/one/%d/", scale.streams)
    trial.deliver(scale.streams, order, groups=scale.streams, events=1)
    cost, _, remark = trial.deliver(
        scale.streams * scale.each_events,
        order,
        groups=scale.streams,
        events=scale.each_events,
    )
    return Cell(cost, remark=remark)


def _to_all(trial: Trial, scale: Scale, order: str) -> dict[str, Cell]:
    trial.open("/all/", scale.streams)
    trial.deliver(scale.streams * 5, order, events=5)
    cost, _, remark = trial.deliver(
        scale.streams * scale.burst_events, order, events=scale.burst_events
    )
    return {order: Cell(cost, remark=remark)}
