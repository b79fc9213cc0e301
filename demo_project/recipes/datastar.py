"""HTML over the wire, merged by Datastar.

The protocol is that of 1.0.0-beta.11, the last version on npm. Since 1.0.0-RC.1 the event is
`datastar-patch-elements`, with lines of `elements` and a `mode`.
"""

import re

from django.http import HttpRequest
from django.template.loader import render_to_string

from demo_project.recipes.actions import action
from django_sse import Event, cancel, publish, reopen
from django_sse.views import EventStreamView


class Stories(EventStreamView):
    groups = ["recipes-datastar"]
    # So that clients that come after the end also get `close`, and not only a 204.
    history = 5


def merge_fragments(html: str, **arguments: str) -> Event:
    """Return Datastar's event. Each line belongs to an argument, and begins with its name."""
    lines = [f"{name} {value}" for name, value in arguments.items()]
    # Not splitlines(), which knows more line ends than an event stream has.
    lines += [f"fragments {line}" for line in re.split("\r\n|\r|\n", html)]
    return Event("\n".join(lines), event="datastar-merge-fragments")


@action
def tell(request: HttpRequest) -> None:
    html = render_to_string("recipes/story.html", {"title": request.POST.get("title")})
    publish("recipes-datastar", merge_fragments(html, selector="#stories", mergeMode="prepend"))


@action
def end(request: HttpRequest) -> None:
    cancel("recipes-datastar", reason="the end")


@action
def begin(request: HttpRequest) -> None:
    reopen("recipes-datastar")
