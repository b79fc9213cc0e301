"""Keeps in the event store who has streams of this event loop, and tells who comes and goes.

Each event loop counts as a process here. It writes its own members to the logs of their groups (see
``roster``), and a mark that it is alive. All others who have members in a group look at the marks
of those that it has, and write that the members of a dead one have left. What is written expects
that nobody else has written meanwhile, and the events that follow from it are appended with it: so
each is published once, whoever notices first.
"""

import asyncio
from collections.abc import Collection, Iterable, Iterator
from contextvars import Context
from dataclasses import dataclass, field
from itertools import islice
from math import inf
from random import uniform
from secrets import token_hex
from typing import Any, Final, Protocol
from weakref import ref

from asgiref.sync import sync_to_async

from django_sse.concurrency.forks import in_child
from django_sse.concurrency.loops import ByLoop
from django_sse.concurrency.tasks import in_time, must_propagate, spawn
from django_sse.conf import conf
from django_sse.doorbells import doorbell_of
from django_sse.exceptions import GroupCancelled, PartlyPublished
from django_sse.groups.entries import Entry, GroupState, Hint, Kind, OwnEntry
from django_sse.groups.numbering import HeadMoved
from django_sse.logs import log_seldom
from django_sse.stores.base import Cursor, EventStore
from django_sse.stores.read_limits import READ_SECONDS
from django_sse.streaming.lapses import renewal_seconds
from django_sse.streaming.roster import (
    Attendance,
    Attendant,
    Changes,
    Roster,
    log_of,
    mark_of,
    read_roster,
    refresh_seconds,
)

# How long changes are gathered, to be written together.
_GATHERING_SECONDS: Final = 0.05
# How many groups are written together, how many members of one, and how many states are read.
_ROOMS: Final = 50
_CHANGES: Final = 500
_STATES: Final = 500
# The pause after an error of the store, and the longest one after somebody else was faster.
_PAUSE_SECONDS: Final = 1.0
_GIVING_WAY_SECONDS: Final = 0.05


class Attending(Protocol):
    """The part of a stream that is present."""

    attendance: Attendance | None
    """As whom the stream is present."""

    @property
    def groups(self) -> Collection[str]:
        """The full names of the stream's groups."""


@dataclass(slots=True)
class _Member:
    """A member of a group in this process.

    ``streams`` counts those that have ended within ``PRESENCE_GRACE``, too. ``leaving`` has what
    will take each of these away, in the order in which they have ended.
    """

    info: Any
    streams: int = 0
    leaving: dict[ref[Attending], asyncio.TimerHandle] = field(default_factory=dict)


@dataclass(slots=True)
class _Room:
    """A group in which streams of this process are present."""

    group: str
    log: str
    members: dict[str, _Member] = field(default_factory=dict)
    roster: Roster | None = None

    @property
    def told_at(self) -> float:
        """When the log last said who all are; inf if that is not known."""
        return self.roster.told_at or inf if self.roster else inf

    @property
    def processes(self) -> Collection[str]:
        """The processes that have members in the group, as far as it is known."""
        return self.roster.processes.keys() if self.roster else ()


@dataclass(slots=True)
class _Sign:
    """A sign of life of another process: its mark, and when the mark was first seen."""

    mark: int
    seen_at: float


class Attendants:
    """The members that have streams of one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, store: EventStore) -> None:
        self.store = store
        self._loop = loop
        self._ring = doorbell_of(store).ring
        self._process = token_hex(8)
        self._rooms: dict[str, _Room] = {}
        # The same rooms by the names of their logs.
        self._logs: dict[str, _Room] = {}
        self._entered: set[Attending] = set()
        # The rooms to be compared with their logs.
        self._waiting: dict[str, _Room] = {}
        self._has_work = asyncio.Event()
        self._cursor: Cursor = None
        self._looked_at = -inf
        self._signs: dict[str, _Sign] = {}
        self._dead: set[str] = set()
        # When old marks say again that a process is dead, after the store was away.
        self._trusts_marks_at = -inf
        self._keeping: asyncio.Task[None] | None = None
        # Set while a stream is present, but for those that have ended within ``PRESENCE_GRACE``.
        self._is_entered = asyncio.Event()
        # Set while there is nothing to write.
        self._is_written = asyncio.Event()
        self._is_written.set()

    # Streams

    def enter(self, stream: Attending) -> None:
        """Have a stream be present in its groups."""
        assert stream.attendance
        self._entered.add(stream)
        self._is_entered.set()
        for group in stream.groups:
            room = self._rooms.get(group) or self._open(group)
            member = room.members.setdefault(stream.attendance.key, _Member(stream.attendance.info))
            member.info = stream.attendance.info
            if member.leaving:
                _, timer = member.leaving.popitem()
                timer.cancel()
            else:
                member.streams += 1
            self._write_soon(room)
        if self._keeping is None or self._keeping.done():
            self._keeping = spawn(self._keep())

    def leave(self, stream: Attending) -> None:
        """Have a stream, if it is present, be so no more, once the time of grace is over."""
        if stream not in self._entered:
            return
        assert stream.attendance
        self._entered.discard(stream)
        if not self._entered:
            self._is_entered.clear()
        for group in stream.groups:
            room = self._rooms[group]
            member = room.members[stream.attendance.key]
            # Weakly: what belongs to its request need not be kept for so long.
            member.leaving[ref(stream)] = self._loop.call_later(
                conf().PRESENCE_GRACE,
                self._take_away,
                room,
                stream.attendance.key,
                ref(stream),
                context=Context(),
            )

    def forgo_grace(self, stream: Attending) -> None:
        """Have a stream that has left be present no more, though the time of grace is not over,
        unless another stream of its member has taken its place."""
        assert stream.attendance
        key = stream.attendance.key
        for group in stream.groups:
            room = self._rooms.get(group)
            member = room.members.get(key) if room else None
            if room and member and ref(stream) in member.leaving:
                member.leaving[ref(stream)].cancel()
                self._take_away(room, key, ref(stream))

    def _take_away(self, room: _Room, key: str, stream: ref[Attending]) -> None:
        member = room.members[key]
        del member.leaving[stream]
        member.streams -= 1
        if not member.streams:
            del room.members[key]
        self._write_soon(room)

    def _open(self, group: str) -> _Room:
        room = self._rooms[group] = _Room(group, log_of(group))
        self._logs[room.log] = room
        return room

    def _write_soon(self, room: _Room) -> None:
        self._waiting[room.group] = room
        self._is_written.clear()
        self._has_work.set()

    # Keeping

    async def idle(self) -> None:
        """Wait until nobody is present any more and the store knows it, or until somebody comes."""
        while self._keeping and not (self._keeping.done() or self._entered):
            entered = spawn(self._is_entered.wait())
            await asyncio.wait([self._keeping, entered], return_when=asyncio.FIRST_COMPLETED)
            entered.cancel()

    async def written(self) -> None:
        """Wait until the store knows who is present."""
        await self._is_written.wait()

    @property
    def is_idle(self) -> bool:
        """Whether nobody is present, not even for the time of grace."""
        return not self._rooms

    async def _keep(self) -> None:
        look_at = self._loop.time()
        while self._rooms:
            try:
                if self._loop.time() >= look_at:
                    look_at = self._loop.time() + renewal_seconds() * uniform(0.9, 1)
                    await self._look()
                # Others must not take this process for dead while it has much to write.
                while self._waiting and self._loop.time() < look_at:
                    await self._write(dict(islice(self._waiting.items(), _ROOMS)))
                    # A store that answers at once has let nothing else run.
                    await asyncio.sleep(0)
                if not self._waiting:
                    self._is_written.set()
            except BaseException as error:
                if must_propagate(error):
                    raise
                log_seldom("It cannot be kept who is present.", exc_info=error)
                look_at = self._loop.time()
                await asyncio.sleep(_PAUSE_SECONDS)
                continue
            await self._pause(look_at - self._loop.time())

    async def _pause(self, seconds: float) -> None:
        """Wait until there is work, and gather what comes with it."""
        if not self._rooms:
            return
        self._has_work.clear()
        if self._waiting:
            return
        try:
            async with asyncio.timeout(max(seconds, 0)):
                await self._has_work.wait()
        except TimeoutError:
            return
        await asyncio.sleep(_GATHERING_SECONDS)

    async def _look(self) -> None:
        """Say that this process is alive, and find out what others have written, and who is dead.

        Raises:
            Exception: The event store could not be read or written.
        """
        mark = OwnEntry(mark_of(self._process), b"", Kind.REOPEN)
        await self.store.aappend_apart([mark], lambda hints: None)
        hints, self._cursor = await in_time(
            self.store.achanged(self._cursor, self._logs), READ_SECONDS
        )
        changed = self._logs.values() if hints is None else self._changed(hints)
        self._waiting |= {room.group: room for room in changed}
        await self._find_dead()
        if (age := refresh_seconds()) is not None:
            before = self.store.clock.known() - age
            self._waiting |= {
                group: room for group, room in self._rooms.items() if room.told_at < before
            }

    def _changed(self, hints: Iterable[Hint]) -> Iterator[_Room]:
        for hint in hints:
            room = self._logs.get(hint.group)
            if room and not (room.roster and room.roster.head == hint.head):
                yield room

    async def _find_dead(self) -> None:
        """Find the processes whose marks have not changed for ``PRODUCER_TTL``.

        Raises:
            Exception: The event store could not be read.
        """
        others = {process for room in self._rooms.values() for process in room.processes}
        others.discard(self._process)
        keys = {mark_of(process): process for process in others}
        states: dict[str, GroupState] = {}
        names = iter(keys)
        while some := list(islice(names, _STATES)):
            states |= await in_time(self.store.astates(some), READ_SECONDS)
        now, before = self._loop.time(), self._looked_at
        self._looked_at = now
        if now - before > 2 * renewal_seconds():
            # This process was paused, or the store was away: perhaps for the others as well.
            self._signs.clear()
            if before != -inf:
                self._trusts_marks_at = now + conf().PRODUCER_TTL
        signs = {keys[name]: _Sign(state.first, now) for name, state in states.items()}
        for process, sign in signs.items():
            known = self._signs.get(process)
            if known and known.mark == sign.mark:
                sign.seen_at = known.seen_at
        self._signs = signs
        self._dead = {
            process for process, sign in signs.items() if now - sign.seen_at > conf().PRODUCER_TTL
        }
        if self._dead:
            self._waiting |= {
                group: room
                for group, room in self._rooms.items()
                if not self._dead.isdisjoint(room.processes)
            }

    async def _find_long_dead(self, rooms: Collection[_Room]) -> None:
        """Find the dead among the processes that were not looked at yet, by the age of their marks.

        Whoever comes back after all processes had ended would otherwise only have moved, and nobody
        would be told.

        Raises:
            Exception: The event store could not be read.
        """
        unknown = {process for room in rooms for process in room.processes} - self._signs.keys()
        names = {mark_of(process): process for process in unknown - {self._process} - self._dead}
        if not names or self._loop.time() < self._trusts_marks_at:
            return
        some = list(islice(names, _STATES))
        states = await in_time(self.store.astates(some), READ_SECONDS)
        now = await sync_to_async(self.store.clock.time)()
        before = (now - conf().PRODUCER_TTL) * 1_000_000
        self._dead |= {names[name] for name, state in states.items() if state.first < before}

    # Writing

    async def _write(self, rooms: dict[str, _Room]) -> None:
        """Write to the logs of some rooms what has changed.

        Raises:
            Exception: The event store could not be read or written. The rooms go on waiting.
        """
        for group in rooms:
            del self._waiting[group]
        try:
            await self._append(rooms.values())
        except (HeadMoved, PartlyPublished):
            # If one fails for another reason, the others still wait.
            for room in rooms.values():
                self._write_soon(room)
            await asyncio.sleep(uniform(0, _GIVING_WAY_SECONDS))
            for group, room in rooms.items():
                self._waiting.pop(group, None)
                await self._append_alone(room)
        except BaseException:
            for room in rooms.values():
                self._write_soon(room)
            raise

    async def _append_alone(self, room: _Room) -> None:
        try:
            await self._append([room])
        except BaseException as error:
            self._write_soon(room)
            if not isinstance(error, HeadMoved):
                raise

    async def _append(self, rooms: Collection[_Room], silent: frozenset[str] = frozenset()) -> None:
        """Write to the logs of rooms what has changed, and publish what follows from it.

        Args:
            rooms: The rooms.
            silent: The groups that are cancelled, to which nothing can be published.

        Raises:
            HeadMoved: Another process has written to one of the logs meanwhile.
            Exception: The event store could not be read or written.
        """
        states = await in_time(self.store.astates([room.log for room in rooms]), READ_SECONDS)
        entries: list[OwnEntry] = []
        logged: list[tuple[_Room, Roster, int]] = []
        for room in rooms:
            room.roster = await read_roster(self.store, room.log, states[room.log], room.roster)
        await self._find_long_dead(rooms)
        for room in rooms:
            roster = room.roster
            assert roster
            changes = self._changes(room, roster)
            if not (changes or self._is_to_be_told_again(roster)):
                self._close_if_empty(room)
                continue
            entries.append(OwnEntry(room.log, b"", Kind.EXPECT, at=roster.head))
            logged.append((room, roster, len(entries)))
            entries.append(OwnEntry(room.log, roster.wire(changes, whole=not changes)))
            if room.group not in silent:
                events = roster.events(changes)
                entries += [OwnEntry(room.group, event.encode()) for event in events]
        if not entries:
            return
        try:
            numbers = await self.store.aappend_apart(entries, self._ring_publicly)
        except GroupCancelled as error:
            if error.group in silent:
                raise
            await self._append(rooms, silent | {error.group})
            return
        told_at = self.store.clock.known()
        for room, roster, place in logged:
            number = numbers[place]
            assert number is not None
            roster.take(Entry(number, entries[place].wire, time=told_at))
            if self._changes(room, roster):
                self._write_soon(room)
            else:
                self._close_if_empty(room)

    def _ring_publicly(self, hints: Collection[Hint]) -> None:
        self._ring([hint for hint in hints if hint.group not in self._logs])

    def _is_to_be_told_again(self, roster: Roster) -> bool:
        age = refresh_seconds()
        if age is None or roster.told_at is None:
            return False
        return roster.told_at < self.store.clock.known() - age

    def _changes(self, room: _Room, roster: Roster) -> Changes:
        """Return what the log of a room has to say, and does not yet."""
        here = roster.processes.get(self._process, {})
        changes: dict[str, dict[str, Attendant | None]] = {}
        for process, key, attendant in islice(self._differences(room, roster, here), _CHANGES):
            changes.setdefault(process, {})[key] = attendant
        return changes

    def _differences(
        self, room: _Room, roster: Roster, here: dict[str, Attendant]
    ) -> Iterator[tuple[str, str, Attendant | None]]:
        now = self.store.clock.known()
        # First: whoever comes back after such a long time joins again.
        for process in self._dead.intersection(roster.processes):
            for key in roster.processes[process]:
                yield process, key, None
        for key, member in room.members.items():
            known = here.get(key)
            if known is None or (known.streams, known.info) != (member.streams, member.info):
                since = roster.since(key, without=self._dead) or now
                yield self._process, key, Attendant(member.streams, since, member.info)
        for key in here:
            if key not in room.members:
                yield self._process, key, None

    def _close_if_empty(self, room: _Room) -> None:
        if not room.members:
            self._rooms.pop(room.group, None)
            self._logs.pop(room.log, None)
            self._waiting.pop(room.group, None)


_attendants: Final[ByLoop[Attendants]] = ByLoop()
# The child of a fork has no streams of its parent.
in_child(_attendants.clear)


def attendants_of(loop: asyncio.AbstractEventLoop, store: EventStore) -> Attendants:
    """Return the members that have streams of an event loop, which are kept in a store."""
    if loop not in _attendants or _attendants[loop].store is not store:
        _attendants[loop] = Attendants(loop, store)
    return _attendants[loop]
