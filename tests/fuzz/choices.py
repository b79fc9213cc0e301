"""Choices made by bytes: the same bytes choose the same, so a fuzzer can vary and repeat them."""

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Choices:
    """Reads choices from bytes; behind their end every choice is the first one."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        """How many bytes there are left."""
        return max(len(self._data) - self._at, 0)

    def number(self, below: int) -> int:
        """Choose a number from 0."""
        size = (max(below - 1, 1).bit_length() + 7) // 8
        return int.from_bytes(self.bytes(size)) % below

    def one_in(self, times: int) -> bool:
        """Say yes once in so many times; no behind the end."""
        return self.number(times) == times - 1

    def pick(self, values: Sequence[T]) -> T:
        """Choose one of some values."""
        return values[self.number(len(values))]

    def bytes(self, count: int) -> bytes:
        """Choose some bytes, fewer at the end."""
        taken = self._data[self._at : self._at + count]
        self._at += count
        return taken
