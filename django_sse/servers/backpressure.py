"""Makes sending wait for a client that does not read, on daphne as on other servers.

Other servers' ``send`` waits by itself. Daphne's returns at once, and bytes that are not read pile
up without limit. Below daphne, Twisted tells a registered producer when to pause:
https://docs.twisted.org/en/stable/core/howto/producers.html. Only the way from daphne's ``send`` to
its request is not public. If it leads elsewhere, ``send`` is left unchanged.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

Send = Callable[[Any], Awaitable[None]]


@contextmanager
def waiting_for_client(send: Send) -> Iterator[Send]:
    """Yield a server's ``send`` that waits until the client reads what is sent."""
    request = _twisted_request(send)
    if request is None:
        yield send
        return
    brake = _Brake()

    async def send_and_wait(message: Any) -> None:
        await send(message)
        await brake.released.wait()

    request.registerProducer(brake, True)
    try:
        yield send_and_wait
    finally:
        brake.released.set()
        # A request without a channel has lost its client.
        if getattr(request, "channel", None) is not None:
            request.unregisterProducer()


class _Brake:
    """A push producer, in Twisted's terms."""

    def __init__(self) -> None:
        self.released = asyncio.Event()
        self.released.set()

    def pauseProducing(self) -> None:  # noqa: N802
        self.released.clear()

    def resumeProducing(self) -> None:  # noqa: N802
        self.released.set()

    def stopProducing(self) -> None:  # noqa: N802
        self.released.set()


def _twisted_request(send: Send) -> Any:
    request = send.args[0] if isinstance(send, partial) and send.args else None
    if getattr(request, "channel", None) is None or not hasattr(request, "registerProducer"):
        return None
    return request
