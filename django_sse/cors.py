"""Cross-origin requests: which pages of other origins may read a stream.

The protocol is that of https://fetch.spec.whatwg.org/#http-cors-protocol.
"""

import functools
from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

from asgiref.sync import iscoroutinefunction
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.utils.cache import patch_vary_headers

from django_sse.conf import conf

ViewT = TypeVar("ViewT", bound=Callable[..., Any])

ALLOW_ORIGIN: Final = "Access-Control-Allow-Origin"
ALLOW_CREDENTIALS: Final = "Access-Control-Allow-Credentials"

# EventSource itself needs no preflight. Polyfills send these as headers of their own, and clients
# on fetch may send a token, or JSON to a generator view.
_PREFLIGHT_HEADERS: Final = {
    "Access-Control-Allow-Methods": "GET, HEAD, POST",
    "Access-Control-Allow-Headers": "Authorization, Cache-Control, Content-Type, Last-Event-ID",
    # Seconds that a browser need not ask again. Chromium remembers it for no longer.
    "Access-Control-Max-Age": "7200",
}


def cors_headers(origin: str | None) -> dict[str, str]:
    """Return what allows a page to read the response, given its ``Origin`` header."""
    allowed = conf().ALLOWED_ORIGINS
    if "*" in allowed:
        return {ALLOW_ORIGIN: "*"}
    if not origin or origin.lower() not in (known.lower() for known in allowed):
        return {}
    headers = {ALLOW_ORIGIN: origin}
    if conf().ALLOW_CREDENTIALS:
        headers[ALLOW_CREDENTIALS] = "true"
    return headers


def varies_by_origin() -> bool:
    """Say whether ``Origin`` decides on the headers, also where it is missing."""
    return bool(conf().ALLOWED_ORIGINS) and "*" not in conf().ALLOWED_ORIGINS


def add_cors(request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
    """Give a response the headers that ``DJANGO_SSE`` says."""
    for name, value in cors_headers(request.headers.get("Origin")).items():
        response[name] = value
    if varies_by_origin():
        patch_vary_headers(response, ["Origin"])
    return response


def is_preflight(request: HttpRequest) -> bool:
    """Say whether a browser asks whether it may send a request; it does so without cookies."""
    return request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers


def cross_origin(view: ViewT) -> ViewT:
    """Give what a view answers the headers that ``DJANGO_SSE`` says, and answer preflights.

    The view, sync or async, never sees a preflight, unless no origin is allowed at all.
    """
    if iscoroutinefunction(view):

        @functools.wraps(view)
        async def awrapper(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
            answer = _preflight_answer(request) or await view(request, *args, **kwargs)
            return add_cors(request, answer)

        return cast("ViewT", awrapper)

    @functools.wraps(view)
    def wrapper(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        answer = _preflight_answer(request) or view(request, *args, **kwargs)
        return add_cors(request, answer)

    return cast("ViewT", wrapper)


def _preflight_answer(request: HttpRequest) -> HttpResponse | None:
    if not conf().ALLOWED_ORIGINS or not is_preflight(request):
        return None
    return HttpResponse(status=204, headers=_PREFLIGHT_HEADERS)
