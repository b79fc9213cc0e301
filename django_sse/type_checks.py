"""Checks what is published against the ``event_types`` of the views that stream its group."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from django.core.exceptions import ImproperlyConfigured
from django.urls import URLPattern, URLResolver, get_resolver
from django.urls.converters import IntConverter, SlugConverter, UUIDConverter
from django.urls.resolvers import RegexPattern
from django.utils.text import Truncator

from django_sse.conf import SETTING, conf
from django_sse.event import (
    NO_DATA,
    Event,
    as_event,
    decode_block,
    encode_data,
    encode_published,
)
from django_sse.exceptions import InvalidEvent
from django_sse.groups.names import could_make
from django_sse.schemas import schemas_of
from django_sse.text import plain

# An event without a type: WHATWG HTML, 9.2.6.
_UNTYPED: Final = "message"
# The text of what Django's converters make of a URL.
_CONVERTED: Final[Mapping[type[Any], str]] = {
    IntConverter: "0|[1-9][0-9]*",
    SlugConverter: SlugConverter.regex,
    UUIDConverter: UUIDConverter.regex,
}
# Of a message of the validator, which repeats the data.
_MESSAGE_CHARACTERS: Final = 200


# The attribute in which a view function has what its view declares.
_DECLARED: Final = "django_sse_declared"


@dataclass(frozen=True, slots=True)
class Declared:
    """What a view says of its events: their types, and the groups that have them."""

    view: type[Any]
    types: Mapping[str, Any]
    group_patterns: tuple[str, ...]


def declare(function: Callable[..., Any], declared: Declared) -> None:
    """Note in a view function, as of ``as_view``, what its view declares."""
    setattr(function, _DECLARED, declared)


@dataclass(frozen=True, slots=True)
class Declaration:
    """What a view of the URLconf says of its events."""

    view: type[Any]
    url: URLPattern
    types: Mapping[str, Any]
    group_patterns: tuple[str, ...]
    arguments: Mapping[str, str]
    """Regular expressions of the view's keyword arguments as text, as far as they are known."""


class UndeclaredTypeError(InvalidEvent):
    """No view that streams the group declares an event of this type."""


def declarations(resolver: URLResolver) -> Iterator[Declaration]:
    """Yield what the views of a URLconf declare as ``event_types``."""
    for url, arguments in _urls(resolver, {}):
        declared: Declared | None = getattr(url.callback, _DECLARED, None)
        if declared and declared.types:
            yield Declaration(
                declared.view, url, declared.types, declared.group_patterns, arguments
            )


def _urls(
    resolver: URLResolver, arguments: Mapping[str, str]
) -> Iterator[tuple[URLPattern, Mapping[str, str]]]:
    """Yield the URLs of a URLconf, each with what is known of its keyword arguments."""
    for pattern in resolver.url_patterns:
        known = dict(arguments)
        if isinstance(pattern.pattern, RegexPattern):
            # Its groups may be any text, also where an outer URL has an argument of that name.
            for name in pattern.pattern.regex.groupindex:
                known.pop(name, None)
        for name, converter in pattern.pattern.converters.items():
            known.pop(name, None)
            # What another one makes of the URL may be any text.
            if expression := _CONVERTED.get(type(converter)):
                known[name] = expression
        if isinstance(pattern, URLResolver):
            given, urls = pattern.default_kwargs, _urls(pattern, known)
        else:
            given, urls = pattern.default_args, iter([(pattern, known)])
        for url, of_url in urls:
            yield url, {name: text for name, text in of_url.items() if name not in given}


def encode_for(group: str, data: Any, event: str | None = None, key: str | None = None) -> bytes:
    """Return the encoded block of an event for a group.

    Args:
        group: The name of the group, as the project knows it.
        data: An ``Event``, or its data.
        event: The type of the event, if ``data`` is not an ``Event``.
        key: The key of the event, if ``data`` is not an ``Event``.

    Raises:
        InvalidEvent: The event cannot be published; or ``CHECK_EVENT_TYPES`` is on, and the event
            is not what the views declare that stream the group.
        ImproperlyConfigured: It is on, and the types cannot be checked.
    """
    settings = conf()
    checks = settings.CHECK_EVENT_TYPES
    if key is None and not (checks or data is NO_DATA or isinstance(data, Event)):
        return encode_data(data, event, settings.MAX_EVENT_BYTES)
    made = as_event(data, event, key)
    wire = encode_published(made, settings.MAX_EVENT_BYTES)
    if checks and made.data is not NO_DATA:
        # As it is sent: to encode the data again might give something else.
        _check(group, made, decode_block(wire).text)
    return wire


def _check(group: str, event: Event, text: str) -> None:
    name = event.event or _UNTYPED
    streaming = [
        declaration
        for declaration in _declarations_of(get_resolver())
        if any(
            could_make(pattern, group, declaration.arguments)
            for pattern in declaration.group_patterns
        )
    ]
    declaring = [declaration for declaration in streaming if name in declaration.types]
    if streaming and not declaring:
        known = ", ".join(dict.fromkeys(each for one in streaming for each in one.types))
        views = ", ".join(dict.fromkeys(one.view.__name__ for one in streaming))
        raise UndeclaredTypeError(
            f"An event of the type {name!r} cannot be published to group {group!r}: the "
            f"event_types of {views} have only {known}. Correct its name, or declare it there."
        )
    for declaration in declaring:
        is_text = isinstance(plain(event.data), str)
        try:
            fault = _fault(declaration.types[name], text, is_text=is_text)
        except re.error as error:
            raise ImproperlyConfigured(
                f"{SETTING}['CHECK_EVENT_TYPES'] cannot check events of the type {name!r} of "
                f"{declaration.view.__name__}: Python's re does not know the pattern "
                f"{error.pattern!r} of its schema ({error})."
            ) from error
        if fault:
            raise InvalidEvent(
                f"The data of an event of the type {name!r} cannot be published to group "
                f"{group!r}: {fault} {declaration.view.__name__} declares its event_types."
            )


# Another URLconf has another resolver.
@lru_cache(maxsize=1)
def _declarations_of(resolver: URLResolver) -> tuple[Declaration, ...]:
    return tuple(declarations(resolver))


# By hand, since types need not be hashable.
_validators: Final[dict[int, tuple[Any, Any]]] = {}


def _validator_of(kind: Any) -> Any:
    """Return what validates JSON against the schema of a type.

    Raises:
        ImproperlyConfigured: A library is missing, or none knows the type.
    """
    known = _validators.get(id(kind))
    if known is None:
        try:
            from jsonschema import Draft202012Validator
        except ImportError as error:
            raise ImproperlyConfigured(
                f"{SETTING}['CHECK_EVENT_TYPES'] needs jsonschema: pip install jsonschema, or "
                "leave the setting out."
            ) from error
        [schema], definitions = schemas_of([kind])
        known = kind, Draft202012Validator({**schema, "$defs": definitions})
        _validators[id(kind)] = known
    return known[1]


def _fault(kind: Any, text: str, *, is_text: bool) -> str:
    """Return what is wrong with the data of an event, or nothing.

    Args:
        kind: The type that is declared.
        text: The data, as they are sent.
        is_text: Whether they were given as text, which a client may take as it is.

    Raises:
        ImproperlyConfigured: As for ``_validator_of``.
        re.error: The schema has a pattern that Python does not know.
    """
    validator = _validator_of(kind)
    if is_text and validator.is_valid(text):
        return ""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = text
    if validator.is_valid(value):
        return ""
    from jsonschema.exceptions import best_match

    error = best_match(validator.iter_errors(value))
    return f"{Truncator(error.message).chars(_MESSAGE_CHARACTERS)}, at {error.json_path}."
