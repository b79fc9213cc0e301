"""Sending waits for a client that does not read, below daphne: its request tells when."""

import asyncio
from functools import partial
from typing import Any

import pytest

from django_sse.servers.backpressure import brake_for


class DaphneRequest:
    """What is used of daphne's request, which is one of Twisted's."""

    def __init__(self) -> None:
        self.channel: object | None = object()
        self.sent: list[Any] = []
        self.producer: Any = None

    def registerProducer(self, producer: Any, streaming: bool) -> None:  # noqa: N802
        assert streaming
        self.producer = producer

    def unregisterProducer(self) -> None:  # noqa: N802
        assert self.channel
        self.producer = None


async def handle_reply(request: DaphneRequest, message: Any) -> None:
    request.sent.append(message)


async def test_sending_waits_while_the_client_does_not_read() -> None:
    request = DaphneRequest()
    brake = brake_for(partial(handle_reply, request))
    assert brake
    await brake.send("first")
    request.producer.pauseProducing()
    sending = asyncio.ensure_future(brake.send("second"))
    done, _ = await asyncio.wait([sending], timeout=0.05)
    assert not done
    assert request.sent == ["first", "second"]
    request.producer.resumeProducing()
    await sending
    brake.release()
    assert request.producer is None


@pytest.mark.parametrize("ends", ["stopped", "left"])
async def test_nobody_waits_for_a_client_that_has_gone(ends: str) -> None:
    request = DaphneRequest()
    brake = brake_for(partial(handle_reply, request))
    assert brake
    request.producer.pauseProducing()
    sending = asyncio.ensure_future(brake.send("first"))
    await asyncio.sleep(0)
    # Twisted has unregistered by itself what it has stopped.
    request.channel = None
    if ends == "stopped":
        request.producer.stopProducing()
        await sending
    brake.release()
    await sending


async def test_who_is_released_does_not_wait_again() -> None:
    request = DaphneRequest()
    brake = brake_for(partial(handle_reply, request))
    assert brake
    producer = request.producer
    brake.release()
    brake.release()
    producer.pauseProducing()
    await brake.send("last")
    assert request.sent == ["last"]


@pytest.mark.parametrize("without", ["request", "channel"])
async def test_another_server_waits_by_itself(without: str) -> None:
    request = DaphneRequest()
    if without == "channel":
        request.channel = None
    send: Any = asyncio.sleep if without == "request" else partial(handle_reply, request)
    assert brake_for(send) is None
    assert request.producer is None
