"""A channel of a hub's own on the channel layer, in the Channels groups that it listens to."""

import asyncio
from collections.abc import Callable
from typing import Any, Final

from channels.layers import BaseChannelLayer

from django_sse.tasks import logger, spawn

# Memberships lapse (after 24 hours by default, and in-memory ones by mishap): renewed this often.
_RENEW_SECONDS: Final = 600.0
# A layer that hangs must not hold up what would go on without it.
LAYER_SECONDS: Final = 5.0
# After an error of the layer.
_PAUSE_SECONDS: Final = 1.0
_NEVER: Final = float("-inf")

Message = dict[str, Any]


class Mailbox:
    """Passes on what the layer delivers to some groups. Errors of the layer are logged, and what
    failed is tried again by ``renew``: the layer is a doorbell, not the truth."""

    def __init__(self, layer: BaseChannelLayer, take: Callable[[Message], None]) -> None:
        self._layer = layer
        self._take = take
        self._channel: str | None = None
        self._receiving: asyncio.Task[None] | None = None
        # When each group was last entered.
        self._groups: dict[str, float] = {}
        # Layer calls are awaited one at a time, so that an entry never overtakes an exit.
        self._lock = asyncio.Lock()
        expiry = getattr(layer, "group_expiry", None) or 2 * _RENEW_SECONDS
        self._renew_after = min(expiry / 2, _RENEW_SECONDS)

    async def enter(self, group: str) -> None:
        """Listen to a group."""
        self._groups.setdefault(group, _NEVER)
        async with self._lock:
            await self._add(group)

    async def leave(self, group: str) -> None:
        """Listen to a group no longer."""
        self._groups.pop(group, None)
        async with self._lock:
            if self._channel is None or group in self._groups:
                return
            try:
                async with asyncio.timeout(LAYER_SECONDS):
                    await self._layer.group_discard(group, self._channel)
            except Exception:
                logger.exception("Leaving group %r of the channel layer failed.", group)

    async def renew(self) -> None:
        """Enter again where an entry failed or may lapse."""
        late = asyncio.get_running_loop().time() - self._renew_after
        for group in [group for group, entered in self._groups.items() if entered < late]:
            async with self._lock:
                await self._add(group)

    async def close(self) -> None:
        """Leave all groups and stop listening."""
        for group in list(self._groups):
            await self.leave(group)
        async with self._lock:
            if self._receiving:
                self._receiving.cancel()

    async def _add(self, group: str) -> None:
        if group not in self._groups:
            return
        try:
            async with asyncio.timeout(LAYER_SECONDS):
                if self._channel is None:
                    self._channel = await self._layer.new_channel()
                    self._receiving = spawn(self._receive(self._channel))
                await self._layer.group_add(group, self._channel)
        except Exception:
            logger.exception("Entering group %r of the channel layer failed.", group)
        else:
            # Unless it was left meanwhile: then what waits for the lock takes it back.
            if group in self._groups:
                self._groups[group] = asyncio.get_running_loop().time()

    async def _receive(self, channel: str) -> None:
        while True:
            try:
                message = await self._layer.receive(channel)
            except Exception:
                logger.exception("Receiving from the channel layer failed.")
                await asyncio.sleep(_PAUSE_SECONDS)
                continue
            try:
                self._take(message)
            except Exception:
                logger.exception("A message of the channel layer was not understood.")
