"""The least that the promises of django_sse take in Python.

Each event has a checked group, a number, a signed id and a place in a history, and is sent by the
loop, to each client after what it has. There is no Django, no other loop, thread, process or
tenant, no filter, limit, key or cancelled group, and no stream of several groups. Events that pile
up are not joined, no client comes back, and every client reads without delay.
"""

import asyncio
import hmac
import os
import re
import time
from binascii import b2a_base64
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from secrets import token_bytes
from threading import Lock
from typing import Any

from tests.benchmarks.apps.bare_asgi import HEADERS, body
from tests.benchmarks.apps.orders import Orders, Receive, Scope, Send

_HISTORY = 1000
_HEARTBEAT_SECONDS = 15
_TURN_SECONDS = 0.005
_NAME = re.compile(r"[\w.-]{1,99}", re.ASCII)

_keyed = hmac.new(token_bytes(32), digestmod="sha256")
_lock = Lock()

SendChunk = Callable[[bytes], Coroutine[Any, Any, None]]


class Stream:
    """A client: what it has taken, and when something was last sent to it."""

    __slots__ = ("last_sent", "send", "taken")

    def __init__(self, send: SendChunk, taken: int) -> None:
        self.send = send
        self.taken = taken
        self.last_sent = time.monotonic()

    def push(self, chunk: bytes, now: float) -> None:
        """Send a chunk, without a task."""
        try:
            with suppress(OSError):
                self.send(chunk).send(None)
            # The clients of the benchmark stay, and read without delay. Better no figure than a
            # wrong one.
            os.abort()
        except StopIteration:
            self.last_sent = now


class Group:
    """A group: the number of its last event, its history, and its streams."""

    __slots__ = ("head", "history", "mark", "streams", "tail")

    def __init__(self) -> None:
        self.head = time.time_ns() // 1000
        self.mark = token_bytes(8).hex()
        self.history: deque[tuple[int, bytes, float]] = deque(maxlen=_HISTORY)
        self.tail: deque[tuple[int, bytes]] = deque(maxlen=_HISTORY)
        self.streams: dict[Stream, None] = {}


# When a publisher next lets other tasks run.
_give_way_at = 0.0
groups: dict[str, Group] = {}
_unread: deque[tuple[Group, int, bytes]] = deque()
_beating: list[asyncio.Task[None]] = []


def group_of(name: str) -> Group:
    """Return a group, made if there is none."""
    if name not in groups:
        groups[name] = Group()
    return groups[name]


async def publish(name: str, data: str) -> int:
    """Publish an event to a group, and return its number."""
    global _give_way_at
    if not _NAME.fullmatch(name):
        raise ValueError(name)
    lines = data.split("\n") if "\n" in data else [data]
    wire = "".join([*(f"data: {line}\n" for line in lines), "\n"]).encode()
    with _lock:
        group = group_of(name)
        number = group.head = group.head + 1
        group.history.append((number, wire, time.monotonic()))
    _unread.append((group, number, wire))
    if len(_unread) == 1:
        asyncio.get_running_loop().call_soon(_hear)
    if time.monotonic() >= _give_way_at:
        await asyncio.sleep(0)
        _give_way_at = time.monotonic() + _TURN_SECONDS
    return number


def _hear() -> None:
    while _unread:
        group, number, wire = _unread.popleft()
        entry = f"{group.mark}.{number:x}".encode()
        signing = _keyed.copy()
        signing.update(entry)
        signature = b2a_base64(signing.digest()[:8])[:11]
        chunk = b"id: %b~%b\n%b" % (entry, signature, wire)
        group.tail.append((number, chunk))
        now = time.monotonic()
        for stream in group.streams:
            if stream.taken == number - 1:
                stream.taken = number
                stream.push(chunk, now)


async def _stream(scope: Scope, receive: Receive, send: Send) -> None:
    if not _beating:
        _beating.append(asyncio.create_task(_heartbeat()))
    group = group_of(scope["path"].strip("/").replace("/", "-"))
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})

    def send_chunk(chunk: bytes) -> Any:
        return send(body(chunk))

    await send_chunk(b": welcome\n\n")
    stream = Stream(send_chunk, group.head)
    group.streams[stream] = None
    try:
        while (await receive())["type"] != "http.disconnect":
            pass
    finally:
        del group.streams[stream]


async def _heartbeat() -> None:
    while True:
        await asyncio.sleep(1)
        now = time.monotonic()
        for group in list(groups.values()):
            for stream in group.streams:
                if now - stream.last_sent >= _HEARTBEAT_SECONDS:
                    stream.push(b":\n\n", now)


application = Orders(_stream, publish)
