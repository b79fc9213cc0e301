"""URLs of the test project with the pages that ``docs/in-the-browser.md`` shows."""

from django.http import HttpRequest, HttpResponse
from django.template import RequestContext, Template
from django.urls import path

from django_sse import publish
from django_sse.views import EventStreamView
from tests import urls
from tests.docs.pages import blocks

PAGE = "docs/in-the-browser.md"

_BEFORE = """{% load static %}<!doctype html><title>documented</title>
<script>
  var printed = [];
  console.log = (...values) => printed.push(values.join(" "));
</script>
"""
# Before the first event, as it is the same turn of the page.
_LISTENING = """
<script>source.addEventListener("headline", (event) => console.log(event.data));</script>
"""


def documented(request: HttpRequest, number: int) -> HttpResponse:
    """Return a page with one of the blocks."""
    block = blocks("html", PAGE)[number]
    goes_on = "event_stream_position" in block
    context = RequestContext(request, {"headlines": [{"title": "of the database"}]})
    text = Template(f"{_BEFORE}{block}{_LISTENING if goes_on else ''}").render(context)
    if goes_on:
        # Between the rendering and the stream.
        publish("news", "published meanwhile", event="headline")
    return HttpResponse(text)


urlpatterns = [
    path("events/", EventStreamView.as_view(groups=["news"])),
    path("documented/<int:number>/", documented),
    *urls.urlpatterns,
]
