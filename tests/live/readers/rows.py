"""What each row of the table asks of a client, played through with one run of its program."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import httpx

from tests.live.browser import wait_until
from tests.live.client import SECONDS
from tests.live.readers.matrix import Row
from tests.live.readers.readers import Reader
from tests.live.sites import Site

# So many streams of a group may be open: what is left of one that was cut, and the next one.
MAX_STREAMS = 2

OVER = '{"reason":"over"}'

LAST = "last"

# The event that each of these rows asks for.
EVENTS = {
    Row.CONNECTS: ("message", "first"),
    Row.TYPES: ("headline", "typed"),
    Row.LINES: ("message", '<ul>\n  <li class="new">\n\n    one</li>\n</ul>'),
    Row.UNICODE: ("message", "zażółć 日本語 🎉 \u2028 \x85 \ufeff"),
}


@dataclass(frozen=True)
class Trial:
    """One run of a client: its program, ready to start, and a group of its own on the site."""

    site: Site
    group: str
    start: Callable[[str, bool], Reader]
    own_lines: bool

    @property
    def path(self) -> str:
        return f"/events/{self.group}/"

    @property
    def statuses(self) -> list[int | None]:
        """The status of each request for the group's stream."""
        return self.site.statuses(self.path)

    def follow(self, path: str) -> Reader:
        """Start the program."""
        return self.start(f"{self.site.origin}{path}", self.own_lines)

    def followed(self, path: str) -> Reader:
        """Start the program, and wait until its stream is open."""
        reader = self.follow(path)
        self.wait_for_stream(reader)
        return reader

    def wait_for_stream(self, reader: Reader) -> None:
        """Wait until its stream is open, or will never be."""
        wait_until(
            lambda: self.site.open_streams() or reader.has_ended,
            lambda: f"no stream: {reader.reports}",
        )

    def publish(self, data: str, event: str = "message") -> None:
        self.site.act(f"/publish/{self.group}/", data=data, event=event)

    def publish_to(self, reader: Reader, data: str) -> bool:
        """Publish an event, and wait until it has come, or never will; return whether it has."""
        self.publish(data)
        wait_until(
            lambda: ("message", data) in reader.events or reader.has_ended,
            lambda: f"{data!r} has not come: {reader.reports}",
        )
        return ("message", data) in reader.events


def events_of_each_kind(trial: Trial) -> list[tuple[str, str]]:
    """Return what comes of an event of each kind, and of the last one, after a heartbeat."""
    reader = trial.followed(f"/heartbeats/{trial.group}/")
    for name, data in EVENTS.values():
        trial.publish(data, name)
    # Another stream, begun later, that has had a heartbeat: so has the reader's.
    url = f"http://127.0.0.1:{trial.site.server.port}/heartbeats/{trial.group}.other/"
    with httpx.stream("GET", url, verify=False, timeout=SECONDS) as response:
        next(line for line in response.iter_lines() if line.startswith(":"))
    trial.publish_to(reader, LAST)
    return reader.events


def has_received(events: list[tuple[str, str]], row: Row) -> bool:
    """Return whether these events, one of each kind, are what a row asks for."""
    if row is Row.HEARTBEATS:
        return events[-1] == ("message", LAST) and len(events) == len(EVENTS) + 1
    return EVENTS[row] in events


def _resumes(trial: Trial) -> bool:
    reader = trial.followed(trial.path)
    trial.publish_to(reader, "one")
    with trial.site.network.cut():
        trial.publish("two")
    return _goes_on(trial, reader, ["one", "two", "three"])


def _resumes_at_first(trial: Trial) -> bool:
    here = trial.site.act(f"/position/{trial.group}/")
    # With lines of one's own the page says where it stands.
    query = f"?lastEventId={here}" if trial.own_lines else ""
    reader = trial.follow(f"{trial.path}{query}")
    # With the first bytes it has a position.
    wait_until(lambda: here.encode() in trial.site.network.tail, "it is not sent the first bytes")
    reader.take_in()
    with trial.site.network.cut(hang_up=True):
        trial.publish("two")
    return _goes_on(trial, reader, ["two", "three"])


def _goes_on(trial: Trial, reader: Reader, expected: list[str]) -> bool:
    """Whether a reader that was cut off comes back, and has all in the end, once and in order."""
    wait_until(
        # Answered, so that what is published now comes after where it begins.
        lambda: sum(map(bool, trial.statuses)) > 1 or reader.has_ended,
        lambda: f"it has not come back: {reader.reports}",
    )
    trial.publish_to(reader, expected[-1])
    # Events that a client makes of nothing are another matter.
    return [data for data in _data(reader) if data] == expected


def _ends_at_close(trial: Trial) -> bool:
    reader = trial.followed(trial.path)
    trial.publish_to(reader, "last")
    trial.site.cancel(trial.group, "over")
    wait_until(
        lambda: len(trial.statuses) > 1 or reader.has_ended,
        lambda: f"it neither ends nor asks again: {reader.reports}",
    )
    assert ("close", OVER) in reader.events
    return trial.statuses == [200]


def _ends_at_no_content(trial: Trial) -> bool:
    trial.site.cancel(trial.group, "over")
    reader = trial.follow(trial.path)
    wait_until(
        lambda: len(trial.statuses) > 1 or reader.has_ended,
        lambda: f"it neither ends nor asks again: {reader.reports}",
    )
    assert set(trial.statuses) <= {204, None}
    return len(trial.statuses) == 1


def is_ended_by_a_view_with_history(trial: Trial) -> bool:
    """Whether a client that comes too late is ended by a view that shows it the history."""
    path = f"/history/{trial.group}/"
    trial.publish("one")
    trial.site.cancel(trial.group, "over")
    reader = trial.follow(path)
    wait_until(lambda: reader.has_ended, lambda: f"it does not end: {reader.reports}")
    return _data(reader) == ["one", OVER] and trial.site.statuses(path) == [200]


def _comes_back_when_not_reached(trial: Trial) -> bool:
    with trial.site.network.cut():
        reader = trial.follow(trial.path)
        wait_until(lambda: reader.has_failed or reader.has_ended, "it does not notice")
    trial.wait_for_stream(reader)
    return trial.publish_to(reader, "one")


def _comes_back_when_refused(trial: Trial) -> bool:
    url = f"http://127.0.0.1:{trial.site.server.port}{trial.path}"
    with ExitStack() as others:
        for _ in range(MAX_STREAMS):
            others.enter_context(httpx.stream("GET", url, timeout=None, verify=False))
        wait_until(lambda: trial.site.open_streams() == MAX_STREAMS, "the others are not there")
        before = len(trial.statuses)
        reader = trial.follow(trial.path)
        wait_until(lambda: any(trial.statuses[before:]), "it has not been answered")

    def is_decided() -> bool:
        # A stream or another refusal: its requests do not tell.
        trial.publish("one")
        return reader.has_ended or ("message", "one") in reader.events

    wait_until(is_decided, lambda: f"it does not come back: {reader.reports}")
    return ("message", "one") in reader.events


def _data(reader: Reader) -> list[str]:
    return [data for _, data in reader.events]


# Whether a client does what each of the other rows asks.
WORKS: dict[Row, Callable[[Trial], bool]] = {
    Row.RESUMES: _resumes,
    Row.RESUMES_AT_FIRST: _resumes_at_first,
    Row.CLOSE: _ends_at_close,
    Row.NO_CONTENT: _ends_at_no_content,
    Row.NOT_REACHED: _comes_back_when_not_reached,
    Row.REFUSED: _comes_back_when_refused,
}
