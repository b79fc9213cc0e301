"""The recipes of ``docs/language-models.md``, against a server that speaks as the providers do."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import User
from django.http import HttpRequest
from django.test import AsyncRequestFactory

from django_sse.contrib.relay import relayed
from tests.docs.pages import blocks
from tests.streams import get, reading, until

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("everything_ends"),
]

PAGE = "docs/language-models.md"

# As the providers document it: https://platform.openai.com/docs/api-reference/chat-streaming and
# https://docs.anthropic.com/en/docs/build-with-claude/streaming.
OPENAI = [
    'data: {"object":"chat.completion.chunk","choices":[{"delta":{"role":"assistant"}}]}',
    'data: {"object":"chat.completion.chunk","choices":[{"delta":{"content":"Because"}}]}',
    'data: {"object":"chat.completion.chunk","choices":[{"delta":{"content":" so."}}]}',
    'data: {"object":"chat.completion.chunk","choices":[{"delta":{},"finish_reason":"stop"}]}',
    "data: [DONE]",
]
ANTHROPIC = [
    'event: message_start\ndata: {"type":"message_start"}',
    'event: ping\ndata: {"type":"ping"}',
    'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"text":"Hello"}}',
    'event: error\ndata: {"type":"error","error":{"type":"overloaded_error"}}',
]


class Provider:
    """A provider's server, which notes what it is asked for, and who hangs up."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.status = "200 OK"
        self.waits = False
        self.left = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"authorization: bearer ..." in head.lower()
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        self.asked.append(json.loads(await reader.readexactly(length)))
        writer.write(f"HTTP/1.1 {self.status}\r\nContent-Type: text/event-stream\r\n\r\n".encode())
        for block in OPENAI[:-1]:
            writer.write(f"{block}\n\n".encode())
        await writer.drain()
        if self.waits:
            self.left += not await reader.read(1)
        writer.write(f"{OPENAI[-1]}\n\n".encode())
        writer.close()


@asynccontextmanager
async def serving(provider: Provider) -> AsyncIterator[dict[str, Any]]:
    """Serve, and give what the page's code defines."""
    server = await asyncio.start_server(provider.answer, "127.0.0.1", 0)
    namespace: dict[str, Any] = {}
    for block in blocks("python", PAGE):
        exec(compile(block, PAGE, "exec"), namespace)
    namespace["URL"] = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/chat/completions"
    async with server:
        yield namespace


async def logged_in(request: HttpRequest) -> Any:
    user, _ = await sync_to_async(User.objects.get_or_create)(username="anna")

    async def auser() -> User:
        return user

    request.user, request.auser = user, auser
    return request


async def asked(view: Any, question: str, **kwargs: Any) -> Any:
    request = AsyncRequestFactory().post("/", {"question": question})
    return await view(await logged_in(request), **kwargs)


async def test_a_providers_stream_is_passed_on_to_all_and_asked_for_once() -> None:
    provider = Provider()
    async with serving(provider) as page:
        view = page["Completion"].as_view()
        async with reading(await asked(view, "Why?", pk=7)) as stream:
            events = await stream.rest()
        again = await view(await logged_in(get()), pk=7)
        async with reading(again) as late:
            assert [event.data for event in await late.rest()] == [event.data for event in events]
    texts = [f"data: {event.data}" for event in events[:-1]]
    assert texts == OPENAI
    assert events[-1].json() == {"reason": "complete"}
    assert [body["messages"][0]["content"] for body in provider.asked] == ["Why?"]


async def test_a_page_that_stops_it_hangs_up_on_the_provider() -> None:
    provider = Provider()
    provider.waits = True
    async with serving(provider) as page:
        view = page["Completion"].as_view()
        async with reading(await asked(view, "Why?", pk=7)) as stream:
            await until(lambda: "so." in stream.text)
            stopped = await view(await logged_in(get(method="DELETE")), pk=7)
            assert stopped.status_code == 204
            events = await stream.rest()
            assert events[-1].json() == {"reason": "stopped"}
        await until(lambda: provider.left)


async def test_a_provider_that_refuses_is_a_failure_and_nothing_of_it_is_told() -> None:
    provider = Provider()
    provider.status = "429 Too Many Requests"
    async with serving(provider) as page:
        response = await asked(page["Completion"].as_view(), "Why?", pk=7)
        async with reading(response) as stream:
            [close] = await stream.rest()
    assert close.json() == {"reason": "failed"}


async def test_use_chat_gets_the_text_of_a_provider() -> None:
    provider = Provider()
    body = {"id": "c", "messages": [{"role": "user", "parts": [{"type": "text", "text": "Why?"}]}]}
    async with serving(provider) as page:
        request = AsyncRequestFactory().post("/", body, content_type="application/json")
        response = await page["Chat"].as_view()(await logged_in(request))
        async with reading(response) as stream:
            *chunks, done = [event.data for event in await stream.rest()]
    assert done == "[DONE]"
    deltas = [chunk.get("delta", "") for chunk in map(json.loads, chunks)]
    assert "".join(deltas) == "Because so."
    assert provider.asked[0]["messages"] == [{"role": "user", "content": "Why?"}]


async def test_events_keep_their_types_but_for_those_that_nobody_may_have() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for byte in "".join(f"{block}\nid: 5\n\n" for block in ANTHROPIC).encode():
            yield bytes([byte])

    events = [event async for event in relayed(chunks())]
    assert [event.event for event in events] == [
        "message_start",
        "ping",
        "content_block_delta",
        None,
    ]
    assert {event.id for event in events} == {None}
    assert events[-1].json()["error"]["type"] == "overloaded_error"
