"""One Server-Sent Event and its wire format, exactly as the WHATWG specification has it.

https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

import json
import re
from codecs import BOM_UTF8
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, Self

from django.http import HttpRequest
from django.template.loader import render_to_string
from django.utils.functional import Promise

from django_sse.encoding import as_json
from django_sse.exceptions import InvalidEvent
from django_sse.text import plain

# The specification has only these three line ends. str.splitlines() knows more.
_LINE_END = re.compile(r"\r\n|\n|\r")
FORBIDDEN_IN_FIELD: Final = re.compile(r"[\r\n\0]")
# Python reads no number with more digits, and no browser waits that long.
_MAX_DIGITS: Final = 4300
_MAX_RETRY: Final = 2**63 - 1
# The output of encode() without an id: lines that are not empty, then the empty line at the end.
_ONE_BLOCK = re.compile(rb"(?:(?!id[:\n])[^\r\n]+\n)+\n")

KEY_FIELD: Final = b"key: "
"""The beginning of the block of each event that has a key."""

# `error` and `open` belong to EventSource, `close` and `reset` to this library.
RESERVED_NAMES: Final = frozenset({"error", "open", "close", "reset"})


class _NoData(Enum):
    NO_DATA = "no data"

    def __repr__(self) -> str:
        return "NO_DATA"


NO_DATA: Final = _NoData.NO_DATA
"""The default of ``Event.data``: no ``data`` line at all. ``None`` is sent as JSON's null."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a stream.

    Args:
        data: Text, which is sent as it is, or anything else, which is sent as JSON by
            ``DJANGO_SSE["ENCODER"]`` (``None`` is ``null``). Without data, a browser fires no
            event.
        event: The event's type. Without it, the browser fires a ``message``.
        id: The id, which the browser sends back as ``Last-Event-ID``.
        retry: The browser's reconnection time, in milliseconds.
        comment: Text that clients ignore.
        key: What the event is about, such as a price's symbol. A client that lags or comes back
            gets only the newest event of each key. It is sent as a field, which clients ignore
            (WHATWG HTML, 9.2.6).

    Raises:
        InvalidEvent: A field has the wrong type or would break the stream, or there is a type or a
            key without data.
    """

    data: Any = NO_DATA
    event: str | None = None
    id: str | None = None
    retry: int | None = None
    comment: str | None = None
    key: str | None = None

    def __post_init__(self) -> None:
        if self.event is not None:
            object.__setattr__(self, "event", _one_line("event", self.event))
        if self.id is not None:
            object.__setattr__(self, "id", _one_line("id", self.id))
        if self.event is not None and self.data is NO_DATA:
            raise InvalidEvent(
                f"An event of type {self.event!r} without data fires nothing in a browser. "
                'Give it data, at least the empty text "".'
            )
        if self.key is not None:
            object.__setattr__(self, "key", _one_line("key", self.key))
            if self.data is NO_DATA:
                raise InvalidEvent(
                    f"An event with the key {self.key!r} needs data: it replaces older ones."
                )
        if self.retry is not None:
            if (
                isinstance(self.retry, bool)
                or not isinstance(self.retry, int)
                or not 0 <= self.retry <= _MAX_RETRY
            ):
                # The value is not shown, since Python refuses to print thousands of digits.
                raise InvalidEvent(
                    "Event.retry must be a whole number of milliseconds from 0 to 2**63 - 1."
                )
            object.__setattr__(self, "retry", plain(self.retry))
        if self.comment is not None:
            comment = plain(self.comment)
            if not isinstance(comment, str):
                raise InvalidEvent(f"Event.comment must be text, not {type(comment).__name__}.")
            object.__setattr__(self, "comment", comment)

    @classmethod
    def from_template(
        cls,
        template: str | Sequence[str],
        context: Mapping[str, Any] | None = None,
        request: HttpRequest | None = None,
        *,
        event: str | None = None,
        key: str | None = None,
    ) -> Self:
        """Return an event whose data is a rendered template, such as HTML that a page swaps in.

        Args:
            template: A template's name, or several names, of which the first that exists is used.
            context: As for ``render``.
            request: The request for which context processors run. Every client of a group gets the
                same text.
            event: The event's type.
            key: The event's key.

        Raises:
            TemplateDoesNotExist, TemplateSyntaxError: As raised by Django's template loaders.
        """
        return cls(render_to_string(template, context, request), event=event, key=key)

    def encode(self) -> bytes:
        """Return the event's block of lines, with the blank line that ends it.

        An event without any field has no lines, and so no bytes.

        Raises:
            InvalidEvent: The data is neither text nor something that JSON can express.
        """
        lines = []
        if self.key is not None:
            # First, where `key_of` looks for it.
            lines.append(f"key: {self.key}\n")
        if self.comment is not None:
            lines.append(_field("", self.comment))
        if self.retry is not None:
            lines.append(f"retry: {self.retry}\n")
        if self.id is not None:
            lines.append(f"id: {self.id}\n")
        if self.event is not None:
            lines.append(f"event: {self.event}\n")
        if self.data is not NO_DATA:
            lines.append(_field("data", _as_text(self.data)))
        return _utf8("".join([*lines, "\n"])) if lines else b""

    def json(self) -> Any:
        """Return the data of a received event, parsed as JSON.

        Raises:
            ValueError: The data is not JSON.
        """
        return json.loads(self.text)

    @property
    def text(self) -> str:
        """The data as it goes over the wire, or the empty text if there is none."""
        return "" if self.data is NO_DATA else _as_text(self.data)


def _one_line(field: str, value: Any) -> str:
    text = plain(value)
    if not isinstance(text, str):
        raise InvalidEvent(f"Event.{field} must be text, not {type(text).__name__}.")
    if FORBIDDEN_IN_FIELD.search(text):
        raise InvalidEvent(
            f"Event.{field} must not contain CR, LF or NUL, but {text!r} does: "
            "it would end the line and start another field."
        )
    return text


def refuse_reserved_name(name: str | None) -> None:
    """Refuse an event's type that has a special meaning for clients.

    Raises:
        InvalidEvent: The type is ``error``, ``open``, ``close`` or ``reset``.
    """
    if name in RESERVED_NAMES:
        raise InvalidEvent(
            f"{name!r} is not a name for an event: {', '.join(sorted(RESERVED_NAMES))} "
            "belong to EventSource and to django_sse."
        )


def as_event(data: Any, event: str | None = None, key: str | None = None) -> Event:
    """Return an event, given it or its data.

    Args:
        data: An ``Event``, or its data.
        event: The type of the event, if ``data`` is not an ``Event``.
        key: The key of the event, if ``data`` is not an ``Event``.

    Raises:
        InvalidEvent: Both say the type or the key; or as for ``Event``.
    """
    if not isinstance(data, Event):
        return Event(data, event=event, key=key)
    if event is not None:
        raise InvalidEvent("Give the event's type in the Event or in `event`, not in both.")
    if key is not None:
        raise InvalidEvent("Give the event's key in the Event or in `key`, not in both.")
    return data


def encode_published(event: Event, max_bytes: int) -> bytes:
    """Return the encoded block of an event for a group. Only the store gives it an id.

    Raises:
        InvalidEvent: The event is empty, is larger than ``max_bytes``, or has an id or a reserved
            name.
    """
    if event.id is not None:
        raise InvalidEvent(
            f"An event for a group must not have an id ({event.id!r}): the store gives it one."
        )
    refuse_reserved_name(event.event)
    wire = event.encode()
    if not wire:
        raise InvalidEvent("There is nothing to send in an event without data, retry or comment.")
    _refuse_too_large(wire, max_bytes)
    return wire


def encode_data(data: Any, event: str | None, max_bytes: int) -> bytes:
    """Return what ``encode_published`` returns for an event that has only data and perhaps a type.

    Most have no more, and to make an ``Event`` first takes as long again.

    Raises:
        InvalidEvent: As for ``Event`` and ``encode_published``.
    """
    block = f"{_field('data', _as_text(data))}\n"
    if event is not None:
        name = _one_line("event", event)
        refuse_reserved_name(name)
        block = f"event: {name}\n{block}"
    wire = _utf8(block)
    _refuse_too_large(wire, max_bytes)
    return wire


def _refuse_too_large(wire: bytes, max_bytes: int) -> None:
    if len(wire) > max_bytes:
        raise InvalidEvent(
            f"The event has {len(wire)} bytes, but DJANGO_SSE['MAX_EVENT_BYTES'] allows only "
            f"{max_bytes}. Publish a reference to the content instead of the content."
        )


def is_one_block_without_id(wire: bytes) -> bool:
    """Return whether bytes are the output of ``encode`` for one event without an id."""
    return _ONE_BLOCK.fullmatch(wire) is not None


def decode_block(wire: bytes) -> Event:
    """Return the event of an encoded block, with its ``retry`` and its comment, which a browser
    does not show."""
    values: dict[str, list[str]] = {}
    for line in wire.decode().rstrip("\n").split("\n"):
        field, _, value = line.partition(":")
        values.setdefault(field, []).append(value.removeprefix(" "))
    fields = {field: "\n".join(lines) for field, lines in values.items()}
    return Event(
        fields.get("data", NO_DATA),
        event=fields.get("event"),
        id=fields.get("id"),
        retry=int(fields["retry"]) if "retry" in fields else None,
        comment=fields.get(""),
        key=fields.get("key"),
    )


def key_of(wire: bytes) -> bytes | None:
    """Return the key in an encoded block, or None if it has none."""
    return wire[len(KEY_FIELD) : wire.index(b"\n")] if wire.startswith(KEY_FIELD) else None


def with_id(id: str, block: bytes) -> bytes:
    """Return an encoded block with an ``id`` line in front. An empty block makes a checkpoint."""
    return b"id: %s\n%s" % (id.encode(), block or b"\n")


def _field(name: str, text: str) -> str:
    """Return a field with one line for each line of the text."""
    if "\n" in text or "\r" in text:
        return "".join(f"{name}: {line}\n" for line in _LINE_END.split(text))
    return f"{name}: {text}\n"


def _as_text(data: Any) -> str:
    # Most data are a `str`: this test takes a tenth of the next one's time.
    if type(data) is str:
        return data
    if isinstance(data, str | Promise):
        return str(plain(data))
    return as_json(data)


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        # A pair of surrogates is one character. A lone one becomes U+FFFD, as browsers show it.
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


class Decoder:
    """A strict parser of event streams (WHATWG HTML, 9.2.6). It takes bytes in chunks of any size.

    ``last_event_id`` and ``reconnection_time`` (milliseconds, or None) are what a browser would
    hold. An id without data changes ``last_event_id``, but makes no event.

    Args:
        on_comment: Called with each comment, which are no part of events.
    """

    def __init__(self, on_comment: Callable[[str], object] | None = None) -> None:
        self._on_comment = on_comment
        self.last_event_id = ""
        self.reconnection_time: int | None = None
        # The pieces of an unfinished line. They are joined once, however long the line becomes.
        self._rest: list[bytes] = []
        self._at_start = True
        self._skip_newline = False
        self._data: list[str] = []
        self._name = ""
        self._id = ""

    def feed(self, chunk: bytes) -> list[Event]:
        """Return the events that this chunk completes."""
        if self._at_start:
            chunk, self._rest = b"".join([*self._rest, chunk]), []
            if len(chunk) < len(BOM_UTF8) and BOM_UTF8.startswith(chunk):
                self._rest = [chunk]
                return []
            chunk = chunk.removeprefix(BOM_UTF8)
            self._at_start = False
        return [event for line in self._lines_ended_by(chunk) if (event := self._take(line))]

    def _lines_ended_by(self, chunk: bytes) -> list[str]:
        # A CR ends its line at once. An LF that belongs to it may come only in the next chunk.
        if self._skip_newline and chunk:
            chunk = chunk.removeprefix(b"\n")
            self._skip_newline = False
        if chunk.endswith(b"\r"):
            self._skip_newline = True
        first, *others = re.split(rb"\r\n|\n|\r", chunk)
        self._rest.append(first)
        if not others:
            return []
        *lines, rest = [b"".join(self._rest), *others]
        self._rest = [rest]
        return [line.decode("utf-8", "replace") for line in lines]

    def _take(self, line: str) -> Event | None:
        if not line:
            return self._dispatch()
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match field:
            case "data":
                self._data.append(value)
            case "event":
                # Event refuses NUL, but a decoder must not fail on what it receives.
                self._name = value.replace("\0", "\ufffd")
            case "id" if "\0" not in value:
                self._id = value
            case "retry" if value.isascii() and value.isdigit():
                self.reconnection_time = int(value.lstrip("0")[:_MAX_DIGITS] or "0")
            case "" if self._on_comment:
                self._on_comment(value)
        return None

    def _dispatch(self) -> Event | None:
        self.last_event_id = self._id
        data, name = self._data, self._name
        self._data, self._name = [], ""
        if not data:
            return None
        return Event("\n".join(data), event=name or None, id=self.last_event_id or None)
