"""What every doorbell does: ring the hubs of this process."""

import asyncio
from collections.abc import Sequence
from typing import Final, Protocol
from weakref import WeakSet

from django_sse.concurrency.forks import ForkSafeLock, in_child
from django_sse.groups.entries import Hint
from django_sse.logs import log_seldom

# How often the store is asked all the same, by hubs that hear of everything and by deaf ones.
POLL_SECONDS_WITH_DOORBELL: Final = 5.0
POLL_SECONDS_WITHOUT_DOORBELL: Final = 0.1


class Listener(Protocol):
    """A hub, as far as a doorbell knows it."""

    loop: asyncio.AbstractEventLoop

    def hear_soon(self, hints: Sequence[Hint]) -> None:
        """Take hints, from any thread."""

    def compare_soon(self) -> None:
        """Ask the store what is new. On the hub's loop."""


class Receiver:
    """A hub's end of a doorbell; this one has nothing to wait for.

    Its methods are called on the hub's loop and do not raise.
    """

    poll_seconds = POLL_SECONDS_WITH_DOORBELL
    """Seconds between two comparisons with the store, as long as nothing is heard."""

    async def open(self) -> None:
        """Begin to listen."""

    async def enter(self, group: str) -> None:
        """Listen to a group."""

    async def enter_again(self, group: str) -> None:
        """Listen to a group again, of which something was not heard."""

    async def leave(self, group: str) -> None:
        """Listen to a group no longer."""

    async def renew(self) -> None:
        """Make sure that everything is still heard; called about once a minute."""

    async def close(self) -> None:
        """Stop listening, and leave nothing behind."""


class Doorbell:
    """Rings the hubs of this process, directly; enough for a store that no other can read."""

    def ring(self, hints: Sequence[Hint]) -> None:
        """Tell every hub, in this process and in others. From any thread; never raises."""
        ring_here(hints)

    def receiver(self, hub: Listener) -> Receiver:
        """Return a hub's end of it."""
        return Receiver()


_lock: Final = ForkSafeLock()
_listeners: Final[WeakSet[Listener]] = WeakSet()

# A child has the hubs of its parent, but not their loops.
in_child(_listeners.clear)


def listen(listener: Listener) -> None:
    """Let this process's doorbells reach a hub."""
    with _lock:
        _listeners.add(listener)


def stop_listening(listener: Listener) -> None:
    """Undo ``listen``."""
    with _lock:
        _listeners.discard(listener)


def ring_here(hints: Sequence[Hint]) -> None:
    """Tell the hubs of this process. From any thread."""
    for listener in open_listeners():
        try:
            listener.hear_soon(hints)
        except Exception as error:
            # The others hear it all the same, and this one finds it in the store.
            log_seldom("A hub could not hear a doorbell.", exc_info=error)


def open_listeners() -> list[Listener]:
    """Return the hubs of this process whose loops are open."""
    with _lock:
        return [listener for listener in _listeners if not listener.loop.is_closed()]
