"""Answers of so many words a second, as a language model gives them."""

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

from tests.benchmarks.apps.orders import Orders
from tests.benchmarks.apps.payload import payload

ANSWERS = int(os.environ.get("BENCH_ANSWERS", 100))
# What the load client reads of a payload, and no more: a word is short.
_WORD_BYTES = 32


class Answers(Orders):
    """An application whose answers wait until they are ordered, and then begin together."""

    def __init__(self, application: Any) -> None:
        super().__init__(application, _publish_nothing)
        self._begun = asyncio.Event()
        self._begin = 0.0
        self._words = 0
        self._seconds = 0.0

    async def order_answers(self, words: int, milliseconds: int) -> None:
        """Let each answer that a reader waits for say so many words, one every so many
        milliseconds."""
        self._words, self._seconds = words, milliseconds / 1000
        self._begin = asyncio.get_running_loop().time()
        self._begun.set()
        await asyncio.sleep(self._begin + (words + 1) * self._seconds - self._now())

    async def words(self, answer: int) -> AsyncIterator[str]:
        """Say the words of an answer. The answers take turns."""
        await self._begun.wait()
        begin = self._begin + answer / ANSWERS * self._seconds
        for number in range(1, self._words + 1):
            await asyncio.sleep(begin + number * self._seconds - self._now())
            yield payload(number)[:_WORD_BYTES]

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


async def _publish_nothing(group: str, data: str) -> None:
    """Everything is said in answers."""
