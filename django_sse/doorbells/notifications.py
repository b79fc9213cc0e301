"""The doorbell that the store rings itself, as events get their numbers."""

import asyncio
from collections.abc import Sequence

from django_sse.concurrency.tasks import spawn
from django_sse.doorbells.base import (
    POLL_SECONDS_WITH_DOORBELL,
    POLL_SECONDS_WITHOUT_DOORBELL,
    Doorbell,
    Listener,
    Receiver,
)
from django_sse.groups.entries import Hint
from django_sse.logs import log_seldom
from django_sse.stores.notifications import Notifications


class NotificationDoorbell(Doorbell):
    """Rings other processes only for changes without a number, such as a user who was saved.

    Numbering an event has already notified them.
    """

    def __init__(self, notifications: Notifications) -> None:
        self._notifications = notifications

    def ring(self, hints: Sequence[Hint]) -> None:
        super().ring(hints)
        if without_number := [hint for hint in hints if not hint.head]:
            try:
                self._notifications.notify(without_number)
            except Exception as error:
                log_seldom("The store could not notify hubs of a change.", exc_info=error)

    def receiver(self, hub: Listener) -> Receiver:
        return _NotificationReceiver(self._notifications, hub)


class _NotificationReceiver(Receiver):
    poll_seconds = POLL_SECONDS_WITHOUT_DOORBELL

    def __init__(self, notifications: Notifications, hub: Listener) -> None:
        self._subscriber = notifications.subscriber(hub.hear_soon, self._set_hearing)
        self._hub = hub
        self._listening: asyncio.Task[None] | None = None

    async def open(self) -> None:
        self._listening = spawn(self._subscriber.listen())

    async def enter(self, group: str) -> None:
        await self._subscriber.enter(group)

    async def enter_again(self, group: str) -> None:
        self._subscriber.doubt(group)

    async def leave(self, group: str) -> None:
        await self._subscriber.leave(group)

    async def close(self) -> None:
        if self._listening:
            self._listening.cancel()
            await asyncio.wait([self._listening])

    def _set_hearing(self, hears: bool) -> None:
        self.poll_seconds = POLL_SECONDS_WITH_DOORBELL if hears else POLL_SECONDS_WITHOUT_DOORBELL
        # If it hears again, notifications may have been missed. If not, they will be from now on.
        self._hub.compare_soon()
