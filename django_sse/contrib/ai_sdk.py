"""Answers for ``useChat`` of Vercel's AI SDK that survive a reload, and that can be stopped.

It speaks the UI message stream protocol, version 1:
https://ai-sdk.dev/docs/ai-sdk-ui/stream-protocol.
"""

import asyncio
import json
import re
import secrets
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from contextvars import copy_context
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, ClassVar, Final

from django.core.exceptions import ImproperlyConfigured, RequestDataTooBig
from django.http import Http404, HttpRequest, RawPostDataException
from django.http.response import HttpResponseBase

from django_sse.access.owners import is_nobody, loaded, user_key
from django_sse.concurrency.tasks import spawn
from django_sse.conf import conf
from django_sse.encoding import as_own_json
from django_sse.event import Decoder, Event, decode_block
from django_sse.exceptions import GroupCancelled
from django_sse.groups.entries import GroupState
from django_sse.groups.namespaces import acurrent_namespace, full_name
from django_sse.http.refusals import STORE_AWAY
from django_sse.http.response import (
    EventStreamResponse,
    no_content,
    refused,
    unavailable,
)
from django_sse.http.view_checks import METHODS_OF_CHATS, check_method, require_override
from django_sse.logs import log_seldom
from django_sse.publishing import acancel, apublish
from django_sse.stores import get_store
from django_sse.streaming.stream import Dialect
from django_sse.views import EventProducerView

_LONGEST_ID: Final = 200
_OPENS_OR_CLOSES: Final = re.compile(
    rb'data: \{"type":"(text|reasoning)-(start|end)","id":("[^"\\]*")'
)
_NO_QUESTION: Final = "This is not what `useChat` sends: JSON with an `id` and `messages`."
_DONE: Final = Event("[DONE]").encode()


@dataclass(frozen=True, slots=True)
class Part:
    """A part of an answer. Text is yielded as ``str``, and begins and ends by itself."""

    ends_text: ClassVar[bool] = True
    """Whether the text or the reasoning before it is over."""

    def chunk(self) -> dict[str, Any]:
        """Return it as the protocol has it."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Reasoning(Part):
    """A piece of what the model thinks; pieces that follow each other are one part."""

    text: str

    def chunk(self) -> dict[str, Any]:
        return {"type": "reasoning-delta", "delta": self.text}


@dataclass(frozen=True, slots=True)
class ToolCall(Part):
    """A call of a tool, with its whole input. ``dynamic`` tools are unknown to the page's types."""

    id: str
    name: str
    input: Any
    dynamic: bool = False

    def chunk(self) -> dict[str, Any]:
        chunk = {
            "type": "tool-input-available",
            "toolCallId": self.id,
            "toolName": self.name,
            "input": self.input,
        }
        return {**chunk, "dynamic": True} if self.dynamic else chunk


@dataclass(frozen=True, slots=True)
class ToolResult(Part):
    """What a tool has returned, by the id of its call."""

    id: str
    output: Any

    def chunk(self) -> dict[str, Any]:
        return {"type": "tool-output-available", "toolCallId": self.id, "output": self.output}


@dataclass(frozen=True, slots=True)
class ToolError(Part):
    """That a tool has failed, by the id of its call, and what the user is told of it."""

    id: str
    text: str

    def chunk(self) -> dict[str, Any]:
        return {"type": "tool-output-error", "toolCallId": self.id, "errorText": self.text}


@dataclass(frozen=True, slots=True)
class Source(Part):
    """A page that the answer refers to."""

    ends_text = False

    url: str
    title: str = ""

    def chunk(self) -> dict[str, Any]:
        chunk = {"type": "source-url", "sourceId": self.url, "url": self.url}
        return {**chunk, "title": self.title} if self.title else chunk


@dataclass(frozen=True, slots=True)
class File(Part):
    """A file, such as an image, by its URL, which may be a ``data:`` URL."""

    url: str
    media_type: str

    def chunk(self) -> dict[str, Any]:
        return {"type": "file", "url": self.url, "mediaType": self.media_type}


@dataclass(frozen=True, slots=True)
class Data(Part):
    """Data of the project's own. One with the ``id`` of another one replaces it; what is
    ``transient`` is given to ``onData`` and not kept in the message."""

    ends_text = False

    name: str
    data: Any
    id: str | None = None
    transient: bool = False

    def chunk(self) -> dict[str, Any]:
        chunk: dict[str, Any] = {"type": f"data-{self.name}"}
        if self.id is not None:
            chunk["id"] = self.id
        chunk["data"] = self.data
        return {**chunk, "transient": True} if self.transient else chunk


@dataclass(frozen=True, slots=True)
class Metadata(Part):
    """What is known of the message as a whole, such as the model and the tokens it took."""

    ends_text = False

    metadata: Any

    def chunk(self) -> dict[str, Any]:
        return {"type": "message-metadata", "messageMetadata": self.metadata}


@dataclass(frozen=True, slots=True)
class Step(Part):
    """The end of a step, such as a call of the model, and the beginning of the next one."""

    def chunk(self) -> dict[str, Any]:
        return {"type": "start-step"}


class ChatView(EventProducerView):
    """Answers ``useChat``: POST asks, GET resumes the answer, DELETE stops it.

    Its URLs are those that ``useChat`` asks for: ``api/chat`` and ``api/chat/<str:chat>/stream``.
    The answer is a producer's: it goes on when its page is left, and a question that comes twice is
    answered once.
    """

    http_method_names: Sequence[str] = ("get", "head", "post", "delete", "options")
    stoppable: bool = True

    error_text: str = "An error occurred."
    """What the user is told if the answer fails."""

    body: Mapping[str, Any]
    """What ``useChat`` has sent."""

    messages: Sequence[Mapping[str, Any]]
    """The messages so far, of which the last one is to be answered. A page that sends its last
    ``message`` alone has sent only that."""

    @classmethod
    def as_view(cls, **initkwargs: Any) -> Callable[..., Any]:
        """Return the view.

        Raises:
            ImproperlyConfigured: The view has no ``answer``, has ``authorize`` or
                ``presence``, or is ``restartable``; a method is ``async`` and must not be, or the
                other way round; or as for ``EventProducerView``.
        """
        if initkwargs.get("restartable", cls.restartable):
            raise ImproperlyConfigured(
                f"{cls.__name__} cannot be restartable: only the POST that asks has the messages."
            )
        if initkwargs.get("presence", cls.presence):
            raise ImproperlyConfigured(
                f"{cls.__name__} cannot have `presence`: `useChat` knows no `join` and `leave`."
            )
        for name in METHODS_OF_CHATS:
            check_method(cls, name, initkwargs.get(name, getattr(cls, name)))
        if initkwargs.get("authorize", cls.authorize) is not ChatView.authorize:
            raise ImproperlyConfigured(
                f"{cls.__name__} has `authorize`, which is asked after the chat is known. Guard it "
                "with a mixin or in `get_chat`, and say who asks in `get_owner`."
            )
        require_override(cls, "answer", initkwargs.get("answer", cls.answer), ChatView.answer)
        return super().as_view(**initkwargs)

    # Methods for projects to override

    async def answer(self) -> AsyncIterator[Any]:
        """Yield the answer to ``messages``: text as it comes, and any ``Part``.

        A ``dict`` is sent as it is, for parts that have no class here. What is raised is told as
        ``error_text``; ``Close`` ends the answer without an error.
        """
        return
        yield

    async def get_chat(self) -> str:
        """Return what the chat is known by, to all who may read and stop its answers.

        By default, users have chats of their own: nobody gets the answer of another user's chat by
        its id. The chats of clients that are nobody are known by their ids alone. Override this to
        share chats.

        Raises:
            Http404, PermissionDenied: There is no such chat, or it is not the user's.
        """
        user = await loaded(await self.get_owner())
        return f"{'' if is_nobody(user) else user_key(user)} {self.chat_id}"

    @property
    def chat_id(self) -> str:
        """The id that the page has given its chat."""
        chat_id = self.kwargs.get("chat") or self.body.get("id")
        if not isinstance(chat_id, str) or not 0 < len(chat_id) <= _LONGEST_ID:
            raise Http404
        return chat_id

    # HTTP

    def setup(self, request: HttpRequest, *args: Any, **kwargs: Any) -> None:
        """Set what all methods use."""
        super().setup(request, *args, **kwargs)
        self.body, self.messages = {}, []
        self._groups: list[str] = []
        self._index = ""
        self._run: dict[str, Any] | None = None
        self._previous: dict[str, Any] | None = None

    async def get_groups(self) -> list[str]:
        """Return the group of the answer, of which each has its own."""
        return self._groups

    async def get(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        """Answer with the whole answer that is being written, or with 204."""
        return await self._told(self._of_running(super().get))

    async def delete(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        """Stop the answer that is being written, and answer with 204."""
        return await self._told(self._of_running(super().delete))

    async def post(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        """Answer with the answer to the last message, which begins unless it has begun already."""
        return await self._told(self._ask())

    async def _of_running(self, respond: Callable[..., Any]) -> HttpResponseBase:
        index = await self._index_of_chat()
        try:
            run, _ = await _last_run(index)
            group = _group_of(index, run) if run else ""
            if not run or not (await _state_of(group)).producer:
                return no_content()
        except Exception as error:
            return unavailable(self.request, STORE_AWAY, error)
        self._groups = [group]
        return _in_dialect(await respond(self.request))

    async def _ask(self) -> HttpResponseBase:
        try:
            body = json.loads(self.request.body)
        except RequestDataTooBig:
            return refused(413, "The body is too large.")
        except (ValueError, RecursionError, RawPostDataException):
            # The last one: it is a form, and something has read it.
            return refused(400, _NO_QUESTION)
        messages = _messages_in(body)
        if not messages:
            return refused(400, _NO_QUESTION)
        self.body, self.messages = body, messages
        last = messages[-1]
        index = self._index = await self._index_of_chat()
        # What comes twice is the same; another try of the same question is not.
        key = _digest([last, self.body.get("trigger"), self.body.get("messageId")])
        try:
            previous, head = await _last_run(index)
            run = {"key": key, "after": head}
            is_same = previous is not None and previous["key"] == key
            if previous and is_same and not (await _state_of(_group_of(index, previous))).cancelled:
                run = previous
        except Exception as error:
            return unavailable(self.request, STORE_AWAY, error)
        self._run, self._previous, self._groups = run, previous, [_group_of(index, run)]
        return _in_dialect(await self._answer(self.request))

    async def _index_of_chat(self) -> str:
        """Return the group whose last event names the chat's last answer."""
        return f"chat-{_digest(await self.get_chat())}"

    async def _start_work(
        self,
        groups: Sequence[str],
        states: Mapping[str, GroupState],
        user: Any,
        logged_in_at: float,
    ) -> HttpResponseBase | None:
        [state] = states.values()
        if self._run is None or state.producer:
            return None
        try:
            # Before it begins, so that whoever reloads the page right then finds it.
            await apublish(self._index, self._run)
            if self._previous and self._previous != self._run:
                await _stop_if_running(_group_of(self._index, self._previous))
        except GroupCancelled:
            return no_content()
        except Exception as error:
            return unavailable(self.request, STORE_AWAY, error)
        return await super()._start_work(groups, states, user, logged_in_at)

    # The answer

    async def events(self) -> AsyncIterator[Event]:
        """Yield the answer in the protocol of the AI SDK."""
        last = self.messages[-1]
        # An answer that goes on after a tool of the page has run is the same message.
        goes_on = last.get("role") == "assistant" and last.get("id")
        writer = _Writer()
        naming = spawn(_keep_last(self._index, self._run), copy_context())
        try:
            for chunk in (
                {"type": "start", "messageId": goes_on or f"msg-{secrets.token_urlsafe(12)}"},
                {"type": "start-step"},
            ):
                yield Event(chunk)
            async with aclosing(self._written(writer)) as chunks:
                async for chunk in chunks:
                    yield _event(chunk)
            for chunk in (*writer.end(), {"type": "finish-step"}, {"type": "finish"}):
                yield _event(chunk)
        finally:
            naming.cancel()

    async def _written(self, writer: "_Writer") -> Any:
        answer: Any = self.answer()
        async with aclosing(answer):
            async for item in answer:
                for chunk in writer.chunks(item):
                    yield chunk

    def _dialect(self) -> Dialect:
        return _UIMessageStream(self.error_text)


class _Writer:
    """Turns what an answer yields into chunks, and begins and ends text and reasoning."""

    def __init__(self) -> None:
        self._open = ""
        self._number = 0

    def chunks(self, item: Any) -> Iterator[dict[str, Any]]:
        """Return the chunks for an item.

        Raises:
            TypeError: It is no part of an answer.
        """
        if isinstance(item, str):
            yield from self._delta("text", item)
        elif isinstance(item, Reasoning):
            yield from self._delta("reasoning", item.text)
        elif isinstance(item, Part):
            if item.ends_text:
                yield from self.end()
            if isinstance(item, Step):
                yield {"type": "finish-step"}
            yield item.chunk()
        elif isinstance(item, Mapping) and isinstance(item.get("type"), str):
            yield dict(item)
        else:
            raise TypeError(
                f"An answer yields text, a Part, or a dict with a type, not {type(item).__name__}."
            )

    def _delta(self, kind: str, text: str) -> Iterator[dict[str, Any]]:
        if self._open != kind:
            yield from self.end()
            self._open = kind
            self._number += 1
            yield {"type": f"{kind}-start", "id": self._id}
        yield {"type": f"{kind}-delta", "id": self._id, "delta": text}

    def end(self) -> Iterator[dict[str, Any]]:
        """Return the chunk that ends the text or the reasoning, if one is open."""
        if self._open:
            yield {"type": f"{self._open}-end", "id": self._id}
        self._open = ""

    @property
    def _id(self) -> str:
        return f"{self._open}-{self._number}"


def _event(chunk: Mapping[str, Any]) -> Event:
    """Return a chunk as an event. What opens or closes a part is found by how it is written."""
    if chunk.keys() == {"type", "id"}:
        return Event(as_own_json(chunk))
    return Event(chunk)


class _UIMessageStream:
    """The protocol as one client sees it: what it was told to be open is closed in the end."""

    def __init__(self, error_text: str) -> None:
        self._error_text = error_text
        # The kind of what is open, by its id, as in JSON.
        self._open: dict[bytes, bytes] = {}

    def event(self, wire: bytes) -> bytes:
        """Return an event, as it is."""
        if found := _OPENS_OR_CLOSES.match(wire):
            kind, what, part = found.groups()
            if what == b"start":
                self._open[part] = kind
            else:
                self._open.pop(part, None)
        return wire

    def end(self, wire: bytes) -> bytes:
        """Return what says how the answer has ended."""
        closes = [event.json() for event in Decoder().feed(wire) if event.event == "close"]
        reason = closes[-1]["reason"] if closes else "failed"
        closing = b"".join(
            b'data: {"type":"%b-end","id":%b}\n\n' % (kind, part)
            for part, kind in self._open.items()
        )
        if reason in ("failed", "interrupted"):
            closing += Event({"type": "error", "errorText": self._error_text}).encode()
        elif reason != "complete":
            closing += Event({"type": "abort", "reason": reason or ""}).encode()
        return closing + _DONE


def _in_dialect(response: HttpResponseBase) -> HttpResponseBase:
    if isinstance(response, EventStreamResponse):
        response["x-vercel-ai-ui-message-stream"] = "v1"
    return response


def _messages_in(body: Any) -> list[dict[str, Any]] | None:
    """Return the messages that `useChat` has sent, or None if it has not sent this."""
    if not isinstance(body, dict):
        return None
    messages = body.get("messages") or [body.get("message")]
    if not isinstance(messages, list) or not all(isinstance(each, dict) for each in messages):
        return None
    # The answer has this id if it goes on with the last message.
    last_id = messages[-1].get("id", "") if messages else ""
    return messages if isinstance(last_id, str) and len(last_id) <= _LONGEST_ID else None


def _group_of(index: str, run: Mapping[str, Any]) -> str:
    return f"{index}.{run['key'][:16]}.{run['after']}"


async def _last_run(index: str) -> tuple[dict[str, Any] | None, int]:
    """Return what names the last answer of a chat, if there is one, and the number of that.

    Raises:
        Exception: The event store could not be read.
    """
    head = (await _state_of(index)).head
    entries = await get_store().aread(await _full_name(index), head - 1, 1)
    run = decode_block(entries[-1].wire).json() if entries else None
    is_run = isinstance(run, dict) and run.keys() == {"key", "after"}
    return (run if is_run else None), head


async def _keep_last(index: str, run: Mapping[str, Any] | None) -> None:
    """Name an answer again and again, so that it is found however long it takes."""
    while seconds := conf().HISTORY_AGE / 3:
        await asyncio.sleep(seconds)
        try:
            last, _ = await _last_run(index)
            if last in (None, run):
                await apublish(index, run)
        except Exception as error:
            log_seldom("The answer of a chat could not be named again.", exc_info=error)


async def _stop_if_running(group: str) -> None:
    if (await _state_of(group)).producer:
        await acancel(group, reason="stopped")


def _digest(of: Any) -> str:
    return sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()[:32]


async def _full_name(group: str) -> str:
    return full_name(await acurrent_namespace(), group)


async def _state_of(group: str) -> GroupState:
    name = await _full_name(group)
    return (await get_store().astates([name]))[name]
