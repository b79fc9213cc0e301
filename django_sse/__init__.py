"""Server-Sent Events for Django, streamed from Channels groups."""

from django_sse.event import Event
from django_sse.exceptions import EventStreamError, GroupCancelled, InvalidEvent, InvalidGroup
from django_sse.publishing import (
    Published,
    acancel,
    aposition,
    apublish,
    apublish_many,
    areopen,
    cancel,
    position,
    publish,
    publish_many,
    reopen,
)

__version__ = "0.1.0"

__all__ = [
    "Event",
    "EventStreamError",
    "GroupCancelled",
    "InvalidEvent",
    "InvalidGroup",
    "Published",
    "acancel",
    "aposition",
    "apublish",
    "apublish_many",
    "areopen",
    "cancel",
    "position",
    "publish",
    "publish_many",
    "reopen",
]
