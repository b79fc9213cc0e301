"""Checks of class-based views, made before the first request."""

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final

from asgiref.sync import iscoroutinefunction
from django.core.exceptions import ImproperlyConfigured

from django_sse.conf import (
    COUNT,
    MILLISECONDS,
    SECONDS_FROM_1,
    SECONDS_OR_NONE,
    SECONDS_OR_OFF,
    Rule,
    is_whole,
)
from django_sse.event import FORBIDDEN_IN_FIELD, RESERVED_NAMES

MESSAGE_TYPES: Final = "_django_sse_message_types"
"""The attribute in which ``on_message`` stores the message types that a method handles."""


def _are_event_types(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(name, str) and name not in RESERVED_NAMES and not FORBIDDEN_IN_FIELD.search(name)
        for name in value
    )


_RULES: Final = {
    # None means the value of the setting, or as much as is kept.
    "history": Rule("a whole number from 0", is_whole),
    "replay_events": Rule("a whole number from 0, or None", lambda n: n is None or is_whole(n)),
    "replay_age": Rule(
        f"{SECONDS_OR_NONE.accepts} (`replay_events = 0` replays nothing)",
        SECONDS_OR_NONE.admits,
    ),
    "retry": Rule(
        f"{MILLISECONDS.accepts}, or None", lambda n: n is None or MILLISECONDS.admits(n)
    ),
    "resume_seconds": SECONDS_OR_OFF,
    "heartbeat": Rule(
        f"{SECONDS_OR_OFF.accepts}, or None", lambda n: n is None or SECONDS_OR_OFF.admits(n)
    ),
    "newest_of_keys": Rule("True or False", lambda value: isinstance(value, bool)),
    "presence": Rule("True or False", lambda value: isinstance(value, bool)),
    "stoppable": Rule("True or False", lambda value: isinstance(value, bool)),
    "restartable": Rule("True or False", lambda value: isinstance(value, bool)),
    "stop_when_unread": SECONDS_OR_NONE,
    "stays_in_request": Rule("True or False", lambda value: isinstance(value, bool)),
    "retry_on_error": Rule("True or False", lambda value: isinstance(value, bool)),
    "max_body_bytes": COUNT,
    "max_events": COUNT,
    "remember_seconds": SECONDS_FROM_1,
    "jwt_algorithm": Rule('"HS256" or "RS256"', lambda value: value in ("HS256", "RS256")),
    "event_types": Rule(
        'a dict of the types of events and those of their data, such as {"headline": Headline}; '
        f"{', '.join(sorted(RESERVED_NAMES))} are reserved",
        _are_event_types,
    ),
}

# The signatures that a project's methods must have.
_SIGNATURES: Final = {
    "get_groups": "async def get_groups(self)`",
    "authorize": "async def authorize(self, groups)`",
    "get_owner": "async def get_owner(self)`",
    "get_member": "async def get_member(self)`",
    "still_allowed": "async def still_allowed(self)`",
    "initial_events": "async def initial_events(self)` with `yield`",
    "events": "async def events(self)` with `yield`",
    "answer": "async def answer(self)` with `yield`",
    "get_chat": "async def get_chat(self)`",
    "filter_event": (
        "def filter_event(self, event)`: it is called on the event loop and must not wait"
    ),
}
_GENERATORS: Final = ("initial_events", "events", "answer")

VALUES: Final = tuple(_RULES)
"""The attributes of views that have numbers and other values."""

METHODS_OF_CHATS: Final = ("answer", "get_chat")
"""The methods that projects override of views for ``useChat`` alone."""

METHODS: Final = tuple(name for name in _SIGNATURES if name not in METHODS_OF_CHATS)
"""The methods of all views that projects override."""


def check_value(view: type, name: str, value: Any) -> None:
    """Refuse a wrong value of an attribute. A property has no value before a request.

    Raises:
        ImproperlyConfigured: The value is wrong.
    """
    rule = _RULES[name]
    if not hasattr(value, "__get__") and not rule.admits(value):
        raise ImproperlyConfigured(f"{view.__name__}.{name} must be {rule.accepts}, not {value!r}.")


def require_override(view: type, name: str, method: object, default: object) -> None:
    """Refuse a view that has only the default of its generator, which yields nothing.

    Raises:
        ImproperlyConfigured: The method is the default one.
    """
    if method is default:
        raise ImproperlyConfigured(
            f"{view.__name__} has nothing to stream: write `async def {name}(self)` with `yield`."
        )


def refuse_replaced_methods(view: type, bases: Sequence[type]) -> None:
    """Refuse a view in which a method of the project replaces a private one of its bases.

    Args:
        view: The view.
        bases: Its bases of this package, in the order of method resolution.

    Raises:
        ImproperlyConfigured: There is such a method.
    """
    for name in {name for base in bases for name in vars(base)}:
        is_private = name.startswith("_") and not name.startswith("__") and name != "_handlers"
        original = inspect.getattr_static(bases[0], name)
        if is_private and inspect.getattr_static(view, name) is not original:
            raise ImproperlyConfigured(
                f"{view.__name__}.{name} replaces a private method of {bases[0].__name__}. Choose "
                "another name."
            )


def handlers_of(view: type) -> dict[str, str]:
    """Return the names of a view's handlers of plain Channels messages, by message type.

    Handlers are inherited. A class that overrides one need not declare it again.

    Raises:
        ImproperlyConfigured: Two methods handle the same type, or a handler can only fail.
    """
    types_of: dict[str, Collection[str]] = {}
    for base in reversed(view.__mro__):
        for name, value in vars(base).items():
            if types := inspect.getattr_static(value, MESSAGE_TYPES, None):
                types_of[name] = types
    handlers: dict[str, str] = {}
    for name, types in types_of.items():
        method = getattr(view, name)
        if method is None:
            # As with `__hash__`, None takes back what a base class declares.
            continue
        if not callable(method) or not _is_plain(method):
            raise ImproperlyConfigured(
                f"{view.__name__}.{name} handles Channels messages of type {', '.join(types)}, so "
                f"it has to be `def {name}(self, message)`: it is called on the event loop and "
                "must not wait."
            )
        for message_type in types:
            if message_type in handlers:
                raise ImproperlyConfigured(
                    f"{view.__name__} has two handlers for Channels messages of type "
                    f"{message_type!r}: {handlers[message_type]} and {name}. Declare only one of "
                    "them with @on_message."
                )
            handlers[message_type] = name
    return handlers


def _is_plain(method: Callable[..., Any]) -> bool:
    """Return whether a method is neither ``async`` nor a generator function."""
    original = inspect.unwrap(method)
    return not (
        iscoroutinefunction(method)
        or iscoroutinefunction(original)
        or inspect.isgeneratorfunction(original)
        or inspect.isasyncgenfunction(original)
    )


_MIXINS: Final = ("LoginRequiredMixin", "PermissionRequiredMixin", "UserPassesTestMixin")


def refuse_djangos_mixins(view: type) -> None:
    """Refuse Django's access mixins, which read the user synchronously and redirect.

    Raises:
        ImproperlyConfigured: The view has one.
    """
    for base in view.__mro__:
        # Compared by name, because they cannot be imported in a project without users.
        if base.__module__ == "django.contrib.auth.mixins" and base.__name__ in _MIXINS:
            raise ImproperlyConfigured(
                f"{view.__name__} has {base.__name__} of django.contrib.auth.mixins, which fails "
                "on async views and redirects to a page that an EventSource cannot use. Import "
                f"{base.__name__} from django_sse.mixins instead."
            )


def check_method(view: type, name: str, method: Any) -> None:
    """Refuse a method that can only fail, in each request or long after it.

    Raises:
        ImproperlyConfigured: The method is async and must not be, or the other way round.
    """
    original = inspect.unwrap(method)
    is_async = iscoroutinefunction(method) or iscoroutinefunction(original)
    if name == "filter_event":
        fits = _is_plain(method)
    elif name in _GENERATORS:
        # A plain function may return an async generator.
        fits = not (is_async or inspect.isgeneratorfunction(original))
    else:
        fits = is_async or not inspect.isfunction(original)
    if not fits:
        raise ImproperlyConfigured(f"{view.__name__}.{name} has to be `{_SIGNATURES[name]}.")
