"""What cannot be served now, said so that clients come back: after a 5xx an EventSource never does.

An EventSource gets 200, a ``retry`` of a time of its own, and the end; other clients get 503.
"""

import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from threading import Lock
from typing import Any, Final

from django_sse.conf import conf
from django_sse.cors import ALLOW_CREDENTIALS, ALLOW_ORIGIN, cors_headers, varies_by_origin
from django_sse.stream import jittered_retry, jittered_seconds
from django_sse.tasks import logger

STORE_AWAY: Final = "store away"
SERVER_ERROR: Final = "server error"
"""Reasons of a refusal. The others are the names of the limits in ``DJANGO_SSE``."""

# A refusal of a reason is logged this often at the most; with thousands of clients there may be
# hundreds a second.
_LOG_SECONDS: Final = 10.0

# What a response with another body has no use for.
_OF_THE_BODY: Final = frozenset(
    {
        *(b"content-type", b"content-length", b"content-encoding", b"content-language"),
        *(b"content-disposition", b"content-range", b"accept-ranges", b"etag", b"last-modified"),
        *(b"cache-control", b"expires", b"pragma", b"retry-after", b"transfer-encoding"),
    }
)

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]


class Refusals:
    """Counts refusals by their reason, and logs some of them."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        """Refusals since the process began, by reason."""
        self._logged: dict[str, tuple[float, int]] = {}
        self._lock = Lock()

    def note(self, reason: str, error: BaseException | None = None) -> None:
        """Count a refusal, and log it with its error unless one like it was logged just now."""
        with self._lock:
            self.counts[reason] += 1
            count, now = self.counts[reason], time.monotonic()
            logged_at, logged = self._logged.get(reason, (-math.inf, 0))
            if now - logged_at < _LOG_SECONDS:
                return
            self._logged[reason] = now, count
        logger.warning(
            "Clients are refused and sent back: %s (%d since this was last logged).",
            reason,
            count - logged,
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


def softened(scope: MutableMapping[str, Any], send: Send) -> Send:
    """Return a ``send`` that makes a soft refusal of a 5xx to an EventSource.

    It is the last thing that a response passes, so that it does not matter who answered: a
    middleware, before or behind the view, or Django itself.
    """
    headers = scope.get("headers", ())
    if not is_refused_softly(scope.get("method"), _header(headers, b"accept")):
        return send
    origin = _header(headers, b"origin")
    refused = False

    async def send_softly(message: Message) -> None:
        nonlocal refused
        if message["type"] == "http.response.start" and message["status"] >= 500:
            refused = True
            refusals.note(SERVER_ERROR)
            kept = _soft_headers(message.get("headers", ()), origin)
            await send({**message, "status": 200, "headers": kept})
            await send({"type": "http.response.body", "body": jittered_retry()})
        elif not refused:
            await send(message)

    return send_softly


def _soft_headers(headers: Iterable[tuple[bytes, bytes]], origin: str) -> list[tuple[bytes, bytes]]:
    added = cors_headers(origin)
    replaced = {name.lower().encode() for name in (ALLOW_ORIGIN, ALLOW_CREDENTIALS) if added}
    kept = [(name, value) for name, value in headers if name.lower() not in _OF_THE_BODY | replaced]
    added |= {
        "Content-Type": "text/event-stream; charset=utf-8",
        "Cache-Control": "no-store",
    }
    if varies_by_origin():
        # Beside another Vary it counts as one list: RFC 9110, 5.3.
        added["Vary"] = "Origin"
    return kept + [
        (name.lower().encode(), value.encode("latin-1")) for name, value in added.items()
    ]


def _header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> str:
    return ",".join(value.decode("latin-1") for key, value in headers if key.lower() == name)
