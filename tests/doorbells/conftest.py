"""A hub, as far as doorbells know it."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from django_sse.doorbells.base import listen, stop_listening
from django_sse.groups.entries import Entry, Hint


def hint(*numbers: int, group: str = "news", cancelled: bool = False) -> Hint:
    """A hint that brings its entries; the last one closes a cancelled group."""
    entries = [Entry(number, b"data: %d\n\n" % number) for number in numbers[:-1]]
    entries.append(Entry(numbers[-1], b"data: %d\n\n" % numbers[-1], closes=cancelled))
    return Hint(group, numbers[-1], cancelled, tuple(entries))


class Ear:
    """Remembers what it was told."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.heard: list[Hint] = []
        self.compared = 0

    def hear_soon(self, hints: Sequence[Hint]) -> None:
        self.heard += hints

    def compare_soon(self) -> None:
        self.compared += 1

    def streams_of(self, group: str) -> int:
        return 0


@pytest.fixture
async def ear() -> AsyncIterator[Ear]:
    ear = Ear(asyncio.get_running_loop())
    listen(ear)
    yield ear
    stop_listening(ear)
