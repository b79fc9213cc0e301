"""``python -m tests.benchmarks.least``: what an event to a stream of its own takes, beside what its
promises take at least (see ``apps/least.py``); in one process, without a server.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import django
from django.conf import settings

_GROUPS = 1000
_ROUNDS = 20
_DATA = "x" * 150

Publish = Callable[[str, str], Awaitable[object]]


def main() -> None:
    settings.configure(
        SECRET_KEY="only for tests",
        INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "django_sse"],
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
        DJANGO_SSE={"STORE": "memory"},
    )
    django.setup()
    for name, measure in (("least", _least), ("django_sse", _django_sse)):
        print(f"{name}: {asyncio.run(measure()):.1f} CPU microseconds for each event")


async def _timed(publish: Publish, sent: list[bytes]) -> float:
    """Return the CPU microseconds of the fastest round, for each event."""
    fastest = float("inf")
    for _ in range(_ROUNDS):
        sent.clear()
        begun = time.process_time()
        for group in range(_GROUPS):
            await publish(f"one-{group}", _DATA)
        while len(sent) < _GROUPS:
            await asyncio.sleep(0)
        fastest = min(fastest, time.process_time() - begun)
    return fastest / _GROUPS * 1e6


async def _django_sse() -> float:
    from django_sse import apublish
    from django_sse.streaming.hub import current_hub
    from django_sse.streaming.stream import Phase, Stream

    sent: list[bytes] = []

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message["body"])

    streams = []
    for group in range(_GROUPS):
        stream = Stream(current_hub(), {f"one-{group}": 0}, heartbeat=15)
        await stream.open()
        stream.serve(send, in_place=True)
        streams.append(stream)
    while any(stream.phase is not Phase.LIVE for stream in streams):
        await asyncio.sleep(0)
    cost = await _timed(apublish, sent)
    for stream in streams:
        stream.end("measured")
    return cost


async def _least() -> float:
    from tests.benchmarks.apps.least import Stream, group_of, publish

    sent: list[bytes] = []

    async def send(chunk: bytes) -> None:
        sent.append(chunk)

    for number in range(_GROUPS):
        group = group_of(f"one-{number}")
        group.streams[Stream(send, group.head)] = None
    return await _timed(publish, sent)


if __name__ == "__main__":
    main()
