"""HTML over the wire, swapped in by htmx and its extension for server-sent events."""

from django.http import HttpRequest

from demo_project.recipes.actions import action
from django_sse import cancel, publish_template, reopen
from django_sse.views import EventStreamView


class Stories(EventStreamView):
    groups = ["recipes-htmx"]
    # So that clients that come after the end also get `close`, and not only a 204.
    history = 5


@action
def tell(request: HttpRequest) -> None:
    story = {"title": request.POST.get("title")}
    publish_template("recipes-htmx", "recipes/story.html", story, event="story")


@action
def end(request: HttpRequest) -> None:
    cancel("recipes-htmx", reason="the end")


@action
def begin(request: HttpRequest) -> None:
    reopen("recipes-htmx")
