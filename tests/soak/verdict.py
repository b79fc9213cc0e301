"""Compares what the clients received with what was published, and makes the table. Pure."""

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import NamedTuple

KINDS = ("lost", "duplicated", "out of order", "invented", "endless", "run twice")
"""What may be wrong with an event. Invented: rolled back, or never published at all.

And with an answer. Endless: a reader was not told of its end.
"""

_EXAMPLES = 10
# Microseconds: every number of an event is above, and what a store has for "none yet" below.
_CLOCK = 10**15


class Numbered(NamedTuple):
    """An event with its place in the group."""

    number: int
    text: str


class Tried(NamedTuple):
    """An event that a publisher tried to publish, and what became of it."""

    group: str
    outcome: str


@dataclass
class Stretch:
    """What a client received of a group from a position on, up to the next reset, if any."""

    start: int
    events: list[Numbered] = field(default_factory=list)


@dataclass
class Answered:
    """What became of an answer.

    ``runs`` are how many words each run of its producer has said, 0 if it was ended before, and
    ``reasons`` what those readers were told that were told of the end.
    """

    group: str
    runs: dict[str, int]
    history: list[Numbered]
    stretches: dict[str, list[Stretch]]
    reasons: list[str | None]


Truth = Mapping[tuple[str, int], Tried]
"""Each event that was tried, by the name of its publisher and its number there."""


class Findings:
    """What is wrong, counted by kind, with the first examples."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: list[str] = []

    def add(self, kind: str, where: str, what: object) -> None:
        self.counts[kind] += 1
        if len(self.examples) < _EXAMPLES:
            self.examples.append(f"{where}: {kind}: {str(what)[:100]}")


def read_truth(paths: Iterable[Path]) -> dict[tuple[str, int], Tried]:
    """Read what the publishers have noted, each in a file of its name."""
    truth: dict[tuple[str, int], Tried] = {}
    for path in paths:
        for line in path.read_text().splitlines():
            outcome, number, *group = line.split()
            event = path.stem, int(number)
            # One that was killed could not note what became of its last events.
            truth[event] = (
                Tried(group[0], "unknown") if group else Tried(truth[event].group, outcome)
            )
    return truth


def compare(
    where: str, expected: Sequence[Numbered], received: Sequence[Numbered], findings: Findings
) -> None:
    """Note in what a client's events differ from those expected."""
    if expected == received:
        return
    places = {event: place for place, event in enumerate(expected)}
    seen: set[Numbered] = set()
    furthest = -1
    for event in received:
        if event in seen:
            findings.add("duplicated", where, event)
        elif event not in places:
            findings.add("invented", where, event)
        else:
            if places[event] < furthest:
                findings.add("out of order", where, event)
            furthest = max(furthest, places[event])
        seen.add(event)
    for event in expected:
        if event not in seen:
            findings.add("lost", where, event)


def judge_history(
    group: str, history: Sequence[Numbered], truth: Truth, findings: Findings, *, forgetful: bool
) -> None:
    """Note in what a group's stored history differs from what was published.

    Every event is there once whose publishing was acknowledged, and no other than these and those
    in doubt. A forgetful store may have lost any of them.
    """
    where = f"the history of {group}"
    _judge_order(where, group, history, truth, findings)
    if not forgetful:
        seen = {source(event.text) for event in history}
        for event, tried in truth.items():
            if tried == (group, "done") and event not in seen:
                findings.add("lost", where, event)


def _judge_order(
    where: str, group: str, history: Sequence[Numbered], truth: Truth, findings: Findings
) -> None:
    """Note what is there twice or never was published, and where a publisher's order is lost."""
    seen: set[tuple[str, int]] = set()
    newest: Counter[str] = Counter()
    last = 0
    for numbered in history:
        event = source(numbered.text)
        tried = truth.get(event)
        if event in seen:
            findings.add("duplicated", where, numbered)
        elif tried is None or tried.group != group or tried.outcome == "gone":
            findings.add("invented", where, numbered)
        elif numbered.number <= last:
            findings.add("out of order", where, numbered)
        elif tried.outcome == "done":
            # One in doubt may have come late: its publisher did not wait for it.
            if event[1] < newest[event[0]]:
                findings.add("out of order", where, numbered)
            newest[event[0]] = max(newest[event[0]], event[1])
        seen.add(event)
        last = max(last, numbered.number)


def judge_client(
    where: str,
    group: str,
    stretches: Sequence[Stretch],
    history: Sequence[Numbered],
    truth: Truth,
    findings: Findings,
) -> None:
    """Note in what a client's events of a group differ from the group's history.

    Between two resets nothing may be missing of the history and of what was acknowledged; after
    the last one nothing up to the end.
    """
    numbers = {event.number for event in history}
    for place, stretch in enumerate(stretches):
        to_the_end = place == len(stretches) - 1
        end = stretch.events[-1].number if stretch.events else stretch.start
        start = _start(stretch, numbers)
        expected = [
            event
            for event in history
            if event.number > start and (to_the_end or event.number <= end)
        ]
        compare(where, expected, stretch.events, findings)
        _judge_gaps(
            where, group, stretch, {source(event.text) for event in expected}, truth, findings
        )


def judge_answer(answer: Answered, findings: Findings, *, forgetful: bool) -> None:
    """Note what is wrong with an answer.

    It was produced once, and all its readers received what is stored, from the first word on and
    without a gap, to the end. A forgetful store may have lost words, and have let it be produced
    again; then readers that followed it got a reset.
    """
    waiting = len(answer.stretches) - len(answer.reasons)
    # What is forgotten altogether has no end, unless somebody lets it be produced again.
    if waiting and (answer.history or not forgetful):
        findings.add("endless", answer.group, f"{waiting} readers, {len(answer.runs)} runs")
    received = {
        name: [event for stretch in stretches for event in stretch.events]
        for name, stretches in answer.stretches.items()
    }
    truth = _said(answer, chain(answer.history, *received.values()))
    judge_history(answer.group, answer.history, truth, findings, forgetful=forgetful)
    if not forgetful:
        if len(answer.runs) > 1:
            findings.add("run twice", answer.group, answer.runs)
        for name, events in received.items():
            compare(name, answer.history, events, findings)
        return
    had_reset = any(len(stretches) > 1 for stretches in answer.stretches.values())
    for name, stretches in answer.stretches.items():
        for stretch in stretches:
            _judge_order(name, answer.group, stretch.events, truth, findings)
            if not had_reset:
                _judge_gaps(name, answer.group, stretch, set(), truth, findings)


def _said(answer: Answered, events: Iterable[Numbered]) -> Truth:
    """Return the words up to the last that anybody knows of, and all of an answer that is told to
    be complete: not of a run that was forgotten with its group and cut off, before another one."""
    last: Counter[str] = Counter()
    for event in events:
        run, number = source(event.text)
        last[run] = max(last[run], number)
    return {
        (run, number): Tried(answer.group, "done")
        for run, words in answer.runs.items()
        for number in range(1, 1 + (words if words and "complete" in answer.reasons else last[run]))
    }


def _start(stretch: Stretch, numbers: Container[int]) -> int:
    """Return the number that a stretch starts after.

    Before the first event of a group its position is no number of the clock, and what follows it is
    the run of numbers that comes, from its first.
    """
    if stretch.start >= _CLOCK or not stretch.events:
        return stretch.start
    start = stretch.events[0].number - 1
    while start in numbers:
        start -= 1
    return start


def _judge_gaps(
    where: str,
    group: str,
    stretch: Stretch,
    judged: set[tuple[str, int]],
    truth: Truth,
    findings: Findings,
) -> None:
    """Note what no history knows of any more, and was acknowledged between two events received."""
    received: dict[str, list[int]] = {}
    for event in stretch.events:
        publisher, number = source(event.text)
        received.setdefault(publisher, []).append(number)
    for publisher, numbers in received.items():
        for number in set(range(min(numbers), max(numbers))).difference(numbers):
            missing = publisher, number
            if truth.get(missing) == (group, "done") and missing not in judged:
                findings.add("lost", where, missing)


def source(text: str) -> tuple[str, int]:
    """Return the publisher of an event and its number there."""
    _, publisher, number, *_ = text.split(" ")
    return publisher, int(number)


@dataclass
class Row:
    """What the soak test found out about an engine."""

    engine: str
    seconds: float
    events: int
    deliveries: int
    faults: Counter[str]
    findings: Findings
    resets: int
    slowest_recovery: float
    slowest_delivery: float
    complaints: list[str]
    answers: Sequence[Answered] = ()

    @property
    def passed(self) -> bool:
        return not self.complaints and not self.findings.counts.total()


def _told(answers: Sequence[Answered]) -> str:
    words = sum(len(answer.history) for answer in answers)
    reasons = Counter(
        next(iter(answer.reasons), "endless" if answer.history else "forgotten")
        for answer in answers
    )
    return f"{len(answers)} of {words:,} words: " + ", ".join(
        f"{count}x {reason}" for reason, count in reasons.items()
    )


def table(rows: Iterable[Row]) -> str:
    """Return the results as a table that is plain text and Markdown."""
    head = ["engine", "seconds", "events", "deliveries", "answers", "faults", *KINDS, "resets"]
    head += ["slowest recovery", "slowest delivery", "verdict"]
    cells = [head] + [
        [
            row.engine,
            f"{row.seconds:.0f}",
            f"{row.events:,}",
            f"{row.deliveries:,}",
            _told(row.answers),
            f"{row.faults.total()}: "
            + ", ".join(f"{count}x {kind}" for kind, count in row.faults.items()),
            *(f"{row.findings.counts[kind]:,}" for kind in KINDS),
            f"{row.resets:,}",
            f"{row.slowest_recovery:.1f} s",
            f"{row.slowest_delivery:.1f} s",
            "passed" if row.passed else "FAILED",
        ]
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * width for width in widths])
    return "\n".join("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in cells)
