"""Finds out whether events get from a publisher to the hubs of other processes."""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from time import monotonic
from typing import Final, Literal

from django_sse.concurrency.tasks import spawn
from django_sse.doorbells import doorbell_of
from django_sse.doorbells.base import Receiver, listen, stop_listening
from django_sse.event import Event
from django_sse.groups.entries import Hint, OwnEntry
from django_sse.groups.namespaces import INTERNAL
from django_sse.logs import log_seldom
from django_sse.stores import get_store
from django_sse.stores.base import EventStore

# Nobody follows it.
_GROUP: Final = f"{INTERNAL}/health"
# How long an answer waits until what was opened is closed.
_CLOSE_SECONDS: Final = 0.2

Part = Literal["write", "read", "doorbell"]


@dataclass(frozen=True, slots=True)
class Health:
    """The result of a test: the part that has failed, if one has, and how long it took."""

    failed: Part | None
    seconds: float


async def try_delivery(most_seconds: float) -> Health:
    """Publish an event to a group of the library's own, read it, and hear of it as another process
    does.

    Args:
        most_seconds: How long this may take.
    """
    began = monotonic()
    part: Part = "write"
    failed: Part | None = None
    async with AsyncExitStack() as at_end:
        try:
            async with asyncio.timeout(most_seconds):
                store = get_store()
                number = await _append(store)
                part = "read"
                if not await store.aread(_GROUP, number - 1, 1):
                    raise LookupError("What was just written is not in the event store.")
                part = "doorbell"
                await _hear(store, at_end)
        except Exception as error:
            log_seldom("The health check has failed (%s).", part, exc_info=error)
            failed = part
        return Health(failed, monotonic() - began)


async def _hear(store: EventStore, at_end: AsyncExitStack) -> None:
    """Publish until the doorbell is heard."""
    ear = _Ear()
    if store.crosses_processes:
        receiver = doorbell_of(store).test_receiver(ear)
        at_end.push_async_callback(_close, receiver)
        await receiver.open()
        await receiver.enter(_GROUP)
    else:
        # Its doorbell rings only the hubs of this process.
        listen(ear)
        at_end.callback(stop_listening, ear)
    number = await _append(store)
    while ear.head < number:
        ear.wake.clear()
        await ear.wake.wait()
        if ear.may_have_missed:
            ear.may_have_missed = False
            number = await _append(store)


async def _close(receiver: Receiver) -> None:
    # Some layers take a second for it, and one that hangs longer.
    await asyncio.wait([spawn(receiver.close())], timeout=_CLOSE_SECONDS)


async def _append(store: EventStore) -> int:
    entry = OwnEntry(_GROUP, Event("").encode())
    [number] = await store.aappend_apart([entry], doorbell_of(store).ring)
    assert number is not None
    return number


class _Ear:
    """The part of a hub that a doorbell uses."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.wake = asyncio.Event()
        self.head = 0
        """The last number that was heard of."""
        self.may_have_missed = False

    def hear_soon(self, hints: Sequence[Hint]) -> None:
        for hint in hints:
            if hint.group == _GROUP:
                # The loop may have been closed meanwhile.
                with suppress(RuntimeError):
                    self.loop.call_soon_threadsafe(self._hear, hint.head)

    def _hear(self, head: int) -> None:
        self.head = max(self.head, head)
        self.wake.set()

    def compare_soon(self) -> None:
        # Who listens may begin to hear only now.
        self.may_have_missed = True
        self.wake.set()

    def streams_of(self, group: str) -> int:
        return 0
