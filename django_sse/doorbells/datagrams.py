"""The doorbell from process to process on one host, without any service: Unix datagrams.

Each hub has a socket in a directory that all processes find which share the store: beside the
SQLite file, or else one of the user's own. A datagram names groups and where they stand, never
what was published, so that whoever may write to a socket can wake a hub and do nothing else.
"""

import os
import socket
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from secrets import token_hex
from typing import Final

from django_sse.doorbells.base import DEAF_SECONDS, Doorbell, Listener, Receiver
from django_sse.stores.base import EventStore, Hint
from django_sse.tasks import logger

# A datagram finds no room in a full queue, and processes of other hosts may share the store.
_POLL_SECONDS: Final = 1.0
# The path of a socket has at most 107 bytes on Linux, and 103 elsewhere.
_MAX_DIRECTORY_BYTES: Final = 80
# Hints in one datagram; some systems take no more than 2,048 bytes.
_HINTS: Final = 15
_MAX_DATAGRAM_BYTES: Final = 2048
_DATAGRAMS_A_TURN: Final = 64

# The sockets of this process, which rings its own hubs directly; a forked child has its own.
_own_sockets: Final[set[tuple[int, str]]] = set()


class DatagramDoorbell(Doorbell):
    """Rings the hubs of other processes on this host."""

    def __init__(self, store: EventStore) -> None:
        self._store = store

    def ring(self, hints: Sequence[Hint]) -> None:
        super().ring(hints)
        try:
            if sockets := list(meeting_place(self._store).sockets_of_others()):
                _send(hints, sockets)
        except Exception:
            logger.exception("Ringing other processes failed; hubs will find out by themselves.")

    def receiver(self, hub: Listener) -> Receiver:
        return _DatagramReceiver(self._store, hub)


class _DatagramReceiver(Receiver):
    poll_seconds = DEAF_SECONDS

    def __init__(self, store: EventStore, hub: Listener) -> None:
        self._store = store
        self._hub = hub
        self._name = token_hex(8)
        self._place: MeetingPlace | None = None
        self._socket: socket.socket | None = None

    async def open(self) -> None:
        try:
            self._place = meeting_place(self._store)
            self._socket = self._place.bind(self._name)
            self._hub.loop.add_reader(self._socket, self._read)
        except (OSError, AttributeError, NotImplementedError) as error:
            # Also where there are no such sockets, or the loop cannot wait for them.
            logger.warning(
                "There can be no socket for other processes to ring, so the store is asked for "
                "what is new every %s s: %s",
                DEAF_SECONDS,
                error,
            )
            await self.close()
        else:
            self.poll_seconds = _POLL_SECONDS

    async def renew(self) -> None:
        if self._socket and self._place and not self._place.has(self._name):
            # Something has cleaned up behind its back.
            await self.close()
            await self.open()

    async def close(self) -> None:
        if self._socket and self._place:
            self._hub.loop.remove_reader(self._socket)
            self._socket.close()
            self._socket = None
            self._place.release(self._name)
        self.poll_seconds = DEAF_SECONDS

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
            logger.warning("A datagram that is no doorbell was ignored.")


class MeetingPlace:
    """A directory of sockets, which all processes find that share a store.

    Args:
        directory: Where it is.
        file: The file beside which it is: who may write that may ring.
    """

    def __init__(self, directory: Path, file: Path | None = None) -> None:
        self.directory = directory
        self._file = file

    def bind(self, name: str) -> socket.socket:
        """Return a new socket of this process.

        Raises:
            OSError: There can be none.
        """
        path = self.directory / name
        bound = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            bound.setblocking(False)
            try:
                self._make()
                bound.bind(str(path))
            except FileNotFoundError:
                # Another one that was the last has just removed the directory.
                self._make()
                bound.bind(str(path))
            if self._file:
                path.chmod(stat.S_IMODE(self._file.stat().st_mode))
        except BaseException:
            bound.close()
            raise
        _own_sockets.add((os.getpid(), name))
        return bound

    def has(self, name: str) -> bool:
        """Whether a socket is still there for others to find."""
        return (self.directory / name).exists()

    def release(self, name: str) -> None:
        """Remove a socket of this process, and the directory after the last one."""
        _own_sockets.discard((os.getpid(), name))
        with suppress(OSError):
            (self.directory / name).unlink()
            self.directory.rmdir()

    def sockets_of_others(self) -> Iterator[str]:
        """Return the paths of the other processes' sockets."""
        process = os.getpid()
        with suppress(FileNotFoundError), os.scandir(self.directory) as entries:
            if self._file is None:
                self._refuse_a_stranger()
            for entry in entries:
                if (process, entry.name) not in _own_sockets:
                    yield entry.path

    def _make(self) -> None:
        with suppress(FileExistsError):
            self.directory.mkdir(mode=0o700)
            if self._file:
                self.directory.chmod(stat.S_IMODE(self._file.parent.stat().st_mode))
        if self._file is None:
            self._refuse_a_stranger()

    def _refuse_a_stranger(self) -> None:
        # Everybody may make a directory of this name in the directory for temporary files.
        if self.directory.is_symlink() or self.directory.stat().st_uid != _user():
            raise PermissionError(f"{self.directory} belongs to another user.")


def meeting_place(store: EventStore) -> MeetingPlace:
    """Return where the processes meet that share a store."""
    if store.file:
        file = store.file.absolute()
        directory = Path(f"{file}-doorbells")
        if len(os.fsencode(directory)) <= _MAX_DIRECTORY_BYTES:
            return MeetingPlace(directory, file)
    shared = f"{type(store).__name__} {store.file} {store.address}"
    name = blake2b(shared.encode(), digest_size=8).hexdigest()
    return MeetingPlace(Path(tempfile.gettempdir(), f"django-sse-{_user()}-{name}"))


def _user() -> int:
    # Windows has neither users by number nor sockets of this kind.
    return os.getuid() if hasattr(os, "getuid") else 0


def _send(hints: Sequence[Hint], sockets: Sequence[str]) -> None:
    lines = [hint.encode() for hint in hints]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        # A full queue has doorbells enough in it.
        sender.setblocking(False)
        for begin in range(0, len(lines), _HINTS):
            datagram = "\n".join(lines[begin : begin + _HINTS]).encode()
            for path in sockets:
                try:
                    sender.sendto(datagram, path)
                except ConnectionRefusedError:
                    # Left behind by a process that was killed.
                    with suppress(OSError):
                        os.unlink(path)
                except OSError:
                    continue
