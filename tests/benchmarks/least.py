"""``python -m tests.benchmarks.least``: what an event to a stream of its own takes, beside what its
promises take at least; without a server.

``least`` does what the promises need, in one function, for streams without options: no transaction,
no other loop, thread, process or tenant, no filter, no limit, no key, no cancelled group.
"""

import asyncio
import hmac
import re
import time
from binascii import b2a_base64
from collections import deque
from collections.abc import Awaitable, Callable
from secrets import token_bytes
from threading import Lock

import django
from django.conf import settings

_GROUPS = 1000
_ROUNDS = 20
_HISTORY = 1000
_DATA = "x" * 150
_NAME = re.compile(r"[\w.-]{1,99}", re.ASCII)

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

    async def send(chunk: bytes) -> None:
        sent.append(chunk)

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


class _Group:
    """What is kept of a group: the number of its last event, its history, and its stream."""

    def __init__(self, send: Callable[[bytes], Awaitable[None]]) -> None:
        self.head = 0
        self.mark = token_bytes(8).hex()
        self.history: deque[tuple[int, bytes, float]] = deque(maxlen=_HISTORY)
        self.tail: deque[tuple[int, bytes]] = deque(maxlen=_HISTORY)
        self.send = send
        self.taken = 0
        self.last_sent = 0.0


async def _least() -> float:
    loop, lock, sent = asyncio.get_running_loop(), Lock(), list[bytes]()
    keyed = hmac.new(token_bytes(32), digestmod="sha256")

    async def send(chunk: bytes) -> None:
        sent.append(chunk)

    groups = {f"one-{number}": _Group(send) for number in range(_GROUPS)}
    unread: deque[tuple[_Group, int, bytes]] = deque()

    async def publish(name: str, data: str) -> int:
        if not _NAME.fullmatch(name):
            raise ValueError(name)
        lines = data.split("\n") if "\n" in data else [data]
        wire = "".join([*(f"data: {line}\n" for line in lines), "\n"]).encode()
        group = groups[name]
        with lock:
            number = group.head = group.head + 1
            group.history.append((number, wire, time.monotonic()))
        unread.append((group, number, wire))
        if len(unread) == 1:
            loop.call_soon(hear)
        return number

    def hear() -> None:
        while unread:
            group, number, wire = unread.popleft()
            entry = f"{group.mark}.{number:x}"
            signing = keyed.copy()
            signing.update(entry.encode())
            signature = b2a_base64(signing.digest()[:8])[:11]
            chunk = b"id: %s~%s\n%s" % (entry.encode(), signature, wire)
            group.tail.append((number, chunk))
            if group.taken == number - 1:
                group.taken = number
                try:
                    group.send(chunk).send(None)  # type: ignore[attr-defined]
                except StopIteration:
                    group.last_sent = loop.time()

    return await _timed(publish, sent)


if __name__ == "__main__":
    main()
