"""Sending waits for a client that does not read, below daphne: its request tells when."""

import asyncio
from functools import partial
from typing import Any

import pytest

from django_sse.servers.backpressure import waiting_for_client


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
    with waiting_for_client(partial(handle_reply, request)) as send:
        await send("first")
        request.producer.pauseProducing()
        sending = asyncio.ensure_future(send("second"))
        done, _ = await asyncio.wait([sending], timeout=0.05)
        assert not done
        assert request.sent == ["first", "second"]
        request.producer.resumeProducing()
        await sending
    assert request.producer is None


@pytest.mark.parametrize("ends", ["stopped", "left"])
async def test_nobody_waits_for_a_client_that_has_gone(ends: str) -> None:
    request = DaphneRequest()
    with waiting_for_client(partial(handle_reply, request)) as send:
        producer = request.producer
        producer.pauseProducing()
        sending = asyncio.ensure_future(send("first"))
        await asyncio.sleep(0)
        # Twisted has unregistered by itself what it has stopped.
        request.channel = None
        if ends == "stopped":
            producer.stopProducing()
            await sending
    await sending


@pytest.mark.parametrize("without", ["request", "channel"])
async def test_another_servers_send_is_left_as_it_is(without: str) -> None:
    request = DaphneRequest()
    if without == "channel":
        request.channel = None
    send: Any = asyncio.sleep if without == "request" else partial(handle_reply, request)
    with waiting_for_client(send) as given:
        assert given is send
    assert request.producer is None
