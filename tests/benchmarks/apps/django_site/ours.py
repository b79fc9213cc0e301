"""django_sse: its URLs and its ASGI application."""

import os

import django
from asgiref.sync import sync_to_async
from django.urls import path

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.benchmarks.apps.django_site.settings")
django.setup()

from django_sse import aposition, apublish, publish  # noqa: E402
from django_sse.asgi import get_asgi_application  # noqa: E402
from django_sse.views import EventStreamView  # noqa: E402
from tests.benchmarks.apps.django_site import plain  # noqa: E402
from tests.benchmarks.apps.orders import Orders  # noqa: E402
from tests.benchmarks.apps.payload import payload  # noqa: E402


class All(EventStreamView):
    groups = ["all"]


class Resumable(All):
    resume_seconds = 3600


class One(EventStreamView):
    groups = ["one-{number}"]


urlpatterns = [
    path("all/", All.as_view()),
    path("resumable/", Resumable.as_view()),
    path("one/<int:number>/", One.as_view()),
    path("plain/", plain.ok),
]


# As a synchronous view does it, in its thread.


@sync_to_async
def _burst(group: str, events: int) -> None:
    for number in range(1, events + 1):
        publish(group, payload(number))


@sync_to_async
def _each(groups: int, events: int) -> None:
    for number in range(1, events + 1):
        for group in range(groups):
            publish(f"one-{group}", payload(number))


application = Orders(get_asgi_application(), apublish, burst=_burst, each=_each, position=aposition)
