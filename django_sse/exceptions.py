"""The errors of django_sse.

EventStreamError
├── InvalidEvent     (a ValueError)
├── InvalidGroup     (a ValueError)
└── GroupCancelled
"""


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
