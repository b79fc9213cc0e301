"""The errors of django_sse.

EventStreamError
├── InvalidEvent     (a ValueError)
├── InvalidGroup     (a ValueError)
├── GroupCancelled
│   └── Cancelled
├── AlreadyProducing
└── PartlyPublished

``Close`` is not an error: a generator raises it to end its stream.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from django.utils.functional import Promise


class EventStreamError(Exception):
    """Base of every error that django_sse raises itself."""


class InvalidEvent(EventStreamError, ValueError):
    """An event that cannot be written to a stream, or that must not be published."""


class InvalidGroup(EventStreamError, ValueError):
    """Not a valid Channels group name."""


class GroupCancelled(EventStreamError):
    """The group was cancelled. ``reopen()`` brings it back."""

    def __init__(self, group: str) -> None:
        self.group = group
        super().__init__(
            f"Group {group!r} is cancelled, so nothing can be published to it. "
            f"Call django_sse.reopen({group!r}) (or `manage.py sse_reopen {group}`) first."
        )


class Cancelled(GroupCancelled):
    """What a producer does is not wanted any more: its group was cancelled, or is no longer its
    own."""


class AlreadyProducing(EventStreamError):
    """Another producer publishes to the group. Stream the group to join it."""

    def __init__(self, group: str) -> None:
        self.group = group
        super().__init__(
            f"Group {group!r} has a producer already. Stream the group to follow it, or cancel the "
            "group to stop it."
        )


class PartlyPublished(EventStreamError):
    """Some servers of a Redis Cluster have taken their groups' events, and others have not.

    All events of one group, and of all groups in one slot, are published together or not at all.
    ``__cause__`` is the first error of the others. If it is a ``ConnectionError`` or
    ``TimeoutError``, nobody knows whether their events are published.

    Args:
        published: The groups whose events are published.
        failed: The other groups.
        hints: What hubs have to be told of the published events.
    """

    def __init__(
        self, published: Iterable[str], failed: Iterable[str], hints: Sequence[Any] = ()
    ) -> None:
        self.published = tuple(dict.fromkeys(published))
        self.failed = tuple(dict.fromkeys(failed))
        self.hints = hints
        super().__init__(
            f"The events for {_listed(self.published)} are published. Those for "
            f"{_listed(self.failed)} are not, or nobody knows."
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # It may be raised in a process of a pool.
        return type(self), (self.published, self.failed)


class Close(Exception):
    """Raised by a generator to end its stream for good, and to tell the client why.

    Args:
        reason: Sent to the client in the ``close`` event, as ``{"reason": reason}``. It may be
            translated lazily.
        result: Sent with it, as ``{"reason": reason, "result": result}``, unless it is None.

    Raises:
        TypeError: The reason is not text.
    """

    def __init__(self, reason: str | Promise, result: Any = None) -> None:
        if not isinstance(reason, str | Promise):
            raise TypeError(f"The reason has to be text, not {type(reason).__name__}.")
        self.reason = str(reason)
        self.result = result
        super().__init__(self.reason)


def _listed(groups: Iterable[str]) -> str:
    return ", ".join(map(repr, groups))
