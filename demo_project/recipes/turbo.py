"""HTML over the wire, as Turbo Streams."""

from django.http import HttpRequest

from demo_project.recipes.actions import action
from django_sse import cancel, publish_template, reopen
from django_sse.views import EventStreamView


class Stories(EventStreamView):
    groups = ["recipes-turbo"]


@action
def tell(request: HttpRequest) -> None:
    story = {"title": request.POST.get("title")}
    # Without a type: Turbo reads messages.
    publish_template("recipes-turbo", "recipes/story.turbo-stream.html", story)


@action
def end(request: HttpRequest) -> None:
    cancel("recipes-turbo", reason="the end")


@action
def begin(request: HttpRequest) -> None:
    reopen("recipes-turbo")
