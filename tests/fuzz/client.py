"""A client as a server presents it to the ASGI application: it may leave, stall or break off."""

import asyncio
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from django_sse.http.hand_off import Application, Message

_HEADER: Final = re.compile(rb"[\x20-\x7e\x80-\xff]*")


@dataclass(frozen=True)
class Fields:
    """An event as a stream shows it, without its id."""

    comments: tuple[str, ...] = ()
    retry: int | None = None
    event: str | None = None
    data: str | None = None


@dataclass(frozen=True)
class Plan:
    """What a client does at one of its steps: the messages that are sent to it."""

    does: Literal["stay", "stall", "leave", "break", "cancel"] = "stay"
    step: int = 0


class Client:
    """One request, and all that came of it.

    Args:
        application: The ASGI application.
        scope: The request's scope.
        body: The parts of the request's body.
        plan: When and how it goes.
        heads: Where groups stand as it comes.
    """

    def __init__(
        self,
        application: Application,
        scope: dict[str, Any],
        body: list[bytes],
        plan: Plan,
        heads: Mapping[str, int],
    ) -> None:
        self.scope = scope
        self.plan = plan
        self.heads = heads
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.body = bytearray()
        self.complete = False
        self._application = application
        self._parts = body
        self._steps = 0
        self._gone = asyncio.Event()
        self._resumed = asyncio.Event()
        self._changed = asyncio.Event()
        self.task = asyncio.create_task(self._run())
        self.task.add_done_callback(lambda _: self._changed.set())

    @property
    def is_stream(self) -> bool:
        """Whether the response is an event stream, to be read."""
        kind = self.headers.get(b"content-type", b"")
        return (
            self.status == 200
            and kind.startswith(b"text/event-stream")
            and self.scope["method"] != "HEAD"
        )

    def resume(self) -> None:
        """Read again, after having stalled."""
        self._resumed.set()

    def leave(self) -> None:
        """Close the connection."""
        self._resumed.set()
        self._gone.set()

    async def until(self, part: bytes) -> None:
        """Wait until the body has a part, or has ended."""
        while not self.task.done() and self.body.find(part) < 0:
            self._changed.clear()
            await self._changed.wait()

    def blocks(self) -> Iterator[tuple[str | None, Fields]]:
        """Return the id, if there is one, and the fields of each block; fail at the least flaw."""
        text = bytes(self.body).decode()
        assert "\r" not in text, "a CR"
        *blocks, rest = text.split("\n\n")
        # Django divides large chunks, and a client may go between two of them.
        stayed = self.plan.does in ("stay", "stall") and self.complete
        assert not (rest and stayed), "an unfinished block"
        for block in blocks:
            yield _parse(block)

    async def _run(self) -> None:
        if self.plan.does == "leave" and not self.plan.step:
            self.leave()
        await self._application(self.scope, self._receive, self._send)

    async def _receive(self) -> Message:
        if self._parts and not self._gone.is_set():
            part = self._parts.pop(0)
            return {"type": "http.request", "body": part, "more_body": bool(self._parts)}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        self._steps += 1
        if self._steps == self.plan.step:
            match self.plan.does:
                case "stall":
                    await self._resumed.wait()
                case "leave":
                    self.leave()
                case "break":
                    self.leave()
                    raise OSError("The client has gone.")
                case "cancel":
                    self.task.cancel()
                    self.leave()
        self._take(message)
        self._changed.set()

    def _take(self, message: Message) -> None:
        assert not self.complete, f"{message} after the end"
        if message["type"] == "http.response.start":
            assert not self.status, "a second start"
            self.status = message["status"]
            for name, value in message["headers"]:
                assert _HEADER.fullmatch(value), f"the header {name}: {value}"
                self.headers[name.lower()] = value
        else:
            assert message["type"] == "http.response.body", message
            assert self.status, "a body before its start"
            self.body += message.get("body", b"")
            self.complete = not message.get("more_body", False)


def _parse(block: str) -> tuple[str | None, Fields]:
    comments, lines = [], []
    found: dict[str, str] = {}
    for line in block.split("\n"):
        field, colon, value = line.partition(": ")
        if line == ":" or (not field and colon):
            comments.append(value)
        elif field == "data" and colon:
            lines.append(value)
        else:
            assert field in ("id", "event", "retry"), f"the line {line!r}"
            assert colon, f"the line {line!r}"
            assert field not in found, f"a second {field} in {block!r}"
            assert "\0" not in value, f"NUL in {line!r}"
            found[field] = value
    retry = found.get("retry")
    assert retry is None or re.fullmatch("[0-9]+", retry), f"retry: {retry}"
    return found.get("id"), Fields(
        tuple(comments),
        None if retry is None else int(retry),
        found.get("event"),
        "\n".join(lines) if lines else None,
    )
