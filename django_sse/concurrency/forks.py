"""What the child of a fork begins anew.

A child has all of its parent's memory, but of the threads only the one that has forked. So there
runs no event loop of its parent's, what other threads did is left half done, and no lock that they
held is ever released.
"""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from threading import Lock
from types import TracebackType
from typing import Any, Final, Protocol
from weakref import WeakSet


class Forgetful(Protocol):
    """What belongs to one process."""

    def forget(self) -> None:
        """Begin anew, as the child of a fork. No other thread runs there yet."""


_forgetful: Final[WeakSet[Forgetful]] = WeakSet()


def in_child(begin_anew: Callable[[], None]) -> None:
    """Have a function called in each child of a fork, before anything else runs there."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=begin_anew)


def forget_in_child(something: Forgetful) -> None:
    """Have something forget in each child of a fork, as long as it is held by anybody else."""
    _forgetful.add(something)


class ForkSafeLock:
    """A lock that is free in the child of a fork, whoever held it in the parent."""

    def __init__(self, make: Callable[[], AbstractContextManager[Any]] = Lock) -> None:
        self._make = make
        self.forget()
        forget_in_child(self)

    def forget(self) -> None:
        """Be a new lock."""
        self._lock = self._make()

    def __enter__(self) -> None:
        self._lock.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._lock.__exit__(kind, error, traceback)


def _forget() -> None:
    for something in list(_forgetful):
        something.forget()


in_child(_forget)
