"""The logins that streams are opened in, and whether they still hold, as Django's ``get_user``
judges."""

import functools
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from typing import Any, Final, NamedTuple

from asgiref.sync import sync_to_async
from django.conf import settings
from django.contrib.auth import get_user_model, load_backend
from django.core.exceptions import (
    ImproperlyConfigured,
    SynchronousOnlyOperation,
    ValidationError,
)
from django.db import close_old_connections
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.utils.crypto import constant_time_compare
from django.utils.functional import LazyObject

from django_sse.owners import Login, is_nobody, mark_of
from django_sse.tasks import logger

# Users in one query.
_USERS: Final = 500


class Judgement(NamedTuple):
    """The logins that do not hold any more: for lack of their user, or because it changed."""

    gone: set[Login]
    changed: set[Login]


def judge(logins: Collection[Login]) -> Judgement:
    """Return the logins that do not hold any more. Blocking: for a thread.

    A login is gone if its user was deleted or may not log in, as one who is not active; it is
    changed if its session was made with another password.
    """
    close_old_connections()
    try:
        users = _users({login.user for login in logins})
    finally:
        close_old_connections()
    judgement = Judgement(set(), set())
    for login in logins:
        user = users.get(login.user)
        if user is None or not _may_log_in(user, login):
            judgement.gone.add(login)
        elif not _has_hash(user, login.session_hash):
            judgement.changed.add(login)
    return judgement


async def current_user(request: HttpRequest) -> Any:
    """Return a request's user as guards see it, whatever has authenticated it; None for one that
    nothing tells from others, which is logged."""
    user: Any = await request.auser() if hasattr(request, "auser") else None
    if is_nobody(user):
        # What authenticates by other means than sessions may have set this alone.
        user = getattr(request, "user", None)
        try:
            is_nobody(user)
        except SynchronousOnlyOperation:
            # It is lazy, and queries.
            await sync_to_async(is_nobody)(user)
    if is_nobody(user) or _can_own(user):
        return user
    _warn_of(user.__class__)
    return None


def _can_own(user: Any) -> bool:
    try:
        return hasattr(user, "is_authenticated") and bool(mark_of(user))
    except (TypeError, ValueError):
        return False


@functools.cache
def _warn_of(kind: type) -> None:
    logger.warning(
        "The streams of users of the class %s.%s are nobody's, and neither `cancel(user=...)` nor "
        "a limit reaches them: such a user has to have `is_authenticated`, and `pk` or `id`. "
        "Give them, or override `get_owner` in the view.",
        kind.__module__,
        kind.__qualname__,
    )


def renew_login(request: HttpRequest) -> None:
    """Let a request's session and user be read again, as Django's middleware does.

    A user that something else has authenticated stays as it is.
    """
    if not hasattr(request, "session") or not hasattr(request, "auser"):
        return
    # Not above: it imports models, which a project without users does not have.
    from django.contrib.auth import middleware

    request.session = type(request.session)(request.session.session_key)
    for cached in ("_cached_user", "_acached_user"):
        vars(request).pop(cached, None)
    others: dict[str, Any] = {}
    if getattr(request.auser, "func", None) is not middleware.auser:
        others["auser"] = request.auser
    if "user" in vars(request) and not isinstance(vars(request)["user"], LazyObject):
        others["user"] = request.user
    middleware.AuthenticationMiddleware(lambda _: HttpResponse()).process_request(request)
    vars(request).update(others)


def spare_session_cookie(view: Callable[..., Any]) -> Callable[..., Any]:
    """Keep what an async view answers from deleting the session's cookie.

    Django deletes the cookie of a session that is gone. A browser comes back to a stream whenever
    it likes, so that the answer to the cookie of before may come after that of a login, and would
    take the login's cookie away.
    """

    @functools.wraps(view)
    async def wrapper(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        response: HttpResponseBase = await view(request, *args, **kwargs)
        session = getattr(request, "session", None)
        if session is not None and session.is_empty():
            # What the middleware does not see there, it does not delete.
            request.COOKIES.pop(settings.SESSION_COOKIE_NAME, None)
        return response

    return wrapper


def _users(keys: Iterable[str]) -> dict[str, Any]:
    model: Any = get_user_model()
    to_python, to_text = model._meta.pk.to_python, model._meta.pk.value_to_string
    wanted = []
    for key in keys:
        # Sessions may be older than the kind of key that users have now: such a one finds nobody.
        with suppress(ValidationError):
            wanted.append(to_python(key))
    found: dict[str, Any] = {}
    for begin in range(0, len(wanted), _USERS):
        some = model._default_manager.filter(pk__in=wanted[begin : begin + _USERS])
        found |= {to_text(user): user for user in some}
    return found


def _may_log_in(user: Any, login: Login) -> bool:
    try:
        backend: Any = load_backend(login.backend)
    except (ImportError, ImproperlyConfigured):
        # Sessions of a backend that was removed are nobody's to Django, too.
        return False
    # Not every backend is a ModelBackend, which asks for `is_active`.
    may_log_in = getattr(backend, "user_can_authenticate", None)
    return bool(may_log_in(user) if may_log_in else getattr(user, "is_active", True))


def _has_hash(user: Any, session_hash: str) -> bool:
    if not hasattr(user, "get_session_auth_hash"):
        return True
    valid = [user.get_session_auth_hash(), *user.get_session_auth_fallback_hash()]
    return any(constant_time_compare(session_hash, other) for other in valid)
