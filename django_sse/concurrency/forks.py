"""State that is reset in the child of a fork.

A child has all of its parent's memory, but only the thread that has forked. So its parent's event
loops do not run, work of other threads is left half done, and locks that they held are never
released.
"""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from threading import Lock
from types import TracebackType
from typing import Any, Final, Protocol
from weakref import WeakSet


class Forgetful(Protocol):
    """An object whose state belongs to one process."""

    def forget(self) -> None:
        """Reset the state in the child of a fork. No other thread runs there yet."""


_forgetful: Final[WeakSet[Forgetful]] = WeakSet()


def in_child(reset: Callable[[], None]) -> None:
    """Call a function in each child of a fork, before anything else runs there."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=reset)


def forget_in_child(something: Forgetful) -> None:
    """Call an object's ``forget`` in each child of a fork. Only a weak reference is kept."""
    _forgetful.add(something)


class ForkSafeLock:
    """A lock that is free in the child of a fork, even if it was held in the parent."""

    def __init__(self, make: Callable[[], AbstractContextManager[Any]] = Lock) -> None:
        self._make = make
        self.forget()
        forget_in_child(self)

    def forget(self) -> None:
        """Replace the lock by a new one."""
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
