"""The doorbell between processes on one host: Unix datagrams, without any service.

Each hub has a socket in a directory that all processes with the same store can find. It is beside
the SQLite file, or else belongs to the user. A datagram contains the names of groups and where they
stand, but no events. So whoever may write to a socket can only wake a hub.
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

# Hubs still ask the store this often: a full queue drops datagrams, and processes on other hosts
# may share the store.
_POLL_SECONDS: Final = 1.0
# Hints in one datagram. Some systems accept at most 2,048 bytes.
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
            socket_directory(self._store).send(_datagrams(hints))
        except Exception as error:
            # Logged once: this lasts, and each call of `publish` runs into it.
            log_once(f"Other processes cannot be rung; their hubs will ask the store: {error}")

    def receiver(self, hub: Listener) -> Receiver:
        return _DatagramReceiver(self._store, hub)

    def test_receiver(self, hub: Listener) -> Receiver:
        return _DatagramReceiver(self._store, hub, hears_own=True)


class _DatagramReceiver(Receiver):
    poll_seconds = POLL_SECONDS_WITHOUT_DOORBELL

    def __init__(self, store: EventStore, hub: Listener, *, hears_own: bool = False) -> None:
        self._store = store
        self._hub = hub
        self._hears_own = hears_own
        self._name = ""
        self._place: SocketDirectory | None = None
        self._socket: socket.socket | None = None

    async def open(self) -> None:
        try:
            self._place = socket_directory(self._store)
            self._name, self._socket = self._place.bind(hears_own=self._hears_own)
            self._hub.loop.add_reader(self._socket, self._read)
        except (OSError, AttributeError, NotImplementedError) as error:
            # Some systems have no such sockets, and some loops cannot wait for them.
            log_once(
                "No socket can be made for other processes to ring, so the store is asked for "
                f"new events every {POLL_SECONDS_WITHOUT_DOORBELL} s: {error}"
            )
            await self.close()
        else:
            self.poll_seconds = _POLL_SECONDS

    async def renew(self) -> None:
        if not self._socket or not self._place or not self._place.has(self._name):
            # No socket could be made so far, or some clean-up has removed it.
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
            # However many come, take no more in one turn of the loop.
            while datagrams < _DATAGRAMS_A_TURN:
                datagram = self._socket.recv(_MAX_DATAGRAM_BYTES)
                datagrams += 1
                self._take(datagram)
        if datagrams > 1:
            # The queue is short, so later datagrams may have found it full.
            self._hub.compare_soon()

    def _take(self, datagram: bytes) -> None:
        try:
            self._hub.hear_soon([Hint.decode(line) for line in datagram.decode().splitlines()])
        except ValueError:
            log_seldom("A datagram was ignored because it is not a valid doorbell.")
        except Exception as error:
            log_seldom("A hub could not take a datagram.", exc_info=error)


def _datagrams(hints: Sequence[Hint]) -> Iterator[bytes]:
    for begin in range(0, len(hints), _HINTS):
        lines = [hint.encode() for hint in hints[begin : begin + _HINTS]]
        yield "\n".join(lines).encode()
