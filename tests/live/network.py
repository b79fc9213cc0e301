"""A network between clients and a server, which can be cut, fall silent, or lose the server."""

import asyncio
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from threading import Thread
from typing import Any, Self

from tests.ports import free_port

_CHUNK_BYTES = 64 * 1024
# What a proxy says whose server is away.
_BAD_GATEWAY = (
    b"HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/html\r\nContent-Length: 11\r\n"
    b"Connection: close\r\n\r\nbad gateway"
)
_TAIL_BYTES = 1024


class Network:
    """Passes connections on to a server's port, but while it is cut.

    ``tail`` are the last bytes that were passed on to any client.
    """

    def __init__(self, port: int) -> None:
        self.tail = b""
        self.port = free_port()
        self.refused: list[float] = []
        """The times, in seconds, of what was answered that the server is away."""
        self._server_is_there = True
        self._passes = asyncio.Event()
        self._passes.set()
        self._to = port
        self._loop = asyncio.new_event_loop()
        self._open: set[asyncio.StreamWriter] = set()
        self._to_server: set[asyncio.StreamWriter] = set()
        self._listener: asyncio.Server | None = None

    @classmethod
    @contextmanager
    def to(cls, port: int) -> Iterator[Self]:
        """Run one for the length of the block."""
        network = cls(port)
        thread = Thread(target=network._loop.run_forever)
        thread.start()
        try:
            network._call(network._listen())
            yield network
        finally:
            network._call(network._cut(hang_up=False))
            network._loop.call_soon_threadsafe(network._loop.stop)
            thread.join()
            network._loop.close()

    @contextmanager
    def cut(self, *, hang_up: bool = False) -> Iterator[None]:
        """For the length of the block reset what is open, and refuse what is tried.

        Args:
            hang_up: Nothing is reset: the server takes the clients for gone, and they still get
                all that it has sent before.
        """
        self._call(self._cut(hang_up))
        try:
            yield
        finally:
            self._call(self._listen())

    @contextmanager
    def without_server(self) -> Iterator[None]:
        """For the length of the block reset what is open, and answer 502 to what is asked."""
        self._server_is_there = False
        self._call(self._reset())
        try:
            yield
        finally:
            self._server_is_there = True

    @contextmanager
    def silent(self) -> Iterator[None]:
        """For the length of the block pass nothing on, and keep what is open."""
        self._loop.call_soon_threadsafe(self._passes.clear)
        try:
            yield
        finally:
            self._loop.call_soon_threadsafe(self._passes.set)

    def lead_to(self, port: int) -> None:
        """Pass the connections that come from now on to another server."""
        self._to = port

    def _call(self, coroutine: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _listen(self) -> None:
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", self.port)

    async def _cut(self, hang_up: bool) -> None:
        assert self._listener
        self._listener.close()
        if not hang_up:
            await self._reset()
        # Again and again: a connection to the server may just be made.
        while self._open:
            for writer in self._to_server:
                writer.write_eof()
            await asyncio.sleep(0.01)

    async def _reset(self) -> None:
        while self._open:
            for writer in self._open:
                writer.transport.abort()
            await asyncio.sleep(0.01)

    async def _accept(
        self, client_reader: asyncio.StreamReader, client_writer: asyncio.StreamWriter
    ) -> None:
        if not self._server_is_there:
            await self._refuse(client_reader, client_writer)
            return
        self._open.add(client_writer)
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._to)
        except ConnectionError:
            self._open.discard(client_writer)
            client_writer.close()
            return
        self._to_server.add(writer)
        await asyncio.gather(
            self._pass_on(client_reader, writer), self._pass_on(reader, client_writer)
        )
        self._to_server.discard(writer)

    async def _refuse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            self.refused.append(time.monotonic())
            writer.write(_BAD_GATEWAY)
        writer.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        with suppress(ConnectionError):
            while data := await reader.read(_CHUNK_BYTES):
                await self._passes.wait()
                writer.write(data)
                if writer not in self._to_server:
                    self.tail = (self.tail + data)[-_TAIL_BYTES:]
                await writer.drain()
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        self._open.discard(writer)
