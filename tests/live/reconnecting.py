"""Clients that come back, and what is published to them meanwhile."""

import asyncio
from asyncio.subprocess import Process
from collections.abc import Sequence
from contextlib import suppress

from tests.live.client import SECONDS, EndOfStreamError, connect
from tests.live.servers import finish


class EventSource:
    """A client that comes back with its last id whenever its stream ends, as a browser does.

    Args:
        ports: The servers that it is led to in turn, as by a load balancer.
        last_event_id: Where it begins.
    """

    def __init__(self, ports: Sequence[int], last_event_id: str) -> None:
        self.ports = ports
        self.last_event_id = last_event_id
        self.reconnection_time = 50
        self.received: list[int] = []
        self.streams = 0
        self.closed = False

    async def run(self) -> None:
        """Follow the group until it is cancelled."""
        attempts = 0
        while not self.closed:
            with suppress(ConnectionError, EndOfStreamError):
                await self._follow(self.ports[attempts % len(self.ports)])
            attempts += 1
            await asyncio.sleep(self.reconnection_time / 1000)

    async def _follow(self, port: int) -> None:
        async with connect(port, "/events/news/", last_event_id=self.last_event_id) as stream:
            self.streams += 1
            try:
                while (event := await stream.event()).event != "close":
                    self.received.append(int(event.text.split()[0]))
                    self.last_event_id = event.id or ""
                self.closed = True
            finally:
                self.reconnection_time = stream.reconnection_time or self.reconnection_time


class Burst:
    """Events that another process publishes without a pause until it is told to stop."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._lasts = True
        self.count = 0

    async def publish(self) -> None:
        assert self._process.stdin
        while self._lasts:
            # Long lines, so that few of them wait in the pipe.
            self._process.stdin.write(b"%d %s\n" % (self.count, b"x" * 500))
            self.count += 1
            await self._process.stdin.drain()
        await finish(self._process)

    def stop(self) -> None:
        self._lasts = False


async def everyone_receives_more(clients: Sequence[EventSource]) -> None:
    """Wait until each client has received another hundred events."""
    before = [len(client.received) for client in clients]
    async with asyncio.timeout(SECONDS):
        while any(
            len(client.received) < count + 100
            for client, count in zip(clients, before, strict=True)
        ):
            await asyncio.sleep(0.01)
