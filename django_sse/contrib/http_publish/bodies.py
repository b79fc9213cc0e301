"""The bodies of requests that publish, and the events in them. It knows no requests."""

import json
import re
import sys
from collections.abc import Sequence
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl

from django_sse.conf import conf
from django_sse.contrib.http_publish.problems import Problem
from django_sse.event import NO_DATA, Event, encode_published, refuse_reserved_name
from django_sse.exceptions import InvalidEvent, InvalidGroup
from django_sse.groups.names import group_name, validate_group
from django_sse.type_checks import UndeclaredTypeError, encode_for

JSON: Final = "application/json"
NDJSON: Final = "application/x-ndjson"
FORM: Final = "application/x-www-form-urlencoded"

_FIELDS: Final = ("group", "data", "event", "retry")
_LONGEST_NAME: Final = 100
# An update is kept once for each of its topics: so many bytes together, at most.
_MOST_COPIED_BYTES: Final = 16 * 1024 * 1024
_ONCE: Final = ("data", "id", "type", "retry", "private")
_CONTROL_CHARACTER: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
# As many digits as a retry that `Event` takes.
_MOST_DIGITS: Final = 19


class Publication(NamedTuple):
    """An event to publish.

    ``name`` is what the client calls the group, in the field ``field``. ``line`` is where the event
    is in the body, if that has lines.
    """

    group: str
    event: Event
    name: str
    field: str
    line: int | None = None

    @property
    def type_field(self) -> str:
        """The field in which the client gives the event's type."""
        return "event" if self.field == "group" else "type"


def from_json(body: bytes) -> list[Publication]:
    """Return the event of a JSON object.

    Raises:
        Problem: The body is something else.
    """
    return [_publication(body, None)]


def from_ndjson(body: bytes, most: int) -> list[Publication]:
    """Return the events of NDJSON, an object a line. Empty lines do not count.

    Raises:
        Problem: The body is something else, or has more than ``most`` events.
    """
    lines = [(number, line) for number, line in enumerate(body.split(b"\n"), 1) if line.strip()]
    if not lines:
        raise Problem(400, "There is no event in the body: send a JSON object a line.")
    if len(lines) > most:
        raise Problem(413, f"There are {len(lines)} events in the body: send at most {most}.")
    return [_publication(line, number) for number, line in lines]


def from_form(body: bytes, most: int) -> list[Publication]:
    """Return the event of an update of Mercure, once for each of its topics.

    https://mercure.rocks/spec#publication

    Raises:
        Problem: The body is something else, or has more than ``most`` topics.
    """
    try:
        pairs = parse_qsl(
            body.decode(),
            keep_blank_values=True,
            errors="strict",
            max_num_fields=most + len(_ONCE),
        )
    except UnicodeError as error:
        raise Problem(400, "The form is not UTF-8.") from error
    except ValueError as error:
        raise Problem(413, f"There are too many fields: send at most {most} topics.") from error
    topics = list(dict.fromkeys(value for name, value in pairs if name == "topic"))
    for field in _ONCE:
        if sum(name == field for name, _ in pairs) > 1:
            raise Problem(400, f"The field {field!r} comes more than once.", field=field)
    is_too_much = len(topics) > 1 and len(topics) * len(body) > _MOST_COPIED_BYTES
    if len(topics) > most or is_too_much:
        raise Problem(
            413, f"There are too many topics: send at most {most}, and fewer of much data."
        )
    if not all(topics) or not topics:
        raise Problem(400, "An update needs a topic that is not empty.", field="topic")
    if any(map(_CONTROL_CHARACTER.search, topics)):
        raise Problem(400, "A topic must not contain control characters.", field="topic")
    given = dict(pairs)
    retry = given.get("retry")
    if retry is not None and not (
        retry.isascii() and retry.isdigit() and len(retry) <= _MOST_DIGITS
    ):
        raise Problem(400, "'retry' has to be a number of milliseconds.", field="retry")
    event = _event(
        given.get("data", ""), given.get("type"), None if retry is None else int(retry), "type"
    )
    return [Publication(group_name(topic), event, topic, "topic") for topic in topics]


def refuse_unpublishable(publications: Sequence[Publication]) -> None:
    """Refuse the first event that cannot be published.

    Raises:
        Problem: There is one.
    """
    for each in publications:
        try:
            encode_for(each.group, each.event)
        except UndeclaredTypeError as error:
            raise Problem(400, str(error), line=each.line, field=each.type_field) from error
        except InvalidEvent as error:
            status = 413 if _is_too_large(each.event) else 400
            raise Problem(status, str(error), line=each.line, field="data") from error


def _is_too_large(event: Event) -> bool:
    return _fits(event, sys.maxsize) and not _fits(event, conf().MAX_EVENT_BYTES)


def _fits(event: Event, most_bytes: int) -> bool:
    try:
        encode_published(event, most_bytes)
    except InvalidEvent:
        return False
    return True


def _publication(body: bytes, line: int | None) -> Publication:
    fields = _object_in(body, line)
    for name in fields:
        if name not in _FIELDS:
            accepted = ", ".join(_FIELDS)
            detail = f"There is no such field: an event has {accepted}."
            raise Problem(400, detail, line=line, field=name[:_LONGEST_NAME])
    group = fields.get("group")
    try:
        group = validate_group(group)  # type: ignore[arg-type]
    except InvalidGroup as error:
        raise Problem(400, str(error), line=line, field="group") from error
    event = _event(
        fields.get("data", NO_DATA), fields.get("event"), fields.get("retry"), "event", line
    )
    return Publication(group, event, group, "group", line)


def _event(data: Any, name: Any, retry: Any, name_field: str, line: int | None = None) -> Event:
    """Return an event of these fields.

    Raises:
        Problem: One of them is wrong.
    """
    field = name_field
    try:
        refuse_reserved_name(Event("", event=name).event)
        field = "retry"
        Event(retry=retry)
        field = "data"
        return Event(data, event=name, retry=retry)
    except InvalidEvent as error:
        raise Problem(400, str(error), line=line, field=field) from error


def _object_in(body: bytes, line: int | None) -> dict[str, Any]:
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise Problem(400, f"This is not UTF-8, at byte {error.start + 1}.", line=line) from error
    try:
        found = json.loads(text, object_pairs_hook=_without_repeats, parse_constant=_refuse)
    except json.JSONDecodeError as error:
        place = error.lineno if line is None else line
        detail = f"This is not JSON, at character {error.colno}: {error.msg}."
        raise Problem(400, detail, line=place) from error
    except RecursionError as error:
        raise Problem(400, "The JSON is nested too deeply.", line=line) from error
    except ValueError as error:
        raise Problem(400, f"This is not JSON: {error}", line=line) from error
    if not isinstance(found, dict):
        more = "" if line else f" Send several events a line each, as {NDJSON}."
        raise Problem(400, f"An event is a JSON object with a group and data.{more}", line=line)
    return found


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # What looks at the body before us may take the other one.
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the name {name!r} comes twice in an object.")
        found[name] = value
    return found


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON.")
