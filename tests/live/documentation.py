"""URLs of the test project with the pages that the documentation shows: ``docs/in-the-browser.md``,
and ``docs/job-progress.md`` with its views."""

import json
from collections.abc import AsyncIterator
from threading import Semaphore
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.template import RequestContext, Template
from django.urls import path

from django_sse import publish
from django_sse.decorators import event_generator
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


# What the page leaves to its reader: where a token comes from, and what becomes of the answer.
_REQUEST = """
{% csrf_token %}
<script type="module">
  import { EventStream } from "{% static 'django_sse/event-stream.js' %}";
  const token = async () => "a token";
  SCRIPT
  stream.addEventListener("message", ({ data }) => console.log(data));
</script>
"""


@event_generator
async def answers(request: HttpRequest) -> AsyncIterator[str]:
    """Answer with what was asked, and by whom."""
    yield f"{request.headers['Authorization']}: {json.loads(request.body)['prompt']}"


def documented_request(request: HttpRequest) -> HttpResponse:
    """Return a page with the script that sends a request of its own."""
    [script] = blocks("js", PAGE)
    page = f"{_BEFORE}{_REQUEST}".replace("SCRIPT", script)
    return HttpResponse(Template(page).render(RequestContext(request)))


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


JOB = "docs/job-progress.md"

_rows = Semaphore(0)


def import_row(row: str) -> None:
    """Import a row, once a test lets it be imported."""
    _rows.acquire()


def let_import(request: HttpRequest) -> HttpResponse:
    """Let one more row be imported."""
    _rows.release()
    return HttpResponse()


def documented_job(request: HttpRequest, template: str, values: dict[str, Any]) -> HttpResponse:
    """Return the page of a job: both of its bars."""
    page = "<!doctype html><title>job</title>" + "".join(blocks("html", JOB))
    return HttpResponse(Template(page).render(RequestContext(request, values)))


def job_views() -> list[Any]:
    """Return the URLs of a job, run as the documentation has it."""
    defined: dict[str, Any] = {"__name__": "example"}
    for block in blocks("python", JOB):
        exec(compile(block, JOB, "exec"), defined)
    defined |= {"import_row": import_row, "render": documented_job}
    return list(defined["urlpatterns"])


urlpatterns = [
    *job_views(),
    path("documented/let-import/", let_import),
    path("events/", EventStreamView.as_view(groups=["news"])),
    path("answers/", answers),
    path("documented/<int:number>/", documented),
    path("documented/request/", documented_request),
    *urls.urlpatterns,
]
