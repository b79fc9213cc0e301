"""Orders to publish, which a server takes as requests below ``/orders/``.

They go round the application, so that what publishing costs is not hidden by a request of it.
"""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from time import perf_counter
from typing import Any
from urllib.parse import parse_qsl

from tests.benchmarks.apps.payload import payload

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]
Publish = Callable[[str, str], Awaitable[object]]

_ORDERS = "/orders/"
_WATCH_SECONDS = 0.001


class Orders:
    """An ASGI application that takes orders, and passes all else on to the contender's."""

    def __init__(
        self,
        application: Any,
        publish: Publish,
        *,
        burst: Callable[[str, int], Awaitable[object]] | None = None,
        each: Callable[[int, int], Awaitable[object]] | None = None,
        position: Callable[[str], Awaitable[str]] | None = None,
    ) -> None:
        """Take orders for an application.

        Args:
            publish: Publishes to a group, the way that the contender's users do in async code.
            burst: Publishes so many events to a group without giving way between two of them,
                where ``publish`` would give way by itself.
            each: Publishes so many events to each of so many groups of one, where users may do that
                in synchronous code.
            position: Returns the id at which a group stands.
        """
        self._application = application
        self._publish = publish
        self._burst = burst or self._burst_of_publish
        self._each = each or self.order_each_async
        self._position = position
        self._loop_watch: asyncio.Task[None] | None = None
        self._longest_hold = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _live(receive, send)
            return
        if not scope["path"].startswith(_ORDERS):
            await self._application(scope, receive, send)
            return
        given = {name: int(value) for name, value in parse_qsl(scope["query_string"].decode())}
        answer = await getattr(self, f"order_{scope['path'].removeprefix(_ORDERS)}")(**given)
        body = str(answer).encode()
        headers = [(b"content-length", str(len(body)).encode()), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def order_burst(self, events: int) -> None:
        """Publish to all, without giving way."""
        await self._burst("all", events)

    async def order_yielding(self, events: int) -> None:
        """Publish to all, and give way after each event."""
        for number in range(1, events + 1):
            await self._publish("all", payload(number))
            await asyncio.sleep(0)

    async def order_paced(self, events: int, milliseconds: int) -> None:
        """Publish to all at a pace."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        for number in range(1, events + 1):
            await asyncio.sleep(begun + number * milliseconds / 1000 - loop.time())
            await self._publish("all", payload(number))

    async def order_each(self, groups: int, events: int) -> None:
        """Publish to each of the groups of one, in turn."""
        await self._each(groups, events)

    async def order_each_async(self, groups: int, events: int) -> None:
        """Publish to each of the groups of one, in turn, in async code."""
        for number in range(1, events + 1):
            for group in range(groups):
                await self._publish(f"one-{group}", payload(number))

    async def order_aside(self, events: int) -> None:
        """Publish to groups that nobody follows, an event to each."""
        for group in range(events):
            await self._publish(f"aside-{group}", payload(1))

    async def order_position(self) -> str:
        """Return the id at which the group of all stands."""
        assert self._position
        return await self._position("all")

    async def order_watch(self) -> None:
        """Begin to watch for how long the loop is held."""
        self._loop_watch = asyncio.create_task(self._watch_loop())

    async def order_longest_hold(self) -> float:
        """Return for how many milliseconds at most the loop was held."""
        assert self._loop_watch
        self._loop_watch.cancel()
        return self._longest_hold * 1000

    async def _watch_loop(self) -> None:
        self._longest_hold = 0.0
        while True:
            before = perf_counter()
            # Not all the time, which would itself cost.
            await asyncio.sleep(_WATCH_SECONDS)
            self._longest_hold = max(self._longest_hold, perf_counter() - before - _WATCH_SECONDS)

    async def _burst_of_publish(self, group: str, events: int) -> None:
        for number in range(1, events + 1):
            await self._publish(group, payload(number))


async def _live(receive: Receive, send: Send) -> None:
    """Answer the server's start and end, of which not every application knows."""
    for what in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{what}.complete"})
