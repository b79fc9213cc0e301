"""PostgreSQL's NOTIFY and LISTEN: https://www.postgresql.org/docs/current/sql-notify.html."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from secrets import token_hex
from typing import Any, Final, Protocol, TypeVar

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from django_sse.concurrency.tasks import must_propagate, spawn
from django_sse.groups.entries import Hint, Ring
from django_sse.logs import log_seldom, logger
from django_sse.stores.timed_thread import unpooled

Result = TypeVar("Result")

_CHANNEL: Final = "django_sse"
# Begins what a listener sends to itself; no group's name has it.
_TEST: Final = "?"

# How long one's own notification may take to be heard.
_TEST_SECONDS: Final = 5.0
# How long a server may take to answer a new connection.
_CONNECT_SECONDS: Final = 5
# A connection may go deaf without a word: tested this often.
_RETEST_SECONDS: Final = 60.0
# After a connection was lost.
_PAUSE_SECONDS: Final = 1.0


class InThread(Protocol):
    """Runs database work in the thread that the store keeps for it."""

    def __call__(self, work: Callable[[], Result], /) -> Awaitable[Result]: ...


class Notifications:
    """Hints from process to process, by way of the database.

    Args:
        using: The alias that events are published on.
        listen_alias: The alias to listen on. Through a pooler that lends a connection for one
            transaction at a time, as PgBouncer can, nothing is heard.
        in_thread: Runs database work.
    """

    def __init__(self, using: str, listen_alias: str, in_thread: InThread) -> None:
        self._using = using
        self._listen_alias = listen_alias
        self._in_thread = in_thread

    def notify(self, hints: Sequence[Hint]) -> None:
        """Send hints, without what they bring, as the open transaction commits."""
        self._notify([hint.encode() for hint in hints])

    async def listen(self, hear: Ring, set_hearing: Callable[[bool], None]) -> None:
        """Pass on hints until cancelled, and say when it turns out whether they are heard."""
        hears: bool | None = None
        while True:
            pause = _PAUSE_SECONDS
            try:
                async with self._listening(hear) as ear:
                    while await self._is_heard_by(ear):
                        if not hears:
                            hears = True
                            set_hearing(True)
                        await ear.listen(_RETEST_SECONDS)
                pause = _RETEST_SECONDS
                why = (
                    "A notification of its own did not come back. If a pooler lends connections "
                    "for one transaction at a time, set the store's option `listen_alias` to an "
                    "alias without it."
                )
            except BaseException as error:
                if must_propagate(error):
                    raise
                why = str(error)
            if hears is not False:
                hears = False
                set_hearing(False)
                logger.warning(
                    "LISTEN on the database alias %r hears nothing, so the store is asked for "
                    "what is new. %s",
                    self._listen_alias,
                    why,
                )
            await asyncio.sleep(pause)

    @asynccontextmanager
    async def _listening(self, hear: Ring) -> AsyncIterator["_NotificationReader"]:
        # In another thread than the store's, whose reads must not wait for a server that hangs.
        connecting = asyncio.ensure_future(asyncio.to_thread(self._connect))
        try:
            # Shielded: the task may be cancelled, and the connection has to be closed all the same.
            connection = await asyncio.shield(connecting)
        except asyncio.CancelledError:
            connecting.add_done_callback(_close_connected)
            raise
        ear = _NotificationReader(connection.connection, hear)
        try:
            yield ear
        finally:
            ear.close()
            await asyncio.shield(asyncio.to_thread(connection.close))

    async def _is_heard_by(self, ear: "_NotificationReader") -> bool:
        test = f"{_TEST}{token_hex(8)}"
        ear.expect(test)
        await self._in_thread(lambda: self._notify([test]))
        return await ear.has_heard()

    def _connect(self) -> BaseDatabaseWrapper:
        # To a pool it would go back still listening.
        connection = unpooled(self._listen_alias)
        # The thread is the event loop's, which has few.
        connection.settings_dict["OPTIONS"].setdefault("connect_timeout", _CONNECT_SECONDS)
        # It is closed in another thread, perhaps.
        connection.inc_thread_sharing()
        try:
            connection.ensure_connection()
            connection.set_autocommit(True)
            with connection.cursor() as cursor:
                # As it comes: in a database of this encoding anybody may notify of any bytes, and
                # PostgreSQL ends a connection for which it cannot convert them.
                cursor.execute("SET client_encoding TO 'SQL_ASCII'")
                cursor.execute(f"LISTEN {_CHANNEL}")
        except BaseException:
            connection.close()
            raise
        return connection

    def _notify(self, texts: Sequence[str]) -> None:
        with connections[self._using].cursor() as cursor:
            cursor.execute(
                "SELECT pg_notify(%s, text) FROM unnest(%s::text[]) AS text",
                [_CHANNEL, list(texts)],
            )


def _close_connected(connecting: asyncio.Future[BaseDatabaseWrapper]) -> None:
    if not connecting.cancelled() and not connecting.exception():
        # Django refuses to do it on a loop.
        spawn(asyncio.to_thread(connecting.result().close))


class _NotificationReader:
    """Reads what comes on a connection of psycopg, whenever its socket has something."""

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
        """Wait for a notification of one's own from now on."""
        self._expected = test
        if not self._lost.done():
            self._test.clear()

    async def has_heard(self) -> bool:
        """Wait for the notification that is expected; say whether it came.

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
        """Wait.

        Raises:
            Exception: The connection was lost.
        """
        await asyncio.wait([self._lost], timeout=seconds)
        if self._lost.done():
            self._lost.result()

    def close(self) -> None:
        """Read no more."""
        if not self._lost.done():
            # Once it is lost, the number may be another one's.
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
            # Unread, a lost connection's socket would be readable for ever.
            self._loop.remove_reader(self._socket)
            self._lost.set_exception(error)
            self._lost.exception()
            self._test.set()

    def _take(self, text: str) -> None:
        if text == self._expected:
            self._test.set()
        if text.startswith(_TEST):
            # Another hub's, or anybody's.
            return
        try:
            self._hear([Hint.decode(text)])
        except ValueError:
            log_seldom("A notification to %r that is no doorbell was ignored.", _CHANNEL)
