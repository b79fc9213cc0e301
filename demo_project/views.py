import asyncio
from collections.abc import AsyncIterator

from django.http import HttpRequest

from django_sse import Event
from django_sse.decorators import event_stream
from django_sse.views import EventStreamView


class Group(EventStreamView):
    groups = ["{group}"]


class Groups(EventStreamView):
    async def get_groups(self) -> list[str]:
        return self.request.GET.getlist("group")


@event_stream
async def progress(request: HttpRequest) -> AsyncIterator[Event]:
    steps = int(request.GET.get("steps", 5))
    delay = float(request.GET.get("delay", 0.2))
    for step in range(1, steps + 1):
        await asyncio.sleep(delay)
        yield Event({"step": step, "steps": steps}, event="progress")
