"""What a connect costs, beside a plain async view behind the same middleware."""

from tests.benchmarks.scale import Scale
from tests.benchmarks.trial import Cell, Trial, remark_on

_WARM_UP = 50
_MISSED = 50
# What a server's queue of new connections holds.
_AT_ONCE = 4000


def connect(trial: Trial, scale: Scale) -> dict[str, Cell]:
    """A fresh connect, logged in."""
    plain = _plain(trial, scale)
    trial.open_more("/all/", _WARM_UP)
    cost = trial.open_more("/all/", scale.connects)
    return {
        "plain view, us": Cell(plain),
        "fresh connect, us": Cell(cost, times=cost / plain),
    }


def floor_of_connects(trial: Trial, scale: Scale) -> dict[str, Cell]:
    """What the server takes for a connection by itself, one after the other and all at once."""
    trial.open_more("/all/", _WARM_UP)
    one = trial.open_more("/all/", scale.connects)
    trial.close()
    all_at_once = trial.open_more("/all/", scale.storm_streams, in_flight=_AT_ONCE)
    return {"fresh connect, us": Cell(one), "reconnect, us": Cell(all_at_once)}


def storm(trial: Trial, scale: Scale) -> dict[str, Cell]:
    """All clients come back at once, and get what they missed."""
    return {"reconnect, us": _storm(trial, scale, "/all/")}


def storm_with_tickets(trial: Trial, scale: Scale) -> dict[str, Cell]:
    """All clients come back at once with a ticket that they were given before."""
    cookies = trial.server.cookies
    assert cookies
    ticketed = cookies.with_name("tickets")
    ticketed.write_text("".join(map(trial.server.with_ticket, cookies.read_text().splitlines())))
    trial.server.cookies = ticketed
    try:
        return {"reconnect with a ticket, us": _storm(trial, scale, "/resumable/")}
    finally:
        trial.server.cookies = cookies


def _storm(trial: Trial, scale: Scale, path: str) -> Cell:
    plain = _plain(trial, scale)
    trial.server.order("burst", events=1)
    header = f"Last-Event-ID: {trial.server.order('position')}"
    trial.server.order("burst", events=_MISSED)
    before = trial.server.cpu_seconds()
    trial.load.expect()
    trial.open_more(path, scale.storm_streams, header, in_flight=_AT_ONCE)
    total = scale.storm_streams * _MISSED
    report = trial.load.collect(total)
    cost = (trial.server.cpu_seconds() - before) / scale.storm_streams * 1e6
    return Cell(cost, remark=remark_on(report, total), times=cost / plain)


def _plain(trial: Trial, scale: Scale) -> float:
    trial.ask("/plain/", _WARM_UP)
    return trial.ask("/plain/", scale.connects)
