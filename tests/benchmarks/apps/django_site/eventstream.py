"""django-eventstream: its URLs and its ASGI application, without a store."""

import os

import django
from asgiref.sync import sync_to_async
from django.urls import include, path

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.benchmarks.apps.django_site.settings")
django.setup()

import django_eventstream  # noqa: E402
from django.core.asgi import get_asgi_application  # noqa: E402

from tests.benchmarks.apps.orders import Orders  # noqa: E402
from tests.benchmarks.apps.payload import payload  # noqa: E402

_streams = include(django_eventstream.urls)
urlpatterns = [
    path("all/", _streams, {"channels": ["all"]}),
    path("one/<int:number>/", _streams, {"format-channels": ["one-{number}"]}),
]


def _send(group: str, data: str) -> None:
    django_eventstream.send_event(group, "message", data)


@sync_to_async
def _burst(group: str, events: int) -> None:
    for number in range(1, events + 1):
        _send(group, payload(number))


@sync_to_async
def _each(groups: int, events: int) -> None:
    for number in range(1, events + 1):
        for group in range(groups):
            _send(f"one-{group}", payload(number))


application = Orders(get_asgi_application(), sync_to_async(_send), burst=_burst, each=_each)
