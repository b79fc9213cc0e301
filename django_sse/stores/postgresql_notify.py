"""Hints between processes by PostgreSQL's NOTIFY and LISTEN.

See https://www.postgresql.org/docs/current/sql-notify.html.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, Protocol, TypeVar

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from django_sse.concurrency.tasks import must_propagate, spawn
from django_sse.concurrency.threads import unpooled
from django_sse.groups.entries import Hint, Ring
from django_sse.logs import log_seldom
from django_sse.stores.notifications import Connection, Notifications, TestedSubscriber

Result = TypeVar("Result")

CHANNEL: Final = "django_sse"
# How long a server may take to answer a new connection.
_CONNECT_SECONDS: Final = 5


class InThread(Protocol):
    """Runs database work in the store's reader thread."""

    def __call__(self, work: Callable[[], Result], /) -> Awaitable[Result]: ...


class PostgreSQLNotifications(Notifications):
    """Sends hints from process to process through the database.

    Args:
        using: The database alias that events are published on.
        listen_alias: The database alias to listen on. Nothing is heard through a pooler that lends
            a connection for one transaction at a time, as PgBouncer can.
        in_thread: Runs database work.
    """

    def __init__(self, using: str, listen_alias: str, in_thread: InThread) -> None:
        self._using = using
        self.listen_alias = listen_alias
        self._in_thread = in_thread

    def notify(self, hints: Sequence[Hint]) -> None:
        """Send hints, without their entries, when the open transaction commits."""
        self._notify([hint.encode() for hint in hints])

    def subscriber(
        self, hear: Ring, set_hearing: Callable[[bool], None]
    ) -> "_PostgreSQLSubscriber":
        return _PostgreSQLSubscriber(self, hear, set_hearing)

    async def send_test(self, test: str) -> None:
        """Notify of a test, on a publisher's connection."""
        await self._in_thread(lambda: self._notify([test]))

    def connect(self) -> BaseDatabaseWrapper:
        # A pooled connection would return to the pool while still listening.
        connection = unpooled(self.listen_alias)
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


class _PostgreSQLSubscriber(TestedSubscriber["_NotificationReader"]):
    channels = (CHANNEL,)
    _remedy = (
        "If a pooler lends connections for one transaction at a time, set the store's option "
        "`listen_alias` to an alias that bypasses the pooler."
    )

    def __init__(
        self,
        notifications: PostgreSQLNotifications,
        hear: Ring,
        set_hearing: Callable[[bool], None],
    ) -> None:
        super().__init__(hear, set_hearing)
        self._notifications = notifications
        self.place = f"LISTEN on the database alias {notifications.listen_alias!r}"

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator["_NotificationReader"]:
        # Not in the store's reader thread, whose reads must not wait for a server that hangs.
        connecting = asyncio.ensure_future(asyncio.to_thread(self._notifications.connect))
        try:
            # Shielded: the connection must be closed even if the task is cancelled.
            connection = await asyncio.shield(connecting)
        except asyncio.CancelledError:
            connecting.add_done_callback(_close_connected)
            raise
        reader = _NotificationReader(connection.connection, self._hear)
        try:
            yield reader
        finally:
            reader.close()
            await asyncio.shield(asyncio.to_thread(connection.close))

    async def _send(self, test: str) -> None:
        await self._notifications.send_test(test)


def _close_connected(connecting: asyncio.Future[BaseDatabaseWrapper]) -> None:
    if not connecting.cancelled() and not connecting.exception():
        # In a thread, since Django refuses to close a connection on an event loop.
        spawn(asyncio.to_thread(connecting.result().close))


class _NotificationReader(Connection):
    """Reads the notifications of a psycopg connection whenever its socket is readable."""

    def __init__(self, connection: Any, hear: Ring) -> None:
        super().__init__()
        self._connection = connection.pgconn
        self._hear = hear
        self._loop = asyncio.get_running_loop()
        self._socket = connection.fileno()
        self._loop.add_reader(self._socket, self._read)

    def close(self) -> None:
        """Stop reading."""
        if not self.lost.done():
            # Not after the connection was lost: its file descriptor may belong to another socket.
            self._loop.remove_reader(self._socket)
            self.lost.cancel()

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
            self.lose(error)

    def _take(self, text: str) -> None:
        if self._is_test(text, CHANNEL):
            return
        try:
            self._hear([Hint.decode(text)])
        except ValueError:
            log_seldom("Ignored a notification to %r that is not a doorbell.", CHANNEL)
