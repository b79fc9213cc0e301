"""Who owns a stream: a user and a session, each known by an owner key that does not show it.

An owner key is the name of a group in the event store. That group has neither events nor streams:
its state says when the owner's streams were ended.
"""

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from types import SimpleNamespace
from typing import Any, Final
from uuid import UUID

from asgiref.sync import sync_to_async
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY, get_user_model
from django.contrib.sessions.backends.base import SessionBase
from django.contrib.sessions.backends.signed_cookies import SessionStore as CookieSession
from django.core.exceptions import (
    ImproperlyConfigured,
    SynchronousOnlyOperation,
    ValidationError,
)
from django.db.models import Model
from django.http import HttpRequest

from django_sse.conf import conf
from django_sse.groups.entries import GroupState
from django_sse.groups.names import OWNER_KEY_LENGTH, OWNER_PREFIX, validate_group
from django_sse.groups.namespaces import full_name
from django_sse.text import plain

BEGAN_SESSION_KEY: Final = "_django_sse_began"
"""Where a session keeps when its user logged in: seconds since the epoch, by the store's clock."""


@dataclass(frozen=True, slots=True)
class Login:
    """What a session says of the user who is logged in, as Django's ``get_user`` reads it, and
    where it is kept; None for one that is kept in its cookie. ``namespace`` is its tenant."""

    user: str
    backend: str
    session_hash: str
    session_store: type[SessionBase] | None = None
    session_key: str | None = None
    namespace: str = ""


@dataclass(frozen=True, slots=True)
class Owner:
    """Who owns a stream.

    ``user`` is the owner key of its user. ``keys`` are that, its session's and its login's, and for
    each of its groups the one of its user in that group. Each key goes with the group that it is
    about; None for all of them.
    ``began`` is when the session's user logged in, by the store's clock, in seconds since the
    epoch; 0 where nobody knows. ``namespace`` is the tenant's name.
    """

    keys: Mapping[str, str | None]
    user: str | None = None
    began: float = 0.0
    login: Login | None = None
    namespace: str = ""

    def within(self, namespace: str) -> "Owner":
        """Return an owner among those of all tenants, as stores and hubs know it."""
        if not namespace:
            return self
        owner_keys = {
            full_name(namespace, owner_key): about and full_name(namespace, about)
            for owner_key, about in self.keys.items()
        }
        user = self.user and full_name(namespace, self.user)
        login = self.login and replace(self.login, namespace=namespace)
        return replace(self, keys=owner_keys, user=user, login=login, namespace=namespace)

    def is_ended(self, owner_key: str, state: GroupState) -> bool:
        """Whether the state of an owner key ends its streams: a user's since the login."""
        of_user = owner_key == self.user or self.keys[owner_key] is not None
        # A session and a login that are over stay so.
        began = self.began if of_user else 0.0
        return state.cancelled and began < state.first / 1_000_000

    def groups_left(self, groups: Iterable[str], states: Mapping[str, GroupState]) -> list[str]:
        """Return those of the groups that may be streamed, given the states of the owner keys."""
        ended = {
            about
            for owner_key, about in self.keys.items()
            if self.is_ended(owner_key, states[owner_key])
        }
        return [] if None in ended else [group for group in groups if group not in ended]


NOBODY: Final = Owner({})


async def owner_of(request: HttpRequest, user: Any, groups: Iterable[str]) -> Owner:
    """Return who owns a stream.

    Args:
        request: The request that it is opened by, which may have a session.
        user: A user or its primary key; None, or an anonymous one, for nobody in particular.
        groups: The groups of the stream.

    Raises:
        TypeError, ValueError: As ``user_key``.
    """
    owner_keys: dict[str, str | None] = {}
    session: SessionBase | None = getattr(request, "session", None)
    if session is not None and (owner_key := _session_owner_key(session)):
        owner_keys[owner_key] = None
    if is_nobody(user):
        return Owner(owner_keys) if owner_keys else NOBODY
    of_user = user_key(user)
    owner_keys[of_user] = None
    owner_keys |= {user_key(user, group): group for group in groups}
    data = dict(await session.aitems()) if session is not None else {}
    if SESSION_KEY not in data:
        return Owner(owner_keys, of_user)
    login = Login(
        str(data[SESSION_KEY]),
        str(data.get(BACKEND_SESSION_KEY)),
        str(data.get(HASH_SESSION_KEY, "")),
        *_place_of(session),
    )
    if conf().END_WITH_LOGIN and (owner_key := login_key(data)):
        owner_keys[owner_key] = None
    # Of a session that is another one's nobody knows when its owner came.
    is_own = of_user == user_key(login.user)
    return Owner(
        owner_keys,
        of_user,
        began=data.get(BEGAN_SESSION_KEY, 0.0) if is_own else 0.0,
        login=login if conf().END_WITH_LOGIN else None,
    )


def is_nobody(user: Any) -> bool:
    """Whether a user is none, or one who is not authenticated. As Django asks, it is the truth of
    what the user says that counts."""
    return (
        user is None
        or bool(getattr(user, "is_anonymous", False))
        or not getattr(user, "is_authenticated", True)
    )


async def loaded(user: Any) -> Any:
    """Return a user who may be lazy, as ``request.user`` is, once it needs no query any more."""
    try:
        is_nobody(user)
    except SynchronousOnlyOperation:
        await sync_to_async(is_nobody)(user)
    return user


def user_key(user: Any, group: str | None = None) -> str:
    """Return the owner key of a user, or the one of a user in a group.

    Args:
        user: A user, or its primary key. What is no model's instance but says whether it
            ``is_authenticated``, as who comes with a token, counts as the user of its ``pk`` or
            ``id``. An instance of another model that says so is one of its own.
        group: A Channels group name.

    Raises:
        InvalidGroup: The name is none.
        TypeError, ValueError: It is neither a user nor a primary key, or one that is not saved,
            has no key, or is not logged in.
    """
    if is_nobody(user):
        raise ValueError(
            f"{user} has no streams of its own: give a user who is logged in, or its primary key."
        )
    whom = _names_of(user)
    if not whom:
        raise ValueError(f"{user!r} has neither pk nor id, so nothing tells which streams it has.")
    if group is None:
        return _owner_key("user", *whom)
    return _owner_key("user in group", validate_group(group), *whom)


def owner_key_of(owner: Any) -> str:
    """Return the owner key of a user, of its primary key, or of a session.

    It is empty for who cannot have a stream of its own: None, an anonymous user, one without a key,
    a session that was never saved.

    Raises:
        TypeError, ValueError: As ``user_key``.
    """
    if is_nobody(owner):
        return ""
    if not isinstance(owner, SessionBase):
        return user_key(owner) if _names_of(owner) else ""
    if isinstance(owner, CookieSession):
        return user_key(owner[SESSION_KEY]) if SESSION_KEY in owner else ""
    return _session_owner_key(owner) or ""


def login_key(session: SessionBase | Mapping[str, Any]) -> str | None:
    """Return the owner key of the login in a session, whose session key may change meanwhile; None
    where it is not known when that was."""
    if SESSION_KEY not in session or BEGAN_SESSION_KEY not in session:
        return None
    return _owner_key("login", str(session[BEGAN_SESSION_KEY]), str(session[SESSION_KEY]))


def _names_of(user: Any) -> list[str]:
    """Return what names a user, and no other; nothing where nothing does."""
    if isinstance(user, int | str | UUID) and not isinstance(user, bool):
        return [_primary_key(user)]
    if not isinstance(user, Model):
        if not hasattr(user, "is_authenticated"):
            raise TypeError(f"Give a user or its primary key, not {type(user).__name__}.")
        keys = (getattr(user, "pk", None), getattr(user, "id", None))
        return [_primary_key(key) for key in keys if key is not None][:1]
    is_user = _is_user(user)
    # Another model's instance may have the primary key of a user who is not meant.
    if not is_user and not hasattr(user, "is_authenticated"):
        raise TypeError(f"Give a user or its primary key, not {type(user).__name__}.")
    if user.pk is None:
        raise ValueError(f"{user!r} has no primary key yet: save it first.")
    if is_user:
        # Of a model that inherits from the user's, with a primary key of its own, the user's.
        return [_primary_key(getattr(user, get_user_model()._meta.pk.attname))]
    model: Any = user._meta.concrete_model
    return [model._meta.label_lower, _primary_key_of(model, user.pk) or str(plain(user.pk))]


def _primary_key(key: Any) -> str:
    """Return a user's primary key as sessions have it, in whatever form it is given that the ORM
    takes. Where no user can have it but one of other means, a UUID has one form, and any other text
    is what it is."""
    text = str(plain(key))
    with suppress(ImproperlyConfigured):
        if of_user := _primary_key_of(get_user_model(), text):
            return of_user
    with suppress(ValueError):
        return str(UUID(text))
    return text


def _primary_key_of(model: Any, key: Any) -> str | None:
    """Return a primary key of a model as sessions have it; None where it can be none."""
    field = model._meta.pk
    with suppress(TypeError, ValueError, ValidationError):
        value = field.to_python(key)
        return str(field.value_to_string(SimpleNamespace(**{field.attname: value})))
    return None


def _is_user(instance: Model) -> bool:
    try:
        return isinstance(instance, get_user_model())
    except ImproperlyConfigured:
        # A project without users, in which others log in.
        return False


def _place_of(session: SessionBase | None) -> tuple[type[SessionBase], str] | tuple[()]:
    # The key of a session in a cookie is all that it holds, and another one after each change.
    if session is None or session.session_key is None or isinstance(session, CookieSession):
        return ()
    return type(session), session.session_key


def _session_owner_key(session: SessionBase) -> str | None:
    place = _place_of(session)
    return _owner_key("session", place[1]) if place else None


def _owner_key(*parts: str) -> str:
    # As JSON no part can hold what separates it from the next, and with "surrogatepass" no two
    # texts are the same bytes. Without SECRET_KEY, which may change while streams are open. Nobody
    # guesses a session's key.
    text = json.dumps(parts, ensure_ascii=False)
    digest = sha256(text.encode(errors="surrogatepass")).hexdigest()
    return OWNER_PREFIX + digest[: OWNER_KEY_LENGTH - len(OWNER_PREFIX)]
