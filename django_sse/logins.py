"""Whether the logins that streams were opened in still hold, as Django's ``get_user`` judges."""

from collections.abc import Collection, Iterable
from contextlib import suppress
from typing import Any, Final, NamedTuple

from django.contrib.auth import get_user_model, load_backend
from django.core.exceptions import ImproperlyConfigured, ValidationError
from django.db import close_old_connections
from django.http import HttpRequest, HttpResponse
from django.utils.crypto import constant_time_compare

from django_sse.owners import Login

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


def renew_login(request: HttpRequest) -> None:
    """Let a request's session and user be read again, as Django's middleware does."""
    if not hasattr(request, "session") or not hasattr(request, "auser"):
        return
    # Not above: it imports models, which a project without users does not have.
    from django.contrib.auth.middleware import AuthenticationMiddleware

    request.session = type(request.session)(request.session.session_key)
    for cached in ("_cached_user", "_acached_user"):
        vars(request).pop(cached, None)
    AuthenticationMiddleware(lambda _: HttpResponse()).process_request(request)


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
