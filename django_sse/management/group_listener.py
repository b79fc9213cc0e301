"""Follows a group from a terminal as a server does: by the event store and its doorbell."""

import asyncio
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from typing import Any, ClassVar, Final

from django_sse.groups.entries import GroupState
from django_sse.groups.position import LOST, parse_position
from django_sse.groups.replay import starting_point
from django_sse.management.group_command import said_of
from django_sse.management.printer import Printer
from django_sse.management.stream_problems import NotStreamedError
from django_sse.streaming.hub import current_hub
from django_sse.streaming.stream import Stream

# How often it is looked whether events came without a doorbell, and for how long a doorbell may not
# be heard yet.
_LOOK_SECONDS: Final = 0.2
_SETTLE_SECONDS: Final = 2.0
# How long what is still open may take to close.
_CLOSE_SECONDS: Final = 5.0
# The pause before the store is asked again after a stream was ended.
_PAUSE_SECONDS: Final = 1.0


class _Listening(Stream):
    """A stream that is no client's."""

    __slots__ = ()

    is_counted: ClassVar[bool] = False


async def listen_to_group(group: str, full_name: str, printer: Printer, history: int) -> None:
    """Print the events of a group until it is cancelled.

    Args:
        group: The group.
        full_name: Its full name.
        printer: Prints the events. It knows after which id to begin.
        history: How many past events to begin with, if there is no such id.

    Raises:
        NotStreamedError: The group is cancelled, or the id is not one of its stream.
        BrokenPipeError: Who has read the output has had enough.
        Exception: The event store could not be read.
    """
    sent = parse_position(printer.last_event_id, [full_name])
    if printer.last_event_id and sent.get(full_name, LOST) == LOST:
        raise NotStreamedError(
            f"The id {printer.last_event_id!r} is not one of a stream of {group}, or SECRET_KEY "
            "has changed since."
        )
    # The note and the start come from one read: an event published after the note is not missed.
    states = await current_hub().states([full_name], sent, history)
    state = states[full_name]
    said = f"{group}: {said_of(state, group)}"
    if state.cancelled:
        raise NotStreamedError(said)
    printer.note(said)
    try:
        while not await _is_over(states, sent, printer, history):
            sent |= parse_position(printer.last_event_id, [full_name])
            printer.note("The stream begins anew.")
            states = await current_hub().states([full_name], sent, history)
    finally:
        # The hub closes what it has opened, such as a socket with a name.
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                while others := asyncio.all_tasks() - {asyncio.current_task()}:
                    await asyncio.wait(others)


async def _is_over(
    states: Mapping[str, GroupState], sent: dict[str, int], printer: Printer, history: int
) -> bool:
    """Print what a stream brings until it ends, and return whether a client must not come back.

    Args:
        states: The state of the group, by its full name.
        sent: The position to begin after. It is replaced by that of the stream.
        printer: Prints the events.
        history: How many past events to begin with, if there is no position.
    """
    begin = starting_point(sent, states, history)
    if begin.over:
        return True
    if begin.reset:
        printer.note("Events are lost (`reset`): the store does not keep them any more.")
    sent |= begin.position
    reason = await _stream(begin.position, printer)
    if reason == "cancelled":
        return True
    printer.note(f"The stream has ended: {reason}.")
    # Whatever has ended it may do so again at once.
    await asyncio.sleep(_PAUSE_SECONDS)
    return False


async def _stream(position: Mapping[str, int], printer: Printer) -> str:
    """Print what a stream brings, and return why it has ended.

    Raises:
        BrokenPipeError: Who has read the output has had enough.
        Exception: The event store could not be read.
    """
    hub = current_hub()
    stream = _Listening(hub, position)
    failure: Exception | None = None
    printer.begin()

    async def send(message: MutableMapping[str, Any]) -> None:
        nonlocal failure
        try:
            printer.feed(message["body"])
        except Exception as error:
            # The stream would take it for a client that has gone.
            failure = error
            raise

    try:
        await stream.open()
        stream.serve(send)
        healed, settles_at = hub.tally.healed, hub.loop.time() + _SETTLE_SECONDS
        while not stream.ended.done():
            await asyncio.wait([stream.ended], timeout=_LOOK_SECONDS)
            if hub.tally.healed > healed and hub.loop.time() > settles_at:
                printer.note(
                    "No doorbell was heard: events were found by comparison with the store, and "
                    "late. On several hosts, use PostgreSQL or Redis, or have a channel layer that "
                    "reaches all of them."
                )
            healed = hub.tally.healed
    finally:
        stream.end("left")
    if failure:
        raise failure
    return stream.ended.result()
