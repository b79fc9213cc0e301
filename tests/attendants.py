"""Processes that keep who is present, without servers, and tabs that they have open."""

import asyncio
import json
from typing import Any

from django_sse.event import decode_block
from django_sse.stores.base import EventStore
from django_sse.streaming.presence import Attendants
from django_sse.streaming.roster import UNNAMED, Attendance, Roster, log_of, read_roster

GROUP = "room"


class Tab:
    """A stream, as far as presence knows it; of nobody, if the user is empty."""

    def __init__(self, user: str) -> None:
        self.attendance: Attendance | None = Attendance(user, user) if user else UNNAMED
        self.groups: tuple[str, ...] = (GROUP,)


def process(store: EventStore) -> Attendants:
    """Return another process, as far as a store can tell."""
    return Attendants(asyncio.get_running_loop(), store)


def kill(killed: Attendants) -> None:
    """End a process without a word."""
    assert killed._keeping
    killed._keeping.cancel()
    for room in killed._rooms.values():
        for member in room.members.values():
            for timer in member.leaving.values():
                timer.cancel()


def go_on(paused: Attendants) -> None:
    """Have a process that was killed go on, as one that was only paused."""
    paused._keeping = asyncio.create_task(paused._keep())


async def roster(store: EventStore) -> Roster:
    """Return who is present, as a store says."""
    log = log_of(GROUP)
    return await read_roster(store, log, (await store.astates([log]))[log])


async def until_there(store: EventStore, *users: str) -> None:
    """Wait until a store says that these are present, and nobody else."""
    async with asyncio.timeout(20):
        while {key for members in (await roster(store)).processes.values() for key in members} != {
            *users
        }:
            await asyncio.sleep(0.01)


async def until_without(store: EventStore, gone: Attendants) -> None:
    """Wait until nobody is present in a process."""
    async with asyncio.timeout(20):
        while gone._process in (await roster(store)).processes:
            await asyncio.sleep(0.01)


async def told(store: EventStore) -> list[tuple[Any, ...]]:
    """Return who came and went, and how many were there then."""
    events = [decode_block(entry.wire) for entry in await store.aread(GROUP, 0, 1000)]
    data = [json.loads(event.data) for event in events]
    return [
        (event.event, fields["member"], fields["count"])
        for event, fields in zip(events, data, strict=True)
    ]
