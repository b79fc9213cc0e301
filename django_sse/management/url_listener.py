"""Follows the stream of a URL from a terminal, as an EventSource does."""

import socket
import time
from collections.abc import Mapping
from contextlib import closing
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Final
from urllib.parse import urlsplit

from django_sse.management.printer import Printer
from django_sse.management.stream_problems import NotStreamedError

# How long a server may take to answer.
_ANSWER_SECONDS: Final = 30.0
# Until a stream says it.
_RETRY_SECONDS: Final = 3.0
_CHUNK_BYTES: Final = 64 * 1024
# What a proxy or a server answers while it is away for a moment.
_COMES_BACK_AFTER: Final = frozenset({502, 503, 504})

_LOGIN: Final = (
    "log in, for example by --header 'Cookie: sessionid=...', as the browser's tools show it"
)
_MEANINGS: Final[Mapping[int, str]] = {
    204: "the group, or the user, is cancelled (sse_reopen), or the login has ended",
    400: "perhaps the host is not one of ALLOWED_HOSTS",
    401: _LOGIN,
    403: f"{_LOGIN}; or this user may not, or the page of the header Origin may not",
    404: "no such URL, or an argument of it makes no valid group name",
    500: "the view has failed: the log of the server says why",
    502: "the proxy does not reach the server",
    503: "the event store is away (has `migrate` run?), or a limit is reached: the log of the "
    "server says which",
    504: "the proxy does not reach the server in time",
}


def listen_to_url(url: str, printer: Printer, headers: Mapping[str, str]) -> None:
    """Print the events of a URL's stream until it is over.

    Args:
        url: The URL, which begins with ``http://`` or ``https://``.
        printer: Prints the events. It knows after which id to begin.
        headers: Headers to send.

    Raises:
        NotStreamedError: The server cannot be reached, or does not answer with a stream.
        BrokenPipeError: Who has read the output has had enough.
    """
    has_streamed = False
    while True:
        pause = 0.0
        try:
            with closing(_connect(url)) as connection:
                response = _ask(connection, url, printer.last_event_id, headers)
                if problem := _problem(response):
                    if has_streamed and response.status == 204:
                        printer.note(problem)
                        return
                    if not has_streamed or response.status not in _COMES_BACK_AFTER:
                        raise NotStreamedError(problem)
                    printer.note(problem)
                    pause = _retry_after(response)
                elif _is_over(response, url, printer):
                    return
                else:
                    has_streamed = True
        except BrokenPipeError:
            raise
        except (OSError, HTTPException) as error:
            if not has_streamed:
                raise NotStreamedError(f"{url} cannot be reached: {error!r}.") from error
            printer.note(f"The connection has failed: {error!r}.")
        milliseconds = printer.reconnection_time
        pause = pause or (_RETRY_SECONDS if milliseconds is None else milliseconds / 1000)
        printer.note(f"Coming back in {pause:g} seconds.")
        time.sleep(pause)


def _connect(url: str) -> HTTPConnection:
    parts = urlsplit(url)
    kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    assert parts.hostname
    return kind(parts.hostname, parts.port, timeout=_ANSWER_SECONDS)


def _ask(
    connection: HTTPConnection, url: str, last_event_id: str, headers: Mapping[str, str]
) -> HTTPResponse:
    parts = urlsplit(url)
    path = parts._replace(scheme="", netloc="", fragment="").geturl() or "/"
    sent: dict[str, str | bytes] = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
    if last_event_id:
        # In UTF-8: WHATWG HTML, 9.2.3.
        sent["Last-Event-ID"] = last_event_id.encode()
    connection.connect()
    stream_socket: socket.socket = connection.sock
    connection.request("GET", path, headers={**sent, **headers})
    response = connection.getresponse()
    # A stream may be silent for long.
    stream_socket.settimeout(None)
    return response


def _problem(response: HTTPResponse) -> str:
    """Return what is wrong with an answer; "" if it is a stream."""
    status = response.status
    if 300 <= status < 400:
        return (
            f"It answers {status}, and leads to {response.headers['Location']}. If that is a login "
            f"page, {_LOGIN}, and use the mixins in place of login_required."
        )
    if status != 200:
        said = _said_in(response)
        meaning = _MEANINGS.get(status, response.reason)
        return f"It answers {status}: {meaning}.{said}"
    kind = response.headers.get_content_type()
    if kind == "text/html":
        return (
            "It answers with an HTML page (text/html), such as a login page or an error page. Use "
            "the mixins in place of login_required, and open the URL in a tab to see the page."
        )
    return "" if kind == "text/event-stream" else f"It answers with {kind}, not text/event-stream."


def _said_in(response: HTTPResponse) -> str:
    """Return what a refusal says, which it does with ``DEBUG``."""
    if response.headers.get_content_type() != "text/plain":
        return ""
    said = response.read(_CHUNK_BYTES).decode(errors="replace").strip()
    return f" {said}" if said else ""


def _retry_after(response: HTTPResponse) -> float:
    text = response.headers.get("Retry-After", "")
    return float(text) if text.isascii() and text.isdigit() else 0.0


def _is_over(response: HTTPResponse, url: str, printer: Printer) -> bool:
    """Print the events of a stream until it ends, and return whether a client must not come
    back."""
    if refused := response.headers.get("Refused-Status"):
        meaning = _MEANINGS.get(int(refused) if refused.isdecimal() else 0, "refused")
        printer.note(f"Refused for now ({refused}): {meaning}.")
    else:
        printer.note(f"Listening to {url}.")
    printer.begin()
    while chunk := response.read1(_CHUNK_BYTES):
        if printer.feed(chunk):
            return True
    printer.note("The stream has ended.")
    return False
