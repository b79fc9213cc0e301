"""Calls a view's ``filter_event`` and its handlers for Channels messages."""

import inspect
import logging
from collections.abc import Callable
from contextvars import Context
from copy import deepcopy

from django_sse.concurrency.tasks import must_propagate
from django_sse.conf import conf
from django_sse.doorbells.layer_channel import Message
from django_sse.event import Event, encode_published
from django_sse.groups.position import format_position
from django_sse.logs import log_first, log_seldom, view_name
from django_sse.streaming.encoded_events import EncodedEvent

EventFilter = Callable[[Event], Event | None]
MessageHandler = Callable[[Message], Event | None]


class WrongResultError(TypeError):
    """A view's filter or message handler returned a value of the wrong type."""


def filtered(encoded: EncodedEvent, filter_event: EventFilter, context: Context) -> bytes:
    """Return the bytes that a filter shows of an event. If the filter fails, it shows nothing."""
    try:
        event = encoded.decoded()
        shown = context.run(filter_event, event)
        return encoded.wire if shown is event else _wire_of(shown)
    except BaseException as error:
        if must_propagate(error):
            raise
        _log_hidden(encoded, filter_event, error)
        return b""


def handled(group: str, message: Message, handler: MessageHandler, context: Context) -> bytes:
    """Return the bytes of a handler's event for a message; nothing if the handler fails."""
    try:
        # A deep copy, since the other streams are given the same message.
        return _wire_of(context.run(handler, deepcopy(message)))
    except BaseException as error:
        if must_propagate(error):
            raise
        log_seldom(
            f"{view_name(handler)}: a message handler failed, so its streams do not show a "
            "message of type %r to group %r.",
            message.get("type"),
            group,
            level=logging.ERROR,
            exc_info=error,
        )
        return b""


def _log_hidden(encoded: EncodedEvent, filter_event: EventFilter, error: BaseException) -> None:
    view = view_name(filter_event)
    failed = f"{view}: filter_event failed, so its streams do not show"
    if isinstance(error, WrongResultError) or not encoded.number:
        # The filter fails for every event, or this event has no id to name it by.
        log_seldom(
            f"{failed} an event of %s.",
            f"group {encoded.group!r}" if encoded.group else "initial_events",
            level=logging.ERROR,
            exc_info=error,
        )
    else:
        log_first(
            (view, encoded.group, encoded.number),
            f"{failed} event %s of group %r.",
            format_position({encoded.group: encoded.number}),
            encoded.group,
            exc_info=error,
        )


def _wire_of(shown: object) -> bytes:
    """Return the encoded result of a view's filter or handler.

    Raises:
        WrongResultError: The result is neither an Event nor None.
        InvalidEvent: The event could not be published, either.
    """
    if shown is None:
        return b""
    if inspect.iscoroutine(shown):
        shown.close()
        raise WrongResultError(
            "This method has to be a plain `def`, not `async def`: it is called on the event loop "
            "for each stream, and must not wait."
        )
    if not isinstance(shown, Event):
        raise WrongResultError(
            f"This method has to return an Event or None, not {type(shown).__name__}."
        )
    return encode_published(shown, conf().MAX_EVENT_BYTES)
