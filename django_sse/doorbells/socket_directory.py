"""The directory of Unix sockets, one for each hub, by which processes on one host reach each other.

Whoever may write beside the directory can replace it by links, files or other directories at any
moment, and the publishing process may have more rights than they have. So the directory is opened
once, never through a link, and checked. After that it is only used by its descriptor, and only
sockets with names that this module could have made are touched.
"""

import os
import re
import socket
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from secrets import token_hex
from typing import Final

from django_sse.concurrency.forks import in_child
from django_sse.stores.base import EventStore

# The path of a socket has at most 107 bytes on Linux, and 103 on other systems.
_MAX_DIRECTORY_BYTES: Final = 80
_SOCKET_NAME: Final = re.compile(r"[0-9a-f]{16}")
# A path here leads to the file that a descriptor has opened, whatever has its name by now: proc(5).
_DESCRIPTORS: Final = "/proc/self/fd"
# Gives a descriptor of a file without opening it, such as of a socket. Only Linux has it.
_O_PATH: Final[int | None] = getattr(os, "O_PATH", None)

# The sockets of this process, and those among them that it does not ring, since it rings its own
# hubs directly. The child of a fork treats its parent's sockets as another process's.
_own_sockets: Final[set[str]] = set()
_rung_directly: Final[set[str]] = set()
in_child(_own_sockets.clear)
in_child(_rung_directly.clear)


def socket_directory(store: EventStore) -> "SocketDirectory":
    """Return the directory for all processes that share a store."""
    if (file := store.file) and (beside := _beside(file.absolute())):
        return beside
    shared = f"{type(store).__name__} {file} {store.address}"
    return _of_user(os.geteuid(), tempfile.gettempdir(), shared)


# Each call of `publish` asks for the directory, and to make a path takes longer than to look there.
@lru_cache
def _beside(file: Path) -> "SocketDirectory | None":
    directory = Path(f"{file}-doorbells")
    if len(os.fsencode(directory)) > _MAX_DIRECTORY_BYTES:
        return None
    return SocketDirectory(directory, file)


@lru_cache
def _of_user(user: int, temporary: str, shared: str) -> "SocketDirectory":
    name = blake2b(shared.encode(), digest_size=8).hexdigest()
    return SocketDirectory(Path(temporary, f"django-sse-{user}-{name}"))


class SocketDirectory:
    """A directory of sockets that all processes with the same store can find.

    Args:
        directory: The path of the directory.
        file: The store's file, which the directory is beside. Whoever may write the file may ring.
            Without a file, only the user who owns the directory may ring.
    """

    def __init__(self, directory: Path, file: Path | None = None) -> None:
        self.directory = directory
        self._place = str(directory)
        self._file = str(file) if file else None

    def bind(self, *, hears_own: bool = False) -> tuple[str, socket.socket]:
        """Return the name of a new socket of this process, and the socket.

        Args:
            hears_own: Whether what this process sends comes to the socket, too.

        Raises:
            OSError: The socket cannot be made.
        """
        name = token_hex(8)
        bound = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            bound.setblocking(False)
            try:
                self._bind(bound, name)
            except FileNotFoundError:
                # The process that had the last socket has just removed the directory.
                self._bind(bound, name)
        except BaseException:
            bound.close()
            raise
        _own_sockets.add(name)
        if not hears_own:
            _rung_directly.add(name)
        return name, bound

    def has(self, name: str) -> bool:
        """Return whether other processes can still find a socket."""
        try:
            with self._opened() as directory:
                return _is_socket(name, directory)
        except OSError:
            return False

    def release(self, name: str) -> None:
        """Remove a socket of this process, and the directory if it was the last one."""
        if name not in _own_sockets:
            return
        _own_sockets.discard(name)
        _rung_directly.discard(name)
        with suppress(OSError), self._opened() as directory:
            _unlink(name, directory)
            self.directory.rmdir()

    def send(self, datagrams: Iterable[bytes]) -> None:
        """Send datagrams to the sockets that are not rung directly, without waiting for any.

        Raises:
            OSError: The directory cannot be used.
        """
        with suppress(FileNotFoundError), self._opened() as directory:
            if others := list(_names_to_ring(directory)):
                datagrams = list(datagrams)
                with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                    # If a queue is full, the doorbells in it are enough.
                    sender.setblocking(False)
                    for name in others:
                        self._send_to(name, directory, sender, datagrams)

    def _bind(self, bound: socket.socket, name: str) -> None:
        made = False
        with suppress(FileExistsError):
            self.directory.mkdir(mode=0o700)
            made = True
        with self._opened() as directory:
            # If it is not empty, somebody has put another directory in its place.
            if made and not os.listdir(directory):
                status = os.fstat(directory)
                # Keep an inherited setgid bit: with it, sockets get the directory's group, too.
                inherits = status.st_mode & stat.S_ISGID
                os.fchmod(directory, inherits | 0o700 | self._mode_for_others(status))
            bound.bind(self._path(name, directory))
            try:
                self._open_to_others(name, directory)
            except BaseException:
                _unlink(name, directory)
                raise

    def _open_to_others(self, name: str, directory: int) -> None:
        """Allow everyone who may write the file to write to a socket of this process, too."""
        with self._found(name, directory) as (path, status):
            is_own = status.st_uid == os.geteuid() and status.st_nlink == 1
            if is_own and (mode := self._mode_for_others(status) & 0o666):
                os.chmod(path, 0o600 | mode, follow_symlinks=path.startswith(_DESCRIPTORS))

    def _send_to(
        self, name: str, directory: int, sender: socket.socket, datagrams: Iterable[bytes]
    ) -> None:
        try:
            with self._found(name, directory) as (path, _):
                for datagram in datagrams:
                    sender.sendto(datagram, path)
        except ConnectionRefusedError:
            # A process that was killed has left the socket behind.
            with suppress(OSError):
                _unlink(name, directory)
        except OSError:
            # The socket is full, belongs to another user, or is gone.
            return

    @contextmanager
    def _opened(self) -> Iterator[int]:
        """Open the directory, and check that nobody without the right to can have put it there.

        Yields:
            A descriptor of the directory.

        Raises:
            FileNotFoundError: There is no directory.
            OSError: The directory is a link, belongs to another user, or may be written by others
                than those who may write the file.
        """
        try:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            directory = os.open(self._place, flags)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise OSError(
                f"{self.directory} cannot be used as the directory of sockets: {error.strerror}"
            ) from error
        try:
            status = os.fstat(directory)
            if status.st_uid != os.geteuid() and not self._belongs_to_owner_of_file(status):
                raise PermissionError(f"{self.directory} belongs to another user.")
            written = status.st_mode & 0o022
            if written and written & ~self._mode_for_others(status):
                raise PermissionError(
                    f"{self.directory} may be written by others than "
                    f"{self._file or 'its owner'}: remove it."
                )
            yield directory
        finally:
            os.close(directory)

    def _belongs_to_owner_of_file(self, status: os.stat_result) -> bool:
        return self._file is not None and status.st_uid == os.stat(self._file).st_uid

    def _mode_for_others(self, status: os.stat_result) -> int:
        """Return the permission bits of the group and of others for a directory or socket.

        They get all permissions if they may write the file, and otherwise none.

        Args:
            status: The status of the directory or socket, which says to what group it belongs.
        """
        if self._file is None:
            return 0
        file = os.stat(self._file)
        of_group = file.st_mode & stat.S_IWGRP and file.st_gid == status.st_gid
        return (0o070 if of_group else 0) | (0o007 if file.st_mode & stat.S_IWOTH else 0)

    def _path(self, name: str, directory: int) -> str:
        through = f"{_DESCRIPTORS}/{directory}"
        return f"{through if os.path.isdir(through) else self._place}/{name}"

    @contextmanager
    def _found(self, name: str, directory: int) -> Iterator[tuple[str, os.stat_result]]:
        """Find a socket.

        Yields:
            A path that leads to the socket of this name and nowhere else, and its status.

        Raises:
            OSError: There is no socket of this name.
        """
        if _O_PATH is None or not os.path.isdir(_DESCRIPTORS):
            # The nearest to it on systems without these.
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
            _refuse_all_but_sockets(name, status)
            yield f"{self._place}/{name}", status
            return
        descriptor = os.open(name, _O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        try:
            status = os.fstat(descriptor)
            _refuse_all_but_sockets(name, status)
            yield f"{_DESCRIPTORS}/{descriptor}", status
        finally:
            os.close(descriptor)


def _refuse_all_but_sockets(name: str, status: os.stat_result) -> None:
    if not stat.S_ISSOCK(status.st_mode):
        raise FileNotFoundError(f"{name} is not a socket.")


def _names_to_ring(directory: int) -> Iterator[str]:
    for name in os.listdir(directory):
        if _SOCKET_NAME.fullmatch(name) and name not in _rung_directly:
            yield name


def _is_socket(name: str, directory: int) -> bool:
    try:
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return stat.S_ISSOCK(status.st_mode)


def _unlink(name: str, directory: int) -> None:
    if _is_socket(name, directory):
        os.unlink(name, dir_fd=directory)
