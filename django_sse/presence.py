"""Who follows a group, and how many, over all processes: of views with ``presence = True``."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from asgiref.sync import sync_to_async
from django.utils.asyncio import async_unsafe

from django_sse.conf import conf
from django_sse.groups.names import validate_group
from django_sse.groups.namespaces import acurrent_namespace, full_name
from django_sse.stores import get_store
from django_sse.streaming.hub import ask_from_sync
from django_sse.streaming.roster import Attendant, log_of, mark_of, read_roster

__all__ = ["Member", "acount", "apresent", "count", "present"]


@dataclass(frozen=True, slots=True)
class Member:
    """Who follows a group.

    ``user`` is the user's primary key as text, ``info`` what the view's ``get_member`` has
    returned, ``streams`` the number of her streams, and ``since`` when she came, in seconds since
    the epoch.
    """

    user: str
    info: Any
    streams: int
    since: float


async def apresent(group: str) -> Sequence[Member]:
    """Return who follows a group, in the order in which they came.

    Args:
        group: A Channels group name.

    Raises:
        InvalidGroup: Not a valid group name.
        Exception: The event store could not be read.
    """
    members, _ = await _read(group)
    return members


async def acount(group: str) -> int:
    """Return how many follow a group: its members, and the streams of which nobody is named.

    Args:
        group: A Channels group name.

    Raises:
        InvalidGroup: Not a valid group name.
        Exception: The event store could not be read.
    """
    members, unnamed = await _read(group)
    return len(members) + unnamed


@async_unsafe("present() would block the running event loop: use `await apresent()` there.")
def present(group: str) -> Sequence[Member]:
    """Do what ``apresent`` does, from synchronous code."""
    return ask_from_sync(partial(apresent, group))


@async_unsafe("count() would block the running event loop: use `await acount()` there.")
def count(group: str) -> int:
    """Do what ``acount`` does, from synchronous code."""
    return ask_from_sync(partial(acount, group))


async def _read(group: str) -> tuple[list[Member], int]:
    """Return the members of a group, and the number of streams of which nobody is named."""
    log = log_of(full_name(await acurrent_namespace(), validate_group(group)))
    store = get_store()
    roster = await read_roster(store, log, (await store.astates([log]))[log])
    marks = {process: mark_of(process) for process in roster.processes}
    if not marks:
        return [], 0
    states = await store.astates(list(marks.values()))
    dead_before = (await sync_to_async(store.clock.time)() - conf().PRODUCER_TTL) * 1_000_000
    attendants: dict[str, list[Attendant]] = {}
    for process, members in roster.processes.items():
        if states[marks[process]].first >= dead_before:
            for user, attendant in members.items():
                attendants.setdefault(user, []).append(attendant)
    unnamed = sum(attendant.streams for attendant in attendants.pop("", ()))
    named = [
        Member(
            user,
            info=places[-1].info,
            streams=sum(attendant.streams for attendant in places),
            since=min(attendant.since for attendant in places),
        )
        for user, places in attendants.items()
    ]
    return sorted(named, key=lambda member: member.since), unnamed
