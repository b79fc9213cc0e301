"""Reports of processes on their streams, for who asks, in whichever process.

Whoever asks appends an event to a group that all hubs hear of. Each process that has streams then
reports for a while: it appends its figures to the group of reports. So nothing is written while
nobody asks, and a process that has died says nothing.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from os import getpid
from socket import gethostname
from time import time
from typing import Any, Final, Protocol, Self

from django_sse.concurrency.tasks import must_propagate, spawn
from django_sse.doorbells import doorbell_of
from django_sse.doorbells.base import published
from django_sse.event import Event, decode_block
from django_sse.groups.entries import Entry, OwnEntry
from django_sse.groups.names import OWNER_KEY_LENGTH, OWNER_PREFIX
from django_sse.groups.namespaces import INTERNAL
from django_sse.logs import log_seldom
from django_sse.stores.base import EventStore
from django_sse.streaming.limits import Occupancy
from django_sse.streaming.open_stream import OpenStream
from django_sse.streaming.tally import refusals, whole_tally

REPORTS: Final = f"{INTERNAL}/reports"
"""The full name of the group of the reports. Each is an event of the type ``report``."""

# A name as owners have them, since all hubs hear of those.
ASKED: Final = (
    OWNER_PREFIX + sha256(b"asked for reports").hexdigest()[: OWNER_KEY_LENGTH - len(OWNER_PREFIX)]
)

REPORT_SECONDS: Final = 2.0
"""Seconds between two reports of a process while somebody asks."""

ASK_SECONDS: Final = 5.0
"""How often who watches has to ask, in seconds."""

# How long a process goes on reporting after it was asked.
_WATCHED_SECONDS: Final = 2 * ASK_SECONDS
# How many groups a report names, those with the most streams first.
_GROUPS: Final = 100
# A client is slow if one send takes longer.
_SLOW_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Counters:
    """What one process has counted since it began.

    ``opened`` are the streams that have begun, ``closed`` those that have ended, by reason, and
    ``refused`` the requests that were told to come back, by reason. ``published`` are the events
    that the process has published. ``delivered`` are events, counted once for each stream that they
    were handed to. ``healed`` says how often the store had events that no doorbell had told of, and
    ``resets`` how often a client was told that it has lost events.
    """

    opened: int = 0
    closed: dict[str, int] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    published: int = 0
    delivered: int = 0
    healed: int = 0
    resets: int = 0


@dataclass(frozen=True, slots=True)
class ProcessReport:
    """The streams of one process at one moment.

    ``process`` is its host and process id, ``time`` when the report was stored, in seconds since
    the epoch by the store's clock. ``groups`` has the number of streams by group, with the tenant
    as a prefix, of the 100 groups that have the most; ``open_groups`` is the number of all.
    ``users`` is the number of different users. ``slow_clients`` is the number of clients that have
    not taken a send for more than a second, and ``waiting_bytes`` what is being sent or waits for
    all clients. ``loop_lag`` is how many seconds the event loop was late at most in the last
    minute, and ``store_lag`` how many seconds ago the process last heard from the store.
    """

    process: str
    time: float
    streams: int
    open_groups: int
    groups: dict[str, int]
    users: int
    slow_clients: int
    waiting_bytes: int
    loop_lag: float
    store_lag: float
    counters: Counters

    @classmethod
    def read(cls, entry: Entry) -> Self:
        """Return the report that an entry of the group of reports holds."""
        told: dict[str, Any] = json.loads(decode_block(entry.wire).data)
        counted = Counters(**_known(Counters, told["counters"]))
        return cls(**(_known(cls, told) | {"time": entry.time, "counters": counted}))


def _known(kind: type[Any], told: dict[str, Any]) -> dict[str, Any]:
    """Return what was told without what another version, as during a deploy, tells besides."""
    return {name: told[name] for name in kind.__dataclass_fields__ if name in told}


class Reporting(Protocol):
    """The part of a hub that reports are made of."""

    loop: asyncio.AbstractEventLoop

    @property
    def is_watching(self) -> bool:
        """Whether a stream of this hub shows the reports."""

    @property
    def store_lag(self) -> float:
        """Seconds since the hub last heard from the store."""

    @property
    def occupancy(self) -> Occupancy:
        """The streams of clients, counted."""

    def busy_streams(self) -> list[OpenStream]:
        """Return those that are sending, or have something to send. Works from any thread."""

    @property
    def loop_lag(self) -> float:
        """Seconds that the event loop was late at most in the last minute."""


def counters() -> Counters:
    """Return what this process has counted since it began."""
    tally = whole_tally()
    return Counters(
        opened=tally.opened,
        closed=dict(tally.closed),
        refused=dict(refusals.counts),
        published=published.count,
        delivered=tally.delivered,
        healed=tally.healed,
        resets=tally.resets,
    )


def report_of(hubs: Collection[Reporting]) -> ProcessReport:
    """Return the report of this process.

    Args:
        hubs: All hubs of the process.
    """
    # It runs on an event loop with thousands of streams, so it describes none that is idle.
    occupancies = [hub.occupancy for hub in hubs]
    busy = [stream for hub in hubs for stream in hub.busy_streams()]
    groups = _sum(occupancy.groups for occupancy in occupancies)
    # Who watches the reports follows no group of the project.
    del groups[REPORTS]
    return ProcessReport(
        f"{gethostname()}:{getpid()}",
        time(),
        streams=sum(occupancy.streams for occupancy in occupancies),
        open_groups=len(groups),
        groups=dict(groups.most_common(_GROUPS)),
        users=len(_sum(occupancy.users for occupancy in occupancies)),
        slow_clients=sum(stream.seconds_sending > _SLOW_SECONDS for stream in busy),
        waiting_bytes=sum(stream.waiting_bytes for stream in busy),
        loop_lag=max((hub.loop_lag for hub in hubs), default=0.0),
        store_lag=max((hub.store_lag for hub in hubs), default=0.0),
        counters=counters(),
    )


def _sum(counters: Iterable[Counter[str]]) -> Counter[str]:
    whole: Counter[str] = Counter()
    for counter in counters:
        # A copy, since another thread may be counting.
        whole.update(dict(counter))
    return whole


async def ask_for_reports(store: EventStore) -> None:
    """Have all processes that have streams report for the next seconds.

    Raises:
        Exception: The event store could not be written.
    """
    await store.aappend_apart([OwnEntry(ASKED, Event("").encode())], doorbell_of(store).ring)


class Reporter:
    """Reports on this process for a while after somebody has asked.

    Args:
        store: The event store.
        hubs: Returns all hubs of the process. The first of them reports.
        hub: The hub whose reporter it is.
    """

    def __init__(
        self, store: EventStore, hubs: Callable[[], Sequence[Reporting]], hub: Reporting
    ) -> None:
        self._store = store
        self._hubs = hubs
        self._hub = hub
        self._watched_until = 0.0
        self._was_asked = asyncio.Event()
        self._reporting: asyncio.Task[None] | None = None

    def hear(self) -> None:
        """Report from now on: somebody has asked."""
        self._watched_until = self._hub.loop.time() + _WATCHED_SECONDS
        self._was_asked.set()
        self.watch()

    def watch(self) -> None:
        """Report, and have all others report, as long as a stream of the hub shows the reports."""
        if self._reporting is None or self._reporting.done():
            self._reporting = spawn(self._report())

    def close(self) -> None:
        """Stop reporting."""
        if self._reporting:
            self._reporting.cancel()

    async def _report(self) -> None:
        loop = self._hub.loop
        ask_at = loop.time()
        while self._hub.is_watching or loop.time() < self._watched_until:
            self._was_asked.clear()
            try:
                if self._hub.is_watching and loop.time() >= ask_at:
                    ask_at = loop.time() + ASK_SECONDS
                    await ask_for_reports(self._store)
                hubs = self._hubs()
                if hubs[0] is self._hub:
                    await self._append(report_of(hubs))
            except BaseException as error:
                if must_propagate(error):
                    raise
                log_seldom("This process cannot report on its streams.", exc_info=error)
            # Whoever asks does not wait for long.
            with suppress(TimeoutError):
                async with asyncio.timeout(REPORT_SECONDS):
                    await self._was_asked.wait()

    async def _append(self, report: ProcessReport) -> None:
        event = Event(asdict(report), event="report")
        await self._store.aappend_apart(
            [OwnEntry(REPORTS, event.encode())], doorbell_of(self._store).ring
        )
