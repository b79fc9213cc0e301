"""The table of clients: which of them can do what, and what to do where one cannot.

``docs/clients.md`` is made from it, and each of its cells is tested as it is.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum
from pathlib import Path

from tests.live.readers.npm import PACKAGE_JSON
from tests.live.readers.readers import (
    CURL,
    EVENT_SOURCE,
    EVENT_STREAM,
    PROGRAMS,
    Program,
    node,
    python,
    web_page,
)
from tests.live.servers import ROOT

PAGE = ROOT / "docs" / "clients.md"
# What the page says of browsers, written by hand from what the tests of tests/live show.
BROWSERS = Path(__file__).with_name("browsers.md")


class Row(Enum):
    """What is asked of a client."""

    CONNECTS = "connects"
    TYPES = "custom events"
    LINES = "multi-line data, indented"
    UNICODE = "Unicode"
    RESUMES = "resumes without loss"
    RESUMES_AT_FIRST = "resumes having received no event yet"
    HEARTBEATS = "heartbeats do no harm"
    CLOSE = "`close` ends it"
    NO_CONTENT = "204 ends it"
    NOT_REACHED = "comes back if it could not connect"
    REFUSED = "comes back if it was refused for now"


class Cell(StrEnum):
    """What a client makes of it."""

    YES = "yes"
    OWN_LINES = "own lines"
    NO = "**no**"


@dataclass(frozen=True)
class Client:
    """A client: the program that runs it, what it does not do by itself, and what to do then.

    ``advice`` is Markdown.
    """

    program: Program
    but: Mapping[Row, Cell]
    advice: str

    def cell(self, row: Row) -> Cell:
        """Return what it makes of a row."""
        return self.but.get(row, Cell.YES)


START = "give its URL the position of the page (`?lastEventId=`)"

CLIENTS = {
    "EventStream": Client(
        EVENT_STREAM,
        {},
        "django_sse's own, for the browser: its `close` event is the end, and says why.",
    ),
    "EventSource": Client(
        EVENT_SOURCE,
        {Row.CLOSE: Cell.OWN_LINES},
        "Close it at `close`, or let it ask once more: 204 ends it.",
    ),
    "eventsource": Client(
        node("eventsource.mjs"),
        {Row.RESUMES_AT_FIRST: Cell.OWN_LINES, Row.CLOSE: Cell.OWN_LINES},
        f"As EventSource; and {START}, since it keeps no id that came without an event.",
    ),
    "eventsource-client": Client(
        node("eventsource-client.mjs"),
        {Row.RESUMES_AT_FIRST: Cell.OWN_LINES, Row.CLOSE: Cell.OWN_LINES},
        f"Close it at `close`, and {START} or it as `initialLastEventId`.",
    ),
    "@microsoft/fetch-event-source": Client(
        web_page("fetch_event_source.html"),
        {
            Row.HEARTBEATS: Cell.OWN_LINES,
            Row.NO_CONTENT: Cell.OWN_LINES,
            Row.REFUSED: Cell.OWN_LINES,
        },
        "Abort at `close`; skip messages without data, which heartbeats are; throw in `onclose`, "
        "so that it comes back when the server restarts; and at a 204 throw in `onopen` what "
        "`onerror` throws again. The `onopen` of its README accepts no content type with a "
        "charset, hence none of ours.",
    ),
    "reconnecting-eventsource": Client(
        web_page("reconnecting_eventsource.html"),
        {Row.CLOSE: Cell.OWN_LINES, Row.NO_CONTENT: Cell.NO},
        "Close it at `close`: nothing else stops it. Give the view `history`, so that a "
        "client that comes after the end gets `close` too, and not 204.",
    ),
    "event-source-polyfill": Client(
        web_page("event_source_polyfill.html"),
        {Row.RESUMES_AT_FIRST: Cell.OWN_LINES, Row.CLOSE: Cell.OWN_LINES},
        f"As EventSource; and {START}. It comes back after a second at the earliest.",
    ),
    "httpx-sse": Client(
        python("httpx_sse"),
        {
            Row.RESUMES: Cell.OWN_LINES,
            Row.RESUMES_AT_FIRST: Cell.OWN_LINES,
            Row.HEARTBEATS: Cell.OWN_LINES,
            Row.NOT_REACHED: Cell.OWN_LINES,
            Row.REFUSED: Cell.OWN_LINES,
        },
        "Loop, with the last `id` as `Last-Event-ID`, until `close` or a 204; skip events without "
        "data, which heartbeats are; and give the client a `timeout` above `HEARTBEAT`: httpx "
        "gives up after five silent seconds.",
    ),
    "sseclient-py": Client(
        python("sseclient_py"),
        {
            Row.RESUMES: Cell.OWN_LINES,
            Row.RESUMES_AT_FIRST: Cell.OWN_LINES,
            Row.NOT_REACHED: Cell.OWN_LINES,
        },
        "Loop, with the last `id` as `Last-Event-ID` and `Accept: text/event-stream`, until "
        f"`close` or a 204; and {START}.",
    ),
    "aiohttp-sse-client": Client(
        python("aiohttp_sse_client"),
        {
            Row.LINES: Cell.NO,
            Row.RESUMES: Cell.OWN_LINES,
            Row.RESUMES_AT_FIRST: Cell.OWN_LINES,
            Row.CLOSE: Cell.OWN_LINES,
        },
        "Loop, with the last id as `Last-Event-Id`, until `close` or `ConnectionAbortedError`; "
        f"{START}; pass `timeout=ClientTimeout(total=None)`, since aiohttp ends everything after "
        "five minutes; and publish JSON, since it drops the spaces that a line begins with.",
    ),
    "launchdarkly-eventsource": Client(
        python("launchdarkly_eventsource"),
        {
            Row.RESUMES: Cell.OWN_LINES,
            Row.RESUMES_AT_FIRST: Cell.OWN_LINES,
            Row.NOT_REACHED: Cell.OWN_LINES,
            Row.REFUSED: Cell.OWN_LINES,
        },
        "Close it at `close`; set an `error_strategy` that goes on but after a 204, and a "
        "`max_delay`, without which its delay doubles for ever, whatever `retry:` says; and "
        f"{START} or it as `last_event_id`.",
    ),
    "curl": Client(
        CURL,
        {
            Row.RESUMES: Cell.NO,
            Row.RESUMES_AT_FIRST: Cell.OWN_LINES,
            Row.NOT_REACHED: Cell.OWN_LINES,
            Row.REFUSED: Cell.OWN_LINES,
        },
        "Use it to look at a stream: with `--fail --retry 9 --retry-all-errors` it comes back, but "
        "to where it began.",
    ),
}

_INTRODUCTION = """\
# Clients

What other clients do with the streams of django_sse. Tests run each cell with the real client, in
Chromium if the client is for pages, and in the version that is named. The differences between
[browsers](#browsers) are at the end.

- **yes**: the client does it, used as its README shows.
- **own lines**: it does it with a few lines that you add, which are named below and in its program.
- **no**: it cannot. The advice below says what to do instead.

<!-- Made by `python -m tests.live.readers` from tests/live/readers/matrix.py. -->
"""


def page() -> str:
    """Return the page of the documentation."""
    versions = _versions()
    parts = [_INTRODUCTION, _table(), "## What to do\n"]
    for name, client in CLIENTS.items():
        title = f"{name} {versions[name]}" if name in versions else name
        parts.append(f"- **{title}**{_source(client.program)}: {client.advice}")
    parts += ["", BROWSERS.read_text().rstrip()]
    return "\n".join(parts) + "\n"


def _table() -> str:
    lines = [f"| | {' | '.join(CLIENTS)} |", "|---" * (len(CLIENTS) + 1) + "|"]
    for row in Row:
        cells = [client.cell(row) for client in CLIENTS.values()]
        lines.append(f"| {row.value} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _source(program: Program) -> str:
    if not program.source:
        return ""
    path = (PROGRAMS / program.source).relative_to(ROOT)
    return f" ([program](../{path}))"


def _versions() -> dict[str, str]:
    pinned = re.findall(r'"([\w-]+)==([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    dependencies: dict[str, str] = json.loads(PACKAGE_JSON.read_text())["dependencies"]
    return {**dependencies, **dict(pinned)}
