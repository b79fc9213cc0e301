"""Prints the events of a stream, for people or for programs."""

import json
from datetime import UTC, datetime
from typing import Any

from django.core.management.base import OutputWrapper

from django_sse.event import Decoder, Event


class Printer:
    """Prints the events of a stream, and notes about it on another output.

    Args:
        output: Where events go.
        notes: Where notes go.
        as_json: Whether to print one JSON object a line.
        with_comments: Whether to print comments, too.
        last_event_id: The id of the last event that is known.
    """

    def __init__(
        self,
        output: OutputWrapper,
        notes: OutputWrapper,
        *,
        as_json: bool,
        with_comments: bool,
        last_event_id: str,
    ) -> None:
        self.last_event_id = last_event_id
        self.reconnection_time: int | None = None
        """The last ``retry``, in milliseconds."""
        self._output = output
        self._notes = notes
        self._as_json = as_json
        self._on_comment = self._print_comment if with_comments else None
        self.begin()

    def begin(self) -> None:
        """Begin with a new stream."""
        self._decoder = Decoder(self._on_comment)

    def feed(self, chunk: bytes) -> bool:
        """Print the events that a chunk completes, and return whether it says that no more come.

        Raises:
            BrokenPipeError: Who has read the output has had enough.
        """
        events = self._decoder.feed(chunk)
        for event in events:
            self._print_event(event)
        self._output.flush()
        self.last_event_id = self._decoder.last_event_id or self.last_event_id
        if self._decoder.reconnection_time is not None:
            self.reconnection_time = self._decoder.reconnection_time
        return any(event.event == "close" for event in events)

    def note(self, text: str) -> None:
        """Print a note."""
        self._notes.write(f"# {_harmless(text)}")
        self._notes.flush()

    def _print_event(self, event: Event) -> None:
        if self._as_json:
            self._print_json(id=event.id, event=event.event or "message", data=event.text)
            return
        id_of = f"  id: {event.id}" if event.id else ""
        self._output.write(_harmless(f"{_clock()}  {event.event or 'message'}{id_of}"))
        for line in event.text.split("\n"):
            self._output.write(f"  {_harmless(line)}")

    def _print_comment(self, comment: str) -> None:
        if self._as_json:
            self._print_json(comment=comment)
        else:
            self._output.write(f"{_clock()}  : {_harmless(comment)}".rstrip())

    def _print_json(self, **fields: Any) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._output.write(json.dumps({"time": now, **fields}))


def _clock() -> str:
    return f"{datetime.now().astimezone():%H:%M:%S.%f}"[:-3]


def _harmless(text: str) -> str:
    """Return a text without what a terminal would take for a command."""
    return "".join(
        char if char.isprintable() or char == "\t" else char.encode("unicode_escape").decode()
        for char in text
    )
