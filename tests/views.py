"""The views of the test project: streams, and what the tests need to know of the server."""

import asyncio
from collections.abc import AsyncIterator, Sequence

from channels.layers import get_channel_layer
from django.contrib import auth
from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, JsonResponse

from django_sse import Event, hub
from django_sse.decorators import event_stream
from django_sse.views import EventStreamView


class Group(EventStreamView):
    groups = ["{group}"]


class Groups(EventStreamView):
    async def get_groups(self) -> list[str]:
        return self.request.GET.getlist("group")


class Members(EventStreamView):
    """A group for users who are logged in."""

    groups = ["{group}"]

    async def authorize(self, groups: Sequence[str]) -> None:
        user = await self.request.auser()
        if not user.is_authenticated:
            raise PermissionDenied


@event_stream
async def progress(request: HttpRequest) -> AsyncIterator[Event]:
    steps = int(request.GET.get("steps", 5))
    for step in range(1, steps + 1):
        await asyncio.sleep(float(request.GET.get("delay", 0.2)))
        yield Event({"step": step, "steps": steps}, event="progress")


def login(request: HttpRequest) -> HttpResponse:
    """Log a user in: the response sets the session's cookie."""
    user, _ = User.objects.get_or_create(username="someone")
    auth.login(request, user)
    return HttpResponse(status=204)


async def open_streams(request: HttpRequest) -> HttpResponse:
    return JsonResponse(hub.open_streams(), safe=False)


async def group_send(request: HttpRequest, group: str) -> HttpResponse:
    """Send a plain Channels message to a group, as a project's code may."""
    await get_channel_layer().group_send(group, {"type": "sse.event", "data": request.GET["data"]})
    return HttpResponse(status=204)


async def long_page(request: HttpRequest) -> HttpResponse:
    return HttpResponse("long enough to be compressed " * 100)


async def unavailable(request: HttpRequest) -> HttpResponse:
    return HttpResponse("down for maintenance", status=503)
