"""Many tabs on one connection: the attribute `shared` is all that they need."""

import asyncio
from collections.abc import AsyncIterator

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import path
from django.views.decorators.http import require_POST, require_safe

from django_sse import Event, publish_many
from django_sse.decorators import event_generator
from django_sse.streaming.hub import current_hub
from django_sse.views import EventStreamView

BURST = 10


class Numbers(EventStreamView):
    groups = ["tabs"]


@require_POST
def publish_numbers(request: HttpRequest) -> HttpResponse:
    publish_many([("tabs", Event(f"<li>{number}</li>")) for number in range(1, BURST + 1)])
    return HttpResponse(status=204)


@event_generator
async def count(request: HttpRequest) -> AsyncIterator[Event]:
    """Yield how many streams of the group this process holds, whenever the number changes.

    The hub is not part of the public API. Only this page looks into it.
    """
    sent = None
    while True:
        streams = current_hub().occupancy.groups["tabs"]
        if streams != sent:
            yield Event(str(streams))
        sent = streams
        await asyncio.sleep(0.1)


@require_safe
def page(request: HttpRequest) -> HttpResponse:
    tabs = range(20 if "open" in request.GET else 1)
    return render(request, "demo_project/tabs.html", {"tabs": tabs, "burst": BURST})


@require_safe
def tab(request: HttpRequest) -> HttpResponse:
    return render(request, "demo_project/tab.html")


urlpatterns = [
    path("tabs/", page, name="tabs"),
    path("tabs/tab/", tab, name="tab"),
    path("tabs/publish/", publish_numbers, name="publish-numbers"),
    path("tabs/events/", Numbers.as_view(), name="tabs-events"),
    path("tabs/count/", count, name="tabs-count"),
]
