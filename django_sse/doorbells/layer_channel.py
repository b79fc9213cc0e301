"""A channel of a hub's own on the channel layer, in the Channels groups that it listens to."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

from channels.layers import BaseChannelLayer

from django_sse.concurrency.tasks import must_propagate, spawn
from django_sse.logs import log_seldom, logger

# Memberships lapse (after 24 hours by default, and in-memory ones by mishap): renewed this often.
_RENEW_SECONDS: Final = 600.0
# A layer that hangs must not hold up what would go on without it.
LAYER_SECONDS: Final = 5.0
# After an error of the layer.
_PAUSE_SECONDS: Final = 1.0
# After a wait of the layer's that came to nothing: if it did not wait at all, others still run.
_BREATH_SECONDS: Final = 0.01
_NEVER: Final = float("-inf")

Message = dict[str, Any]


class LayerChannel:
    """Passes on what the layer delivers to some groups. Errors of the layer are logged, once until
    it works again, and what failed is tried again: the layer is a doorbell, not the truth."""

    def __init__(self, layer: BaseChannelLayer, take: Callable[[Message], None]) -> None:
        self._layer = layer
        self._take = take
        self._channel: str | None = None
        self._receiving: asyncio.Task[None] | None = None
        # When each group was last entered.
        self._groups: dict[str, float] = {}
        self._works = True
        # Layer calls are awaited one at a time, so that an entry never overtakes an exit.
        self._lock = asyncio.Lock()
        expiry = getattr(layer, "group_expiry", None) or 2 * _RENEW_SECONDS
        self._renew_after = min(expiry / 2, _RENEW_SECONDS)

    async def enter(self, group: str) -> None:
        """Listen to a group."""
        self._groups.setdefault(group, _NEVER)
        async with self._lock:
            await self._add(group)

    async def enter_again(self, group: str) -> None:
        """Listen to a group that was entered, whose membership seems to be lost."""
        if self._groups.get(group, _NEVER) == _NEVER:
            # It is being entered, or left, or will be renewed: a layer that hangs is asked once.
            return
        self._groups[group] = _NEVER
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
            except BaseException as error:
                if must_propagate(error):
                    raise
                self._report("Leaving group %r of the channel layer failed.", group)

    async def renew(self) -> bool:
        """Enter again where an entry failed or may lapse; returns whether that was done."""
        late = asyncio.get_running_loop().time() - self._renew_after
        for group in [group for group, entered in self._groups.items() if entered < late]:
            async with self._lock:
                if not await self._add(group):
                    # The others would each wait for the same layer in vain.
                    return False
        return True

    async def close(self) -> None:
        """Leave all groups and stop listening."""
        for group in list(self._groups):
            await self.leave(group)
        async with self._lock:
            self._channel = None
        # Layers have been seen to swallow a cancellation.
        while self._receiving and not self._receiving.done():
            self._receiving.cancel()
            await asyncio.wait([self._receiving], timeout=_PAUSE_SECONDS)

    async def _add(self, group: str) -> bool:
        if group not in self._groups:
            return True
        try:
            async with asyncio.timeout(LAYER_SECONDS):
                try:
                    await self._join(group)
                except RuntimeError:
                    # What pub/sub layers say of a channel that was flushed: it is deaf for good.
                    self._drop_channel()
                    await self._join(group)
        except BaseException as error:
            if must_propagate(error):
                raise
            self._report("Entering group %r of the channel layer failed.", group)
            return False
        # Unless it was left meanwhile: then what waits for the lock takes it back.
        if group in self._groups:
            self._groups[group] = asyncio.get_running_loop().time()
        return True

    async def _join(self, group: str) -> None:
        if self._channel is None:
            self._channel = await self._layer.new_channel()
            self._receiving = spawn(self._receive(self._channel))
        await self._layer.group_add(group, self._channel)

    def _drop_channel(self) -> None:
        self._channel = None
        self._lapse()
        # It may be the one that found out: then it ends by itself.
        if self._receiving and self._receiving is not asyncio.current_task():
            self._receiving.cancel()

    def _lapse(self) -> None:
        self._groups = dict.fromkeys(self._groups, _NEVER)

    async def _receive(self, channel: str) -> None:
        while channel == self._channel:
            try:
                message = await self._layer.receive(channel)
            except BaseException as error:
                if must_propagate(error):
                    raise
                if _is_timeout(error):
                    # That nothing came. channels_redis waits for as long as redis-py does at most.
                    await asyncio.sleep(_BREATH_SECONDS)
                    continue
                self._report("Receiving from the channel layer failed.")
                # A layer that was restarted has forgotten who is in its groups.
                self._lapse()
                entered = False
                while not entered:
                    await asyncio.sleep(_PAUSE_SECONDS)
                    entered = await self.renew()
                continue
            if not self._works:
                logger.info("The channel layer is heard again.")
                self._works = True
            try:
                self._take(message)
            except BaseException as error:
                if must_propagate(error):
                    raise
                log_seldom("A message of the channel layer was not understood.", exc_info=error)

    def _report(self, what: str, *args: object) -> None:
        logger.log(logging.ERROR if self._works else logging.DEBUG, what, *args, exc_info=True)
        self._works = False


def _is_timeout(error: BaseException) -> bool:
    # Those of redis-py and valkey-py are not Python's.
    return type(error).__name__ == "TimeoutError"
