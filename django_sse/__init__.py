"""Server-Sent Events for Django, streamed from Channels groups."""

from django_sse.access.owners import user_group
from django_sse.event import Event
from django_sse.exceptions import (
    EventStreamError,
    GroupCancelled,
    InvalidEvent,
    InvalidGroup,
    PartlyPublished,
)
from django_sse.groups.names import group_name
from django_sse.groups.namespaces import channel_group
from django_sse.publishing import (
    Published,
    acancel,
    aposition,
    apublish,
    apublish_many,
    apublish_template,
    apublish_to_user,
    areopen,
    cancel,
    position,
    publish,
    publish_many,
    publish_template,
    publish_to_user,
    reopen,
)

__version__ = "0.1.0"

__all__ = [
    "Event",
    "EventStreamError",
    "GroupCancelled",
    "InvalidEvent",
    "InvalidGroup",
    "PartlyPublished",
    "Published",
    "acancel",
    "aposition",
    "apublish",
    "apublish_many",
    "apublish_template",
    "apublish_to_user",
    "areopen",
    "cancel",
    "channel_group",
    "group_name",
    "position",
    "publish",
    "publish_many",
    "publish_template",
    "publish_to_user",
    "reopen",
    "user_group",
]
