"""The doorbell from process to process on one host, without any service: Unix datagrams.

Each hub has a socket in a directory that all processes find which share the store: beside the
SQLite file, or else one of the user's own. A datagram names groups and where they stand, never
what was published, so that whoever may write to a socket can wake a hub and do nothing else.
"""

import socket
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Final

from django_sse.doorbells.base import POLL_SECONDS_WITHOUT_DOORBELL, Doorbell, Listener, Receiver
from django_sse.doorbells.socket_directory import SocketDirectory, socket_directory
from django_sse.groups.entries import Hint
from django_sse.logs import log_once, log_seldom
from django_sse.stores.base import EventStore

# A datagram finds no room in a full queue, and processes of other hosts may share the store.
_POLL_SECONDS: Final = 1.0
# Hints in one datagram; some systems take no more than 2,048 bytes.
_HINTS: Final = 10
_MAX_DATAGRAM_BYTES: Final = 2048
_DATAGRAMS_A_TURN: Final = 64


class DatagramDoorbell(Doorbell):
    """Rings the hubs of other processes on this host."""

    def __init__(self, store: EventStore) -> None:
        self._store = store

    def ring(self, hints: Sequence[Hint]) -> None:
        super().ring(hints)
        try:
            socket_directory(self._store).send(list(_datagrams(hints)))
        except Exception as error:
            # It stays so, and others publish, too.
            log_once(f"Other processes cannot be rung; hubs will find out by themselves: {error}")

    def receiver(self, hub: Listener) -> Receiver:
        return _DatagramReceiver(self._store, hub)


class _DatagramReceiver(Receiver):
    poll_seconds = POLL_SECONDS_WITHOUT_DOORBELL

    def __init__(self, store: EventStore, hub: Listener) -> None:
        self._store = store
        self._hub = hub
        self._name = ""
        self._place: SocketDirectory | None = None
        self._socket: socket.socket | None = None

    async def open(self) -> None:
        try:
            self._place = socket_directory(self._store)
            self._name, self._socket = self._place.bind()
            self._hub.loop.add_reader(self._socket, self._read)
        except (OSError, AttributeError, NotImplementedError) as error:
            # Also where there are no such sockets, or the loop cannot wait for them.
            log_once(
                "There can be no socket for other processes to ring, so the store is asked for "
                f"what is new every {POLL_SECONDS_WITHOUT_DOORBELL} s: {error}"
            )
            await self.close()
        else:
            self.poll_seconds = _POLL_SECONDS

    async def renew(self) -> None:
        if not self._socket or not self._place or not self._place.has(self._name):
            # There could be none so far, or something has cleaned up behind its back.
            await self.close()
            await self.open()

    async def close(self) -> None:
        if self._socket and self._place:
            with suppress(NotImplementedError):
                self._hub.loop.remove_reader(self._socket)
            self._socket.close()
            self._socket = None
            self._place.release(self._name)
        self.poll_seconds = POLL_SECONDS_WITHOUT_DOORBELL

    def _read(self) -> None:
        assert self._socket
        datagrams = 0
        with suppress(BlockingIOError):
            # No more in a turn of the loop, however many come.
            while datagrams < _DATAGRAMS_A_TURN:
                datagram = self._socket.recv(_MAX_DATAGRAM_BYTES)
                datagrams += 1
                self._take(datagram)
        if datagrams > 1:
            # The queue is short: what came next may have found it full.
            self._hub.compare_soon()

    def _take(self, datagram: bytes) -> None:
        try:
            self._hub.hear_soon([Hint.decode(line) for line in datagram.decode().splitlines()])
        except ValueError:
            log_seldom("A datagram that is no doorbell was ignored.")
        except Exception as error:
            log_seldom("A hub could not hear a datagram.", exc_info=error)


def _datagrams(hints: Sequence[Hint]) -> Iterator[bytes]:
    for begin in range(0, len(hints), _HINTS):
        lines = [hint.encode() for hint in hints[begin : begin + _HINTS]]
        yield "\n".join(lines).encode()
