"""What logins, logouts and changes of users do to streams: receivers of Django's signals."""

from contextlib import suppress
from functools import lru_cache
from typing import Any, Final

from django.apps import apps
from django.conf import settings
from django.contrib.auth import SESSION_KEY, get_user_model
from django.contrib.auth.signals import user_logged_in, user_logged_out
from django.db import connections, models, transaction
from django.db.models.signals import post_delete, post_init, post_save
from django.http import HttpRequest
from django.utils.module_loading import import_string

from django_sse.access.owners import BEGAN_SESSION_KEY, login_key, owner_key_of, user_key
from django_sse.conf import conf
from django_sse.doorbells import doorbell_of
from django_sse.groups.entries import Hint
from django_sse.groups.namespaces import current_namespace, full_name
from django_sse.logs import logger
from django_sse.publishing import end_streams
from django_sse.stores import get_store

# Where a user that was loaded keeps what its login depends on.
_LOADED: Final = "_django_sse_loaded"
_NOT_LOADED: Final = "not loaded"


def connect() -> None:
    """Receive the signals of the project's users and sessions."""
    user_logged_in.connect(_note_login, dispatch_uid="django_sse")
    user_logged_out.connect(_end_session, dispatch_uid="django_sse")
    # Of users alone, for it is sent for each object that is made.
    for model in apps.get_models():
        if issubclass(model, get_user_model()):
            post_init.connect(_note_loaded, sender=model, dispatch_uid="django_sse")
    for changed in (post_save, post_delete):
        # Of every sender: a proxy of the user model is another one.
        changed.connect(_look_at_user, dispatch_uid="django_sse")


def _note_login(request: HttpRequest, user: Any, **kwargs: Any) -> None:
    """Note when a session's user logged in: one who was cancelled may come back in it, if that is
    known."""
    session = getattr(request, "session", None)
    # Logins by tokens send the signal, too, and the session may be another user's, or nobody's.
    with suppress(TypeError, ValueError, TimeoutError):
        if session is not None and user_key(session.get(SESSION_KEY)) == user_key(user):
            # By the clock that says when a user was cancelled.
            session[BEGAN_SESSION_KEY] = get_store().clock.time()


def _end_session(request: HttpRequest, user: Any, **kwargs: Any) -> None:
    """End the session's streams. Django sends this before it flushes the session, so a client that
    comes back at once still has it."""
    session = getattr(request, "session", None)
    if not conf().END_WITH_LOGIN or session is None:
        return
    try:
        # The session's own owner key; where it cannot have one, as in a cookie, its user's.
        owner_keys = (owner_key_of(session), login_key(session))
        end_streams([owner_key for owner_key in owner_keys if owner_key], "logged out")
    except Exception:
        # Logging out must not fail for it, and it is tried again.
        logger.exception("The streams of a session that was logged out could not be ended yet.")


def _note_loaded(instance: Any, **kwargs: Any) -> None:
    """Note what a user's login depends on, to see later whether a save has changed it."""
    vars(instance)[_LOADED] = _what_counts(instance)


def _look_at_user(instance: Any, using: str, **kwargs: Any) -> None:
    """Have the hubs check a user's logins again, now and not only at their next sweep."""
    if not isinstance(instance, get_user_model()) or not conf().END_WITH_LOGIN:
        return
    if kwargs.get("created") or instance.pk is None:
        return
    now, before = _what_counts(instance), vars(instance).get(_LOADED)
    if kwargs["signal"] is post_save and not kwargs["raw"] and now == before:
        # Projects save when a user was last seen, at each request.
        return
    connection = connections[using]
    if not connection.in_atomic_block and not connection.get_autocommit():
        # Nothing tells of its commit; the sweep finds it.
        return
    try:
        owner_key = full_name(current_namespace(), user_key(instance))
    except Exception:
        # Saving must not fail for it, as where no tenant is current; the sweep finds it.
        logger.exception("The hubs are not told of a user who was saved or deleted.")
        return
    hint = Hint(owner_key, 0, cancelled=False)

    def ring() -> None:
        vars(instance)[_LOADED] = now
        doorbell_of(get_store()).ring([hint])

    transaction.on_commit(ring, using=using, robust=True)


def _what_counts(user: Any) -> tuple[Any, ...]:
    """Return the values that Django checks a login by; no query is made for those that were not
    loaded."""
    values = vars(user)
    names = _fields_that_count(user.__class__, tuple(settings.AUTHENTICATION_BACKENDS))
    return tuple(values.get(name, _NOT_LOADED) for name in names)


@lru_cache(maxsize=64)
def _fields_that_count(model: Any, backends: tuple[str, ...]) -> tuple[str, ...]:
    """Return the fields that Django checks logins by: any of them, where the project does it in a
    way of its own, but times, which are those of a login or of what a user did last."""
    # Not above: it imports models, which a project without users does not have.
    from django.contrib.auth.backends import ModelBackend
    from django.contrib.auth.base_user import AbstractBaseUser

    methods: list[tuple[Any, Any, str]] = [(model, AbstractBaseUser, "get_session_auth_hash")]
    with suppress(ImportError):
        for backend in map(import_string, backends):
            for name in ("user_can_authenticate", "get_user", "aget_user"):
                # What has none of them checks no login: it says what users may do.
                if hasattr(backend, "get_user") and hasattr(backend, name):
                    methods += [(backend, ModelBackend, name)]
    if all(getattr(ours, name, None) is getattr(djangos, name) for ours, djangos, name in methods):
        return ("password", "is_active")
    fields = model._meta.concrete_fields
    times = (models.DateField, models.TimeField)
    return tuple(field.attname for field in fields if not isinstance(field, times))
