"""What a server sends with is told from what a middleware puts around it."""

from functools import partial
from typing import Any

import pytest
from daphne.server import Server
from hypercorn.protocol.http_stream import HTTPStream
from uvicorn.protocols.http import h11_impl, httptools_impl

from django_sse.servers.own_send import needs_no_task


class Wrapped:
    def __init__(self, send: Any) -> None:
        self._send = send

    async def send(self, message: Any) -> None:
        await self._send(message)


def of(kind: Any, name: str) -> Any:
    return getattr(kind.__new__(kind), name)


# Granian's class cannot be made from Python: see tests/live/test_own_send.py.
@pytest.mark.parametrize(
    "send",
    [
        of(h11_impl.RequestResponseCycle, "send"),
        of(httptools_impl.RequestResponseCycle, "send"),
        partial(of(Server, "handle_reply"), object()),
        of(HTTPStream, "app_send"),
    ],
    ids=["h11", "httptools", "daphne", "hypercorn"],
)
def test_a_servers_own_needs_no_task(send: Any) -> None:
    assert needs_no_task(send)
    assert not needs_no_task(Wrapped(send).send)
    assert not needs_no_task(partial(Wrapped(send).send, object()))


@pytest.mark.parametrize("send", [None, print, Wrapped(print).send, lambda message: None])
def test_nothing_is_known_of_another_one(send: Any) -> None:
    assert not needs_no_task(send)
