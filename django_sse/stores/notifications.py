"""How a store itself tells hubs of what it takes: the interface, and how a hub keeps listening."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from secrets import token_hex
from typing import Any, Final, Generic, TypeVar

from django_sse.concurrency.tasks import must_propagate
from django_sse.groups.entries import Hint, Ring
from django_sse.logs import logger

# The first character of a test, which a subscriber sends to itself. No group name contains it.
_TEST_PREFIX: Final = "?"
# How long a test may take to come back.
_TEST_SECONDS: Final = 5.0
# The pause between tests: a connection may stop delivering notifications without an error. Also the
# pause after a failure that lasts.
_RETEST_SECONDS: Final = 60.0
# After a test, a notification that seems to be lost is no reason for another one for so long: the
# answer to a question may just have overtaken it.
_DOUBT_SECONDS: Final = 5.0
# The pause after a connection was lost.
_RECONNECT_SECONDS: Final = 1.0


class Connection:
    """What notifications arrive by, on the running loop."""

    def __init__(self) -> None:
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Raises why nothing arrives any more."""
        self._expected = ""
        self._silent: set[str] = set()
        self._tested = asyncio.Event()

    def expect(self, test: str, channels: Iterable[str]) -> None:
        """Watch for this test on each of some channels from now on."""
        self._expected = test
        self._silent = set(channels)
        if not self.lost.done():
            self._tested.clear()

    async def has_heard(self) -> bool:
        """Wait for the expected test, and say whether it came within five seconds.

        Raises:
            Exception: The connection was lost.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(_TEST_SECONDS):
                await self._tested.wait()
                if self.lost.done():
                    self.lost.result()
                return True
        return False

    def lose(self, error: BaseException) -> None:
        """Note that the connection is lost."""
        if not self.lost.done():
            self.lost.set_exception(error)
            # Retrieved, in case nobody waits.
            self.lost.exception()
            self._tested.set()

    def _is_test(self, text: str, channel: str) -> bool:
        """Whether a notification is a test: of this subscriber, of another hub, or of anybody."""
        if text == self._expected:
            self._silent.discard(channel)
            if not self._silent:
                self._tested.set()
        return text.startswith(_TEST_PREFIX)


ConnectionT = TypeVar("ConnectionT", bound=Connection)


class Subscriber(ABC):
    """A hub's end of a store's notifications."""

    @abstractmethod
    async def listen(self) -> None:
        """Pass on hints until cancelled."""

    async def enter(self, group: str) -> None:
        """Hear of a group. Does nothing where all of them are heard of."""

    async def leave(self, group: str) -> None:
        """Hear of a group no more."""

    @abstractmethod
    def doubt(self, group: str) -> None:
        """Test soon whether a group is heard of: a notification seems to be lost."""


class TestedSubscriber(Subscriber, Generic[ConnectionT]):
    """A subscriber that tests itself: what it sends as a publisher does has to arrive.

    Args:
        hear: Called with the hints that arrive.
        set_hearing: Called when it turns out that hints arrive, or that they do not.
    """

    place: str
    """What is listened to, for the log."""

    channels: Collection[str]
    """The channels to which tests are sent."""

    def __init__(self, hear: Ring, set_hearing: Callable[[bool], None]) -> None:
        self._hear = hear
        self._set_hearing = set_hearing
        self.hears: bool | None = None
        self._doubted = asyncio.Event()

    async def listen(self) -> None:
        while True:
            pause = _RECONNECT_SECONDS
            try:
                async with self._connected() as connection:
                    passed = False
                    while await self._passes_test(connection):
                        passed = True
                        self._note(hears=True)
                        await self._until_next_test(connection)
                if not passed:
                    pause = _RETEST_SECONDS
                why = f"A test notification did not come back. {self._remedy}".rstrip()
            except BaseException as error:
                if must_propagate(error):
                    raise
                why = self._explain(error)
                if self._lasts(error):
                    pause = _RETEST_SECONDS
            self._note(hears=False, why=why)
            await asyncio.sleep(pause)

    def doubt(self, group: str) -> None:
        self._doubted.set()

    _remedy = ""
    """What to do if tests do not come back."""

    @abstractmethod
    def _connected(self) -> AbstractAsyncContextManager[ConnectionT]:
        """Connect, and listen for the length of the block."""

    @abstractmethod
    async def _send(self, test: str) -> None:
        """Send a test to all channels, on the way of a publisher's notifications.

        Raises:
            Exception: It could not be sent.
        """

    def _explain(self, error: BaseException) -> str:
        """Return what the log says of an error."""
        return str(error) or type(error).__name__

    def _lasts(self, error: BaseException) -> bool:
        """Whether an error is likely to come again until somebody has done something."""
        return False

    async def _passes_test(self, connection: ConnectionT) -> bool:
        test = f"{_TEST_PREFIX}{token_hex(8)}"
        connection.expect(test, self.channels)
        await self._send(test)
        return await connection.has_heard()

    async def _until_next_test(self, connection: ConnectionT) -> None:
        self._doubted.clear()
        await asyncio.wait([connection.lost], timeout=_DOUBT_SECONDS)
        doubted: asyncio.Future[Any] = asyncio.ensure_future(self._doubted.wait())
        try:
            await asyncio.wait(
                [connection.lost, doubted],
                timeout=_RETEST_SECONDS,
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            doubted.cancel()
        if connection.lost.done():
            connection.lost.result()

    def _note(self, *, hears: bool, why: str = "") -> None:
        before, self.hears = self.hears, hears
        if hears == before:
            return
        self._set_hearing(hears)
        if not hears:
            logger.warning(
                "%s hears nothing, so the store is polled for new events. %s", self.place, why
            )
        elif before is not None:
            logger.info("%s hears again.", self.place)


class Notifications(ABC):
    """Tells the hubs of other processes whatever gets a number, as it gets it."""

    @abstractmethod
    def notify(self, hints: Sequence[Hint]) -> None:
        """Tell them hints without a number, at once or with the commit. Blocks.

        Raises:
            Exception: They could not be told.
        """

    @abstractmethod
    def subscriber(self, hear: Ring, set_hearing: Callable[[bool], None]) -> Subscriber:
        """Return a hub's end, on the running loop."""
