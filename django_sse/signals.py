"""What logins, logouts and changes of users do to streams: receivers of Django's signals."""

from contextlib import suppress
from time import time
from typing import Any

from django.contrib.auth import SESSION_KEY, get_user_model
from django.contrib.auth.signals import user_logged_in, user_logged_out
from django.db import connections, transaction
from django.db.models.signals import post_delete, post_save
from django.http import HttpRequest

from django_sse.conf import conf
from django_sse.doorbells import doorbell_of
from django_sse.logs import logger
from django_sse.namespaces import current_namespace, full_name
from django_sse.owners import BEGAN_SESSION_KEY, login_mark, mark_of, user_mark
from django_sse.publishing import end_streams
from django_sse.stores import get_store
from django_sse.stores.base import Hint


def connect() -> None:
    """Receive the signals of the project's users and sessions."""
    user_logged_in.connect(_note_login, dispatch_uid="django_sse")
    user_logged_out.connect(_end_session, dispatch_uid="django_sse")
    for changed in (post_save, post_delete):
        # Of every sender: a proxy of the user model is another one.
        changed.connect(_look_at_user, dispatch_uid="django_sse")


def _note_login(request: HttpRequest, user: Any, **kwargs: Any) -> None:
    """Note when a session's user logged in: one who was cancelled may come back in it."""
    session = getattr(request, "session", None)
    # Logins by tokens send the signal, too, and the session may be another user's, or nobody's.
    with suppress(TypeError, ValueError):
        if session is not None and user_mark(session.get(SESSION_KEY)) == user_mark(user):
            session[BEGAN_SESSION_KEY] = time()


def _end_session(request: HttpRequest, user: Any, **kwargs: Any) -> None:
    """End the session's streams. Django sends this before it flushes the session, so a client that
    comes back at once still has it."""
    session = getattr(request, "session", None)
    if not conf().END_WITH_LOGIN or session is None:
        return
    try:
        # The session's own mark; where it cannot have one, as in a cookie, its user's.
        marks = (mark_of(session), login_mark(session))
        end_streams([mark for mark in marks if mark], "logged out")
    except Exception:
        # Logging out must not fail for it, and it is tried again.
        logger.exception("The streams of a session that was logged out could not be ended yet.")


def _look_at_user(instance: Any, using: str, **kwargs: Any) -> None:
    """Have the hubs judge a user's logins again, now and not only at their next sweep."""
    if not isinstance(instance, get_user_model()):
        return
    # Django saves the time at each login.
    if not conf().END_WITH_LOGIN or kwargs.get("update_fields") == {"last_login"}:
        return
    if kwargs.get("created") or instance.pk is None:
        return
    connection = connections[using]
    if not connection.in_atomic_block and not connection.get_autocommit():
        # Nothing tells of its commit; the sweep finds it.
        return
    try:
        mark = full_name(current_namespace(), user_mark(instance))
    except Exception:
        # Saving must not fail for it, as where no tenant is current; the sweep finds it.
        logger.exception("The hubs are not told of a user who was saved or deleted.")
        return
    hint = Hint(mark, 0, cancelled=False)
    transaction.on_commit(lambda: doorbell_of(get_store()).ring([hint]), using=using, robust=True)
