"""Writes the pages of the documentation that show the results."""

from collections.abc import Sequence
from string import Template

from tests.benchmarks.chart import chart
from tests.benchmarks.goals import Goal, goals
from tests.benchmarks.machine import HERE
from tests.benchmarks.results import Results
from tests.benchmarks.table import markdown, number, table
from tests.live.servers import ROOT

_DOCS = ROOT / "docs"

_DELIVERY = {
    "burst": "burst of 200",
    "yielding": "200, yielding after each",
    "paced": "paced, 10/s (p50 / p99 ms)",
    "groups of one": "1,000 groups of one",
    "groups of one, async": "1,000 groups of one, from async code",
    "KB per idle stream": "KB per idle stream (5,000)",
    "idle CPU %": "idle CPU, 5,000 with heartbeats (%)",
}
_CONNECTS = {
    "plain view, us": "plain async view",
    "fresh connect, us": "fresh connect",
    "reconnect, us": "reconnect of 5,000 at once, 50 events to replay",
    "reconnect with a ticket, us": "... with resume tickets",
}
_PUBLISHING = (
    "publish",
    "publish in a transaction",
    "... the user's part",
    "publish_many",
    "publish, many groups",
    "ORM create",
    "INSERT",
    "executemany",
    "XADD",
    "XADD, pipelined",
)
_STORES = ("ours", "ours-sqlite", "ours-postgresql", "ours-redis")
_CHARTED = (
    "floor",
    "bare",
    "nchan",
    "better-sse",
    "sse-starlette",
    "django-eventstream",
    "channels",
    "ours",
)
_PANELS = (
    ("burst", "Burst of 200 events to 1,000 streams: CPU us of the server for each delivery"),
    ("yielding", "200 events to 1,000 streams, the publisher gives way after each"),
    ("paced", "10 events a second to 1,000 streams"),
    ("groups of one", "1,000 streams of a group each, publishing included"),
    ("KB per idle stream", "Kilobytes for each of 5,000 idle streams"),
)


def write(results: Results) -> None:
    """Write the pages and the chart."""
    keys = list(results.titles)
    texts = {
        "machine": _machine(results),
        "deliveries": table(results, keys, list(_DELIVERY), list(_DELIVERY.values())),
        "connects": table(results, keys, list(_CONNECTS), list(_CONNECTS.values())),
        "publishing": table(results, _STORES, _PUBLISHING),
        "goals": _goals(goals(results)),
        "growth": _growth(results),
    }
    for template in (HERE / "pages").glob("*.md"):
        page = Template(template.read_text()).substitute(texts)
        (_DOCS / template.name).write_text(page)
    (_DOCS / "benchmarks.svg").write_text(chart(results, _CHARTED, _PANELS))


def _machine(results: Results) -> str:
    lines = [f"- {name}: {value}" for name, value in results.machine.items()]
    lines += [f"- Not measured: {complaint}" for complaint in results.complaints]
    return "\n".join(lines)


def _goals(reached: Sequence[Goal]) -> str:
    rows = [["goal", "bound", "reached", ""]]
    for goal in reached:
        bound = f"{'at least' if goal.at_least else 'at most'} {goal.bound:g}"
        met = {True: "yes", False: "**no**", None: "not measured"}[goal.met]
        said = "" if goal.reached is None else number(goal.reached)
        rows.append([goal.work, bound, said, met])
    return markdown(rows)


def _growth(results: Results) -> str:
    columns = [column for column in results.columns() if " @ " in column]
    works = dict.fromkeys(column.split(" @ ")[0] for column in columns)
    levels = sorted({int(column.split(" @ ")[1]) for column in columns})
    parts = []
    for key, title in results.titles.items():
        rows = [["streams", *works]]
        for level in levels:
            values = [results.value(key, f"{work} @ {level}") for work in works]
            if any(value is not None for value in values):
                texts = ["" if value is None else number(value) for value in values]
                rows.append([f"{level:,}", *texts])
        if len(rows) > 1:
            parts.append(f"## {title}\n\n{markdown(rows)}")
    return "\n\n".join(parts) or "The last run has not measured it."
