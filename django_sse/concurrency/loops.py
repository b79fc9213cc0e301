"""What is kept for each event loop: a process may have several, and make new ones all the time."""

from asyncio import AbstractEventLoop
from collections.abc import Callable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class ByLoop(dict[AbstractEventLoop, Value], Generic[Value]):
    """Values by event loop. Each new one has those of closed loops dropped.

    Args:
        when_dropped: Called with each value that was dropped.
    """

    def __init__(self, when_dropped: Callable[[Value], object] = lambda value: None) -> None:
        super().__init__()
        self._when_dropped = when_dropped

    def __setitem__(self, loop: AbstractEventLoop, value: Value) -> None:
        self.drop_closed()
        super().__setitem__(loop, value)

    def of(self, loop: AbstractEventLoop, make: Callable[[], Value]) -> Value:
        """Return the value of a loop; make one if there is none."""
        if loop not in self:
            self[loop] = make()
        return self[loop]

    def drop_closed(self) -> None:
        """Drop the values of closed loops."""
        for loop in list(self):
            # Another thread may have dropped it just now.
            if loop.is_closed() and (value := self.pop(loop, None)) is not None:
                self._when_dropped(value)

    def of_open_loops(self) -> list[Value]:
        """Return the values of loops that are not closed. Works from any thread."""
        return [value for loop, value in list(self.items()) if not loop.is_closed()]
