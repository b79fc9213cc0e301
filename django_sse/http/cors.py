"""Cross-origin requests: which pages of other origins may request a stream, and read it.

The protocol is https://fetch.spec.whatwg.org/#http-cors-protocol. Browsers say where a request
comes from in ``Sec-Fetch-Site``: https://www.w3.org/TR/fetch-metadata/.
"""

from collections.abc import Mapping
from typing import Any, Final

from django.core.exceptions import DisallowedHost
from django.http import HttpRequest, HttpResponse, HttpResponseForbidden
from django.http.response import HttpResponseBase
from django.utils.cache import patch_vary_headers

from django_sse.conf import conf
from django_sse.http.stream_views import ViewT, mark_as_stream, note_reached
from django_sse.http.wrappers import wrapped

ALLOW_ORIGIN: Final = "Access-Control-Allow-Origin"
ALLOW_CREDENTIALS: Final = "Access-Control-Allow-Credentials"

# EventSource itself needs no preflight. But polyfills set these headers themselves, and clients
# that use fetch may send a token, JSON to a generator view, or a DELETE to a stream.
_PREFLIGHT_HEADERS: Final = {
    "Access-Control-Allow-Methods": "GET, HEAD, POST, DELETE",
    "Access-Control-Allow-Headers": "Authorization, Cache-Control, Content-Type, Last-Event-ID",
    # Seconds until a browser must ask again. Chromium remembers the answer no longer than this.
    "Access-Control-Max-Age": "7200",
}
_DEFAULT_PORTS: Final = {"http": ":80", "https": ":443"}


def cors_headers(origin: str | None) -> dict[str, str]:
    """Return the headers that allow a page to read the response, given its ``Origin`` header."""
    if "*" in conf().ALLOWED_ORIGINS:
        return {ALLOW_ORIGIN: "*"}
    if not origin or not _is_allowed(origin):
        return {}
    headers = {ALLOW_ORIGIN: origin}
    if conf().ALLOW_CREDENTIALS:
        headers[ALLOW_CREDENTIALS] = "true"
    return headers


def varies_by_origin() -> bool:
    """Say whether the response depends on ``Origin``, even for requests without that header."""
    return bool(conf().ALLOWED_ORIGINS) and "*" not in conf().ALLOWED_ORIGINS


def add_cors(request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
    """Add to a response the CORS headers that ``DJANGO_SSE`` asks for."""
    headers = cors_headers(_origin(request))
    for name, value in headers.items():
        response[name] = value
    if headers and response.has_header("Content-Location"):
        # An EventStream needs it to go on after a POST. Pages see few headers by default.
        response.setdefault("Access-Control-Expose-Headers", "Content-Location")
    if varies_by_origin():
        patch_vary_headers(response, ["Origin"])
    return response


def is_preflight(request: HttpRequest) -> bool:
    """Say whether a browser asks for permission to send a request. It does so without cookies."""
    return request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers


def preflight_answer(request: HttpRequest) -> HttpResponseBase:
    """Return the 204 that tells a browser what the page may send, if it may send anything."""
    response = HttpResponse(status=204)
    if cors_headers(_origin(request)):
        for name, value in _PREFLIGHT_HEADERS.items():
            response[name] = value
    return add_cors(request, response)


def cross_origin(view: ViewT) -> ViewT:
    """Let those pages of other origins request a stream of a view that ``DJANGO_SSE`` allows.

    The view may be sync or async. Its responses get the CORS headers. It never sees a preflight,
    unless no origin is allowed at all, and never a request of a page that is not allowed. The
    returned view is marked as an event stream.
    """

    def before(request: HttpRequest, kwargs: Mapping[str, Any]) -> HttpResponseBase | None:
        note_reached(request)
        return cross_origin_answer(request)

    return mark_as_stream(wrapped(view, before=before, after=add_cors))


def cross_origin_answer(request: HttpRequest) -> HttpResponseBase | None:
    """Return the answer to a preflight or to a page that is not allowed, or None for the view to
    answer."""
    if is_preflight(request):
        return preflight_answer(request) if conf().ALLOWED_ORIGINS else None
    if not is_foreign(request) or _is_allowed(_origin(request) or ""):
        return None
    # With a user's cookies, its stream would count against the user's limit, even if nobody reads
    # it.
    response = HttpResponseForbidden(headers={"Cache-Control": "no-store"})
    patch_vary_headers(response, ["Origin", "Sec-Fetch-Site"])
    return response


def gets_no_cookies(request: HttpRequest) -> bool:
    """Say whether the response to a page of another origin cannot set cookies."""
    allowed = cors_headers(_origin(request))
    return is_foreign(request) and ALLOW_CREDENTIALS not in allowed


def _is_allowed(origin: str) -> bool:
    allowed = conf().ALLOWED_ORIGINS
    # A request without Origin, for example for an image, asks for no permission to read.
    return bool(origin) and (
        "*" in allowed or origin.lower() in (known.lower() for known in allowed)
    )


def _origin(request: HttpRequest) -> str | None:
    # `request.headers` would first make a mapping of all headers.
    origin: str | None = request.META.get("HTTP_ORIGIN")
    return origin


def is_foreign(request: HttpRequest) -> bool:
    """Say whether a page of another origin has sent a request.

    Other clients may send neither header, or any value, but they have no user's cookies.
    """
    # Browsers send it only to https and localhost. "none" means that the user entered the URL.
    if (site := request.META.get("HTTP_SEC_FETCH_SITE")) is not None:
        return site not in ("same-origin", "none")
    if (origin := _origin(request)) is None:
        return False
    # If a proxy terminates TLS, the request does not show the scheme of its page.
    scheme, _, host = origin.lower().partition("://")
    try:
        own = request.get_host().lower()
    except DisallowedHost:
        # The host name does not belong to this project.
        return True
    port = _DEFAULT_PORTS.get(scheme)
    own_hosts = {own, *(own.removesuffix(default) for default in _DEFAULT_PORTS.values())}
    return port is None or host.removesuffix(port) not in own_hosts
