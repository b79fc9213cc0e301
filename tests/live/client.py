"""A client of event streams on a plain socket, strict about HTTP and the event stream format."""

import asyncio
import ctypes
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from http.client import HTTPMessage, parse_headers
from io import BytesIO
from urllib.parse import urlencode

from django_sse.event import Decoder, Event

SECONDS = 30.0
"""How long anything may take that a test waits for."""

_NETWORK_SEGMENT_BYTES = 1400
_SO_ATTACH_FILTER = 26


class EndOfStreamError(Exception):
    """The response has ended before what was waited for."""


class Response:
    """A response, with its body as it comes.

    ``complete`` says that the body has ended as HTTP ends it, not with the connection.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.status = 0
        self.headers = HTTPMessage()
        self.complete = False
        self._reader = reader
        self._writer = writer
        self._chunked = False
        self._left = 0
        self._decoder = Decoder()
        self._events: deque[Event] = deque()

    @property
    def last_event_id(self) -> str:
        """What an EventSource would send when it comes back."""
        return self._decoder.last_event_id

    @property
    def reconnection_time(self) -> int | None:
        """The milliseconds that an EventSource would wait before it comes back."""
        return self._decoder.reconnection_time

    async def head(self, method: str) -> None:
        """Read the status and the headers."""
        status, _, fields = (await self._reader.readuntil(b"\r\n\r\n")).partition(b"\r\n")
        self.status = int(status.split()[1])
        self.headers = parse_headers(BytesIO(fields))
        self._chunked = self.headers.get("transfer-encoding") == "chunked"
        self._left = int(self.headers.get("content-length", 0))
        self.complete = not self._chunked and not self._left
        if method == "HEAD" or self.status == 204:
            self.complete = True

    async def read(self) -> bytes:
        """Return some bytes of the body; none at its end."""
        if self.complete:
            return b""
        # A server that is killed resets its connections.
        with suppress(ConnectionError):
            if not self._left:
                await self._next_chunk()
            data = await self._reader.read(min(self._left, 64 * 1024))
            self._left -= len(data)
            self.complete = self.complete or not (self._chunked or self._left)
            return data
        return b""

    async def body(self) -> bytes:
        """Return all of the body."""
        parts = []
        async with asyncio.timeout(SECONDS):
            while data := await self.read():
                parts.append(data)
        return b"".join(parts)

    async def opened(self) -> "Response":
        """Wait for the first bytes of a group's stream: the client has a position then."""
        async with asyncio.timeout(SECONDS):
            while not self.last_event_id:
                await self._decode()
        return self

    async def event(self) -> Event:
        """Return the next event."""
        async with asyncio.timeout(SECONDS):
            while not self._events:
                await self._decode()
        return self._events.popleft()

    async def events(self, count: int) -> list[Event]:
        """Return the next events."""
        return [await self.event() for _ in range(count)]

    async def rest(self) -> list[Event]:
        """Return the events up to the end of the response."""
        events = []
        with suppress(EndOfStreamError):
            while True:
                events.append(await self.event())
        return events

    async def trickle(self, count: int) -> None:
        """Read so many bytes twenty times a second, until there are no more."""
        with suppress(ConnectionError):
            while await self._reader.read(count):
                await asyncio.sleep(0.05)

    def reset(self) -> None:
        """Drop the connection with a RST instead of a goodbye."""
        connection: socket.socket = self._writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    def vanish(self) -> None:
        """Answer nothing from here on, not even the kernel's acknowledgements (Linux)."""
        connection: socket.socket = self._writer.get_extra_info("socket")
        # A filter of one instruction, to take nothing of any packet: socket(7), linux/filter.h.
        instruction = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))
        program = struct.pack("HP", 1, ctypes.addressof(instruction))
        connection.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)

    def close(self) -> None:
        """Close the connection in the middle of the response."""
        self._writer.close()

    async def _decode(self) -> None:
        data = await self.read()
        if not data:
            raise EndOfStreamError
        self._events.extend(self._decoder.feed(data))

    async def _next_chunk(self) -> None:
        line = await self._reader.readline()
        if line == b"\r\n":
            # The end of the chunk before.
            line = await self._reader.readline()
        # Without its own end it is where the connection was cut.
        if line.endswith(b"\n"):
            self._left = int(line, 16)
            self.complete = not self._left


@asynccontextmanager
async def connect(
    port: int,
    path: str,
    *,
    method: str = "GET",
    last_event_id: str | bytes = "",
    headers: Mapping[str, str] | None = None,
    receive_bytes: int | None = None,
) -> AsyncIterator[Response]:
    """Send a request and take the head of its response.

    Args:
        receive_bytes: What is received, and no more, while nobody reads; None for the usual.

    Raises:
        EndOfStreamError: The server has dropped the connection without an answer.
    """
    reader, writer = await _open_connection(port, receive_bytes)
    try:
        if isinstance(last_event_id, str):
            last_event_id = last_event_id.encode()
        lines = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{port}"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        head = "\r\n".join(lines).encode("latin-1")
        if last_event_id:
            head += b"\r\nLast-Event-ID: " + last_event_id
        response = Response(reader, writer)
        try:
            writer.write(head + b"\r\n\r\n")
            async with asyncio.timeout(SECONDS):
                await response.head(method)
        except (ConnectionError, asyncio.IncompleteReadError) as error:
            raise EndOfStreamError from error
        yield response
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def _open_connection(
    port: int, receive_bytes: int | None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if receive_bytes is None:
        return await asyncio.open_connection("127.0.0.1", port)
    connection = socket.socket()
    # Before it connects: the window is agreed on then. With segments as on a network the server's
    # kernel keeps kilobytes for a client that does not read, and not the megabytes of loopback.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, _NETWORK_SEGMENT_BYTES)
    connection.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port))
    except BaseException:
        connection.close()
        raise
    return await asyncio.open_connection(sock=connection, limit=receive_bytes)


async def log_in(port: int) -> str:
    """Log in; return the cookies that say so."""
    async with connect(port, "/login/") as response:
        return "; ".join(
            cookie.partition(";")[0] for cookie in response.headers.get_all("set-cookie", [])
        )


async def act(port: int, path: str, **query: str) -> None:
    """Let a view do something."""
    async with connect(port, f"{path}?{urlencode(query)}") as response:
        assert response.status < 400, (path, response.status)


async def open_streams(port: int) -> int:
    """Return how many streams the server's hub has open."""
    async with connect(port, "/open-streams/") as response:
        return int(await response.body())


async def until_open(port: int, count: int) -> None:
    """Wait until the server's hub has this number of streams open."""
    async with asyncio.timeout(SECONDS):
        while await open_streams(port) != count:
            await asyncio.sleep(0.05)
