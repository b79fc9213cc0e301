"""Checks what is published against the ``event_types`` of the views that stream its group."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from django.urls import URLPattern, URLResolver, get_resolver

from django_sse.conf import SETTING, conf
from django_sse.event import NO_DATA, Event, encode_published
from django_sse.exceptions import InvalidEvent
from django_sse.groups.names import could_make
from django_sse.schemas import schemas_of

# An event without a type: WHATWG HTML, 9.2.6.
_UNTYPED: Final = "message"


@dataclass(frozen=True, slots=True)
class Declaration:
    """What a view of the URLconf says of its events."""

    view: type[Any]
    url: URLPattern
    types: Mapping[str, Any]
    group_patterns: tuple[str, ...]


def declarations() -> Iterator[Declaration]:
    """Yield what the views of the URLconf declare as ``event_types``."""
    for url in _urls(get_resolver()):
        view: Any = getattr(url.callback, "view_class", None)
        # Only views of this package have it.
        own_groups = getattr(view, "_own_groups", None)
        if own_groups is not None:
            options: Mapping[str, Any] = getattr(url.callback, "view_initkwargs", {})
            groups = options.get("groups", getattr(view, "groups", ()))
            if types := options.get("event_types", view.event_types):
                yield Declaration(view, url, types, (*groups, *own_groups))


def _urls(resolver: URLResolver) -> Iterator[URLPattern]:
    for pattern in resolver.url_patterns:
        if isinstance(pattern, URLResolver):
            yield from _urls(pattern)
        else:
            yield pattern


def encode_for(group: str, event: Event) -> bytes:
    """Return the encoded block of an event for a group.

    Args:
        group: The name of the group, as the project knows it.
        event: The event.

    Raises:
        InvalidEvent: The event cannot be published; or ``CHECK_EVENT_TYPES`` is on, and the event
            is not what the views declare that stream the group.
        ImproperlyConfigured: It is on, and the types cannot be checked.
    """
    settings = conf()
    wire = encode_published(event, settings.MAX_EVENT_BYTES)
    if settings.CHECK_EVENT_TYPES and event.data is not NO_DATA:
        _check(group, event)
    return wire


def _check(group: str, event: Event) -> None:
    name = event.event or _UNTYPED
    streaming = [
        declaration
        for declaration in _all_declarations()
        if any(could_make(pattern, group) for pattern in declaration.group_patterns)
    ]
    declaring = [declaration for declaration in streaming if name in declaration.types]
    if streaming and not declaring:
        known = ", ".join(dict.fromkeys(each for one in streaming for each in one.types))
        views = ", ".join(dict.fromkeys(one.view.__name__ for one in streaming))
        raise InvalidEvent(
            f"An event of the type {name!r} cannot be published to group {group!r}: the "
            f"event_types of {views} have only {known}. Correct its name, or declare it there."
        )
    for declaration in declaring:
        if fault := _fault(declaration.types[name], event):
            raise InvalidEvent(
                f"The data of an event of the type {name!r} cannot be published to group "
                f"{group!r}: {fault} {declaration.view.__name__} declares its event_types."
            )


@cache
def _all_declarations() -> tuple[Declaration, ...]:
    return tuple(declarations())


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


def _fault(kind: Any, event: Event) -> str:
    """Return what is wrong with the data of an event, or nothing."""
    from jsonschema.exceptions import best_match

    validator = _validator_of(kind)
    try:
        value = json.loads(event.text)
    except ValueError:
        value = event.text
    # A client may take text as it is.
    if validator.is_valid(value) or (
        isinstance(event.data, str) and validator.is_valid(event.data)
    ):
        return ""
    error = best_match(validator.iter_errors(value))
    return f"{error.message}, at {error.json_path}."


def _forget(*, setting: str, **kwargs: Any) -> None:
    if setting == "ROOT_URLCONF":
        _all_declarations.cache_clear()


setting_changed.connect(_forget)
