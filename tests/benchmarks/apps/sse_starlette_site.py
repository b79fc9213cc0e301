"""sse-starlette: a queue for each stream, as its documentation has it."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator

from sse_starlette import EventSourceResponse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route

from tests.benchmarks.apps.orders import Orders

_groups: defaultdict[str, set[asyncio.Queue[str]]] = defaultdict(set)


async def _stream(request: Request) -> EventSourceResponse:
    queue: asyncio.Queue[str] = asyncio.Queue()
    group = request.url.path.strip("/").replace("/", "-")
    _groups[group].add(queue)

    async def events() -> AsyncIterator[dict[str, str]]:
        try:
            while True:
                yield {"data": await queue.get()}
        finally:
            _groups[group].discard(queue)

    return EventSourceResponse(events(), ping=15)


async def _publish(group: str, data: str) -> None:
    for queue in _groups[group]:
        queue.put_nowait(data)


application = Orders(
    Starlette(routes=[Route("/all/", _stream), Route("/one/{number}/", _stream)]), _publish
)
