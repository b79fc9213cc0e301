"""The doorbell that PostgreSQL rings itself, by NOTIFY, as events are numbered."""

import asyncio

from django_sse.doorbells.base import DEAF_SECONDS, HEARING_SECONDS, Doorbell, Listener, Receiver
from django_sse.stores.notifications import Notifications
from django_sse.tasks import spawn


class NotificationDoorbell(Doorbell):
    """Rings nobody else: numbering an event has notified the hubs of other processes."""

    def __init__(self, notifications: Notifications) -> None:
        self._notifications = notifications

    def receiver(self, hub: Listener) -> Receiver:
        return _NotificationReceiver(self._notifications, hub)


class _NotificationReceiver(Receiver):
    poll_seconds = DEAF_SECONDS

    def __init__(self, notifications: Notifications, hub: Listener) -> None:
        self._notifications = notifications
        self._hub = hub
        self._listening: asyncio.Task[None] | None = None

    async def open(self) -> None:
        self._listening = spawn(self._notifications.listen(self._hub.hear_soon, self._set_hearing))

    async def close(self) -> None:
        if self._listening:
            self._listening.cancel()
            await asyncio.wait([self._listening])

    def _set_hearing(self, hears: bool) -> None:
        self.poll_seconds = HEARING_SECONDS if hears else DEAF_SECONDS
        # Something may have been missed before this, and will be from here on otherwise.
        self._hub.compare_soon()
