"""Answers to requests whose session cannot be read now."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from django.http import HttpRequest
from django.http.response import HttpResponseBase

from django_sse.access.logins import check_session
from django_sse.http.refusals import SESSIONS_AWAY
from django_sse.http.response import unavailable
from django_sse.http.wrappers import wrapped

ViewT = TypeVar("ViewT", bound=Callable[..., Any])


def with_session(view: ViewT) -> ViewT:
    """Let clients come back later while their sessions cannot be read.

    A guard would take them for not logged in, and its 401 or 403 would end an EventSource for good.
    """
    return wrapped(view, abefore=_unavailable_without_session)


async def _unavailable_without_session(
    request: HttpRequest, kwargs: Mapping[str, Any]
) -> HttpResponseBase | None:
    try:
        await check_session(request)
    except Exception as error:
        return unavailable(request, SESSIONS_AWAY, error)
    return None
