"""The floor of the Python servers: a raw ASGI application, whose publisher drives each ``send``."""

import asyncio
from collections import defaultdict
from typing import Any

from tests.benchmarks.apps.orders import Orders, Receive, Scope, Send

_HEARTBEAT_SECONDS = 15
HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]

_groups: defaultdict[str, dict[object, Send]] = defaultdict(dict)
_beating: list[asyncio.Task[None]] = []


async def _stream(scope: Scope, receive: Receive, send: Send) -> None:
    if not _beating:
        _beating.append(asyncio.create_task(_heartbeat()))
    group = scope["path"].strip("/").replace("/", "-")
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    await send(body(b": welcome\n\n"))
    key = object()
    _groups[group][key] = send
    try:
        while (await receive())["type"] != "http.disconnect":
            pass
    finally:
        del _groups[group][key]


async def _publish(group: str, data: str) -> None:
    await _send(group, f"data: {data}\n\n".encode())


async def _send(group: str, chunk: bytes) -> None:
    message = body(chunk)
    for send in list(_groups[group].values()):
        await send(message)


async def _heartbeat() -> None:
    while True:
        await asyncio.sleep(_HEARTBEAT_SECONDS)
        for group in list(_groups):
            await _send(group, b":\n\n")


def body(chunk: bytes) -> dict[str, Any]:
    """Return the message that sends a part of the body."""
    return {"type": "http.response.body", "body": chunk, "more_body": True}


application = Orders(_stream, _publish)
