"""Makes sending wait for a client that does not read, on daphne as on other servers.

Other servers' ``send`` waits by itself. Daphne's returns at once, and bytes that are not read pile
up without limit. Below daphne, Twisted tells a registered producer when to pause:
https://docs.twisted.org/en/stable/core/howto/producers.html. Only the way from daphne's ``send`` to
its request is not public. If it leads elsewhere, ``send`` is left unchanged.
"""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

Send = Callable[[Any], Awaitable[None]]


def brake_for(send: Send) -> "Brake | None":
    """Return what makes a server's ``send`` wait for the client, unless it does so by itself."""
    request = send.args[0] if isinstance(send, partial) and send.args else None
    if getattr(request, "channel", None) is None or not hasattr(request, "registerProducer"):
        return None
    return Brake(send, request)


class Brake:
    """Sends, and waits until the client reads what is sent: a push producer, in Twisted's terms."""

    __slots__ = ("_request", "_resumed", "_send")

    def __init__(self, send: Send, request: Any) -> None:
        self._send = send
        self._request = request
        # Set once the client reads again. None while it reads: to most streams nothing else
        # happens, and an event with its queue would be a part of what each of them takes.
        self._resumed: asyncio.Event | None = None
        request.registerProducer(self, True)

    async def send(self, message: Any) -> None:
        """Send a message, and wait until the client reads or has left."""
        await self._send(message)
        while self._resumed:
            await self._resumed.wait()

    def release(self) -> None:
        """Wait for the client no longer."""
        self.resumeProducing()
        request, self._request = self._request, None
        # A request without a channel has lost its client.
        if getattr(request, "channel", None) is not None:
            request.unregisterProducer()

    def pauseProducing(self) -> None:  # noqa: N802
        if self._request and not self._resumed:
            self._resumed = asyncio.Event()

    def resumeProducing(self) -> None:  # noqa: N802
        resumed, self._resumed = self._resumed, None
        if resumed:
            resumed.set()

    def stopProducing(self) -> None:  # noqa: N802
        self.resumeProducing()
