"""A thread for calls that may hang, for example of the database. Callers get an answer in time."""

import asyncio
import os
import socket
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from contextvars import Context
from queue import Empty, SimpleQueue
from threading import Thread
from time import monotonic
from typing import Any, Final, Protocol

from django_sse.concurrency.forks import ForkSafeLock
from django_sse.concurrency.threads import Result
from django_sse.stores.read_limits import READ_SECONDS

# How long a thread may hang before its connection is cut, if no other thread may be started.
_CUT_SECONDS: Final = 60.0


class Connection(Protocol):
    """A connection that a thread has open, for example Django's connection to a database."""

    @property
    def connection(self) -> Any:
        """The driver's own connection."""

    def close(self) -> None:
        """Close it."""


class TimedThread:
    """Runs jobs one after the other in a separate thread, with one connection.

    A thread whose job takes longer than ``READ_SECONDS`` is abandoned: the job raises a
    TimeoutError, and another thread runs the jobs that wait. If too many threads are abandoned,
    every job raises a TimeoutError at once, until one of these threads ends.

    Args:
        name: The name of the threads.
        connect: Returns a connection for the calling thread.
        most: How many threads may be abandoned at the same time.
    """

    def __init__(self, name: str, connect: Callable[[], Connection], *, most: int = 3) -> None:
        self._name = name
        self._connect = connect
        self._most = most
        self._lock = ForkSafeLock()
        self._worker: _Worker | None = None
        self._abandoned: list[_Worker] = []

    async def run(self, job: Callable[[], Result]) -> Result:
        """Return what a job returns, or raise what it raises.

        Raises:
            TimeoutError: The job took too long, or too many earlier jobs still hang.
        """
        while True:
            worker, running = self._submit(job)
            answer = asyncio.wrap_future(running)
            try:
                while not answer.done():
                    await asyncio.wait([answer], timeout=worker.seconds_left())
                    if worker.seconds_left() <= 0:
                        self._abandon(worker)
                        if running.running():
                            raise TimeoutError("The database does not answer.")
            finally:
                # A job that has not begun need not run if its caller does not wait any more.
                answer.cancel()
            if not running.cancelled():
                return answer.result()
            # The thread was abandoned before it began the job, so another thread runs it.

    async def aclose(self) -> None:
        """Close the connection and end the thread. The next job starts another thread."""
        with self._lock:
            worker, self._worker = self._worker, None
        if worker is None:
            return
        worker.end()
        try:
            await asyncio.wait([asyncio.wrap_future(worker.ended)], timeout=READ_SECONDS)
        finally:
            if not worker.ended.done():
                with self._lock:
                    self._abandoned.append(worker)

    def _submit(self, job: Callable[[], Result]) -> "tuple[_Worker, Future[Result]]":
        with self._lock:
            # In the child of a fork the worker is not alive.
            if self._worker is None or not self._worker.is_alive():
                self._refuse_too_many()
                self._worker = _Worker(self._name, self._connect)
            return self._worker, self._worker.submit(job)

    def _refuse_too_many(self) -> None:
        self._abandoned = [worker for worker in self._abandoned if worker.is_alive()]
        if len(self._abandoned) >= self._most:
            self._abandoned[0].cut_off()
            raise TimeoutError(f"The database does not answer {self._most} threads.")

    def _abandon(self, worker: "_Worker") -> None:
        with self._lock:
            if self._worker is worker:
                self._worker = None
                self._abandoned.append(worker)
        worker.end(at_once=True)


class _Worker:
    """One of the threads. It is a daemon, so the process can end while it hangs."""

    def __init__(self, name: str, connect: Callable[[], Connection]) -> None:
        self.ended: Future[None] = Future()
        self._connect = connect
        self._connection: Connection | None = None
        self._began: float | None = None
        self._jobs: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._thread = Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def submit(self, job: Callable[[], Result]) -> Future[Result]:
        future: Future[Result] = Future()
        self._jobs.put((future, job))
        return future

    def seconds_left(self) -> float:
        """Return how many seconds the current or the next job may still take."""
        began = self._began
        return READ_SECONDS if began is None else READ_SECONDS - (monotonic() - began)

    def end(self, *, at_once: bool = False) -> None:
        """End after the waiting jobs or, with ``at_once``, after the current job."""
        with suppress(Empty):
            while at_once and (waiting := self._jobs.get_nowait()):
                waiting[0].cancel()
        self._jobs.put(None)

    def cut_off(self) -> None:
        """Cut a connection that has not answered for a minute. The job that waits for it fails."""
        if self._connection and self._began and monotonic() - self._began > _CUT_SECONDS:
            _cut(self._connection.connection)

    def _work(self) -> None:
        try:
            while task := self._jobs.get():
                future, job = task
                if future.set_running_or_notify_cancel():
                    self._began = monotonic()
                    # In an empty context, so that the thread keeps nothing of a request.
                    Context().run(self._do, future, job)
                    self._began = None
                # While idle the thread keeps nothing of its last job either.
                del task, future, job
        finally:
            if self._connection:
                with suppress(Exception):
                    self._connection.close()
            self.ended.set_result(None)

    def _do(self, future: Future[Any], job: Callable[[], Any]) -> None:
        try:
            if self._connection is None:
                self._connection = self._connect()
            future.set_result(job())
        except BaseException as error:
            future.set_exception(error)


def _cut(connection: Any) -> None:
    """Shut down the socket of a driver's connection, on which a thread waits for ever."""
    # psycopg, psycopg2 and mysqlclient have `fileno` on the connection; PyMySQL has `_sock`.
    owner = connection if hasattr(connection, "fileno") else getattr(connection, "_sock", None)
    if owner is not None:
        # The socket may be closed by now.
        with suppress(Exception), socket.socket(fileno=os.dup(owner.fileno())) as shared:
            shared.shutdown(socket.SHUT_RDWR)
