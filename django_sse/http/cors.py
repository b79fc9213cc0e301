"""Cross-origin requests: which pages of other origins may ask for a stream, and read it.

The protocol is that of https://fetch.spec.whatwg.org/#http-cors-protocol. Where a request comes
from, browsers say in ``Sec-Fetch-Site``: https://www.w3.org/TR/fetch-metadata/.
"""

import functools
from typing import Any, Final, cast

from asgiref.sync import iscoroutinefunction
from django.core.exceptions import DisallowedHost
from django.http import HttpRequest, HttpResponse, HttpResponseForbidden
from django.http.response import HttpResponseBase
from django.utils.cache import patch_vary_headers

from django_sse.conf import conf
from django_sse.http.stream_views import ViewT, mark_as_stream, note_reached

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
_DEFAULT_PORTS: Final = {"http": ":80", "https": ":443"}


def cors_headers(origin: str | None) -> dict[str, str]:
    """Return what allows a page to read the response, given its ``Origin`` header."""
    if "*" in conf().ALLOWED_ORIGINS:
        return {ALLOW_ORIGIN: "*"}
    if not origin or not _is_allowed(origin):
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
    headers = cors_headers(request.headers.get("Origin"))
    for name, value in headers.items():
        response[name] = value
    if headers and response.has_header("Content-Location"):
        # Where an EventStream goes on after a POST; a page sees few headers else.
        response.setdefault("Access-Control-Expose-Headers", "Content-Location")
    if varies_by_origin():
        patch_vary_headers(response, ["Origin"])
    return response


def is_preflight(request: HttpRequest) -> bool:
    """Say whether a browser asks whether it may send a request; it does so without cookies."""
    return request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers


def preflight_answer(request: HttpRequest) -> HttpResponseBase:
    """Return the 204 that tells a browser what it may send, if its page may send anything."""
    response = HttpResponse(status=204)
    if cors_headers(request.headers.get("Origin")):
        for name, value in _PREFLIGHT_HEADERS.items():
            response[name] = value
    return add_cors(request, response)


def cross_origin(view: ViewT) -> ViewT:
    """Let pages of other origins ask a view for a stream as ``DJANGO_SSE`` says, and no others.

    What the view, sync or async, answers is given the headers for that. It never sees a preflight,
    unless no origin is allowed at all, and never what a page sends that is not allowed. It is
    marked as an event stream.
    """
    if iscoroutinefunction(view):

        @functools.wraps(view)
        async def awrapper(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
            note_reached(request)
            return _answer_to_others(request) or add_cors(
                request, await view(request, *args, **kwargs)
            )

        return cast("ViewT", mark_as_stream(awrapper))

    @functools.wraps(view)
    def wrapper(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        note_reached(request)
        return _answer_to_others(request) or add_cors(request, view(request, *args, **kwargs))

    return cast("ViewT", mark_as_stream(wrapper))


def _answer_to_others(request: HttpRequest) -> HttpResponseBase | None:
    """Return the answer to a preflight, or to a page that is not allowed; None to all others."""
    if is_preflight(request):
        return preflight_answer(request) if conf().ALLOWED_ORIGINS else None
    if not _is_foreign(request) or _is_allowed(request.headers.get("Origin", "")):
        return None
    # With a user's cookies, it would take up what she may open, also where nobody reads it.
    response = HttpResponseForbidden(headers={"Cache-Control": "no-store"})
    patch_vary_headers(response, ["Origin", "Sec-Fetch-Site"])
    return response


def _is_allowed(origin: str) -> bool:
    allowed = conf().ALLOWED_ORIGINS
    # Who sends no Origin, as for an image, wants no permission to read, and gets none.
    return bool(origin) and (
        "*" in allowed or origin.lower() in (known.lower() for known in allowed)
    )


def _is_foreign(request: HttpRequest) -> bool:
    """Say whether a request was sent by a page of another origin.

    What is not sent by browsers has neither header, or whatever it likes: it has no user's cookies.
    """
    # Browsers send it to https and localhost alone. A user who enters a URL is "none".
    if (site := request.headers.get("Sec-Fetch-Site")) is not None:
        return site not in ("same-origin", "none")
    if (origin := request.headers.get("Origin")) is None:
        return False
    # Where a proxy ends TLS, a request does not know the scheme that its page has.
    scheme, _, host = origin.lower().partition("://")
    try:
        own = request.get_host().lower()
    except DisallowedHost:
        # Whoever answers to that name, it is not this project.
        return True
    port = _DEFAULT_PORTS.get(scheme)
    owns = {own, *(own.removesuffix(default) for default in _DEFAULT_PORTS.values())}
    return port is None or host.removesuffix(port) not in owns
