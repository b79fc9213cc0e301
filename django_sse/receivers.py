"""Receivers of Django's signals: what logins, logouts and changed users do to streams."""

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

# The attribute in which a loaded user keeps the values that its logins depend on.
_LOADED: Final = "_django_sse_loaded"
_NOT_LOADED: Final = "not loaded"


def connect() -> None:
    """Connect the receivers to the signals of the project's users and sessions."""
    user_logged_in.connect(_note_login, dispatch_uid="django_sse")
    user_logged_out.connect(_end_session, dispatch_uid="django_sse")
    # Only of user models, since it is sent for each object that is made.
    for model in apps.get_models():
        if issubclass(model, get_user_model()):
            post_init.connect(_note_loaded, sender=model, dispatch_uid="django_sse")
    for changed in (post_save, post_delete):
        # Of every sender, since a proxy of the user model is a different one.
        changed.connect(_check_logins_of, dispatch_uid="django_sse")


def _note_login(request: HttpRequest, user: Any, **kwargs: Any) -> None:
    """Note in the session when its user logged in.

    A user who was cancelled before that may come back in this session.
    """
    session = getattr(request, "session", None)
    # Logins by tokens send the signal, too. The session may belong to another user, or to nobody.
    with suppress(TypeError, ValueError, TimeoutError):
        if session is not None and user_key(session.get(SESSION_KEY)) == user_key(user):
            # The clock is the one by which users are cancelled.
            session[BEGAN_SESSION_KEY] = get_store().clock.time()


def _end_session(request: HttpRequest, user: Any, **kwargs: Any) -> None:
    """End the session's streams.

    Django sends this signal before it flushes the session, so a client that comes back at once
    still has the session.
    """
    session = getattr(request, "session", None)
    if not conf().END_WITH_LOGIN or session is None:
        return
    try:
        # The session's own owner key. A session that cannot have one, such as in a cookie, uses the
        # user's.
        owner_keys = (owner_key_of(session), login_key(session))
        end_streams([owner_key for owner_key in owner_keys if owner_key], "logged out")
    except Exception:
        # Logging out must not fail because of this. It is tried again.
        logger.exception("The streams of a session that was logged out could not be ended yet.")


def _note_loaded(instance: Any, **kwargs: Any) -> None:
    """Note the values that a user's logins depend on, to see later whether a save changes them."""
    vars(instance)[_LOADED] = _login_values(instance)


def _check_logins_of(instance: Any, using: str, **kwargs: Any) -> None:
    """Have the hubs check a changed user's logins now, and not only at their next check of all."""
    if not isinstance(instance, get_user_model()) or not conf().END_WITH_LOGIN:
        return
    if kwargs.get("created") or instance.pk is None:
        return
    now, before = _login_values(instance), vars(instance).get(_LOADED)
    if kwargs["signal"] is post_save and not kwargs["raw"] and now == before:
        # Some projects save at each request when a user was last seen.
        return
    connection = connections[using]
    if not connection.in_atomic_block and not connection.get_autocommit():
        # Django does not report the commit. The next check of all logins finds the change.
        return
    try:
        owner_key = full_name(current_namespace(), user_key(instance))
    except Exception:
        # Saving must not fail because of this, for example if no tenant is current. The next check
        # of all logins finds the change.
        logger.exception("The hubs could not be told of a user who was saved or deleted.")
        return
    hint = Hint(owner_key, 0, cancelled=False)

    def ring() -> None:
        vars(instance)[_LOADED] = now
        doorbell_of(get_store()).ring([hint])

    transaction.on_commit(ring, using=using, robust=True)


def _login_values(user: Any) -> tuple[Any, ...]:
    """Return the values by which Django checks a user's logins.

    Values that were not loaded are not queried.
    """
    values = vars(user)
    names = _login_fields(user.__class__, tuple(settings.AUTHENTICATION_BACKENDS))
    return tuple(values.get(name, _NOT_LOADED) for name in names)


@lru_cache(maxsize=64)
def _login_fields(model: Any, backends: tuple[str, ...]) -> tuple[str, ...]:
    """Return the fields by which Django checks logins.

    If the project checks logins in a custom way, these may be any fields. Dates and times are left
    out: they say when a user logged in or was last active.
    """
    # Not at the top of the module: these import models, which a project without users lacks.
    from django.contrib.auth.backends import ModelBackend
    from django.contrib.auth.base_user import AbstractBaseUser

    methods: list[tuple[Any, Any, str]] = [(model, AbstractBaseUser, "get_session_auth_hash")]
    with suppress(ImportError):
        for backend in map(import_string, backends):
            for name in ("user_can_authenticate", "get_user", "aget_user"):
                # A backend without `get_user` checks no logins. It only says what users may do.
                if hasattr(backend, "get_user") and hasattr(backend, name):
                    methods += [(backend, ModelBackend, name)]
    if all(getattr(ours, name, None) is getattr(djangos, name) for ours, djangos, name in methods):
        return ("password", "is_active")
    fields = model._meta.concrete_fields
    times = (models.DateField, models.TimeField)
    return tuple(field.attname for field in fields if not isinstance(field, times))
