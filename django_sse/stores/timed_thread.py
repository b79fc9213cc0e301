"""A thread for what may hang, such as the database: whoever waits for it gets an answer in time."""

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

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from django_sse.concurrency.forks import ForkSafeLock
from django_sse.concurrency.threads import Result
from django_sse.stores.read_limits import READ_SECONDS

# How long a thread may hang where no other one may be begun, before its connection is cut.
_CUT_SECONDS: Final = 60.0


class Connection(Protocol):
    """What a thread has open, as Django's connection to a database."""

    @property
    def connection(self) -> Any:
        """The driver's own connection."""

    def close(self) -> None:
        """Close it."""


def unpooled(alias: str) -> BaseDatabaseWrapper:
    """Return a connection to a database that is not one of the project's pool, which has few: a
    thread that hangs would keep it."""
    connection: BaseDatabaseWrapper = connections[alias].copy()
    connection.settings_dict["OPTIONS"].pop("pool", None)
    return connection


class TimedThread:
    """Runs jobs in one thread of its own, one after the other, with one connection.

    A thread whose job takes longer than ``READ_SECONDS`` is left behind: the job raises a
    TimeoutError, and another thread does what waits. Where too many were left behind, every job
    raises it at once, until one of them comes back.

    Args:
        name: The name of the threads.
        connect: Returns the connection of the thread that it is called in.
        most: How many threads may be left behind.
    """

    def __init__(self, name: str, connect: Callable[[], Connection], *, most: int = 3) -> None:
        self._name = name
        self._connect = connect
        self._most = most
        self._lock = ForkSafeLock()
        self._worker: _Worker | None = None
        self._left_behind: list[_Worker] = []

    async def run(self, job: Callable[[], Result]) -> Result:
        """Return what a job returns, or raise what it raises.

        Raises:
            TimeoutError: It takes too long, as those before it did.
        """
        while True:
            worker, running = self._submit(job)
            answer = asyncio.wrap_future(running)
            try:
                while not answer.done():
                    await asyncio.wait([answer], timeout=worker.seconds_left())
                    if worker.seconds_left() <= 0:
                        self._leave_behind(worker)
                        if running.running():
                            raise TimeoutError("The database does not answer.")
            finally:
                # For who does not wait any more: what has not begun need not.
                answer.cancel()
            if not running.cancelled():
                return answer.result()
            # It has not begun in a thread that was left behind, so another one does it.

    async def aclose(self) -> None:
        """Close the connection and end the thread; another one begins with the next job."""
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
                    self._left_behind.append(worker)

    def _submit(self, job: Callable[[], Result]) -> "tuple[_Worker, Future[Result]]":
        with self._lock:
            # After a fork it is not alive.
            if self._worker is None or not self._worker.is_alive():
                self._make_room()
                self._worker = _Worker(self._name, self._connect)
            return self._worker, self._worker.submit(job)

    def _make_room(self) -> None:
        self._left_behind = [worker for worker in self._left_behind if worker.is_alive()]
        if len(self._left_behind) >= self._most:
            self._left_behind[0].cut_off()
            raise TimeoutError(f"The database does not answer {self._most} threads.")

    def _leave_behind(self, worker: "_Worker") -> None:
        with self._lock:
            if self._worker is worker:
                self._worker = None
                self._left_behind.append(worker)
        worker.end(at_once=True)


class _Worker:
    """One of the threads. The process ends though it hangs."""

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
        """Return how long the job under way, or the next one, may take yet."""
        began = self._began
        return READ_SECONDS if began is None else READ_SECONDS - (monotonic() - began)

    def end(self, *, at_once: bool = False) -> None:
        """End after the jobs that wait or, at once, after the one under way."""
        with suppress(Empty):
            while at_once and (waiting := self._jobs.get_nowait()):
                waiting[0].cancel()
        self._jobs.put(None)

    def cut_off(self) -> None:
        """Cut the connection, if it has not answered for long: what waits for it gets an error."""
        if self._connection and self._began and monotonic() - self._began > _CUT_SECONDS:
            _cut(self._connection.connection)

    def _work(self) -> None:
        try:
            while task := self._jobs.get():
                future, job = task
                if future.set_running_or_notify_cancel():
                    self._began = monotonic()
                    # In an empty context: nothing of a request's is kept.
                    Context().run(self._do, future, job)
                    self._began = None
                # Nor for as long as there is nothing to do.
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
    """Cut a driver's connection, which has a thread wait for ever on its socket."""
    # psycopg's, psycopg2's and mysqlclient's, or else PyMySQL's.
    owner = connection if hasattr(connection, "fileno") else getattr(connection, "_sock", None)
    if owner is not None:
        # It may be closed by now.
        with suppress(Exception), socket.socket(fileno=os.dup(owner.fileno())) as shared:
            shared.shutdown(socket.SHUT_RDWR)
