"""The recipes: the page of each, and the code that it shows."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from demo_project.recipes import datastar, htmx, turbo, tutorials


@dataclass(frozen=True)
class Recipe:
    """A recipe. Its page is the template of the same name.

    Args:
        server: The functions and classes of its server, in reading order.
        package: The npm package that its page needs.
        files: The files that its page uses, below ``node_modules``.
    """

    name: str
    title: str
    summary: str
    server: Sequence[Callable[..., Any]]
    package: str = ""
    files: Sequence[str] = ()

    @property
    def source(self) -> str:
        """The source code of its server."""
        return "\n\n".join(inspect.getsource(part) for part in self.server).strip()

    @property
    def path(self) -> str:
        """The file that contains its server."""
        return f"{self.server[0].__module__.replace('.', '/')}.py"


TUTORIALS = (
    Recipe(
        "digits",
        "1, 2, 3, bye",
        "Three messages, an event with a type, and the end.",
        [tutorials.digits],
    ),
    Recipe(
        "server-time",
        "Server time",
        "Ten messages, one a second, and how long to wait before reconnecting.",
        [tutorials.server_time],
    ),
    Recipe(
        "close-message",
        "A message that closes",
        "A protocol in JSON, two seconds of grace, and a client that gives up.",
        [tutorials.download, tutorials.maintenance],
    ),
    Recipe(
        "join-leave",
        "Join and leave",
        "Two types of events for a room, in every open tab.",
        [tutorials.Room, tutorials.join, tutorials.leave],
    ),
    Recipe(
        "lines",
        "Several lines",
        "Data of more than one line, in JSON and in HTML.",
        [tutorials.lines],
    ),
    Recipe(
        "cross-origin",
        "Another origin, with its cookies",
        "A page of localhost reads a stream of 127.0.0.1, and the other way round.",
        [tutorials.enter, tutorials.who],
    ),
    Recipe(
        "last-event-id",
        "Resuming with Last-Event-ID",
        "The connection breaks after every third event, and no event is missing.",
        [tutorials.numbers],
    ),
    Recipe(
        "missed-events",
        "Missed events",
        "The same for the events of a group, without code for it.",
        [tutorials.Ticker, tutorials.tick],
    ),
    Recipe(
        "no-content",
        "204: do not come back",
        "How a server stops an EventSource for good.",
        [tutorials.Sale, tutorials.sell_out, tutorials.restock],
    ),
    Recipe(
        "another-answer",
        "Responses that are not streams",
        "What else ends an EventSource for good: a 404, and a 200 with another content type.",
        [tutorials.not_there, tutorials.no_stream],
    ),
)
FRAGMENTS = (
    Recipe(
        "htmx",
        "htmx",
        "Templates that htmx swaps into the page.",
        [htmx.Stories, htmx.tell, htmx.end, htmx.begin],
        "htmx-ext-sse",
        ["htmx.org/dist/htmx.min.js", "htmx-ext-sse/dist/sse.min.js"],
    ),
    Recipe(
        "turbo",
        "Turbo",
        "Turbo Streams, rendered by Django.",
        [turbo.Stories, turbo.tell, turbo.end, turbo.begin],
        "@hotwired/turbo",
        ["@hotwired/turbo/dist/turbo.es2017-esm.js"],
    ),
    Recipe(
        "datastar",
        "Datastar",
        "Fragments that Datastar merges into the page.",
        [
            datastar.Stories,
            datastar.merge_fragments,
            datastar.tell,
            datastar.end,
            datastar.begin,
        ],
        "@starfederation/datastar",
        ["@starfederation/datastar/dist/datastar.js"],
    ),
)
