"""Follows a group for its producer, to notice when the producer has to stop."""

import asyncio
from math import inf
from typing import ClassVar

from django_sse.access.owners import Owner
from django_sse.streaming.encoded_events import Batch
from django_sse.streaming.send_queue import LastBytes
from django_sse.streaming.stream import Phase, Registry, Stream
from django_sse.streaming.subscription import Subscription


class Watch(Stream):
    """A stream without a client. It ends with its group, or when its owner's streams are ended.

    Args:
        hub: The hub of the running loop.
        group: The full name of the group.
        owner: The owner of the producer.
    """

    __slots__ = ()

    is_counted: ClassVar[bool] = False

    def __init__(self, hub: Registry, group: str, owner: Owner) -> None:
        super().__init__(hub, {group: 0}, wants_messages=False, owner=owner)
        self._ends_at = inf

    async def open(self) -> None:
        await super().open()
        if self.phase is Phase.OPENING:
            self._enter(Phase.LIVE)

    def take(self, subscription: Subscription, batch: Batch, now: float) -> None:
        if subscription.cancelled:
            self.end_if_cancelled()

    def pause_until(self, checked: asyncio.Future[None]) -> None:
        """Do nothing: nobody gets events from this stream."""

    def end(self, reason: str, last_bytes: LastBytes | None = None) -> None:
        # A server that shuts down sends back its clients. The producer may go on for a while.
        if reason != "shutdown":
            super().end(reason)

    def _is_behind(self, subscription: Subscription) -> bool:
        return False
