"""What cannot be served now, said so that clients come back: after a 5xx an EventSource never does.

An EventSource gets 200, a ``retry`` of a time of its own, and the end; other clients get 503. The
status that the 200 stands for is in the header ``Refused-Status``.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Final

from django_sse.conf import conf
from django_sse.http.cors import ALLOW_CREDENTIALS, ALLOW_ORIGIN, cors_headers, varies_by_origin
from django_sse.logs import LogThrottle, logger
from django_sse.streaming.jitter import jittered_retry, jittered_seconds

STORE_AWAY: Final = "store away"
SERVER_ERROR: Final = "server error"
"""Reasons of a refusal. The others are the names of the limits in ``DJANGO_SSE``."""

REFUSED_STATUS: Final = "Refused-Status"
"""The header of a soft refusal that has the status which it stands for, for access logs."""

# What a response with another body has no use for.
_OF_THE_BODY: Final = frozenset(
    {
        *(b"content-type", b"content-length", b"content-encoding", b"content-language"),
        *(b"content-disposition", b"content-range", b"accept-ranges", b"etag", b"last-modified"),
        *(b"cache-control", b"expires", b"pragma", b"retry-after", b"transfer-encoding"),
    }
)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Refusals(LogThrottle):
    """Counts refusals by their reason, and logs some of them: there may be hundreds a second."""

    def note(self, reason: str, error: BaseException | None = None) -> None:
        """Count a refusal, and log it with its error unless one like it was logged just now."""
        if count := self.count(reason):
            logger.warning(
                "Clients are refused and sent back: %s (%d since this was last logged).",
                reason,
                count,
                exc_info=error,
            )


refusals: Final = Refusals()


def retry_after() -> int:
    """Return the seconds of a 503's ``Retry-After``: one to two times RETRY, as of a stream."""
    return math.ceil(jittered_seconds())


def is_refused_softly(method: str | None, accept: str) -> bool:
    """Say whether a request is an EventSource's, and such are spared a 503.

    Args:
        method: The request's method.
        accept: Its ``Accept`` header. An EventSource's names ``text/event-stream``: WHATWG HTML,
            9.2.2.
    """
    types = (part.partition(";")[0].strip().lower() for part in accept.split(","))
    return method == "GET" and "text/event-stream" in types and conf().REFUSE_SOFTLY


def with_soft_refusals(
    scope: MutableMapping[str, Any],
    receive: Receive,
    send: Send,
    is_for_stream: Callable[[], bool],
) -> tuple[Receive, Send]:
    """Return a ``receive`` and a ``send`` that make a soft refusal of a 5xx to an EventSource.

    They are the last thing that a response passes, so that it does not matter who answered: a
    middleware, before or behind the view, or Django itself. A body that goes on after the refusal
    is dropped, and who sends it is told that the client has gone.

    Args:
        scope: The request's scope.
        receive: Receives what the client sends.
        send: Sends to the client.
        is_for_stream: Says whether the request is for an event stream; asked at a 5xx alone.
    """
    headers = scope.get("headers", ())
    if not is_refused_softly(scope.get("method"), _header(headers, b"accept")):
        return receive, send
    origin = _header(headers, b"origin")
    refusing = False
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
        nonlocal refusing, refused
        if refusing:
            # What is dropped may have no end, and wait for nothing.
            await asyncio.sleep(0)
        elif (
            message["type"] == "http.response.start"
            and message["status"] >= 500
            and is_for_stream()
        ):
            refusing = True
            refusals.note(SERVER_ERROR)
            kept = _soft_headers(message, origin)
            await send({**message, "status": 200, "headers": kept})
            await send({"type": "http.response.body", "body": jittered_retry()})
            refused = True
            if receiving:
                receiving.reschedule(0)
        else:
            await send(message)

    return receive_until_refused, send_softly


def _soft_headers(start: Message, origin: str) -> list[tuple[bytes, bytes]]:
    added = cors_headers(origin)
    replaced = {name.lower().encode() for name in (ALLOW_ORIGIN, ALLOW_CREDENTIALS) if added}
    dropped = _OF_THE_BODY | replaced
    kept = [header for header in start.get("headers", ()) if header[0].lower() not in dropped]
    added |= {
        "Content-Type": "text/event-stream; charset=utf-8",
        "Cache-Control": "no-store",
        REFUSED_STATUS: str(start["status"]),
    }
    if varies_by_origin():
        # Beside another Vary it counts as one list: RFC 9110, 5.3.
        added["Vary"] = "Origin"
    return kept + [
        (name.lower().encode(), value.encode("latin-1")) for name, value in added.items()
    ]


def _header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> str:
    return ",".join(value.decode("latin-1") for key, value in headers if key.lower() == name)
