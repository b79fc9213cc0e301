"""Streams of so many groups, in turn. They are published to from other processes."""

import os

import django
from django.http import HttpRequest, HttpResponse
from django.urls import path

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.benchmarks.apps.django_site.settings")
django.setup()

from django_sse import aposition  # noqa: E402
from django_sse.asgi import get_asgi_application  # noqa: E402
from django_sse.views import EventStreamView  # noqa: E402


class Reader(EventStreamView):
    async def get_groups(self) -> list[str]:
        return [f"of-{self.kwargs['groups']}-{self.kwargs['number'] % self.kwargs['groups']}"]


class Resumable(Reader):
    resume_seconds = 3600


async def pid(request: HttpRequest) -> HttpResponse:
    """Say which process answers."""
    return HttpResponse(str(os.getpid()))


async def position(request: HttpRequest) -> HttpResponse:
    """Return the id at which the group of all that have one group stands."""
    return HttpResponse(await aposition("of-1-0"))


urlpatterns = [
    path("pid/", pid),
    path("position/", position),
    path("<int:groups>/<int:number>/", Reader.as_view()),
    path("resumable/<int:groups>/<int:number>/", Resumable.as_view()),
]

application = get_asgi_application()
