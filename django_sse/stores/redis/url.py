"""The redis store's ``url``: of a server, of a cluster, or of a service that Sentinels watch."""

import re
from collections.abc import Sequence
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

import redis
from django.core.exceptions import ImproperlyConfigured
from django.views.decorators.debug import sensitive_variables
from redis.connection import parse_url

_SEVERAL: Final = re.compile(r"(rediss?)\+(\w+)://")
# What a Sentinel accepts.
_SERVICE: Final = re.compile(r"[A-Za-z0-9.\-_]+", re.ASCII)
_PORTS: Final = {"cluster": 6379, "sentinel": 26379}
# The messages of redis-py are left out, since they may contain a part of the password.
BAD_URL: Final = "The redis store's `url` is not accepted by redis-py. It is not shown here."
_BAD: Final = "The redis store's `url` {}. It is not shown here."


class Address(NamedTuple):
    """Where a server listens."""

    host: str
    port: int


class Place(NamedTuple):
    """What a URL of several servers says.

    ``service`` is the name that Sentinels know, None for a cluster. ``hosts`` are the Sentinels or
    some servers of the cluster. ``options`` are for connections to the servers with data, and
    ``sentinel_options`` for those to the Sentinels, without the addresses.
    """

    hosts: Sequence[Address]
    service: str | None
    db: int
    tls: bool
    options: dict[str, Any]
    sentinel_options: dict[str, Any]


@sensitive_variables()
def place_in(url: str) -> Place | None:
    """Return what a URL says of several servers; None if it is one that redis-py accepts.

    Raises:
        ImproperlyConfigured: The URL cannot be used. Its text is not in the message.
    """
    if not isinstance(url, str) or not (scheme := _SEVERAL.match(url)):
        pool_of(redis.ConnectionPool, url)
        return None
    plain_scheme, kind = scheme.groups()
    if kind not in _PORTS:
        raise ImproperlyConfigured(
            _BAD.format("begins like none of redis://, redis+cluster:// and redis+sentinel://")
        )
    try:
        parts = urlsplit(url[scheme.end() - len("//") :])
        who, _, hosts = parts.netloc.rpartition("@")
        addresses = [_address(host, _PORTS[kind]) for host in hosts.split(",")]
        query = f"?{parts.query}" if parts.query else ""
        options: dict[str, Any] = parse_url(  # type: ignore[no-untyped-call]
            f"{plain_scheme}://{who}@localhost{query}"
            if who
            else f"{plain_scheme}://localhost{query}"
        )
    except (AttributeError, ValueError):
        raise ImproperlyConfigured(BAD_URL) from None
    for name in ("host", "connection_class"):
        options.pop(name, None)
    path = [unquote(part) for part in parts.path.split("/") if part]
    service = path.pop(0) if kind == "sentinel" and path and not path[0].isdigit() else None
    if service and not _SERVICE.fullmatch(service):
        # It may be a part of the password.
        raise ImproperlyConfigured(BAD_URL)
    if kind == "sentinel" and service is None:
        raise ImproperlyConfigured(
            _BAD.format(
                "names no service of the Sentinels: redis+sentinel://host:26379,host:26379/name/0"
            )
        )
    if len(path) > 1 or not all(part.isdigit() for part in path):
        raise ImproperlyConfigured(
            _BAD.format(
                "names a service, which only redis+sentinel:// has"
                if kind == "cluster"
                else "has a path other than /name/0, the service and the database"
            )
        )
    db = options.pop("db", None) or int(path[0] if path else 0)
    if kind == "cluster" and db:
        raise ImproperlyConfigured(
            _BAD.format(f"names database {db}, and a Redis Cluster has no other than 0")
        )
    sentinel_options = {
        name: options.pop(f"sentinel_{name}")
        for name in ("username", "password")
        if f"sentinel_{name}" in options
    }
    return Place(addresses, service, db, plain_scheme == "rediss", options, sentinel_options)


@sensitive_variables()
def pool_of(kind: type[Any], url: str, **options: Any) -> Any:
    """Return a pool of connections to the server that a URL of redis-py names.

    Raises:
        ImproperlyConfigured: redis-py does not accept the URL.
    """
    try:
        return kind.from_url(url, **options)
    except (AttributeError, ValueError):
        raise ImproperlyConfigured(BAD_URL) from None


def without_option(url: str, name: str) -> str:
    """Return a URL of redis-py without one of the options in its query."""
    parts = urlsplit(url)
    kept = [(other, value) for other, value in parse_qsl(parts.query) if other != name]
    return urlunsplit(parts._replace(query=urlencode(kept)))


def _address(text: str, port: int) -> Address:
    parts = urlsplit(f"//{text}")
    if not parts.hostname:
        raise ValueError("A host is missing.")
    return Address(parts.hostname, parts.port or port)
