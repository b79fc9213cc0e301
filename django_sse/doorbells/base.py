"""The base of all doorbells: it rings the hubs of this process."""

import asyncio
from collections.abc import Sequence
from typing import Final, Protocol

from django_sse.concurrency.forks import ForkSafeLock, in_child
from django_sse.groups.entries import Hint
from django_sse.logs import log_seldom

# How often a hub asks the store in any case: with a working doorbell, and without one.
POLL_SECONDS_WITH_DOORBELL: Final = 5.0
POLL_SECONDS_WITHOUT_DOORBELL: Final = 0.1


class Listener(Protocol):
    """The part of a hub that a doorbell uses."""

    loop: asyncio.AbstractEventLoop

    def hear_soon(self, hints: Sequence[Hint]) -> None:
        """Take hints, from any thread."""

    def compare_soon(self) -> None:
        """Ask the store for changes soon. Called on the hub's loop."""


class Receiver:
    """A hub's end of a doorbell. This base class has nothing to listen to.

    All methods are called on the hub's loop and do not raise.
    """

    poll_seconds = POLL_SECONDS_WITH_DOORBELL
    """Seconds between two comparisons with the store while no doorbell rings."""

    async def open(self) -> None:
        """Start listening."""

    async def enter(self, group: str) -> None:
        """Listen to a group."""

    async def enter_again(self, group: str) -> None:
        """Listen to a group again after a doorbell of it was missed."""

    async def leave(self, group: str) -> None:
        """Stop listening to a group."""

    async def renew(self) -> None:
        """Make sure that doorbells are still heard. Called about once a minute."""

    async def close(self) -> None:
        """Stop listening, and clean up."""


class Doorbell:
    """Rings the hubs of this process directly. That is enough for a store of this process alone."""

    def ring(self, hints: Sequence[Hint]) -> None:
        """Tell every hub, in this process and in others. Works from any thread; never raises."""
        ring_here(hints)

    def receiver(self, hub: Listener) -> Receiver:
        """Return a hub's end of this doorbell."""
        return Receiver()


_lock: Final = ForkSafeLock()
# Replaced as a whole, so that ringing needs no lock.
_listeners: tuple[Listener, ...] = ()


def listen(listener: Listener) -> None:
    """Add a hub that the doorbells of this process ring."""
    global _listeners
    with _lock:
        _listeners = (*open_listeners(), listener)


def stop_listening(listener: Listener) -> None:
    """Remove a hub that was added by ``listen``."""
    global _listeners
    with _lock:
        _listeners = tuple(other for other in _listeners if other is not listener)


def _forget_listeners() -> None:
    global _listeners
    _listeners = ()


# The child of a fork inherits its parent's hubs, but not their running loops.
in_child(_forget_listeners)


def ring_here(hints: Sequence[Hint]) -> None:
    """Tell the hubs of this process. Works from any thread."""
    for listener in open_listeners():
        try:
            listener.hear_soon(hints)
        except Exception as error:
            # All other hubs still hear the hints, and this one finds the events in the store.
            log_seldom("A hub could not be rung.", exc_info=error)


def open_listeners() -> list[Listener]:
    """Return the hubs of this process whose loops are not closed."""
    return [listener for listener in _listeners if not listener.loop.is_closed()]
