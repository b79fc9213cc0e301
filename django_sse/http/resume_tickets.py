"""Resume tickets: cookies with which clients come back to their streams without Django's request.

After a deploy all clients come back at once, and a request through the whole of Django costs many
times what the stream itself costs. A view that allows it gives its clients a ticket. The ASGI
wrapper checks the ticket, the login and the ends in the event store, and resumes the stream. In any
doubt, Django answers.

The signature covers what the request must have in common with the one that was let in (see
``_signed_facts``). The contents are masked as well, since clients must not learn the names of
groups.
"""

import json
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256, shake_256
from http.cookies import SimpleCookie
from io import BytesIO
from os import urandom
from typing import Any, Final, NamedTuple

from django.conf import settings
from django.contrib.auth import SESSION_KEY
from django.core.exceptions import DisallowedHost
from django.core.handlers.asgi import ASGIRequest
from django.core.signing import BadSignature, Signer
from django.http import HttpRequest
from django.urls import Resolver404, resolve
from django.utils.cache import patch_vary_headers
from django.utils.encoding import escape_uri_path

from django_sse.access.owners import NOBODY, Owner, owner_in
from django_sse.access.session_claims import (
    NO_SESSION,
    SessionClaim,
    claimable_digest,
    session_store,
)
from django_sse.conf import conf
from django_sse.groups.keys import accepted_keys
from django_sse.http.cors import add_cors, cross_origin_answer, gets_no_cookies
from django_sse.http.response import HandedOffResponse, last_event_id
from django_sse.http.stream_views import hand_off_of
from django_sse.logs import log_once, log_seldom
from django_sse.streaming.hub import current_hub

Scope = Mapping[str, Any]

_SIGNING_PURPOSE: Final = "resume ticket"
_MASKING_PURPOSE: Final = "contents of a resume ticket"
_COOKIE_PREFIX: Final = "sse_resume_"
_NONCE_BYTES: Final = 16
# A request also has the cookies of the paths above its own, and proxies take 8 KB of cookies.
_MAX_LENGTH: Final = 2000
# The parts of the query that change from one request of a client to the next.
_POSITIONS: Final = ("lastEventId", "last_event_id")
_RESUMABLE: Final = "_django_sse_resumable"


class Ticket(NamedTuple):
    """The contents of a ticket.

    ``issued`` is the time at which Django let the client in, and ``expires`` when that is no longer
    enough, both in seconds since the epoch. ``view`` identifies the view. ``groups`` are plain
    names. ``urlconf`` is the URLconf that a middleware has set, or None. ``digest`` is that of the
    session.
    """

    issued: int
    expires: float
    view: str
    groups: Sequence[str]
    namespace: str
    urlconf: str | None
    digest: str


Resume = Callable[[HttpRequest, Sequence[Any], Mapping[str, Any], Ticket, Owner], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Resumable:
    """A view whose streams can be resumed without Django.

    Args:
        view: The function that ``as_view`` has returned.
        identity: Identifies the class and its groups. Another class behind the same URL, or one
            with other bases, does not accept the tickets of this one.
        seconds: How long a ticket is valid.
        resume: Returns the stream, given the request, the URL's arguments, the ticket and the
            owner; or None.
    """

    view: Callable[..., Any]
    identity: str
    seconds: float
    resume: Resume

    @property
    def lifetime(self) -> float:
        """How many seconds a ticket is valid.

        A store forgets that a user was cancelled after ``CANCEL_TTL``. A ticket from before the
        cancel must have expired by then.
        """
        return min(self.seconds, conf().CANCEL_TTL)


def mark_as_resumable(
    view: Callable[..., Any], cls: type, groups: Sequence[str], seconds: float, resume: Resume
) -> None:
    """Let the streams of a view be resumed, if a URL leads to this very function."""
    classes = [f"{base.__module__}.{base.__qualname__}" for base in cls.__mro__]
    identity = sha256(json.dumps([classes, list(groups)]).encode()).hexdigest()[:16]
    setattr(view, _RESUMABLE, Resumable(view, identity, seconds, resume))


def _resumable(view: Callable[..., Any]) -> Resumable | None:
    """Return what makes a view resumable; None if a wrapper may have something to say as well."""
    found: Resumable | None = getattr(view, _RESUMABLE, None)
    # `functools.wraps` copies the attribute to a wrapper.
    return found if found and found.view is view else None


# Issuing


async def issue(request: HttpRequest, groups: Sequence[str], owner: Owner) -> None:
    """Give a client that was let in a ticket, if a later request could be judged without Django.

    The ASGI wrapper sets the cookie once it sees that the response is the stream.

    Args:
        request: The request for the stream.
        groups: The plain names of the stream's groups.
        owner: The owner of the stream.
    """
    try:
        await _issue(request, groups, owner)
    except DisallowedHost:
        return
    except Exception as error:
        # Its stream does not need a ticket.
        log_seldom("A client gets no resume ticket.", exc_info=error)


async def _issue(request: HttpRequest, groups: Sequence[str], owner: Owner) -> None:
    hand_off = hand_off_of(request)
    match = request.resolver_match
    if hand_off is None or match is None or request.method != "GET" or gets_no_cookies(request):
        return
    resumable = _resumable(match.func)
    if resumable is None:
        log_once(
            f"Streams of {match.route} are not resumed without Django: its URL does not lead to "
            "the view itself, but to a decorator or a view that calls it."
        )
        return
    urlconf = getattr(request, "urlconf", None)
    digest = await claimable_digest(request, owner)
    if digest is None or not isinstance(urlconf, str | None):
        return
    now = int(time.time())
    expires = now + resumable.lifetime
    ticket = Ticket(now, expires, resumable.identity, groups, owner.namespace, urlconf, digest)
    value = _sealed(ticket, request)
    if len(value) <= _MAX_LENGTH:
        hand_off.cookie = _cookie(request, value, int(resumable.lifetime))


def _sealed(ticket: Ticket, request: HttpRequest) -> str:
    key, masking_key = accepted_keys(_SIGNING_PURPOSE)[0], accepted_keys(_MASKING_PURPOSE)[0]
    nonce = urandom(_NONCE_BYTES)
    masked = nonce + _masked(json.dumps(ticket).encode(), masking_key, nonce)
    return Signer(key=key, salt=_salt(request)).sign(urlsafe_b64encode(masked).decode())


def _opened(value: str, request: HttpRequest) -> Ticket | None:
    """Return the contents of a ticket, or None if it was not issued for such a request."""
    salt = _salt(request)
    keys = zip(accepted_keys(_SIGNING_PURPOSE), accepted_keys(_MASKING_PURPOSE), strict=True)
    for key, masking_key in keys:
        try:
            signed = Signer(key=key, salt=salt, fallback_keys=[]).unsign(value)
        except BadSignature:
            continue
        masked = urlsafe_b64decode(signed)
        nonce, contents = masked[:_NONCE_BYTES], masked[_NONCE_BYTES:]
        return Ticket(*json.loads(_masked(contents, masking_key, nonce)))
    return None


def _masked(contents: bytes, key: bytes, nonce: bytes) -> bytes:
    """Return contents masked by a stream that nobody knows without the key, or unmasked by it."""
    # A keyed sponge (NIST SP 800-185, 4): with a nonce that is never used again, its output is as
    # good as random.
    mask = shake_256(key + nonce).digest(len(contents))
    return (int.from_bytes(contents) ^ int.from_bytes(mask)).to_bytes(len(contents))


def _salt(request: HttpRequest) -> str:
    # Whatever they contain, no two lists give the same text.
    facts = ascii(_signed_facts(request)).encode()
    return f"django_sse {_SIGNING_PURPOSE} {sha256(facts).hexdigest()}"


def _signed_facts(request: HttpRequest) -> list[Any]:
    """Return what must be the same in the request that was let in and in the one that resumes."""
    cookies = request.COOKIES.items()
    query = request.META["QUERY_STRING"].split("&")
    return [
        request.scheme or "",
        request.get_host(),
        request.path,
        request.path_info,
        "&".join(part for part in query if part.partition("=")[0] not in _POSITIONS),
        request.META.get("HTTP_ORIGIN"),
        # Without the session, a ticket is worth nothing. Other cookies may say who it is, too.
        sorted(cookie for cookie in cookies if not cookie[0].startswith(_COOKIE_PREFIX)),
        # A middleware that was added is to be asked.
        list(settings.MIDDLEWARE),
    ]


def _cookie_name(request: HttpRequest) -> str:
    # A path such as /a/ also gets the cookies of /a/b/. But the queries of a path share one cookie:
    # a page with many of them would send headers that are too large.
    digest = sha256(request.path.encode(errors="surrogatepass")).hexdigest()
    return f"{_COOKIE_PREFIX}{digest[:12]}"


def _cookie(request: HttpRequest, value: str, seconds: int) -> bytes:
    cookies: SimpleCookie = SimpleCookie()
    cookies[name := _cookie_name(request)] = value
    morsel = cookies[name]
    morsel["path"] = escape_uri_path(request.path)
    morsel["max-age"] = seconds
    morsel["httponly"] = True
    morsel["secure"] = settings.SESSION_COOKIE_SECURE or request.is_secure()
    if settings.SESSION_COOKIE_SAMESITE:
        morsel["samesite"] = settings.SESSION_COOKIE_SAMESITE
    return morsel.OutputString().encode("latin-1")


# Resuming


async def resumed(scope: Scope) -> HandedOffResponse | None:
    """Return the stream that a request's ticket resumes, or None if Django has to answer.

    Args:
        scope: The request's scope, with the hand-off.
    """
    if not _may_have_ticket(scope):
        return None
    try:
        return await _resumed(ASGIRequest(scope, BytesIO()))
    except (DisallowedHost, Resolver404):
        return None
    except Exception as error:
        log_seldom("A stream could not be resumed, so Django answers.", exc_info=error)
        return None


def _may_have_ticket(scope: Scope) -> bool:
    """Say whether a request may have a ticket, as cheaply as possible."""
    prefix = _COOKIE_PREFIX.encode()
    return scope.get("method") == "GET" and any(
        name == b"cookie" and prefix in value for name, value in scope.get("headers", ())
    )


async def _resumed(request: ASGIRequest) -> HandedOffResponse | None:
    value = request.COOKIES.get(_cookie_name(request), "")
    has_credentials = "HTTP_AUTHORIZATION" in request.META
    # A client without a position does not come back, but is a new page, or a new client.
    if not value or has_credentials or not last_event_id(request) or _has_body(request):
        return None
    ticket = _opened(value, request)
    if ticket is None or cross_origin_answer(request):
        return None
    match = resolve(request.path_info, ticket.urlconf or settings.ROOT_URLCONF)
    resumable = _resumable(match.func)
    if resumable is None or resumable.identity != ticket.view:
        return None
    # The settings may have changed since: the shorter time counts.
    now = time.time()
    if not 0 <= now - ticket.issued <= resumable.lifetime or now > ticket.expires:
        return None
    owner = await _owner(request, ticket)
    if owner is None:
        return None
    response: HandedOffResponse | None = await resumable.resume(
        request, match.args, match.kwargs, ticket, owner
    )
    if response is not None:
        response.is_sent_past_django = True
        add_cors(request, response)
        patch_vary_headers(response, ["Cookie"])
    return response


def _has_body(request: HttpRequest) -> bool:
    length = request.META.get("CONTENT_LENGTH", "0")
    return length != "0" or "HTTP_TRANSFER_ENCODING" in request.META


async def _owner(request: HttpRequest, ticket: Ticket) -> Owner | None:
    """Return the owner of the stream, or None if the session or its login is not what it was."""
    if ticket.digest == NO_SESSION:
        return NOBODY.within(ticket.namespace)
    key = request.COOKIES[settings.SESSION_COOKIE_NAME]
    claim = SessionClaim(key, ticket.digest, ticket.namespace)
    data = await current_hub().kept_session(claim)
    if data is None:
        return None
    owner = owner_in(session_store()(key), data, data.get(SESSION_KEY), ticket.groups)
    return owner.within(ticket.namespace)
