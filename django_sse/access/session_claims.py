"""Sessions of clients that come back: whether they hold what they held, and are still valid."""

from collections.abc import Collection, Mapping, Sequence
from hashlib import sha256
from importlib import import_module
from typing import Any, Final, NamedTuple

from django.conf import settings
from django.contrib.auth import SESSION_KEY, get_user_model
from django.contrib.sessions.backends.base import SessionBase
from django.contrib.sessions.backends.cache import SessionStore as CacheSession
from django.contrib.sessions.backends.cached_db import SessionStore as CachedDatabaseSession
from django.contrib.sessions.backends.db import SessionStore as DatabaseSession
from django.core.cache import caches
from django.db import router
from django.http import HttpRequest
from django.utils import timezone
from django.utils.crypto import constant_time_compare

from django_sse.access.logins import (
    LoginCheck,
    backend_of,
    batches,
    check_logins,
    finds_users_itself,
    is_found_by_others,
)
from django_sse.access.owners import Login, Owner, data_of, login_in, user_key
from django_sse.groups.namespaces import full_name


class SessionClaim(NamedTuple):
    """What a client claims: that its session exists, and holds the data of this digest.

    ``namespace`` is the tenant's name.
    """

    key: str
    digest: str
    namespace: str


_ENGINES: Final = (DatabaseSession, CachedDatabaseSession, CacheSession)
_MIDDLEWARES: Final = (
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
)
NO_SESSION: Final = ""
"""The digest of a client without a session."""


async def claimable_digest(request: HttpRequest, owner: Owner) -> str | None:
    """Return the digest of a request's session, if it tells all that there is to know of its user.

    ``kept_sessions`` must be able to find out later what Django's middleware would. So the user is
    that of a session which Django's own engines keep in the database or the cache, or is nobody.

    Returns:
        The digest, ``NO_SESSION`` without a session, or None if a claim would not be enough.
    """
    has_user = hasattr(request, "user") or hasattr(request, "auser")
    if "Authorization" in request.headers or (has_user and is_found_by_others(request)):
        return None
    session = getattr(request, "session", None)
    data = await data_of(session)
    if session is None or (session.session_key is None and not data):
        return NO_SESSION if owner.user is None else None
    # What this request changes is saved only after its response. Own engines and middlewares may
    # know more of a session than its data.
    if (
        session.modified
        or type(session) is not session_store()
        or type(session) not in _ENGINES
        or not set(_MIDDLEWARES).issubset(settings.MIDDLEWARE)
    ):
        return None
    return _digest(session, data) if _is_of_session(owner, data) else None


def kept_sessions(claims: Collection[SessionClaim]) -> dict[SessionClaim, Mapping[str, Any]]:
    """Return the data of those sessions of which the claim is true, and whose login is valid.

    All claims are of the current tenant. Blocks: call it in a thread.

    Raises:
        Exception: The sessions or the users could not be read.
    """
    store = session_store()
    if store not in _ENGINES:
        return {}
    held = _data(store, list({claim.key for claim in claims}))
    kept: dict[SessionClaim, Mapping[str, Any]] = {}
    logins: dict[SessionClaim, Login] = {}
    for claim in claims:
        session = store(claim.key)
        data = held.get(claim.key)
        if data is None or not _is_digest_of(session, data, claim.digest):
            continue
        kept[claim] = data
        if SESSION_KEY in data:
            logins[claim] = login_in(session, data)
    # Once for each backend: thousands of sessions have the same.
    backends = {login.backend for login in logins.values()}
    judged_here = {path for path in backends if not _is_judged_elsewhere(path)}
    asked = {login for login in logins.values() if login.backend in judged_here}
    checked = check_logins(asked) if asked else LoginCheck()
    valid = asked - checked.absent - checked.gone - checked.changed
    return {
        claim: data for claim, data in kept.items() if claim not in logins or logins[claim] in valid
    }


def session_store() -> Any:
    """Return the class of the project's sessions."""
    return import_module(settings.SESSION_ENGINE).SessionStore


def _digest(session: SessionBase, data: Mapping[str, Any]) -> str:
    return sha256(session.serializer().dumps(dict(data))).hexdigest()


def _is_digest_of(session: SessionBase, data: Mapping[str, Any], digest: str) -> bool:
    try:
        return constant_time_compare(_digest(session, data), digest)
    except (TypeError, ValueError):
        # A cache keeps what the serializer cannot write. When the claim was made, it could.
        return False


def _is_of_session(owner: Owner, data: Mapping[str, Any]) -> bool:
    """Whether an owner is the user who is logged in in a session, or nobody, like the session."""
    login = owner.login
    if owner.user is None or login is None:
        return owner.user is None and SESSION_KEY not in data
    of_login = full_name(owner.namespace, user_key(login.user))
    return owner.user == of_login and not _is_judged_elsewhere(login.backend)


def _is_judged_elsewhere(path: str) -> bool:
    """Whether more than the session and the user's row say if a backend's user is logged in."""
    # Imported here, since they import models that a project without users does not have.
    from django.contrib.auth.backends import ModelBackend, RemoteUserBackend
    from django.contrib.auth.base_user import AbstractBaseUser

    backend, model = backend_of(path), get_user_model()
    return (
        finds_users_itself(path)
        # RemoteUserMiddleware looks at a header of each request.
        or isinstance(backend, RemoteUserBackend)
        or not _is_inherited(type(backend), ModelBackend, "user_can_authenticate")
        or not _is_inherited(model, AbstractBaseUser, "is_authenticated")
        or not _is_inherited(model, AbstractBaseUser, "is_anonymous")
    )


def _is_inherited(cls: type, base: type, name: str) -> bool:
    return getattr(cls, name, None) is getattr(base, name)


def _data(store: Any, keys: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    """Return the data of sessions by key, as Django would load them."""
    found: dict[str, Mapping[str, Any]] = {}
    if store is not DatabaseSession:
        cache = caches[settings.SESSION_CACHE_ALIAS]
        prefix = store.cache_key_prefix
        try:
            for some in batches(keys):
                for name, data in cache.get_many([prefix + key for key in some]).items():
                    found[name.removeprefix(prefix)] = data
        finally:
            cache.close()
    if store is not CacheSession:
        model = store.get_model_class()
        # From the database that sessions are written to: a replica may lack the newest ones.
        sessions = model.objects.using(router.db_for_write(model))
        valid = sessions.filter(expire_date__gt=timezone.now())
        decode = store().decode
        for some in batches([key for key in keys if key not in found]):
            rows = valid.filter(session_key__in=some).values_list("session_key", "session_data")
            found |= {key: decode(data) for key, data in rows}
    return found
