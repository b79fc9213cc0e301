"""Refusals of what cannot be served now, such that clients come back.

An EventSource never reconnects after a 5xx. It therefore gets 200, a ``retry`` with a random time,
and the end. Other clients get 503. The header ``Refused-Status`` has the status that the 200 stands
for.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Final

from django.conf import settings

from django_sse.conf import conf
from django_sse.event import Event
from django_sse.http.cors import ALLOW_CREDENTIALS, ALLOW_ORIGIN, cors_headers, varies_by_origin
from django_sse.streaming.jitter import jittered_retry, jittered_seconds
from django_sse.streaming.tally import refusals

STORE_AWAY: Final = "store away"
SESSIONS_AWAY: Final = "sessions away"
SERVER_ERROR: Final = "server error"
THROTTLED: Final = "throttled"
"""Reasons for a refusal. The other reasons are the names of the limits in ``DJANGO_SSE``."""

REFUSED_STATUS: Final = "Refused-Status"
"""The header with the status that a soft refusal stands for, for access logs."""

# Headers that describe the body. They do not fit the body of a soft refusal.
_BODY_HEADERS: Final = frozenset(
    {
        *(b"content-type", b"content-length", b"content-encoding", b"content-language"),
        *(b"content-disposition", b"content-range", b"accept-ranges", b"etag", b"last-modified"),
        *(b"cache-control", b"expires", b"pragma", b"retry-after", b"transfer-encoding"),
    }
)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


def told(error: BaseException | str) -> str:
    """Return what an answer says of an error to who develops the project; "" without ``DEBUG``."""
    if not settings.DEBUG:
        return ""
    if isinstance(error, str):
        return error
    lines = [f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ())]
    return "\n".join(lines).encode(errors="replace").decode()


def retry_after() -> int:
    """Return the ``Retry-After`` of a 503, in seconds: one to two times RETRY, as in a stream."""
    return math.ceil(jittered_seconds())


def is_refused_softly(method: str | None, accept: str) -> bool:
    """Say whether a request comes from an EventSource, and the settings spare it a 503.

    Args:
        method: The request's method.
        accept: The request's ``Accept`` header. An EventSource sends ``text/event-stream`` in it:
            WHATWG HTML, 9.2.2.
    """
    types = (part.partition(";")[0].strip().lower() for part in accept.split(","))
    return method == "GET" and "text/event-stream" in types and conf().REFUSE_SOFTLY


def with_soft_refusals(
    scope: MutableMapping[str, Any],
    receive: Receive,
    send: Send,
    is_for_stream: Callable[[], bool],
) -> tuple[Receive, Send]:
    """Return a ``receive`` and a ``send`` that turn a 5xx for an EventSource into a soft refusal.

    A response passes them last, so it does not matter who answers: a middleware, before or after
    the view, or Django itself. After the refusal the rest of the body is dropped, and its sender is
    told that the client has gone. With
    ``DEBUG`` a comment carries what Django says of the error.

    Args:
        scope: The request's scope.
        receive: Receives what the client sends.
        send: Sends to the client.
        is_for_stream: Says whether the request is for an event stream. Called only for a 5xx.
    """
    headers = scope.get("headers", ())
    if not is_refused_softly(scope.get("method"), _header(headers, b"accept")):
        return receive, send
    origin = _header(headers, b"origin")
    start: Message | None = None
    refused = False
    receiving: asyncio.Timeout | None = None

    async def receive_until_refused() -> Message:
        nonlocal receiving
        try:
            async with asyncio.timeout(0 if refused else None) as receiving:
                return await receive()
        except TimeoutError:
            if not refused:
                raise
            return {"type": "http.disconnect"}
        finally:
            receiving = None

    async def send_softly(message: Message) -> None:
        nonlocal start
        if refused:
            # A dropped body may be endless and never wait, so let other tasks run.
            await asyncio.sleep(0)
        elif start:
            await refuse(start, _said_by_django(message.get("body", b"")))
        elif (
            message["type"] == "http.response.start"
            and message["status"] >= 500
            and is_for_stream()
        ):
            start = message
            refusals.note(SERVER_ERROR)
            content_type = _header(message.get("headers", ()), b"content-type")
            # Django's own, for clients that take no HTML.
            if not (settings.DEBUG and content_type.startswith("text/plain")):
                await refuse(message, b"")
        else:
            await send(message)

    async def refuse(start: Message, comment: bytes) -> None:
        nonlocal refused
        kept = _soft_headers(start, origin)
        await send({**start, "status": 200, "headers": kept})
        await send({"type": "http.response.body", "body": comment + jittered_retry()})
        refused = True
        if receiving:
            receiving.reschedule(0)

    return receive_until_refused, send_softly


def _said_by_django(body: bytes) -> bytes:
    """Return the first lines of Django's report of an error, as a comment."""
    said = body.decode("utf-8", "replace").partition("\n\n")[0]
    return Event(comment=said).encode() if said else b""


def _soft_headers(start: Message, origin: str) -> list[tuple[bytes, bytes]]:
    added = cors_headers(origin)
    replaced = {name.lower().encode() for name in (ALLOW_ORIGIN, ALLOW_CREDENTIALS) if added}
    dropped = _BODY_HEADERS | replaced
    kept = [header for header in start.get("headers", ()) if header[0].lower() not in dropped]
    added |= {
        "Content-Type": "text/event-stream; charset=utf-8",
        "Cache-Control": "no-store",
        REFUSED_STATUS: str(start["status"]),
    }
    if varies_by_origin():
        # A second Vary header extends the first one: RFC 9110, 5.3.
        added["Vary"] = "Origin"
    return kept + [
        (name.lower().encode(), value.encode("latin-1")) for name, value in added.items()
    ]


def _header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> str:
    return ",".join(value.decode("latin-1") for key, value in headers if key.lower() == name)
