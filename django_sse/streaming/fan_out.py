"""Hands new events out to streams, a few in each turn of the event loop."""

import asyncio
from collections import deque
from contextvars import Context
from typing import Final, Protocol

# Streams served in one turn, so that neither a large group nor many small ones hold the event loop
# for long. What is published between two turns joins what waits: the fewer, the more is joined, and
# a turn itself costs as much as a stream or two.
STREAMS_A_TURN: Final = 64


class Source(Protocol):
    """The part of a subscription that a fan-out uses."""

    @property
    def has_new_events(self) -> bool:
        """Whether some streams do not have all new events yet."""

    def hand_out(self, limit: int) -> int:
        """Hand new events to up to ``limit`` streams. Return to how many."""


class FanOut:
    """Lets the groups of a hub hand out their new events in turn."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: deque[Source] = deque()
        self._runs_soon = False

    def add(self, source: Source) -> None:
        """Let a source hand out its new events soon. One that is added twice has an empty turn."""
        self._waiting.append(source)
        self._run_soon()

    def _run_soon(self) -> None:
        if not self._runs_soon:
            self._runs_soon = True
            self._loop.call_soon(self._run, context=Context())

    def _run(self) -> None:
        self._runs_soon = False
        room = STREAMS_A_TURN
        try:
            while self._waiting and room > 0:
                source = self._waiting.popleft()
                try:
                    # A source without streams takes time, too.
                    room -= source.hand_out(room) or 1
                finally:
                    if source.has_new_events:
                        self._waiting.append(source)
        finally:
            # Go on even after KeyboardInterrupt or SystemExit: the process may not end.
            if self._waiting:
                self._run_soon()
