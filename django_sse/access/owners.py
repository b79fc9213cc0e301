"""Who owns a stream: a user and a session, each known by an owner key that does not reveal it.

An owner key is the name of a group in the event store. This group has neither events nor streams.
Its state says when the owner's streams were ended.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from sys import intern
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
from django.utils.functional import SimpleLazyObject, empty

from django_sse.conf import conf
from django_sse.groups.entries import GroupState
from django_sse.groups.names import (
    OWNER_KEY_LENGTH,
    OWNER_PREFIX,
    USER_GROUP_PARTS,
    group_name,
    validate_group,
)
from django_sse.groups.namespaces import full_name
from django_sse.text import plain

# Made once: `json.dumps` makes an encoder for each call that has options.
_encode: Final = json.JSONEncoder(ensure_ascii=False).encode

BEGAN_SESSION_KEY: Final = "_django_sse_began"
"""The session key of the time of the login: seconds since the epoch, by the store's clock."""


@dataclass(frozen=True, slots=True)
class Login:
    """What a session says about its login: the data that Django's ``get_user`` reads.

    ``session_store`` and ``session_key`` say where the session is kept. They are None for a session
    that is kept in its cookie. ``namespace`` is the tenant's name.
    """

    user: str
    backend: str
    session_hash: str
    session_store: type[SessionBase] | None = None
    session_key: str | None = None
    namespace: str = ""


@dataclass(frozen=True, slots=True)
class Owner:
    """Who owns a stream.

    ``user`` is the owner key of the user. ``user_id`` is the user's primary key as text, after the
    label of the user's model if that is not the project's user model. ``keys`` maps each owner key
    to the group that it applies to, or to None if it applies to all groups. There are keys for the
    user, the session and the login, and for each group a key for the user in that group.
    ``began`` is when the session's user logged in, by the store's clock, in seconds since the
    epoch; 0 if unknown. ``namespace`` is the tenant's name.
    """

    keys: Mapping[str, str | None]
    user: str | None = None
    began: float = 0.0
    login: Login | None = None
    namespace: str = ""
    user_id: str | None = None

    def within(self, namespace: str) -> "Owner":
        """Return this owner with full names, which stores and hubs use for all tenants."""
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
        """Whether the state of an owner key ends the owner's streams.

        An end of a user counts only if it was ordered since the login.
        """
        of_user = owner_key == self.user or self.keys[owner_key] is not None
        # A session or a login that has ended never becomes valid again.
        began = self.began if of_user else 0.0
        return state.cancelled and began < state.first / 1_000_000

    def is_out(self, states: Mapping[str, GroupState]) -> bool:
        """Whether all streams of the owner are ended, given the states of the owner keys."""
        return None in self._ended(states)

    def groups_left(self, groups: Iterable[str], states: Mapping[str, GroupState]) -> list[str]:
        """Return the groups that may still be streamed, given the states of the owner keys."""
        ended = self._ended(states)
        return [] if None in ended else [group for group in groups if group not in ended]

    def _ended(self, states: Mapping[str, GroupState]) -> set[str | None]:
        return {
            about
            for owner_key, about in self.keys.items()
            if self.is_ended(owner_key, states[owner_key])
        }


NOBODY: Final = Owner({})


async def owner_of(request: HttpRequest, user: Any, groups: Iterable[str]) -> Owner:
    """Return who owns a stream.

    Args:
        request: The request that opens the stream. It may have a session.
        user: A user or its primary key; None or an anonymous user for nobody in particular.
        groups: The groups of the stream.

    Raises:
        TypeError, ValueError: The user has no owner key: see ``user_key``.
    """
    session: SessionBase | None = getattr(request, "session", None)
    data = {} if is_nobody(user) else await data_of(session)
    return owner_in(session, data, user, groups)


def owner_in(
    session: SessionBase | None, data: Mapping[str, Any], user: Any, groups: Iterable[str]
) -> Owner:
    """Return who owns a stream, given its session, the session's data and the user.

    Raises:
        TypeError, ValueError: The user has no owner key: see ``user_key``.
    """
    owner_keys: dict[str, str | None] = {}
    if session is not None and (owner_key := _session_owner_key(session)):
        owner_keys[owner_key] = None
    if is_nobody(user):
        return Owner(owner_keys) if owner_keys else NOBODY
    # Once for all keys: to find it takes longer than to make a key.
    identity = _required_identity(user)
    of_user, user_id = _owner_key_of_user(identity), " ".join(identity)
    owner_keys[of_user] = None
    owner_keys |= {_owner_key_of_user(identity, group): group for group in groups}
    if SESSION_KEY not in data:
        return Owner(owner_keys, of_user, user_id=user_id)
    login = login_in(session, data)
    if conf().END_WITH_LOGIN and (owner_key := login_key(data)):
        owner_keys[owner_key] = None
    # The session may belong to another user. Then the time of the owner's login is unknown.
    is_own = identity == [login.user] or of_user == user_key(login.user)
    return Owner(
        owner_keys,
        of_user,
        began=data.get(BEGAN_SESSION_KEY, 0.0) if is_own else 0.0,
        login=login if conf().END_WITH_LOGIN else None,
        user_id=user_id,
    )


async def data_of(session: SessionBase | None) -> dict[str, Any]:
    """Return a session's data, read as the project's pages read them.

    Not by the session's async methods: an engine that refuses some sessions may override only
    ``load``, which those of Django's engines do not call.
    """
    if session is None:
        return {}
    if not hasattr(session, "_session_cache"):
        return dict(await sync_to_async(session.items)())
    return dict(session.items())


def login_in(session: SessionBase | None, data: Mapping[str, Any]) -> Login:
    """Return the login in a session, given the session's data."""
    return Login(
        str(data[SESSION_KEY]),
        # The same for all, and kept for each.
        intern(str(data.get(BACKEND_SESSION_KEY))),
        str(data.get(HASH_SESSION_KEY, "")),
        *_session_place(session),
    )


def is_nobody(user: Any) -> bool:
    """Whether a user is None or not authenticated.

    As in Django, the truth value of what the user says counts.
    """
    return (
        user is None
        or bool(getattr(user, "is_anonymous", False))
        or not getattr(user, "is_authenticated", True)
    )


async def loaded(user: Any) -> Any:
    """Return a user. In place of Django's lazy one, like ``request.user``, it is the user itself,
    who is loaded."""
    try:
        is_nobody(user)
    except SynchronousOnlyOperation:
        await sync_to_async(is_nobody)(user)
    # Each attribute of a lazy user takes several times as long. A subclass may have its own.
    if type(user) is SimpleLazyObject and (found := vars(user)["_wrapped"]) is not empty:
        return found
    return user


def user_key(user: Any, group: str | None = None) -> str:
    """Return the owner key of a user, or of a user in a group.

    Args:
        user: A user, or its primary key. An object that is not a model instance but has
            ``is_authenticated``, such as the user of a token, counts as the user with its ``pk`` or
            ``id``. An instance of another model with ``is_authenticated`` has a separate key.
        group: A Channels group name.

    Raises:
        InvalidGroup: ``group`` is not a valid group name.
        TypeError: ``user`` is neither a user nor a primary key.
        ValueError: The user is not saved, has no key, or is not logged in.
    """
    return _owner_key_of_user(_required_identity(user), group)


def user_group(user: Any) -> str:
    """Return the name of a user's own group, which ``UserEventStreamView`` streams.

    ``publish_to_user`` publishes to it. Use the name with other functions, such as ``position``, or
    ``publish_many`` for several users.

    Args:
        user: A user, its primary key, or another owner of streams: see ``user_key``.

    Raises:
        TypeError: ``user`` is neither a user nor a primary key.
        ValueError: The user is not saved, has no key, or is not logged in.
    """
    return group_name(*USER_GROUP_PARTS, *_required_identity(user))


def user_id_of(user: Any) -> str | None:
    """Return a user's primary key as text: see ``Owner.user_id``. None for nobody.

    Raises:
        TypeError, ValueError: The user has no owner key: see ``user_key``.
    """
    return None if is_nobody(user) else " ".join(_identity(user))


def owner_key_of(owner: Any) -> str:
    """Return the owner key of a user, of a user's primary key, or of a session.

    It is empty for what cannot own a stream: None, an anonymous user, a user without a key, and a
    session that was never saved.

    Raises:
        TypeError, ValueError: The user has no owner key: see ``user_key``.
    """
    if is_nobody(owner):
        return ""
    if not isinstance(owner, SessionBase):
        return user_key(owner) if _identity(owner) else ""
    if isinstance(owner, CookieSession):
        return user_key(owner[SESSION_KEY]) if SESSION_KEY in owner else ""
    return _session_owner_key(owner) or ""


def is_identified(user: Any) -> bool:
    """Whether something tells a user from others: see ``user_key``."""
    try:
        return hasattr(user, "is_authenticated") and bool(_identity(user))
    except (TypeError, ValueError):
        return False


def login_key(session: SessionBase | Mapping[str, Any]) -> str | None:
    """Return the owner key of the login in a session, or None if its time is unknown.

    It stays the same while the session's key changes.
    """
    if SESSION_KEY not in session or BEGAN_SESSION_KEY not in session:
        return None
    return _owner_key("login", str(session[BEGAN_SESSION_KEY]), str(session[SESSION_KEY]))


def _required_identity(user: Any) -> list[str]:
    if is_nobody(user):
        raise ValueError(
            f"{user} cannot own streams: give a user who is logged in, or its primary key."
        )
    identity = _identity(user)
    if not identity:
        raise ValueError(f"{user!r} has neither pk nor id, so its streams cannot be identified.")
    return identity


def _identity(user: Any) -> list[str]:
    """Return the parts that identify one user, and no other; none if nothing identifies it."""
    if isinstance(user, int | str | UUID) and not isinstance(user, bool):
        return [_primary_key(user)]
    if not isinstance(user, Model):
        if not hasattr(user, "is_authenticated"):
            raise TypeError(f"Give a user or its primary key, not {type(user).__name__}.")
        keys = (getattr(user, "pk", None), getattr(user, "id", None))
        return [_primary_key(key) for key in keys if key is not None][:1]
    is_user = _is_user(user)
    # An instance of another model may have the same primary key as an unrelated user.
    if not is_user and not hasattr(user, "is_authenticated"):
        raise TypeError(f"Give a user or its primary key, not {type(user).__name__}.")
    if user.pk is None:
        raise ValueError(f"{user!r} has no primary key yet: save it first.")
    if is_user:
        # A model that inherits from the user model may have another primary key. Take the user's.
        return [_primary_key(getattr(user, get_user_model()._meta.pk.attname))]
    model: Any = user._meta.concrete_model
    return [model._meta.label_lower, _primary_key_of(model, user.pk) or str(plain(user.pk))]


def _primary_key(key: Any) -> str:
    """Return a user's primary key as sessions write it, from any form that the ORM accepts.

    A key that no user in the database can have belongs to a user who is authenticated by other
    means. Then every form of a UUID becomes the same text, and any other text stays as it is.
    """
    text = str(plain(key))
    with suppress(ImproperlyConfigured):
        if of_user := _primary_key_of(get_user_model(), text):
            return of_user
    with suppress(ValueError):
        return str(UUID(text))
    return text


def _primary_key_of(model: Any, key: Any) -> str | None:
    """Return a model's primary key as sessions write it, or None if the model rejects the key."""
    field = model._meta.pk
    with suppress(TypeError, ValueError, ValidationError):
        value = field.to_python(key)
        return str(field.value_to_string(SimpleNamespace(**{field.attname: value})))
    return None


def _is_user(instance: Model) -> bool:
    try:
        return isinstance(instance, get_user_model())
    except ImproperlyConfigured:
        # The project has no user model. Its users are authenticated by other means.
        return False


def _session_place(session: SessionBase | None) -> tuple[type[SessionBase], str] | tuple[()]:
    # The key of a session in a cookie is the session's whole data, and changes with them.
    if session is None or session.session_key is None or isinstance(session, CookieSession):
        return ()
    return type(session), session.session_key


def _session_owner_key(session: SessionBase) -> str | None:
    place = _session_place(session)
    return _owner_key("session", place[1]) if place else None


def _owner_key_of_user(identity: Sequence[str], group: str | None = None) -> str:
    if group is None:
        return _owner_key("user", *identity)
    return _owner_key("user in group", validate_group(group), *identity)


def _owner_key(*parts: str) -> str:
    # In JSON no part can contain the separator of parts, and with "surrogatepass" no two texts have
    # the same bytes. SECRET_KEY is not used, since it may change while streams are open. Nobody
    # can guess a session's key.
    digest = sha256(_encode(parts).encode(errors="surrogatepass")).hexdigest()
    return OWNER_PREFIX + digest[: OWNER_KEY_LENGTH - len(OWNER_PREFIX)]
