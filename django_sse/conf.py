"""The one setting, ``DJANGO_SSE``: what it may hold, with unit and default."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, Final

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed

SETTING: Final = "DJANGO_SSE"


@dataclass(frozen=True, slots=True)
class Rule:
    """What a key accepts: in words, and as a test."""

    accepts: str
    admits: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_store(value: Any) -> bool:
    if isinstance(value, dict):
        return (
            isinstance(value.get("BACKEND"), str)
            and isinstance(value.get("OPTIONS", {}), dict)
            and value.keys() <= {"BACKEND", "OPTIONS"}
        )
    return isinstance(value, str)


COUNT: Final = Rule("a whole number above 0", _is_count)
SECONDS: Final = Rule(
    "a finite number of seconds from 0",
    lambda value: _is_number(value) and 0 <= value < float("inf"),
)
SECONDS_OR_OFF: Final = Rule(
    "a finite number of seconds above 0, or None",
    lambda value: value is None or (_is_number(value) and 0 < value < float("inf")),
)
SECONDS_FROM_1: Final = Rule(
    "a finite number of seconds from 1",
    lambda value: _is_number(value) and 1 <= value < float("inf"),
)
YES_OR_NO: Final = Rule("True or False", lambda value: isinstance(value, bool))
STORE: Final = Rule(
    '"database", "memory", "redis", the dotted path of an EventStore, or '
    '{"BACKEND": one of these, "OPTIONS": {...}}',
    _is_store,
)


def _key(default: Any, rule: Rule) -> Any:
    return field(default=default, metadata={"rule": rule})


@dataclass(frozen=True, slots=True)
class Conf:
    """The values of ``DJANGO_SSE``, each with its default."""

    STORE: str | dict[str, Any] = _key("database", STORE)
    """Where events are kept. OPTIONS of each store: ``using``, a database alias. Of the database
    store also ``listen_alias``; of the redis store ``url``, ``prefix`` and ``durable``."""

    HISTORY_SIZE: int = _key(1000, COUNT)
    """Events kept for replay, per group, at least. Trimming is in bulk: up to a tenth more."""

    HISTORY_AGE: float | None = _key(24 * 3600, SECONDS_OR_OFF)
    """Seconds that an event is kept for replay. None: only HISTORY_SIZE bounds it."""

    GROUP_TTL: float | None = _key(7 * 24 * 3600, SECONDS_OR_OFF)
    """Seconds without a new event after which a group is forgotten, and with it its numbers and
    whether it is cancelled. None: never."""

    SYNC_INTERVAL: float | None = _key(None, SECONDS_OR_OFF)
    """Seconds between two comparisons with the store. None: 5, 1 or 0.1, as much as doorbells of
    other processes are heard."""

    HEARTBEAT: float | None = _key(15, SECONDS_OR_OFF)
    """Seconds of silence after which a stream sends a comment. None: never."""

    RETRY: float = _key(3, SECONDS)
    """Seconds that browsers wait before they reconnect."""

    SEND_TIMEOUT: float | None = _key(30, SECONDS_OR_OFF)
    """Seconds that one send may take before the stream is ended. None: for ever."""

    BACKLOG_BYTES: int = _key(1024 * 1024, COUNT)
    """Bytes that may wait for a slow client before its stream is ended, to be resumed later."""

    MAX_EVENT_BYTES: int = _key(256 * 1024, COUNT)
    """Bytes of the largest event that may be published, as encoded."""

    MAX_GROUPS: int = _key(50, COUNT)
    """Groups of one stream."""

    MAX_AGE: float | None = _key(None, SECONDS_OR_OFF)
    """Seconds after which a stream ends so that its client reconnects: at the latest, and up to a
    fifth earlier, so that those that came together do not leave together. None: never."""

    CANCEL_TTL: float = _key(3600, SECONDS_FROM_1)
    """Seconds for which the streams of a user that was cancelled, or of a session that was logged
    out, are refused with 204."""

    END_WITH_LOGIN: bool = _key(True, YES_OR_NO)
    """Whether a stream ends with the login that it was opened in: when its session is logged out,
    when its user is deactivated or deleted, or gets another password."""

    RECHECK_INTERVAL: float = _key(60, SECONDS_FROM_1)
    """Seconds between two calls of a view's ``still_allowed``."""


def problems(value: Any) -> Iterator[str]:
    """Say what is wrong with a value of ``DJANGO_SSE``, and what would be accepted."""
    if not isinstance(value, dict):
        yield f"{SETTING} must be a dict, not {type(value).__name__}."
        return
    rules = {key.name: key.metadata["rule"] for key in fields(Conf)}
    for name, given in value.items():
        if name not in rules:
            yield f"{SETTING} has no key {name!r}. It accepts: {', '.join(rules)}."
        elif not rules[name].admits(given):
            yield f"{SETTING}[{name!r}] must be {rules[name].accepts}, not {given!r}."


@cache
def conf() -> Conf:
    """Return the settings of django_sse.

    Raises:
        ImproperlyConfigured: ``DJANGO_SSE`` has an unknown key or a wrong value.
    """
    value = getattr(settings, SETTING, {})
    if found := list(problems(value)):
        raise ImproperlyConfigured(" ".join(found))
    return Conf(**value)


def _forget(*, setting: str, **kwargs: Any) -> None:
    if setting == SETTING:
        conf.cache_clear()


setting_changed.connect(_forget)
