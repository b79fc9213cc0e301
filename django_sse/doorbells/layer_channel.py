"""A hub's channel on the channel layer, in the Channels groups that the hub listens to."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

from channels.layers import BaseChannelLayer

from django_sse.concurrency.tasks import must_propagate, spawn
from django_sse.logs import log_seldom, logger

# How often memberships are renewed. They lapse after 24 hours by default, and the in-memory layer
# may lose them earlier.
_RENEW_SECONDS: Final = 600.0
# How long a call of the layer may take. A layer that hangs must not delay what can do without it.
LAYER_SECONDS: Final = 5.0
# The pause after an error of the layer.
_PAUSE_SECONDS: Final = 1.0
# The pause after the layer's own wait timed out. If it did not wait at all, other tasks still run.
_TIMEOUT_PAUSE_SECONDS: Final = 0.01
_NEVER: Final = float("-inf")

Message = dict[str, Any]


class LayerChannel:
    """Passes on the messages that the layer delivers to some groups.

    An error of the layer is logged once until the layer works again, and the failed call is tried
    again. The layer is only a doorbell: the store has the events.
    """

    def __init__(self, layer: BaseChannelLayer, take: Callable[[Message], None]) -> None:
        self._layer = layer
        self._take = take
        self._channel: str | None = None
        self._receiving: asyncio.Task[None] | None = None
        # When each group was last entered, by the loop's clock.
        self._groups: dict[str, float] = {}
        self._works = True
        # Calls to the layer are awaited one at a time, so that entering never overtakes leaving.
        self._lock = asyncio.Lock()
        expiry = getattr(layer, "group_expiry", None) or 2 * _RENEW_SECONDS
        self._renew_after = min(expiry / 2, _RENEW_SECONDS)

    async def enter(self, group: str) -> None:
        """Listen to a group."""
        self._groups.setdefault(group, _NEVER)
        async with self._lock:
            await self._add(group)

    async def enter_again(self, group: str) -> None:
        """Enter a group again whose membership seems to be lost."""
        if self._groups.get(group, _NEVER) == _NEVER:
            # It is being entered or left, or will be renewed. Do not ask a layer that hangs twice.
            return
        self._groups[group] = _NEVER
        async with self._lock:
            await self._add(group)

    async def leave(self, group: str) -> None:
        """Stop listening to a group."""
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
        """Enter groups again where that failed or the membership may lapse.

        Returns:
            Whether all of them could be entered.
        """
        expiring = asyncio.get_running_loop().time() - self._renew_after
        for group in [group for group, entered in self._groups.items() if entered < expiring]:
            async with self._lock:
                if not await self._add(group):
                    # Each of the others would wait for the same layer in vain.
                    return False
        return True

    async def close(self) -> None:
        """Leave all groups and stop listening."""
        for group in list(self._groups):
            await self.leave(group)
        async with self._lock:
            self._channel = None
        # Some layers swallow a cancellation.
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
                    # Pub/sub layers raise this for a channel that was flushed. It hears no more.
                    self._drop_channel()
                    await self._join(group)
        except BaseException as error:
            if must_propagate(error):
                raise
            self._report("Entering group %r of the channel layer failed.", group)
            return False
        # If the group was left meanwhile, `leave` waits for the lock and undoes this.
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
        # If the receiving task itself found the channel flushed, it ends by itself.
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
                    # No message came. channels_redis waits at most as long as redis-py does.
                    await asyncio.sleep(_TIMEOUT_PAUSE_SECONDS)
                    continue
                self._report("Receiving from the channel layer failed.")
                # A restarted layer has forgotten who is in its groups.
                self._lapse()
                entered = False
                while not entered:
                    await asyncio.sleep(_PAUSE_SECONDS)
                    entered = await self.renew()
                continue
            if not self._works:
                logger.info("The channel layer works again.")
                self._works = True
            try:
                self._take(message)
            except BaseException as error:
                if must_propagate(error):
                    raise
                log_seldom("A message from the channel layer could not be taken.", exc_info=error)

    def _report(self, what: str, *args: object) -> None:
        logger.log(logging.ERROR if self._works else logging.DEBUG, what, *args, exc_info=True)
        self._works = False


def _is_timeout(error: BaseException) -> bool:
    # The TimeoutError of redis-py and valkey-py is not Python's.
    return type(error).__name__ == "TimeoutError"
