"""Who is present in a group, over all processes: the log that says so, and how it is read.

The log is an internal group. Each of its entries says how the members of some processes change, or
what they all are. Nobody appends to it who has not read it to its end, so all read the same.
"""

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

from django.core.exceptions import ImproperlyConfigured

from django_sse.concurrency.tasks import in_time
from django_sse.conf import SETTING, conf
from django_sse.encoding import as_own_json
from django_sse.event import Event, decode_block
from django_sse.groups.entries import Entry, GroupState
from django_sse.groups.names import OWNER_KEY_LENGTH, OWNER_PREFIX
from django_sse.groups.namespaces import group_beside
from django_sse.stores.base import EventStore
from django_sse.stores.read_limits import READ_SECONDS

# The key of the streams that are counted, and of which nobody is named. No member has it.
_UNNAMED_KEY: Final = ""
# How many changes there are at least between two entries that say who is present.
_STEP: Final = 64
# How many entries are read at a time.
_PAGE: Final = 500
# Entries have to last longer than a process may be silent, since each process looks so rarely.
_SHORTEST_MEMORY: Final = 60


@dataclass(frozen=True, slots=True)
class Attendance:
    """As whom a stream is present: ``key`` tells members apart, and ``info`` is told of them."""

    key: str
    info: Any = None


UNNAMED: Final = Attendance(_UNNAMED_KEY)
"""A stream that is counted, and of which nobody is named."""


@dataclass(frozen=True, slots=True)
class Attendant:
    """A member in one process: how many streams there are, since when, and what is told of her."""

    streams: int
    since: float
    info: Any


Changes = Mapping[str, Mapping[str, Attendant | None]]
"""The members that change, by process; None for one who has no stream there any more."""


def require_memory(view: str) -> None:
    """Refuse presence where the store would forget who is present.

    Args:
        view: The name of the view.

    Raises:
        ImproperlyConfigured: ``HISTORY_AGE`` or ``GROUP_TTL`` is too short.
    """
    try:
        ages = {"HISTORY_AGE": conf().HISTORY_AGE, "GROUP_TTL": conf().GROUP_TTL}
    except ImproperlyConfigured:
        # Let `manage.py check`, which imports the view, tell what is wrong.
        return
    for name, seconds in ages.items():
        if 0 < seconds < _SHORTEST_MEMORY:
            raise ImproperlyConfigured(
                f"{view}.presence needs {SETTING}[{name!r}] to be at least {_SHORTEST_MEMORY} "
                f"seconds, or 0, not {seconds}: who is present is kept as events are."
            )


def refresh_seconds() -> float | None:
    """Return the age from which who is present has to be said again; None for never."""
    ages = [seconds for seconds in (conf().HISTORY_AGE, conf().GROUP_TTL) if seconds]
    return min(ages) / 3 if ages else None


def log_of(group: str) -> str:
    """Return the name of the log of a group, given its full name."""
    return group_beside("presence", group)


def mark_of(process: str) -> str:
    """Return the name under which a store keeps when a process was last alive.

    It is a name as owners have them: nothing but a time is kept, and it expires.
    """
    digest = sha256(f"presence of {process}".encode()).hexdigest()
    return OWNER_PREFIX + digest[: OWNER_KEY_LENGTH - len(OWNER_PREFIX)]


class Roster:
    """Who is present in a group, as its log says up to ``head``.

    ``told_at`` is when the log last said who all are, in seconds since the epoch.
    """

    def __init__(self, head: int) -> None:
        self.head = head
        self.processes: dict[str, dict[str, Attendant]] = {}
        self.told_at: float | None = None
        self._told_as = 0
        # In how many processes each member is.
        self._places: Counter[str] = Counter()
        self._unnamed = 0

    @property
    def count(self) -> int:
        """How many are present: the members, and the streams of which nobody is named."""
        return len(self._places) + self._unnamed

    def since(self, key: str, *, without: Collection[str]) -> float | None:
        """Return since when a member is present, in seconds since the epoch; None if she is not.

        Args:
            key: The member's key.
            without: The processes that do not count.
        """
        places = [
            members[key].since
            for process, members in self.processes.items()
            if key in members and process not in without
        ]
        return min(places, default=None)

    def events(self, changes: Changes) -> Iterator[Event]:
        """Yield the ``join`` and ``leave`` events that follow from changes."""
        count = self.count
        places: Counter[str] = Counter()
        in_order = (
            (process, key, attendant)
            for process, members in changes.items()
            for key, attendant in members.items()
        )
        for process, key, attendant in in_order:
            known = self.processes.get(process, {}).get(key)
            if key == _UNNAMED_KEY:
                count += _streams(attendant) - _streams(known)
                continue
            before = self._places[key] + places[key]
            places[key] += (attendant is not None) - (known is not None)
            after = self._places[key] + places[key]
            if attendant and not before and after:
                count += 1
                yield Event({"member": attendant.info, "count": count}, event="join")
            elif known and before and not after:
                count -= 1
                yield Event({"member": known.info, "count": count}, event="leave")

    def wire(self, changes: Changes, *, whole: bool) -> bytes:
        """Return the next entry of the log.

        Args:
            changes: The changes that it says.
            whole: Whether it says all, even if this is not due.
        """
        step = min(max(_STEP, len(self._places)), conf().HISTORY_SIZE // 2)
        if whole or self.told_at is None or self.head + 1 - self._told_as >= step:
            told: dict[str, Any] = {"all": _written(self._changed(changes))}
        else:
            told = {"after": self._told_as, "changed": _written(changes)}
        # By Django's encoder, since it is read again: a project's may change keys and text.
        return Event(as_own_json(told)).encode()

    def take(self, entry: Entry) -> None:
        """Take the next entry of the log."""
        told: Mapping[str, Any] = json.loads(decode_block(entry.wire).data)
        self.head = entry.number
        if "all" in told:
            self.processes, self._places, self._unnamed = {}, Counter(), 0
            self._told_as, self.told_at = entry.number, entry.time
        for process, members in _read(told.get("all") or told.get("changed", {})).items():
            for key, attendant in members.items():
                self._change(process, key, attendant)

    def _change(self, process: str, key: str, attendant: Attendant | None) -> None:
        members = self.processes.setdefault(process, {})
        known = members.pop(key, None)
        if attendant:
            members[key] = attendant
        if not members:
            del self.processes[process]
        if key == _UNNAMED_KEY:
            self._unnamed += _streams(attendant) - _streams(known)
            return
        self._places[key] += (attendant is not None) - (known is not None)
        if not self._places[key]:
            del self._places[key]

    def _changed(self, changes: Changes) -> Changes:
        """Return who all are after changes."""
        processes = {
            process: {**self.processes.get(process, {}), **changes.get(process, {})}
            for process in {**self.processes, **changes}
        }
        return {
            process: {key: attendant for key, attendant in members.items() if attendant}
            for process, members in processes.items()
        }


async def read_roster(
    store: EventStore, log: str, state: GroupState, known: Roster | None = None
) -> Roster:
    """Return who is present in a group.

    Args:
        store: The event store.
        log: The log of the group.
        state: The state of the log.
        known: What was read of it before.

    Raises:
        Exception: The event store could not be read.
    """
    if state.head == state.origin:
        return Roster(state.head)
    roster = known
    if roster is None or roster.told_at is None or roster.head > state.head:
        roster = await _beginning(store, log, state)
    while roster and roster.head < state.head:
        page = await _page(store, log, roster.head, _PAGE)
        if not page or page[0].number != roster.head + 1:
            # The store has lost what was read before, or all.
            roster = None if known is None else await _beginning(store, log, state)
            known = None
            continue
        for entry in page:
            roster.take(entry)
    return roster or Roster(state.head)


async def _beginning(store: EventStore, log: str, state: GroupState) -> Roster | None:
    """Return a roster that begins with the last entry that says who all are."""
    for entry in await _page(store, log, state.head - 1, 1):
        told_as = json.loads(decode_block(entry.wire).data).get("after", entry.number)
        for told in await _page(store, log, told_as - 1, 1):
            if told.number == told_as:
                roster = Roster(told_as - 1)
                roster.take(told)
                return roster
    return None


async def _page(store: EventStore, log: str, after: int, limit: int) -> Sequence[Entry]:
    return await in_time(store.aread(log, after, limit), READ_SECONDS)


def _streams(attendant: Attendant | None) -> int:
    return attendant.streams if attendant else 0


def _written(changes: Changes) -> dict[str, dict[str, Any]]:
    return {
        process: {
            key: attendant and [attendant.streams, attendant.since, attendant.info]
            for key, attendant in members.items()
        }
        for process, members in changes.items()
    }


def _read(written: Mapping[str, Mapping[str, Any]]) -> Changes:
    return {
        process: {key: attendant and Attendant(*attendant) for key, attendant in members.items()}
        for process, members in written.items()
    }
