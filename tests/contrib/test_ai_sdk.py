"""Answers for ``useChat``, without its packages: what is written, and who gets it."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from typing import Any, ClassVar

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.http.response import HttpResponseBase
from django.test import AsyncRequestFactory
from pytest_django import Settings

from django_sse import acancel
from django_sse.contrib.ai_sdk import (
    ChatView,
    Data,
    File,
    Metadata,
    Part,
    Reasoning,
    Source,
    Step,
    ToolCall,
    ToolError,
    ToolResult,
)
from django_sse.exceptions import Close
from django_sse.stores import get_store
from tests.streams import TIMEOUT, EventReader, get, reading, until
from tests.tenancy import NAMESPACE, entered

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("everything_ends", "chat"),
]

QUESTION = {"id": "q1", "role": "user", "parts": [{"type": "text", "text": "Why?"}]}


class Chat(ChatView):
    items: ClassVar[list[Any]]
    runs = closed = 0
    asked: ClassVar[list[Any]]
    go_on: ClassVar[asyncio.Event]
    user: Any = None

    async def get_owner(self) -> Any:
        return self.user

    async def answer(self) -> AsyncIterator[Any]:
        Chat.runs += 1
        Chat.asked.append(self.messages)
        try:
            for item in self.items:
                if item is WAIT:
                    await self.go_on.wait()
                elif isinstance(item, Exception):
                    raise item
                else:
                    yield item
        finally:
            Chat.closed += 1


WAIT = object()
view = Chat.as_view()


@pytest.fixture
async def chat() -> AsyncIterator[None]:
    Chat.items, Chat.asked, Chat.runs, Chat.closed = ["Because", "."], [], 0, 0
    Chat.go_on = asyncio.Event()
    yield
    Chat.go_on.set()
    await until(lambda: Chat.runs == Chat.closed)


async def ask(*messages: Any, chat: str = "c1", view: Any = view, **body: Any) -> HttpResponseBase:
    body = {"id": chat, "messages": messages or [QUESTION], "trigger": "submit-message", **body}
    request = AsyncRequestFactory().post("/chat", body, content_type="application/json")
    response: HttpResponseBase = await view(request)
    return response


async def resume(chat: str = "c1", view: Any = view, method: str = "GET") -> HttpResponseBase:
    response: HttpResponseBase = await view(get(method=method), chat=chat)
    return response


async def all_of(response: HttpResponseBase) -> list[dict[str, Any]]:
    """Return the chunks of an answer, which is told to be complete."""
    async with reading(response) as stream:
        return chunks_in(stream, await stream.rest())


def chunks_in(stream: EventReader, events: Iterable[Any]) -> list[dict[str, Any]]:
    *chunks, done = [event.data for event in events]
    assert done == "[DONE]"
    # Nothing of this library's own.
    assert "\nid:" not in stream.text
    assert "event:" not in stream.text
    return [json.loads(chunk) for chunk in chunks]


def types(chunks: Iterable[dict[str, Any]]) -> list[str]:
    return [chunk["type"] for chunk in chunks]


def text_of(chunks: Iterable[dict[str, Any]]) -> str:
    return "".join(chunk["delta"] for chunk in chunks if chunk["type"] == "text-delta")


async def test_text_is_opened_and_closed() -> None:
    response = await ask()
    assert response["x-vercel-ai-ui-message-stream"] == "v1"
    chunks = await all_of(response)
    start = chunks.pop(0)
    assert (start["type"], start["messageId"][:4]) == ("start", "msg-")
    assert chunks == [
        {"type": "start-step"},
        {"type": "text-start", "id": "text-1"},
        {"type": "text-delta", "id": "text-1", "delta": "Because"},
        {"type": "text-delta", "id": "text-1", "delta": "."},
        {"type": "text-end", "id": "text-1"},
        {"type": "finish-step"},
        {"type": "finish"},
    ]
    assert Chat.asked == [[QUESTION]]


async def test_each_part_is_written_as_the_protocol_has_it() -> None:
    Chat.items = [
        Reasoning("Hm"),
        Reasoning("."),
        "a",
        Source("https://a.example", "A"),
        Data("weather", {"sun": True}, id="w", transient=True),
        Metadata({"tokens": 3}),
        "b",
        ToolCall("t1", "look", {"at": 1}),
        ToolResult("t1", [1]),
        Step(),
        ToolCall("t2", "look", {}, dynamic=True),
        ToolError("t2", "nothing there"),
        File("data:,a", "text/plain"),
        {"type": "tool-output-denied", "toolCallId": "t3"},
        "c",
    ]
    assert (await all_of(await ask()))[2:-2] == [
        {"type": "reasoning-start", "id": "reasoning-1"},
        {"type": "reasoning-delta", "id": "reasoning-1", "delta": "Hm"},
        {"type": "reasoning-delta", "id": "reasoning-1", "delta": "."},
        {"type": "reasoning-end", "id": "reasoning-1"},
        {"type": "text-start", "id": "text-2"},
        {"type": "text-delta", "id": "text-2", "delta": "a"},
        {
            "type": "source-url",
            "sourceId": "https://a.example",
            "url": "https://a.example",
            "title": "A",
        },
        {"type": "data-weather", "id": "w", "data": {"sun": True}, "transient": True},
        {"type": "message-metadata", "messageMetadata": {"tokens": 3}},
        {"type": "text-delta", "id": "text-2", "delta": "b"},
        {"type": "text-end", "id": "text-2"},
        {
            "type": "tool-input-available",
            "toolCallId": "t1",
            "toolName": "look",
            "input": {"at": 1},
        },
        {"type": "tool-output-available", "toolCallId": "t1", "output": [1]},
        {"type": "finish-step"},
        {"type": "start-step"},
        {
            "type": "tool-input-available",
            "toolCallId": "t2",
            "toolName": "look",
            "input": {},
            "dynamic": True,
        },
        {"type": "tool-output-error", "toolCallId": "t2", "errorText": "nothing there"},
        {"type": "file", "url": "data:,a", "mediaType": "text/plain"},
        {"type": "tool-output-denied", "toolCallId": "t3"},
        {"type": "text-start", "id": "text-3"},
        {"type": "text-delta", "id": "text-3", "delta": "c"},
        {"type": "text-end", "id": "text-3"},
    ]


async def test_a_reload_gets_all_of_it_and_204_once_it_is_over() -> None:
    Chat.items = ["one ", WAIT, "two"]
    async with reading(await ask()) as stream:
        await until(lambda: "one" in stream.text)
    async with reading(await resume()) as one, reading(await resume()) as other:
        await until(lambda: "one" in one.text)
        Chat.go_on.set()
        for stream in (one, other):
            chunks = chunks_in(stream, await stream.rest())
            assert types(chunks)[0] == "start"
            assert text_of(chunks) == "one two"
    assert (await resume()).status_code == 204
    assert (await resume("c2")).status_code == 204
    assert Chat.runs == 1


async def test_a_question_that_comes_twice_is_answered_once() -> None:
    Chat.items = ["one ", WAIT, "two"]
    responses = await asyncio.gather(*(ask() for _ in range(20)))
    Chat.go_on.set()
    answers = await asyncio.gather(*map(all_of, responses))
    assert {text_of(chunks) for chunks in answers} == {"one two"}
    assert len({chunks[0]["messageId"] for chunks in answers}) == 1
    assert Chat.runs == 1


async def test_a_question_that_is_asked_again_is_answered_again() -> None:
    first = await all_of(await ask())
    regenerated = {"trigger": "regenerate-message", "messageId": "m1"}
    second, third = await all_of(await ask(**regenerated)), await all_of(await ask(**regenerated))
    again = await all_of(await ask())
    assert [text_of(chunks) for chunks in (first, second, third, again)] == ["Because."] * 4
    assert len({chunks[0]["messageId"] for chunks in (first, second, third, again)}) == 4
    assert Chat.runs == 4


async def test_an_answer_goes_on_after_a_tool_of_the_page() -> None:
    called = {"id": "m1", "role": "assistant", "parts": [{"type": "tool-look", "output": 1}]}
    chunks = await all_of(await ask(QUESTION, called))
    assert chunks[0] == {"type": "start", "messageId": "m1"}


async def test_a_page_may_send_its_last_message_alone() -> None:
    body = {"id": "c1", "message": QUESTION}
    request = AsyncRequestFactory().post("/chat", body, content_type="application/json")
    assert text_of(await all_of(await view(request))) == "Because."
    assert Chat.asked == [[QUESTION]]


# Ends


def sorted_lines(value: Any) -> str:
    return json.dumps(value, indent=1, sort_keys=True)


# Encoders write the same in other ways.
@pytest.mark.parametrize("encoder", ["orjson.dumps", "json.dumps", f"{__name__}.sorted_lines"])
async def test_it_is_stopped_and_what_is_open_is_closed(settings: Settings, encoder: str) -> None:
    settings.DJANGO_SSE = {"STORE": "memory", "ENCODER": encoder}
    Chat.items = ["one", WAIT]
    async with reading(await ask()) as stream, reading(await resume()) as other:
        await until(lambda: "one" in stream.text and "one" in other.text)
        assert (await resume(method="DELETE")).status_code == 204
        for each in (stream, other):
            assert chunks_in(each, await each.rest())[-2:] == [
                {"type": "text-end", "id": "text-1"},
                {"type": "abort", "reason": "stopped"},
            ]
    await until(lambda: Chat.closed)
    assert (await resume(method="DELETE")).status_code == 204
    assert (await resume()).status_code == 204


@pytest.mark.parametrize("item", [ValueError("secret"), 5, {"no": "type"}, Part()])
async def test_a_failure_is_told_and_nothing_of_it(item: Any) -> None:
    Chat.items = ["one", item]
    chunks = await all_of(await ask())
    assert chunks[-2:] == [
        {"type": "text-end", "id": "text-1"},
        {"type": "error", "errorText": "An error occurred."},
    ]


async def test_it_may_end_for_a_reason() -> None:
    Chat.items = ["one", Close("quota")]
    chunks = await all_of(await ask())
    assert types(chunks)[-2:] == ["text-end", "abort"]


async def test_a_client_that_has_to_come_back_is_told_of_an_error(settings: Settings) -> None:
    """It would take a stream that ends for an answer that is complete."""
    settings.DJANGO_SSE = {"MAX_AGE": 1}
    Chat.items = ["one", WAIT]
    chunks = await all_of(await ask())
    assert types(chunks)[-2:] == ["text-end", "error"]


# Who gets it


async def test_nobody_gets_the_answer_of_another_user() -> None:
    Chat.items = ["one", WAIT]
    of_anna, of_bert = Chat.as_view(user="anna"), Chat.as_view(user="bert")
    async with reading(await ask(view=of_anna)) as stream:
        await until(lambda: "one" in stream.text)
        for other in (of_bert, view):
            assert (await resume(view=other)).status_code == 204
            await resume(view=other, method="DELETE")
        assert not stream.ended
        async with reading(await resume(view=of_anna)) as again:
            await until(lambda: "one" in again.text)
        await acancel(user="anna", reason="kicked")
        assert types(chunks_in(stream, await stream.rest()))[-1] == "abort"
    await until(lambda: Chat.closed)


async def test_a_new_question_stops_the_answer_before_it() -> None:
    Chat.items = ["one", WAIT]
    async with reading(await ask()) as first:
        await until(lambda: "one" in first.text)
        other = {**QUESTION, "id": "q2"}
        async with reading(await ask(QUESTION, other)) as second:
            assert types(chunks_in(first, await first.rest()))[-1] == "abort"
            await until(lambda: "one" in second.text)
            assert (await resume(method="DELETE")).status_code == 204
            await second.rest()
    await until(lambda: Chat.closed == 2)


async def test_two_questions_in_turn_are_answered_each_time() -> None:
    other = {**QUESTION, "id": "q2"}
    for _ in range(3):
        for messages in ([QUESTION], [QUESTION, other]):
            assert text_of(await all_of(await ask(*messages))) == "Because."
    assert Chat.runs == 6


async def until_named_again() -> None:
    """Wait until what has named the answer first is not kept any more, and others have."""
    store: Any = get_store()
    [index] = [
        kept for name, kept in store._groups.items() if not kept.producer and "." not in name
    ]
    first = index.head
    await until(lambda: index.head >= first + 4)


async def test_an_answer_is_found_however_long_it_takes(settings: Settings) -> None:
    settings.DJANGO_SSE = {"STORE": "memory", "HISTORY_AGE": 0.2}
    Chat.items = ["one", WAIT]
    async with reading(await ask()) as stream:
        await until(lambda: "one" in stream.text)
        await until_named_again()
        assert (await resume(method="DELETE")).status_code == 204
        assert types(chunks_in(stream, await stream.rest()))[-1] == "abort"


async def test_an_answer_of_a_tenant_is_found_however_long_it_takes(settings: Settings) -> None:
    settings.DJANGO_SSE = {"STORE": "memory", "HISTORY_AGE": 0.2, **NAMESPACE}
    Chat.items = ["one", WAIT]
    with entered("north"):
        async with reading(await ask()) as stream:
            await until(lambda: "one" in stream.text)
            await until_named_again()
            with entered("south"):
                assert (await resume()).status_code == 204
            assert (await resume(method="DELETE")).status_code == 204
            assert types(chunks_in(stream, await stream.rest()))[-1] == "abort"


async def test_chats_may_be_shared_and_no_id_leads_into_another_one() -> None:
    class Shared(Chat):
        async def get_chat(self) -> str:
            return self.chat_id

    Chat.items = ["one", WAIT]
    of_anna, of_bert = Shared.as_view(user="anna"), Shared.as_view(user="bert")
    async with reading(await ask(view=of_anna)) as stream:
        await until(lambda: "one" in stream.text)
        async with reading(await resume(view=of_bert)) as other:
            await until(lambda: "one" in other.text)
        assert (await resume("c1.0", view=of_bert)).status_code == 204
        assert (await resume(view=of_bert, method="DELETE")).status_code == 204
        await stream.rest()


# What is refused


def test_a_guard_that_is_asked_too_late_is_refused() -> None:
    class Guarded(Chat):
        async def authorize(self, groups: Any) -> None:
            """Authenticate whoever asks."""

    with pytest.raises(ImproperlyConfigured, match="in `get_chat`"):
        Guarded.as_view()


def test_a_chat_cannot_be_restarted() -> None:
    with pytest.raises(ImproperlyConfigured, match="cannot be restartable"):
        Chat.as_view(restartable=True)


def test_a_chat_has_no_presence() -> None:
    with pytest.raises(ImproperlyConfigured, match="knows no `join` and `leave`"):
        Chat.as_view(presence=True)


def test_an_answer_that_yields_nothing_is_refused() -> None:
    class Coroutine(ChatView):
        async def answer(self) -> Any:  # type: ignore[override]
            return "Because."

    with pytest.raises(ImproperlyConfigured, match=r"answer has to be `async def answer\(self\)`"):
        Coroutine.as_view()


async def test_a_form_whose_body_was_read_is_refused() -> None:
    request = AsyncRequestFactory().post("/chat", {"id": "c1"})
    assert request.POST["id"] == "c1"
    assert (await view(request)).status_code == 400


@pytest.mark.parametrize(
    "body",
    [
        "",
        "no JSON",
        "[]",
        "5",
        "{}",
        '{"id": "c1"}',
        '{"id": "c1", "messages": []}',
        '{"id": "c1", "messages": ["text"]}',
        '{"id": "c1", "messages": {"a": 1}}',
        '{"id": "c1", "messages": [{"id": 5}]}',
        f'{{"id": "c1", "messages": [{{"role": "assistant", "id": "{"x" * 1000}"}}]}}',
        "[" * 100_000,
    ],
)
async def test_what_is_no_question_is_refused(body: str) -> None:
    request = AsyncRequestFactory().post("/chat", body, content_type="application/json")
    response = await view(request)
    assert response.status_code == 400
    assert b"useChat" in response.content


@pytest.mark.parametrize("id", ["", 5, None, "x" * 201])
async def test_a_chat_needs_an_id(id: Any) -> None:
    assert (await ask(chat=id)).status_code == 404


async def test_a_body_that_is_too_large_is_refused(settings: Settings) -> None:
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 100
    assert (await ask()).status_code == 413


async def test_a_store_that_is_away_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*args: Any) -> Any:
        raise OSError("away")

    monkeypatch.setattr(get_store(), "astates", fail)
    assert (await ask()).status_code == 503
    assert (await resume()).status_code == 503


def test_a_view_without_an_answer_is_refused() -> None:
    class Nothing(ChatView):
        pass

    with pytest.raises(ImproperlyConfigured, match="write `async def answer"):
        Nothing.as_view()


async def test_the_stream_is_alive_while_it_waits(settings: Settings) -> None:
    settings.DJANGO_SSE = {"HEARTBEAT": 0.05}
    Chat.items = [WAIT, "late"]
    async with reading(await ask()) as stream, asyncio.timeout(TIMEOUT):
        await until(lambda: stream.text.count(":\n\n") > 2)
        Chat.go_on.set()
        assert text_of(chunks_in(stream, await stream.rest())) == "late"
