"""The setting ``DJANGO_SSE``: its keys, with their units and defaults."""

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
    """What a key accepts, in words and as a test."""

    accepts: str
    admits: Callable[[Any], bool]
    is_secret: bool = False
    """Whether a value may hold a password. Texts in it are then not shown."""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_whole(value: Any) -> bool:
    """Return whether a value is a whole number from 0."""
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


# As browsers send it (RFC 6454, 6.2): without a path, and without the scheme's default port.
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
SECONDS_OR_NONE: Final = Rule(
    "a finite number of seconds above 0, or None",
    lambda value: value is None or (value != 0 and SECONDS_OR_OFF.admits(value)),
)
SECONDS_OR_CHOSEN: Final = Rule(
    "a finite number of seconds, or 0 to have it chosen",
    SECONDS_OR_OFF.admits,
)
# The specification has milliseconds, unlike all other durations. Browsers' timers hold no more.
MILLISECONDS: Final = Rule(
    "a whole number of milliseconds from 100 to 2147483647 (less looks like seconds: 3 seconds are "
    "3000)",
    lambda value: _is_count(value) and 100 <= value < 2**31,
)
ORIGINS: Final = Rule(
    'a list of origins such as "https://app.example.com", each without a path, a slash at its end '
    'or the default port; or ["*"]',
    _are_origins,
)
PROXIES: Final = Rule(
    'a list of addresses and networks such as "10.0.0.0/8", or "unix:" for Unix sockets',
    _are_proxies,
)
YES_OR_NO: Final = Rule("True or False", lambda value: isinstance(value, bool))
FUNCTION_OR_OFF: Final = Rule(
    "the dotted path of a function, or None",
    lambda value: value is None or _is_dotted_path(value),
)
ENCODER: Final = Rule(
    "the dotted path of a subclass of json.JSONEncoder or of a function that encodes a value",
    _is_dotted_path,
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
    """Where events are kept. Every store has the option ``using``, a database alias. The database
    store also has ``listen_alias`` and ``durable``; the redis store has ``url``, ``prefix`` and
    ``durable``."""

    HISTORY_SIZE: int = _key(1000, COUNT)
    """Events kept for replay, per group, at least. They are trimmed in bulk, so up to a tenth more
    are kept."""

    HISTORY_AGE: float = _key(24 * 3600, SECONDS_OR_OFF)
    """Seconds for which an event is kept for replay. 0: only ``HISTORY_SIZE`` bounds it."""

    MAX_KEYS: int = _key(1000, COUNT)
    """How many keys a group has at least whose newest event is kept however old it is: those that
    were published last. Some more may be kept, as of the history."""

    GROUP_TTL: float = _key(7 * 24 * 3600, SECONDS_OR_OFF)
    """Seconds without a new event after which the store forgets a group, with its numbers and
    whether it is cancelled. A key of events is forgotten after as long without a new one. 0:
    never."""

    SYNC_INTERVAL: float = _key(0, SECONDS_OR_CHOSEN)
    """Seconds between two comparisons with the store. 0: 5, 1 or 0.1, depending on how well the
    doorbells of other processes are heard."""

    HEARTBEAT: float = _key(15, SECONDS_OR_OFF)
    """Seconds of silence after which a stream sends a comment. 0: never."""

    RETRY: int = _key(3000, MILLISECONDS)
    """Milliseconds that browsers wait before they reconnect. Each is told one to two times this."""

    SEND_TIMEOUT: float = _key(30, SECONDS_OR_OFF)
    """Seconds that one send may take before the stream is ended. 0: no limit."""

    BACKLOG_BYTES: int = _key(1024 * 1024, COUNT)
    """Bytes that may be on the way to a slow client, or wait for it, before its stream is ended.
    The client can resume it later."""

    COMPRESS: bool = _key(False, YES_OR_NO)
    """Whether streams are compressed for clients that accept gzip: each chunk once for all streams
    of a group. Events must not mix secrets with text that somebody else chooses (BREACH)."""

    MAX_EVENT_BYTES: int = _key(256 * 1024, COUNT)
    """Bytes of the largest event that may be published, as encoded."""

    ENCODER: str = _key("django.core.serializers.json.DjangoJSONEncoder", ENCODER)
    """The path of what makes JSON of data that is not text: a subclass of ``json.JSONEncoder``, or
    a function that returns text or bytes for a value, such as ``orjson.dumps``."""

    CHECK_EVENT_TYPES: bool = _key(False, YES_OR_NO)
    """Whether nothing can be published that is not as the ``event_types`` say of the views of the
    URLconf that stream its group. For development and tests: it takes time, and jsonschema."""

    MAX_GROUPS: int = _key(50, COUNT)
    """Groups that one stream may have."""

    ALLOWED_ORIGINS: Sequence[str] = _key((), ORIGINS)
    """Origins whose pages may read the streams (CORS). ``["*"]``: all origins. Empty: no CORS
    headers."""

    ALLOW_CREDENTIALS: bool = _key(False, YES_OR_NO)
    """Whether the pages of those origins may send cookies."""

    REFUSE_SOFTLY: bool = _key(True, YES_OR_NO)
    """Whether an EventSource that cannot be served now gets 200, a ``retry`` and the end. Otherwise
    it gets 503, like all other clients, and never comes back."""

    MAX_STREAMS: int | None = _key(None, COUNT_OR_OFF)
    """Streams of groups that a process may have open. None: no limit."""

    MAX_STREAMS_PER_USER: int | None = _key(None, COUNT_OR_OFF)
    """Streams that a process may have open for one user. None: no limit."""

    MAX_STREAMS_PER_ADDRESS: int | None = _key(None, COUNT_OR_OFF)
    """Streams that a process may have open for one client address, or for one /64 network of IPv6.
    None: no limit."""

    MAX_STREAMS_PER_GROUP: int | None = _key(None, COUNT_OR_OFF)
    """Streams that a process may have open for one group. None: no limit."""

    MAX_OPEN_GROUPS: int | None = _key(None, COUNT_OR_OFF)
    """Groups with streams that a process may have. None: no limit."""

    TRUSTED_PROXIES: Sequence[str] = _key((), PROXIES)
    """Proxies whose ``X-Forwarded-For`` tells the client's address: addresses, networks, and
    ``"unix:"`` for peers that connect through a Unix socket. Empty: the peer is the client."""

    MAX_AGE: float = _key(0, SECONDS_OR_OFF)
    """Seconds after which a stream ends so that its client reconnects. It ends up to a fifth
    earlier, so that clients that came together do not leave together. 0: never."""

    CANCEL_TTL: float = _key(3600, SECONDS_FROM_1)
    """Seconds for which the streams of a cancelled user, or of a session that was logged out, are
    refused with 204."""

    END_WITH_LOGIN: bool = _key(True, YES_OR_NO)
    """Whether a stream ends with the login in which it was opened: when its session is logged out
    or gone, or when its user is deactivated, is deleted, or gets another password."""

    RECHECK_INTERVAL: float = _key(60, SECONDS_FROM_1_OR_OFF)
    """Seconds between two calls of a view's ``still_allowed``, and of the tests of its mixins. 0:
    they are not called for open streams."""

    PRODUCER_TTL: float = _key(15, SECONDS_FROM_1)
    """Seconds without a sign of life after which a producer is taken for dead, and the streams of
    its group are closed as ``interrupted``."""

    PRODUCER_GRACE: float = _key(5, SECONDS_OR_OFF)
    """Seconds that the generators of producers may go on when their server shuts down. 0: they are
    interrupted at once."""

    PRODUCER_KEEP: float = _key(3600, SECONDS_FROM_1)
    """Seconds after a producer has ended for which all events of its group are kept, whatever
    ``HISTORY_SIZE`` and ``HISTORY_AGE`` say; ``GROUP_TTL`` at most."""

    PRODUCER_BYTES: int = _key(16 * 1024 * 1024, COUNT)
    """Bytes that one producer may publish, as encoded. It fails when it publishes more."""

    PRESENCE_GRACE: float = _key(10, SECONDS_OR_OFF)
    """Seconds after the end of a member's last stream until a view with ``presence`` says that she
    has left. Whoever reloads a page, or comes back after a deploy, is back before. 0: at once."""

    NAMESPACE: str | None = _key(None, FUNCTION_OR_OFF)
    """The path of a function without arguments that returns the name of the current tenant or site.
    Groups, owners and positions of different tenants are different, even if their names are the
    same. The function is called when something is published and when a client connects. If it is
    not given and django-tenants is installed: the schema."""

    NAMESPACE_CONTEXT: str | None = _key(None, FUNCTION_OR_OFF)
    """The path of a function that returns a context manager, given such a name. A thread enters it
    to look up the user and the session of a stream, and to call ``still_allowed``, in the tenant in
    which the stream was opened. If it is not given and django-tenants is installed:
    ``schema_context``."""


# Without these, users of django-tenants would leak events until they read about the settings.
_DJANGO_TENANTS_DEFAULTS: Final = {
    "NAMESPACE": "django_sse.groups.namespaces.schema_name",
    "NAMESPACE_CONTEXT": "django_tenants.utils.schema_context",
}


def problems(value: Any) -> Iterator[str]:
    """Yield what is wrong with a value of ``DJANGO_SSE``, and what would be accepted."""
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
    # Browsers refuse such a response: https://fetch.spec.whatwg.org/#cors-protocol-and-credentials
    if value.get("ALLOW_CREDENTIALS") is True and value.get("ALLOWED_ORIGINS") in (["*"], ("*",)):
        yield (
            f"{SETTING}['ALLOW_CREDENTIALS'] cannot be used with \"*\": name the ALLOWED_ORIGINS "
            "whose pages may send cookies."
        )
    if _is_dotted_path(value.get("NAMESPACE_CONTEXT")) and value.get("NAMESPACE") is None:
        yield (
            f"{SETTING}['NAMESPACE_CONTEXT'] is called with the names that NAMESPACE returns: set "
            "NAMESPACE, too."
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
        value = {**value, **_DJANGO_TENANTS_DEFAULTS}
    return Conf(**value)


def _forget(*, setting: str, **kwargs: Any) -> None:
    if setting == SETTING:
        conf.cache_clear()


setting_changed.connect(_forget)
