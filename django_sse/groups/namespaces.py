"""Namespaces: what keeps the groups of tenants, or of sites, apart.

Views, handlers and publishers speak of a group as their tenant does. Everywhere else, in stores, on
doorbells and in positions, it has its full name, which begins with the namespace: here one is made
of the other.
"""

import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from hashlib import sha256
from typing import Any, Final

from asgiref.sync import iscoroutinefunction, sync_to_async
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.utils.asyncio import async_unsafe
from django.utils.module_loading import import_string

from django_sse.conf import SETTING, conf
from django_sse.groups.keys import signature, signing_key
from django_sse.groups.names import OWNER_KEY_LENGTH, OWNER_PREFIX, validate_group
from django_sse.text import plain

# No group's name has it.
_JOIN: Final = "/"
_PLAIN: Final = re.compile(r"[A-Za-z0-9\-_.]{1,63}", re.ASCII)
# Begins what stands for a namespace that cannot be a part of a name as it is.
_HASHED: Final = "="


def current_namespace() -> str:
    """Return the name of the current tenant; "" without one. Blocking: for synchronous code.

    Raises:
        ImproperlyConfigured: ``NAMESPACE`` names no such function, or what it returned is no text.
        Exception: What the function has raised.
    """
    ask = named_by("NAMESPACE")
    if ask is None:
        return ""
    try:
        name = ask()
    except Exception as error:
        error.add_note(f"{SETTING}['NAMESPACE'], {conf().NAMESPACE}, was asked for the tenant.")
        raise
    if not isinstance(name, str):
        raise ImproperlyConfigured(
            f"{conf().NAMESPACE}, which {SETTING}['NAMESPACE'] names, has to return the name of "
            f"the current tenant as a str, not {name!r}."
        )
    return str(plain(name))


async def acurrent_namespace() -> str:
    """Return the name of the current tenant, from async code: asked for in the thread that the
    request and its connections to databases are of; otherwise as ``current_namespace``."""
    return "" if conf().NAMESPACE is None else await sync_to_async(current_namespace)()


def namespace_context(namespace: str) -> AbstractContextManager[Any]:
    """Return what a thread enters to be in a tenant: what ``NAMESPACE_CONTEXT`` names.

    Raises:
        ImproperlyConfigured: It names no such thing.
    """
    enter = named_by("NAMESPACE_CONTEXT")
    return nullcontext() if enter is None else enter(namespace)


def named_by(key: str) -> Callable[..., Any] | None:
    """Return the function whose dotted path a key of the settings is; None without one.

    Raises:
        ImproperlyConfigured: There is none, or it is async.
    """
    path = getattr(conf(), key)
    if path is None:
        return None
    try:
        named: Any = import_string(path)
    except ImportError as error:
        raise ImproperlyConfigured(f"{SETTING}[{key!r}] cannot be imported: {error}.") from error
    if not callable(named) or iscoroutinefunction(named):
        raise ImproperlyConfigured(
            f"{SETTING}[{key!r}] has to be the dotted path of a plain function, and {path} is "
            f"{'async' if callable(named) else 'none'}."
        )
    return named  # type: ignore[no-any-return]


def schema_name() -> str:
    """Return the schema of the current tenant of django-tenants."""
    from django_tenants.utils import get_tenant_database_alias

    schema: str = connections[get_tenant_database_alias()].schema_name  # type: ignore[attr-defined]
    return schema


def full_name(namespace: str, name: str) -> str:
    """Return the name in the store of a tenant's group, or of a key of one of its owners."""
    if not namespace or not name:
        return name
    joined = f"{_prefix(namespace)}{name}"
    if not name.startswith(OWNER_PREFIX):
        return joined
    # As long as every other owner key, for it has columns of its own.
    return (
        OWNER_PREFIX + sha256(joined.encode()).hexdigest()[: OWNER_KEY_LENGTH - len(OWNER_PREFIX)]
    )


def plain_name(full: str) -> str:
    """Return the name that its tenant has for a group."""
    return full.rpartition(_JOIN)[2]


def prefix_of(full: str) -> str:
    """Return what a group's full name begins with, the same for all groups of a tenant; "" where
    there are none."""
    return full[: -len(plain_name(full))]


def layer_group(full: str) -> str:
    """Return the Channels group of a group's plain messages."""
    if not prefix_of(full):
        return full
    # A Channels group is 99 characters at the most, and has no character that groups have not: who
    # is no tenant's may name one of his own alike, so nobody must be able to work it out.
    digest = signature(signing_key("messages of a tenant's group"), full.encode()).hex()
    return f"sse.{digest[:32]}"


@async_unsafe("channel_group() may block: use `await sync_to_async(channel_group)(...)` there.")
def channel_group(group: str) -> str:
    """Return the Channels group to send plain Channels messages to, for the streams of a group.

    It is the group itself, but where a ``NAMESPACE`` keeps tenants apart: the same one of another
    tenant is another one on the channel layer, too.

    Raises:
        InvalidGroup: The name is none.
        SynchronousOnlyOperation: Called on a running event loop.
    """
    return layer_group(full_name(current_namespace(), validate_group(group)))


@lru_cache(maxsize=1024)
def _prefix(namespace: str) -> str:
    if _PLAIN.fullmatch(namespace):
        return f"{namespace}{_JOIN}"
    digest = sha256(namespace.encode(errors="surrogatepass")).hexdigest()
    return f"{_HASHED}{digest[:32]}{_JOIN}"
