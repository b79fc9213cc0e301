"""What a server sends with is told from what a middleware puts around it.

What the other servers send with is asked of running ones: see ``tests/live/test_own_send.py``.
"""

from functools import partial
from typing import Any

import pytest
from uvicorn.protocols.http import h11_impl, httptools_impl

from django_sse.servers.own_send import needs_no_task


class Wrapped:
    def __init__(self, send: Any) -> None:
        self._send = send

    async def send(self, message: Any) -> None:
        await self._send(message)


def test_uvicorns_own_needs_no_task() -> None:
    for module in (h11_impl, httptools_impl):
        send = module.RequestResponseCycle.__new__(module.RequestResponseCycle).send
        assert needs_no_task(send)
        assert needs_no_task(partial(send))
        assert not needs_no_task(Wrapped(send).send)
        assert not needs_no_task(partial(Wrapped(send).send))


@pytest.mark.parametrize("send", [None, print, Wrapped(print).send, lambda message: None])
def test_nothing_is_known_of_another_one(send: Any) -> None:
    assert not needs_no_task(send)
