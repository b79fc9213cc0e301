"""Namespaces, which keep the groups of tenants, or of sites, apart.

Views, handlers and publishers use a group's plain name, which is unique within a tenant. Stores,
doorbells and positions use its full name, which begins with the namespace. This module converts
between the two.
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

# Between the namespace and the plain name. No group name contains it.
_SEPARATOR: Final = "/"
# A namespace that can be a part of a full name as it is.
_PLAIN: Final = re.compile(r"[A-Za-z0-9\-_.]{1,63}", re.ASCII)
# The first character of the hash that replaces any other namespace.
_HASHED: Final = "="

INTERNAL: Final = "=internal"
"""The namespace of the library's own groups. No tenant's is like it: those that begin with ``=`` go
on with a hash."""
_INTERNAL_PREFIXES: Final = (OWNER_PREFIX, f"{INTERNAL}{_SEPARATOR}")

# A group of the library that belongs to another one.
_BESIDE: Final = re.compile(rf"{INTERNAL}{_SEPARATOR}.*\.([0-9a-f]{{32}})", re.ASCII)

_LEFT_TENANT: Final = (
    "What is called after the request is not in its tenant if a middleware has left it. Set "
    f"{SETTING}['NAMESPACE_CONTEXT'] to the path of a context manager that enters a tenant."
)


def current_namespace() -> str:
    """Return the name of the current tenant, or "" without one. Blocks: call it from sync code.

    Raises:
        ImproperlyConfigured: ``NAMESPACE`` does not name a plain function, or its result is not a
            text.
        Exception: Whatever the function raises.
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
            f"{conf().NAMESPACE}, which {SETTING}['NAMESPACE'] names, must return the name of the "
            f"current tenant as a str, not {name!r}."
        )
    return str(plain(name))


async def acurrent_namespace() -> str:
    """Do what ``current_namespace`` does, from async code.

    The function runs in the thread of the request and of its database connections.
    """
    return "" if conf().NAMESPACE is None else await sync_to_async(current_namespace)()


async def require_namespace(namespace: str) -> None:
    """Refuse to go on in another tenant than the one of the request.

    Raises:
        ImproperlyConfigured: The current tenant is another one.
        Exception: Whatever ``NAMESPACE`` raises, for example where there is no tenant.
    """
    try:
        current = await acurrent_namespace()
    except Exception as error:
        error.add_note(_LEFT_TENANT)
        raise
    if current != namespace:
        raise ImproperlyConfigured(_LEFT_TENANT)


def namespace_context(namespace: str) -> AbstractContextManager[Any]:
    """Return the context manager that makes a tenant the current one in a thread.

    It comes from the function that ``NAMESPACE_CONTEXT`` names.

    Raises:
        ImproperlyConfigured: ``NAMESPACE_CONTEXT`` does not name a plain function.
    """
    enter = named_by("NAMESPACE_CONTEXT")
    return nullcontext() if enter is None else enter(namespace)


def named_by(key: str) -> Callable[..., Any] | None:
    """Return the function that a key of the settings names, or None if the key is not set.

    Raises:
        ImproperlyConfigured: The dotted path does not lead to a function, or the function is async.
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
            f"{SETTING}[{key!r}] must be the dotted path of a plain function, but {path} is "
            f"{'async' if callable(named) else 'not a function'}."
        )
    return named  # type: ignore[no-any-return]


def schema_name() -> str:
    """Return the schema of the current tenant of django-tenants."""
    from django_tenants.utils import get_tenant_database_alias

    schema: str = connections[get_tenant_database_alias()].schema_name  # type: ignore[attr-defined]
    return schema


def full_name(namespace: str, name: str) -> str:
    """Return the full name, as stores know it, of a tenant's group or owner key."""
    if not namespace or not name:
        return name
    joined = f"{_prefix(namespace)}{name}"
    if not name.startswith(OWNER_PREFIX):
        return joined
    # Owner keys have columns of their own, so this one is as long as any other.
    return (
        OWNER_PREFIX + sha256(joined.encode()).hexdigest()[: OWNER_KEY_LENGTH - len(OWNER_PREFIX)]
    )


def plain_name(full: str) -> str:
    """Return the plain name of a group, which its tenant uses. The library's own have none."""
    return full if full.startswith(_INTERNAL_PREFIXES) else full.rpartition(_SEPARATOR)[2]


def prefix_of(full: str) -> str:
    """Return the prefix of a full name, which is the same for all groups of a tenant; "" without
    tenants."""
    return full[: -len(plain_name(full))]


def namespace_in(full: str) -> str:
    """Return the namespace in a full name, as stores know it: a long one is hashed."""
    return prefix_of(full).removesuffix(_SEPARATOR)


def is_internal(full: str) -> bool:
    """Return whether a group is one of the library's own, or an owner's, and not a project's."""
    return full.startswith(_INTERNAL_PREFIXES)


def group_beside(kind: str, full: str) -> str:
    """Return the name of a group of the library's own that belongs to another group."""
    return f"{INTERNAL}{_SEPARATOR}{kind}.{_digest(full)}"


def placing_digest(full: str) -> str:
    """Return 32 hexadecimal digits that decide where a store with several servers keeps a group.

    They are the same for a group and for those beside it, so that one step writes to both.
    """
    beside = _BESIDE.fullmatch(full)
    return beside[1] if beside else _digest(full)


def layer_group(full: str) -> str:
    """Return the Channels group that carries a group's plain Channels messages."""
    if not prefix_of(full):
        return full
    # A Channels group name has at most 99 characters, from the same set as other group names. Code
    # without a tenant could thus use the same name, so nobody must be able to compute it.
    digest = signature(signing_key("messages of a tenant's group"), full.encode()).hex()
    return f"sse.{digest[:32]}"


@async_unsafe("channel_group() may block: use `await sync_to_async(channel_group)(...)` there.")
def channel_group(group: str) -> str:
    """Return the Channels group to which plain Channels messages for a group's streams are sent.

    This is the group itself, unless a ``NAMESPACE`` keeps tenants apart. Then equal group names of
    two tenants are different groups on the channel layer, too.

    Args:
        group: The name of a group of the current tenant.

    Raises:
        InvalidGroup: Not a valid group name.
        SynchronousOnlyOperation: It was called on a running event loop.
    """
    return layer_group(full_name(current_namespace(), validate_group(group)))


def _digest(full: str) -> str:
    return sha256(full.encode()).hexdigest()[:32]


@lru_cache(maxsize=1024)
def _prefix(namespace: str) -> str:
    if _PLAIN.fullmatch(namespace):
        return f"{namespace}{_SEPARATOR}"
    digest = sha256(namespace.encode(errors="surrogatepass")).hexdigest()
    return f"{_HASHED}{digest[:32]}{_SEPARATOR}"
