"""The test project with healing off: where events are missing, it goes on with what is new.

It does what one does without numbers and without a store to ask. The soak test has to fail on it.
"""

from django_sse.groups.entries import Hint
from django_sse.groups.replay import join
from django_sse.streaming.subscription import Subscription
from tests.asgi import application

__all__ = ["application"]


def _hear(self: Subscription, hint: Hint) -> None:
    if not self.joined.done():
        self._early_hints.append(hint)
    elif new := [entry for entry in hint.entries if entry.number > self.head]:
        self.cancelled = hint.cancelled
        self._add(new)
    elif hint.head > self.head or hint.cancelled != self.cancelled:
        self.heal()


async def _fetch(self: Subscription, expected_head: float) -> None:
    """Take only the newest event."""
    state = (await self._store.astates([self.group]))[self.group]
    entries = await self._store.aread(self.group, state.head - 1, 1)
    self.cancelled = state.cancelled
    self._add(join(state.head - 1, entries)[0] if state.head > self.head else [])
    self._end_cancelled()


Subscription.hear = _hear  # type: ignore[method-assign]
Subscription._fetch = _fetch  # type: ignore[method-assign]
