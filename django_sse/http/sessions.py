"""Answers to requests whose session cannot be read now."""

from collections.abc import Callable
from typing import Any, TypeVar

from django.conf import settings
from django.http import HttpRequest
from django.http.response import HttpResponseBase

from django_sse.access.logins import check_session
from django_sse.http.refusals import SESSIONS_AWAY
from django_sse.http.response import unavailable
from django_sse.http.wrappers import wrapped

ViewT = TypeVar("ViewT", bound=Callable[..., Any])


def with_session(view: ViewT) -> ViewT:
    """Let clients of an async view come back later while their sessions cannot be read."""
    return wrapped(view, abefore=lambda request, kwargs: unavailable_without_session(request))


async def unavailable_without_session(request: HttpRequest) -> HttpResponseBase | None:
    """Return the answer to a request whose session cannot be read, or None.

    A guard would take its client for not logged in, and a 401 or 403 ends an EventSource for good.
    """
    try:
        await check_session(request)
    except OSError as error:
        # Django's middleware would delete the cookie of a session that it takes for empty.
        request.COOKIES.pop(settings.SESSION_COOKIE_NAME, None)
        return unavailable(request, SESSIONS_AWAY, error)
    return None
