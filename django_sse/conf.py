"""The one setting, ``DJANGO_SSE``: what it may hold, with unit and default."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from ipaddress import ip_network
from typing import Any, Final

from django.apps import apps
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed

SETTING: Final = "DJANGO_SSE"
UNIX_PEER: Final = "unix:"


@dataclass(frozen=True, slots=True)
class Rule:
    """What a key accepts: in words, and as a test."""

    accepts: str
    admits: Callable[[Any], bool]
    is_secret: bool = False
    """Whether a value may hold a password, so that texts in it are not shown."""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_whole(value: Any) -> bool:
    """Say whether a value is a whole number from 0."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_count(value: Any) -> bool:
    return is_whole(value) and value > 0


def _is_store(value: Any) -> bool:
    if isinstance(value, dict):
        return (
            _is_dotted_path(value.get("BACKEND"))
            and isinstance(value.get("OPTIONS", {}), dict)
            and value.keys() <= {"BACKEND", "OPTIONS"}
        )
    return _is_dotted_path(value)


def _is_dotted_path(value: Any) -> bool:
    return isinstance(value, str) and all(map(str.isidentifier, value.split(".")))


# As browsers send it (RFC 6454, 6.2): no path, and no port that goes without saying.
_ORIGIN: Final = re.compile(
    r"(?!(?:http://.*:80|https://.*:443)$)"
    r"[a-z][a-z0-9+.-]*://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?",
    re.ASCII | re.IGNORECASE,
)


def _are_origins(value: Any) -> bool:
    if not isinstance(value, list | tuple):
        return False
    return list(value) == ["*"] or all(
        isinstance(origin, str) and _ORIGIN.fullmatch(origin) for origin in value
    )


def _are_proxies(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(
        isinstance(proxy, str) and (proxy == UNIX_PEER or _is_network(proxy)) for proxy in value
    )


def _is_network(value: str) -> bool:
    try:
        ip_network(value)
    except ValueError:
        return False
    return True


COUNT: Final = Rule("a whole number above 0", _is_count)
COUNT_OR_OFF: Final = Rule(
    "a whole number above 0, or None", lambda value: value is None or _is_count(value)
)
SECONDS_FROM_1: Final = Rule(
    "a finite number of seconds from 1 (it cannot be off)",
    lambda value: _is_number(value) and 1 <= value < float("inf"),
)
SECONDS_FROM_1_OR_OFF: Final = Rule(
    "a finite number of seconds from 1, or 0 for off",
    lambda value: _is_number(value) and (value == 0 or 1 <= value < float("inf")),
)
SECONDS_OR_OFF: Final = Rule(
    "a finite number of seconds, or 0 for off",
    lambda value: _is_number(value) and 0 <= value < float("inf"),
)
SECONDS_OR_CHOSEN: Final = Rule(
    "a finite number of seconds, or 0 to have it chosen",
    SECONDS_OR_OFF.admits,
)
# As in the specification, unlike all other durations. Browsers' timers hold no more.
MILLISECONDS: Final = Rule(
    "a whole number of milliseconds from 100 to 2147483647 (less looks like seconds: 3 seconds are "
    "3000)",
    lambda value: _is_count(value) and 100 <= value < 2**31,
)
ORIGINS: Final = Rule(
    'a list of origins such as "https://app.example.com", each without a path, a slash at its end '
    'or the usual port; or ["*"]',
    _are_origins,
)
PROXIES: Final = Rule(
    'a list of addresses and networks such as "10.0.0.0/8", and of "unix:" for Unix sockets',
    _are_proxies,
)
YES_OR_NO: Final = Rule("True or False", lambda value: isinstance(value, bool))
FUNCTION_OR_OFF: Final = Rule(
    "the dotted path of a function, or None",
    lambda value: value is None or _is_dotted_path(value),
)
STORE: Final = Rule(
    '"database", "memory", "redis", the dotted path of an EventStore, or '
    '{"BACKEND": one of these, "OPTIONS": {...}}',
    _is_store,
    is_secret=True,
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

    HISTORY_AGE: float = _key(24 * 3600, SECONDS_OR_OFF)
    """Seconds that an event is kept for replay. 0: only HISTORY_SIZE bounds it."""

    GROUP_TTL: float = _key(7 * 24 * 3600, SECONDS_OR_OFF)
    """Seconds without a new event after which a group is forgotten, and with it its numbers and
    whether it is cancelled. 0: never."""

    SYNC_INTERVAL: float = _key(0, SECONDS_OR_CHOSEN)
    """Seconds between two comparisons with the store. 0: 5, 1 or 0.1, as much as doorbells of
    other processes are heard."""

    HEARTBEAT: float = _key(15, SECONDS_OR_OFF)
    """Seconds of silence after which a stream sends a comment. 0: never."""

    RETRY: int = _key(3000, MILLISECONDS)
    """Milliseconds that browsers wait before they reconnect."""

    SEND_TIMEOUT: float = _key(30, SECONDS_OR_OFF)
    """Seconds that one send may take before the stream is ended. 0: for ever."""

    BACKLOG_BYTES: int = _key(1024 * 1024, COUNT)
    """Bytes that may be on the way to a slow client, or wait for it, before its stream is ended, to
    be resumed later."""

    MAX_EVENT_BYTES: int = _key(256 * 1024, COUNT)
    """Bytes of the largest event that may be published, as encoded."""

    MAX_GROUPS: int = _key(50, COUNT)
    """Groups of one stream."""

    ALLOWED_ORIGINS: Sequence[str] = _key((), ORIGINS)
    """Origins whose pages may read the streams: CORS. ``["*"]``: those of every origin. Empty: no
    CORS headers."""

    ALLOW_CREDENTIALS: bool = _key(False, YES_OR_NO)
    """Whether cookies come along from the pages of those origins."""

    REFUSE_SOFTLY: bool = _key(True, YES_OR_NO)
    """Whether an EventSource that cannot be served now is answered 200, a ``retry`` and the end.
    It never comes back after a 503, which everyone gets otherwise."""

    MAX_STREAMS: int | None = _key(None, COUNT_OR_OFF)
    """Streams of groups that a process has open, at the most. None: as many as come."""

    MAX_STREAMS_PER_USER: int | None = _key(None, COUNT_OR_OFF)
    """... of one user."""

    MAX_STREAMS_PER_ADDRESS: int | None = _key(None, COUNT_OR_OFF)
    """... of one client address, or of one /64 network of IPv6."""

    MAX_STREAMS_PER_GROUP: int | None = _key(None, COUNT_OR_OFF)
    """... of one group."""

    MAX_OPEN_GROUPS: int | None = _key(None, COUNT_OR_OFF)
    """Groups with streams that a process has, at the most."""

    TRUSTED_PROXIES: Sequence[str] = _key((), PROXIES)
    """Proxies whose ``X-Forwarded-For`` tells the client's address: addresses, networks, and
    ``"unix:"`` for who connects by a Unix socket. Empty: the peer is the client."""

    MAX_AGE: float = _key(0, SECONDS_OR_OFF)
    """Seconds after which a stream ends so that its client reconnects: at the latest, and up to a
    fifth earlier, so that those that came together do not leave together. 0: never."""

    CANCEL_TTL: float = _key(3600, SECONDS_FROM_1)
    """Seconds for which the streams of a user that was cancelled, or of a session that was logged
    out, are refused with 204."""

    END_WITH_LOGIN: bool = _key(True, YES_OR_NO)
    """Whether a stream ends with the login that it was opened in: when its session is logged out
    or gone, when its user is deactivated or deleted, or gets another password."""

    RECHECK_INTERVAL: float = _key(60, SECONDS_FROM_1_OR_OFF)
    """Seconds between two calls of a view's ``still_allowed``, and of what its mixins test. 0: who
    was let in is not asked about again."""

    NAMESPACE: str | None = _key(None, FUNCTION_OR_OFF)
    """The function, without arguments, that returns the name of the current tenant or site: its
    groups, owners and positions are others than those of the same name elsewhere. It is called
    where one publishes and where one connects. Not given, with django-tenants: the schema."""

    NAMESPACE_CONTEXT: str | None = _key(None, FUNCTION_OR_OFF)
    """Returns a context manager, given such a name: what a thread enters to look up the user, the
    session and ``still_allowed`` of a stream as the tenant's that it was opened in. Not given, with
    django-tenants: ``schema_context``."""


# Where users of django-tenants would leak events until they have read of it.
_OF_DJANGO_TENANTS: Final = {
    "NAMESPACE": "django_sse.groups.namespaces.schema_name",
    "NAMESPACE_CONTEXT": "django_tenants.utils.schema_context",
}


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
            shown = _without_secrets(given) if rules[name].is_secret else given
            yield f"{SETTING}[{name!r}] must be {rules[name].accepts}, not {shown!r}."
    # Browsers refuse the answer: https://fetch.spec.whatwg.org/#cors-protocol-and-credentials
    if value.get("ALLOW_CREDENTIALS") is True and value.get("ALLOWED_ORIGINS") in (["*"], ("*",)):
        yield (
            f"{SETTING}['ALLOW_CREDENTIALS'] does not go with \"*\": name the ALLOWED_ORIGINS "
            "whose pages may send cookies."
        )
    if _is_dotted_path(value.get("NAMESPACE_CONTEXT")) and value.get("NAMESPACE") is None:
        yield (
            f"{SETTING}['NAMESPACE_CONTEXT'] is given the names that NAMESPACE returns: set that, "
            "too."
        )


def _without_secrets(value: Any, key: str = "BACKEND") -> Any:
    # Checks and errors end up in logs.
    if isinstance(value, dict):
        return {
            name if _is_dotted_path(name) else "...": _without_secrets(item, name)
            for name, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_without_secrets(item, key) for item in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    text = value.decode("latin-1") if isinstance(value, bytes) else value
    return value if key == "BACKEND" and _is_dotted_path(text) else "..."


@cache
def conf() -> Conf:
    """Return the settings of django_sse.

    Raises:
        ImproperlyConfigured: ``DJANGO_SSE`` has an unknown key or a wrong value.
    """
    value = getattr(settings, SETTING, {})
    if found := list(problems(value)):
        raise ImproperlyConfigured(" ".join(found))
    if "NAMESPACE" not in value and apps.is_installed("django_tenants"):
        value = {**value, **_OF_DJANGO_TENANTS}
    return Conf(**value)


def _forget(*, setting: str, **kwargs: Any) -> None:
    if setting == SETTING:
        conf.cache_clear()


setting_changed.connect(_forget)
