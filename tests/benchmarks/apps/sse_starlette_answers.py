"""Answers in sse-starlette: each streamed to the one client that asks for it."""

from collections.abc import AsyncIterator

from sse_starlette import EventSourceResponse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route

from tests.benchmarks.apps.answers import Answers


async def _stream(request: Request) -> EventSourceResponse:
    async def events() -> AsyncIterator[dict[str, str]]:
        async for word in application.words(request.path_params["number"]):
            yield {"data": word}

    return EventSourceResponse(events(), ping=15)


application = Answers(Starlette(routes=[Route("/answers/{number:int}/", _stream)]))
