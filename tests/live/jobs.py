"""What workers of all kinds do: publish, and use the project's own database before and after that.

A worker imports this and nothing else of the project's, perhaps not before it has forked.
"""

import os
import time
from concurrent.futures import ThreadPoolExecutor

import django
from django.apps import apps

if not apps.ready:
    django.setup()

from django.contrib.auth.models import User
from django.db import connection, transaction
from django.http import HttpRequest, HttpResponse
from django.urls import path

import django_sse


def publish(group: str, text: str) -> None:
    """Publish an event."""
    User.objects.count()
    django_sse.publish(group, text)
    # Where threads are greenlets: let those of the library's run, if there are any.
    time.sleep(0)
    User.objects.count()


def publish_in_transaction(group: str, text: str) -> None:
    """Publish an event in a transaction."""
    with transaction.atomic():
        publish(group, text)


def publish_and_leave(group: str, text: str) -> None:
    """Publish an event and end the process, without a word."""
    publish(group, text)
    os._exit(0)


def publish_in_threads(group: str, count: int) -> None:
    """Publish events in as many threads at once, each of which keeps to its database."""

    def publish_one(number: int) -> None:
        try:
            for _ in range(3):
                publish(group, str(number))
        finally:
            connection.close()

    with ThreadPoolExecutor(count) as threads:
        list(threads.map(publish_one, range(count)))
    print(f"{User.objects.count()} users")  # noqa: T201


def view(request: HttpRequest, group: str) -> HttpResponse:
    """Publish an event."""
    publish(group, request.GET["data"])
    return HttpResponse(status=204)


urlpatterns = [path("publish/<str:group>/", view)]
