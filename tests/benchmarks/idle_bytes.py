"""``python -m tests.benchmarks.idle_bytes``: prints how many bytes an idle stream keeps.

In a process of its own, where nothing else comes or goes.
"""

import asyncio
import gc
import tracemalloc
from typing import Any

import django
from django.conf import settings
from django.urls import path

_STREAMS = 50


def main() -> None:
    settings.configure(
        SECRET_KEY="only for tests",
        ALLOWED_HOSTS=["*"],
        ROOT_URLCONF=__name__,
        INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "django_sse"],
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
        DJANGO_SSE={"STORE": "memory", "HEARTBEAT": 0},
    )
    django.setup()
    from django_sse.views import EventStreamView

    urlpatterns.append(path("news/", EventStreamView.as_view(groups=["news"])))
    print(asyncio.run(_measure()))


urlpatterns: list[Any] = []


async def _measure() -> int:
    """Return how many bytes more there are for each stream than with as many streams before."""
    from django_sse.asgi import get_asgi_application

    application = get_asgi_application()
    # What the first ones load is not the others' own.
    streams = await _open(application)
    tracemalloc.start()
    before = await _bytes_kept()
    streams += await _open(application)
    return (await _bytes_kept() - before) // _STREAMS


async def _open(application: Any) -> list[asyncio.Task[None]]:
    from django_sse.streaming.hub import open_streams

    wanted = open_streams() + _STREAMS
    streams = [asyncio.create_task(_stream(application)) for _ in range(_STREAMS)]
    while open_streams() < wanted:
        await asyncio.sleep(0.01)
    return streams


async def _bytes_kept() -> int:
    """Return how many bytes are in use once that no longer becomes less."""
    kept, before = 0, 1
    while kept < before:
        before = kept or tracemalloc.get_traced_memory()[0] + 1
        await asyncio.sleep(0.2)
        gc.collect()
        kept = tracemalloc.get_traced_memory()[0]
    return kept


async def _stream(application: Any) -> None:
    messages = iter([{"type": "http.request"}])

    async def receive() -> dict[str, Any]:
        for message in messages:
            return message
        return await asyncio.Future()

    async def send(message: dict[str, Any]) -> None:
        pass

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/news/",
        "headers": [],
        "query_string": b"",
        "http_version": "1.1",
    }
    await application(scope, receive, send)


if __name__ == "__main__":
    main()
