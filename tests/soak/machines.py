"""Machines of the soak test: network namespaces, which reach others through a link alone.

A kernel without netem delays and loses nothing by itself, so the link is a proxy that does.
"""

import asyncio
import ctypes
import fcntl
import os
import random
import socket
import struct
from collections.abc import Callable, Coroutine, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Thread
from typing import Any, Final, TypeVar

Result = TypeVar("Result")

_CLONE_NEWNET: Final = 0x40000000
_SIOCGIFFLAGS: Final = 0x8913
_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP: Final = 1
_CHUNK_BYTES: Final = 16 * 1024
# How long TCP waits before it sends again what was lost: RFC 6298 with Linux's minimum.
_RESEND_SECONDS: Final = 0.2


def lack() -> str | None:
    """Return why there can be no machines here, if there cannot."""
    try:
        with Machine():
            return None
    except OSError as error:
        return f"network namespaces need root: {error}"


class Machine:
    """A network namespace with nothing but a loopback of its own."""

    def __init__(self) -> None:
        # What this thread starts is in the namespace.
        self._thread = ThreadPoolExecutor(1)

    def __enter__(self) -> "Machine":
        try:
            self.run(_enter_a_new_namespace)
        except BaseException:
            self._thread.shutdown()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._thread.shutdown()

    def run(self, do: Callable[[], Result]) -> Result:
        """Call a function on the machine."""
        return self._thread.submit(do).result()

    def socket(self) -> socket.socket:
        """Return a TCP socket of the machine, for any thread."""
        return self.run(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM))


def _enter_a_new_namespace() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as some:
        request = struct.pack("16sh", b"lo", 0)
        _, flags = struct.unpack("16sh", fcntl.ioctl(some, _SIOCGIFFLAGS, request))
        fcntl.ioctl(some, _SIOCSIFFLAGS, struct.pack("16sh", b"lo", flags | _IFF_UP))


class Link:
    """The network between a machine and all others, where ports have the same numbers.

    Args:
        machine: The machine.
        latency: Seconds that what is sent takes, in each direction.
        loss: The share of what is sent that has to be sent again.
        seed: What decides about that.
    """

    def __init__(self, machine: Machine, *, latency: float, loss: float, seed: str) -> None:
        self._machine = machine
        self._latency = latency
        self._loss = loss
        self._random = random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._passes = asyncio.Event()
        self._passes.set()
        self._tasks: set[asyncio.Task[None]] = set()

    @contextmanager
    def up(self, *, outgoing: Iterable[int], incoming: Iterable[int]) -> Iterator[None]:
        """Pass connections on for the length of the block.

        Args:
            outgoing: The ports of others that the machine reaches.
            incoming: The machine's ports that others reach.
        """
        thread = Thread(target=self._loop.run_forever)
        thread.start()
        try:
            for port in outgoing:
                self._call(self._listen(self._machine.socket(), port, socket.socket))
            for port in incoming:
                self._call(self._listen(socket.socket(), port, self._machine.socket))
            yield
        finally:
            self._call(self._stop())
            self._loop.call_soon_threadsafe(self._loop.stop)
            thread.join()
            self._loop.close()

    @contextmanager
    def cut(self) -> Iterator[None]:
        """For the length of the block nothing comes through, and nobody is told."""
        self._loop.call_soon_threadsafe(self._passes.clear)
        try:
            yield
        finally:
            self._loop.call_soon_threadsafe(self._passes.set)

    def _call(self, coroutine: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _listen(
        self, listener: socket.socket, port: int, make: Callable[[], socket.socket]
    ) -> None:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(1000)
        listener.setblocking(False)
        self._spawn(self._accept(listener, port, make))

    async def _accept(
        self, listener: socket.socket, port: int, make: Callable[[], socket.socket]
    ) -> None:
        with listener:
            while True:
                here, _ = await self._loop.sock_accept(listener)
                self._spawn(self._pass(here, port, make()))

    async def _pass(self, here: socket.socket, port: int, there: socket.socket) -> None:
        with here, there:
            here.setblocking(False)
            there.setblocking(False)
            await self._passes.wait()
            await asyncio.sleep(self._latency)
            try:
                await self._loop.sock_connect(there, ("127.0.0.1", port))
                async with asyncio.TaskGroup() as both:
                    both.create_task(self._pump(here, there))
                    both.create_task(self._pump(there, here))
            except* OSError:
                # One end has reset its connection, and so is the other end's.
                for end in (here, there):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    async def _pump(self, source: socket.socket, target: socket.socket) -> None:
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(100)
        sending = asyncio.create_task(self._send(queue, target))
        try:
            while data := await self._loop.sock_recv(source, _CHUNK_BYTES):
                await queue.put((self._loop.time() + self._delay(), data))
            await queue.put((self._loop.time() + self._latency, b""))
            await sending
        finally:
            sending.cancel()

    async def _send(self, queue: asyncio.Queue[tuple[float, bytes]], target: socket.socket) -> None:
        while True:
            due, data = await queue.get()
            await asyncio.sleep(due - self._loop.time())
            await self._passes.wait()
            if not data:
                target.shutdown(socket.SHUT_WR)
                return
            await self._loop.sock_sendall(target, data)

    def _delay(self) -> float:
        return self._latency + (_RESEND_SECONDS if self._random.random() < self._loss else 0)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _stop(self) -> None:
        self._passes.set()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
