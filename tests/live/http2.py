"""A client of event streams over HTTP/2 without TLS: many streams on one connection."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
)
from h2.events import (
    Event as H2Event,
)

from django_sse.event import Decoder, Event
from tests.live.client import SECONDS

_CHUNK_BYTES = 64 * 1024


class Response:
    """A response, as it comes."""

    def __init__(self, connection: "Connection", number: int) -> None:
        self.headers: dict[str, str] = {}
        self.events: list[Event] = []
        self.complete = False
        self._connection = connection
        self._number = number
        self._decoder = Decoder()

    @property
    def status(self) -> int:
        return int(self.headers[":status"])

    @property
    def last_event_id(self) -> str:
        """What an EventSource would send when it comes back."""
        return self._decoder.last_event_id

    async def opened(self) -> "Response":
        """Wait for the first bytes of a group's stream: the client has a position then."""
        await self._connection.until(lambda: self.last_event_id)
        return self

    async def event(self) -> Event:
        """Return the next event."""
        await self._connection.until(lambda: self.events)
        return self.events.pop(0)

    async def end(self) -> None:
        """Wait for the end of the response."""
        await self._connection.until(lambda: self.complete)

    def leave(self) -> None:
        """Reset the stream, as a browser does when its page is left; the connection stays."""
        self._connection.reset(self._number)

    def feed(self, data: bytes) -> None:
        self.events += self._decoder.feed(data)


class Connection:
    """A connection, with the streams that are open on it."""

    def __init__(
        self, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._authority = f"127.0.0.1:{port}"
        self._reader = reader
        self._writer = writer
        # It refuses fields of HTTP/1.1 that are forbidden here.
        self._h2 = H2Connection(H2Configuration(header_encoding="utf-8"))
        self._responses: dict[int, Response] = {}
        self._changed = asyncio.Condition()
        self._h2.initiate_connection()
        self._write()

    async def get(self, path: str, *, last_event_id: str = "") -> Response:
        """Send a request, and take the head of its response."""
        number = self._h2.get_next_available_stream_id()
        fields = [(":method", "GET"), (":scheme", "http"), (":path", path)]
        fields += [(":authority", self._authority), ("accept", "text/event-stream")]
        if last_event_id:
            fields.append(("last-event-id", last_event_id))
        response = self._responses[number] = Response(self, number)
        self._h2.send_headers(number, fields, end_stream=True)
        self._write()
        await self.until(lambda: response.headers)
        return response

    def reset(self, number: int) -> None:
        self._h2.reset_stream(number)
        self._write()

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until what is received has made something true."""
        async with asyncio.timeout(SECONDS), self._changed:
            await self._changed.wait_for(lambda: condition())

    async def run(self) -> None:
        """Receive until the connection ends."""
        while data := await self._reader.read(_CHUNK_BYTES):
            for event in self._h2.receive_data(data):
                self._take(event)
            self._write()
            async with self._changed:
                self._changed.notify_all()

    def _take(self, event: H2Event) -> None:
        match event:
            case ResponseReceived():
                headers = {str(name): str(value) for name, value in event.headers}
                self._responses[event.stream_id].headers = headers
            case DataReceived():
                self._responses[event.stream_id].feed(event.data)
                length = event.flow_controlled_length
                self._h2.acknowledge_received_data(length, event.stream_id)
            case StreamEnded():
                self._responses[event.stream_id].complete = True
            case ConnectionTerminated() | StreamReset():
                raise ConnectionResetError(event)

    def _write(self) -> None:
        self._writer.write(self._h2.data_to_send())


@asynccontextmanager
async def connect(port: int) -> AsyncIterator[Connection]:
    """Open a connection to a server that is known to speak HTTP/2."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    connection = Connection(port, reader, writer)
    async with asyncio.TaskGroup() as tasks:
        receiving = tasks.create_task(connection.run())
        try:
            yield connection
        finally:
            receiving.cancel()
            writer.close()
