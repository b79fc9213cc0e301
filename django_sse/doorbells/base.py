"""The base of all doorbells: it rings the hubs of this process."""

import asyncio
from collections.abc import Sequence
from threading import Lock
from typing import Final, Protocol

from django_sse.concurrency.forks import ForkSafeLock, forget_in_child, in_child
from django_sse.concurrency.signal_calls import is_heard, send_signal
from django_sse.event import Event, decode_block
from django_sse.groups.entries import Hint
from django_sse.groups.namespaces import is_internal, namespace_in, plain_name
from django_sse.groups.position import format_position
from django_sse.logs import log_seldom, logger
from django_sse.signals import event_published
from django_sse.stores import get_store

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

    def streams_of(self, group: str) -> int:
        """Return how many streams follow a group. Works from any thread."""


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
        """Tell every hub, in this process and in others. Works from any thread; never raises.

        Whoever has appended the entries of the hints calls it, once.
        """
        ring_here(hints)
        published.note(hints)

    def receiver(self, hub: Listener) -> Receiver:
        """Return a hub's end of this doorbell."""
        return Receiver()

    def test_receiver(self, hub: Listener) -> Receiver:
        """Return an end that hears as another process would, and so what this one rings, too."""
        return self.receiver(hub)


class Published:
    """Counts the events that this process publishes, and tells of them who wants to know."""

    def __init__(self) -> None:
        self.forget()
        forget_in_child(self)

    def forget(self) -> None:
        """Begin at 0 in the child of a fork."""
        self.count = 0
        # Not a ForkSafeLock, which would take longer than all else here.
        self._lock = Lock()

    def note(self, hints: Sequence[Hint]) -> None:
        """Count the new events, log them, and send ``event_published``."""
        count = 0
        for hint in hints:
            if not is_internal(hint.group):
                for entry in hint.entries:
                    count += not entry.closes
        if count:
            with self._lock:
                self.count += count
        if not is_heard(event_published):
            return
        try:
            for hint in hints:
                if not is_internal(hint.group):
                    _tell_of(hint)
        except Exception as error:
            # The events are published.
            log_seldom("Receivers could not be told of what was published.", exc_info=error)


published: Final = Published()


def _tell_of(hint: Hint) -> None:
    group = plain_name(hint.group)
    listeners = open_listeners()
    streams = sum(listener.streams_of(hint.group) for listener in listeners)
    if listeners:
        who_gets_it = f"Streams of it in this process: {streams}."
    elif get_store().crosses_processes:
        who_gets_it = (
            f"This process has no streams; `manage.py sse_status {group}` tells of those of others."
        )
    else:
        who_gets_it = (
            "This process has no streams, and no other one sees it: the event store is in memory."
        )
    for entry in hint.entries:
        event_id = format_position({hint.group: entry.number})
        logger.debug(
            "%s of %s is published as %s. %s",
            "The end" if entry.closes else "An event",
            group,
            event_id,
            who_gets_it,
            extra={"group": group, "id": event_id, "streams": streams},
        )
        if not entry.closes:
            send_signal(
                event_published,
                Event,
                group=group,
                namespace=namespace_in(hint.group),
                id=event_id,
                event=decode_block(entry.wire),
            )


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
