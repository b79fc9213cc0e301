"""Marks views as event streams, and notes requests that reach such a view."""

from collections.abc import Callable, MutableMapping
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final, TypeVar

from django.core.handlers.asgi import ASGIRequest
from django.http import HttpRequest
from django.urls import resolve

if TYPE_CHECKING:
    from django_sse.http.hand_off import HandOff

ViewT = TypeVar("ViewT", bound=Callable[..., Any])

SCOPE_KEY: Final = "django_sse.hand_off"

_IS_STREAM: Final = "is_event_stream"


def mark_as_stream(view: ViewT) -> ViewT:
    """Mark a view as an event stream. A ``functools.wraps`` wrapper around it is marked as well."""
    setattr(view, _IS_STREAM, True)
    return view


def note_reached(request: HttpRequest) -> None:
    """Note that a request has reached a view that is an event stream."""
    if hand_off := hand_off_of(request):
        hand_off.is_for_stream = True


def hand_off_of(request: HttpRequest) -> "HandOff | None":
    """Return the hand-off that the ASGI wrapper has put into a request's scope, or None."""
    return request.scope.get(SCOPE_KEY) if isinstance(request, ASGIRequest) else None


def leads_to_stream(scope: MutableMapping[str, Any]) -> bool:
    """Say whether the project's URLs lead a request to a view that is an event stream.

    The answer is no if it cannot be found out: the URLconf may fail, and other applications have
    other URLs.
    """
    try:
        # ASGIRequest removes `root_path`. `resolve` uses the URLconf that a middleware has set in
        # this context.
        view = resolve(ASGIRequest(scope, BytesIO()).path_info).func
    except Exception:
        return False
    return getattr(view, _IS_STREAM, False)
