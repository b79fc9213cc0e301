"""The errors of django_sse.

EventStreamError
├── InvalidEvent     (a ValueError)
├── InvalidGroup     (a ValueError)
├── GroupCancelled
│   └── Cancelled
└── AlreadyProducing

``Close`` is not an error: a generator raises it to end its stream.
"""

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
