"""Hints between processes by PostgreSQL's NOTIFY and LISTEN.

See https://www.postgresql.org/docs/current/sql-notify.html.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from secrets import token_hex
from typing import Any, Final, Protocol, TypeVar

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from django_sse.concurrency.tasks import must_propagate, spawn
from django_sse.concurrency.threads import unpooled
from django_sse.groups.entries import Hint, Ring
from django_sse.logs import log_seldom, logger

Result = TypeVar("Result")

CHANNEL: Final = "django_sse"
# The first character of a test, which a listener sends to itself. No group name contains it.
_TEST_PREFIX: Final = "?"

# How long a test may take to come back.
_TEST_SECONDS: Final = 5.0
# How long a server may take to answer a new connection.
_CONNECT_SECONDS: Final = 5
# The pause between tests: a connection may stop delivering notifications without an error.
_RETEST_SECONDS: Final = 60.0
# The pause after a connection was lost.
_RECONNECT_SECONDS: Final = 1.0


class InThread(Protocol):
    """Runs database work in the store's reader thread."""

    def __call__(self, work: Callable[[], Result], /) -> Awaitable[Result]: ...


class Notifications:
    """Sends hints from process to process through the database.

    Args:
        using: The database alias that events are published on.
        listen_alias: The database alias to listen on. Nothing is heard through a pooler that lends
            a connection for one transaction at a time, as PgBouncer can.
        in_thread: Runs database work.
    """

    def __init__(self, using: str, listen_alias: str, in_thread: InThread) -> None:
        self._using = using
        self._listen_alias = listen_alias
        self._in_thread = in_thread

    def notify(self, hints: Sequence[Hint]) -> None:
        """Send hints, without their entries, when the open transaction commits."""
        self._notify([hint.encode() for hint in hints])

    async def listen(self, hear: Ring, set_hearing: Callable[[bool], None]) -> None:
        """Pass on hints until cancelled.

        Args:
            hear: Called with the hints that arrive.
            set_hearing: Called when it turns out that hints arrive, or that they do not.
        """
        hears: bool | None = None
        while True:
            pause = _RECONNECT_SECONDS
            try:
                async with self._listening(hear) as reader:
                    while await self._passes_test(reader):
                        if not hears:
                            hears = True
                            set_hearing(True)
                        await reader.listen(_RETEST_SECONDS)
                pause = _RETEST_SECONDS
                why = (
                    "A test notification did not come back. If a pooler lends connections for one "
                    "transaction at a time, set the store's option `listen_alias` to an alias that "
                    "bypasses the pooler."
                )
            except BaseException as error:
                if must_propagate(error):
                    raise
                why = str(error)
            if hears is not False:
                hears = False
                set_hearing(False)
                logger.warning(
                    "LISTEN on the database alias %r hears nothing, so the store is polled for "
                    "new events. %s",
                    self._listen_alias,
                    why,
                )
            await asyncio.sleep(pause)

    @asynccontextmanager
    async def _listening(self, hear: Ring) -> AsyncIterator["_NotificationReader"]:
        # Not in the store's reader thread, whose reads must not wait for a server that hangs.
        connecting = asyncio.ensure_future(asyncio.to_thread(self._connect))
        try:
            # Shielded: the connection must be closed even if the task is cancelled.
            connection = await asyncio.shield(connecting)
        except asyncio.CancelledError:
            connecting.add_done_callback(_close_connected)
            raise
        reader = _NotificationReader(connection.connection, hear)
        try:
            yield reader
        finally:
            reader.close()
            await asyncio.shield(asyncio.to_thread(connection.close))

    async def _passes_test(self, reader: "_NotificationReader") -> bool:
        test = f"{_TEST_PREFIX}{token_hex(8)}"
        reader.expect(test)
        await self._in_thread(lambda: self._notify([test]))
        return await reader.has_heard()

    def _connect(self) -> BaseDatabaseWrapper:
        # A pooled connection would return to the pool while still listening.
        connection = unpooled(self._listen_alias)
        # A server that hangs must not hold one of the event loop's few threads.
        connection.settings_dict["OPTIONS"].setdefault("connect_timeout", _CONNECT_SECONDS)
        # Another thread may close the connection.
        connection.inc_thread_sharing()
        try:
            connection.ensure_connection()
            connection.set_autocommit(True)
            with connection.cursor() as cursor:
                # No conversion: in a database with the encoding SQL_ASCII anybody may send any
                # bytes, and PostgreSQL ends a connection for which it cannot convert them.
                cursor.execute("SET client_encoding TO 'SQL_ASCII'")
                cursor.execute(f"LISTEN {CHANNEL}")
        except BaseException:
            connection.close()
            raise
        return connection

    def _notify(self, texts: Sequence[str]) -> None:
        with connections[self._using].cursor() as cursor:
            cursor.execute(
                "SELECT pg_notify(%s, text) FROM unnest(%s::text[]) AS text",
                [CHANNEL, list(texts)],
            )


def _close_connected(connecting: asyncio.Future[BaseDatabaseWrapper]) -> None:
    if not connecting.cancelled() and not connecting.exception():
        # In a thread, since Django refuses to close a connection on an event loop.
        spawn(asyncio.to_thread(connecting.result().close))


class _NotificationReader:
    """Reads the notifications of a psycopg connection whenever its socket is readable."""

    def __init__(self, connection: Any, hear: Ring) -> None:
        self._connection = connection.pgconn
        self._hear = hear
        self._loop = asyncio.get_running_loop()
        self._test: asyncio.Event = asyncio.Event()
        self._expected = ""
        self._lost: asyncio.Future[None] = self._loop.create_future()
        self._socket = connection.fileno()
        self._loop.add_reader(self._socket, self._read)

    def expect(self, test: str) -> None:
        """Watch for this test notification from now on."""
        self._expected = test
        if not self._lost.done():
            self._test.clear()

    async def has_heard(self) -> bool:
        """Wait for the expected test notification, and say whether it came within five seconds.

        Raises:
            Exception: The connection was lost.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(_TEST_SECONDS):
                await self._test.wait()
                if self._lost.done():
                    self._lost.result()
                return True
        return False

    async def listen(self, seconds: float) -> None:
        """Wait this many seconds, while notifications are passed on.

        Raises:
            Exception: The connection was lost.
        """
        await asyncio.wait([self._lost], timeout=seconds)
        if self._lost.done():
            self._lost.result()

    def close(self) -> None:
        """Stop reading."""
        if not self._lost.done():
            # Not after the connection was lost: its file descriptor may belong to another socket.
            self._loop.remove_reader(self._socket)
            self._lost.cancel()

    def _read(self) -> None:
        try:
            self._connection.consume_input()
            while notification := self._connection.notifies():
                self._take(notification.extra.decode("utf-8", "replace"))
        except BaseException as error:
            if must_propagate(error):
                raise
            # A lost connection's socket would stay readable for ever.
            self._loop.remove_reader(self._socket)
            self._lost.set_exception(error)
            self._lost.exception()
            self._test.set()

    def _take(self, text: str) -> None:
        if text == self._expected:
            self._test.set()
        if text.startswith(_TEST_PREFIX):
            # A test of this listener, of another hub, or of anybody.
            return
        try:
            self._hear([Hint.decode(text)])
        except ValueError:
            log_seldom("Ignored a notification to %r that is not a doorbell.", CHANNEL)
