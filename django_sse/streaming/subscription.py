"""What a hub knows of one group: its newest events, encoded, and the streams that follow it."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import Context
from functools import partial
from math import inf
from operator import length_hint
from typing import ClassVar, Final, Protocol, TypeVar

from django_sse.concurrency.tasks import must_propagate, spawn, start_eagerly
from django_sse.conf import conf
from django_sse.doorbells.layer_channel import LayerChannel, Message
from django_sse.event import Event, encode_published
from django_sse.exceptions import InvalidEvent
from django_sse.groups.entries import Entry, GroupState, Hint
from django_sse.groups.position import GroupPositions
from django_sse.groups.producer_tokens import HANDED_OVER
from django_sse.groups.replay import join
from django_sse.logs import log_seldom, logger
from django_sse.stores.base import EventStore
from django_sse.stores.read_limits import READ_BYTES
from django_sse.streaming.encoded_events import Batch, EncodedEvent, Tail
from django_sse.streaming.fan_out import FanOut
from django_sse.streaming.jitter import jittered_retry
from django_sse.streaming.send_queue import LastBytes
from django_sse.streaming.store_reader import StoreReader
from django_sse.streaming.tally import tally_of

# The type of a plain Channels message that needs no handler.
PLAIN_EVENT: Final = "sse.event"
# The newest events stay in memory for streams that come back: at most this many bytes of a group,
# and of all groups together.
TAIL_BYTES: Final = 1024 * 1024
ALL_TAILS_BYTES: Final = 64 * TAIL_BYTES
# Events read from the store at a time, if they are small. READ_BYTES limits large ones.
PAGE: Final = 100
# For a stream that comes back, the tail is extended backwards by at most this many events.
_MAX_TAIL_EXTENSION: Final = 5 * PAGE
# The approximate size of a hint in memory, without its entries.
_HINT_BYTES: Final = 500
# How long a large batch is kept for the streams that take it bit by bit.
_HOLD_SECONDS: Final = 10.0
# The pause after an error of the store.
_PAUSE_SECONDS: Final = 1.0


_NOBODY: Final[Iterator["Follower"]] = iter(())


class HistoryLostError(Exception):
    """The events that a stream needs to go on are no longer kept."""


class Follower(Protocol):
    """The part of a stream that a subscription uses."""

    is_counted: ClassVar[bool]
    """Whether it is the stream of a client."""

    restarts: bool
    """Whether its client, when it comes back, starts a producer that was handed over."""

    def take(self, subscription: "Subscription", batch: "Batch", now: float) -> None:
        """Take new events of the group. It is ``now`` by the loop's time, in seconds."""

    def end_if_cancelled(self) -> None:
        """End the stream if nothing more can come."""

    def end(self, reason: str, last_bytes: LastBytes | None = None) -> None:
        """End the stream, after its last bytes if there are any."""

    def fail(self, error: BaseException) -> None:
        """End the stream after a failure. The client comes back."""


FollowerT = TypeVar("FollowerT", bound=Follower)


def each(streams: Iterable[FollowerT], act: Callable[[FollowerT], object]) -> None:
    """Call a function with each stream. A stream for which it fails ends; the others go on."""
    for stream in streams:
        try:
            act(stream)
        except BaseException as error:
            stream.fail(error)
            if must_propagate(error):
                raise


class Subscription:
    """A group that streams of this hub follow.

    ``head`` is the last known number. Events are delivered without a gap up to it.
    """

    def __init__(self, group: str, store: EventStore, reader: StoreReader, fan_out: FanOut) -> None:
        self.group = group
        self.streams: dict[Follower, None] = {}
        self.first = 0
        self.head = 0
        self.origin = 0
        self.cancelled = False
        # As the store last said: a doorbell does not.
        self.producer = 0
        # For plain Channels messages, if any stream wants them. The task `entering` opens it.
        self.layer_channel: LayerChannel | None = None
        self.entering: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self.joined = self._loop.create_future()
        # Whether the store has said where the group stands.
        self.has_state = False
        self._store = store
        self._reader = reader
        self._fan_out = fan_out
        self._positions = GroupPositions(group)
        self.tail = Tail(TAIL_BYTES)
        self._tail_extension_lock = asyncio.Lock()
        # How many events to read for a page that ends where the tail begins.
        self._tail_extension_step = PAGE
        # The pages that are being read for streams, by the number before them.
        self._pages: dict[int, asyncio.Task[list[EncodedEvent]]] = {}
        self._tail_release: asyncio.TimerHandle | None = None
        # The newest events, then the batch that is being handed out, and the streams without it.
        self._pending: list[EncodedEvent] = []
        self._batch: Batch | None = None
        self._without_batch = _NOBODY
        # The hints heard before the state was read, and their size in bytes.
        self._early_hints: list[Hint] = []
        self._early_bytes = 0
        self._stale = False
        # The head that hints say the group has reached.
        self._expected_head: float = 0
        # The head that doorbells have said, and whether they have left out events before it.
        self._rung_head = 0
        self._missed_doorbell = False
        self._healing: asyncio.Task[None] | None = None

    # New events

    def start(self, state: GroupState) -> None:
        """Begin with a state, then take the hints that were heard while it was read."""
        self._adopt(state)
        self.has_state = True
        self.joined.set_result(None)
        early, self._early_hints = self._early_hints, []
        if self._stale:
            self.heal()
        for hint in early:
            self._take(hint)

    def hear(self, hint: Hint) -> None:
        """Take the hint of a doorbell."""
        self._rung_head = max(self._rung_head, hint.head)
        self._take(hint)

    def _take(self, hint: Hint) -> None:
        """Deliver a hint's new events, fetch missing ones, and skip known ones."""
        if not self.has_state:
            self._keep_early(hint)
        elif hint.head > self.head:
            entries, gap = join(self.head, hint.entries)
            # Only the store knows a group's very first number.
            knows_first = self.head != self.origin
            if knows_first and not gap and entries and entries[-1].number == hint.head:
                self.cancelled = hint.cancelled
                self._add(entries)
            else:
                self._missed_doorbell |= knows_first and gap
                self.heal(hint.head)
        elif hint.head == self.head and (hint.cancelled != self.cancelled or self._is_healing):
            # Hints may overtake each other. Only the store knows which one is true. What nobody has
            # announced yet is not fetched.
            self.heal(self.head)

    def hear_message(self, message: Message) -> None:
        """Deliver a plain Channels message live, without a number."""
        if message.get("type") != PLAIN_EVENT:
            self._deliver([EncodedEvent(self.group, Entry(0, b""), message=message)])
            return
        fields = {key: value for key, value in message.items() if key != "type"}
        try:
            wire = encode_published(Event(**fields), conf().MAX_EVENT_BYTES)
        except (InvalidEvent, TypeError) as error:
            log_seldom(
                "A message of type %s to %r was refused: %r",
                PLAIN_EVENT,
                self.group,
                error,
                level=logging.ERROR,
            )
        else:
            self._deliver([EncodedEvent(self.group, Entry(0, wire))])

    def _keep_early(self, hint: Hint) -> None:
        # The store may take long to answer. If too many bytes pile up, they are read from it later.
        self._early_bytes += _HINT_BYTES + sum(len(entry.wire) for entry in hint.entries)
        if self._early_bytes <= TAIL_BYTES:
            self._early_hints.append(hint)
        else:
            self._early_hints.clear()
            self._stale = True
            self._expected_head = inf

    def heal(self, head: float = inf) -> None:
        """Fetch missing events from the store, now or after the fetch that is under way.

        Args:
            head: The last number of the group, if it is known.
        """
        self._stale = True
        self._expected_head = max(self._expected_head, head)
        if not self._is_healing:
            self._healing = spawn(self._heal())

    @property
    def _is_healing(self) -> bool:
        return self._healing is not None and not self._healing.done()

    def close(self) -> None:
        """Stop reading the store, after the last stream has left."""
        for reading in (self._healing, *self._pages.values()):
            if reading:
                reading.cancel()
        if self._tail_release:
            self._tail_release.cancel()

    async def _heal(self) -> None:
        failed = False
        while self._stale and self.streams:
            self._stale = False
            expected_head, self._expected_head = self._expected_head, 0
            before = self.head
            try:
                await self._fetch(expected_head)
                if self.head > max(before, self._rung_head) or self._missed_doorbell:
                    self._note_healed(before)
            except BaseException as error:
                if must_propagate(error):
                    raise
                if not failed:
                    logger.exception("Reading group %r from the event store failed.", self.group)
                failed = self._stale = True
                self._expected_head = self._announced(expected_head)
                await asyncio.sleep(_PAUSE_SECONDS)

    def _note_healed(self, before: int) -> None:
        self._missed_doorbell = False
        tally_of(self._loop).healed += 1
        logger.debug(
            "Events of %s from %d to %d came without a doorbell, and were read from the store.",
            self.group,
            before + 1,
            self.head,
            extra={"group": self.group, "before": before, "head": self.head},
        )

    async def _fetch(self, expected_head: float) -> None:
        while not await self._catch_up(expected_head):
            # The head may move while the store is asked. A state below the head known before means
            # that the store has gone back. A state below the present head is merely late.
            known = self.head
            state = (await self._reader.states([self.group]))[self.group]
            if state.head < known:
                if state.head != state.origin:
                    # New events must not get numbers that clients have seen.
                    state = await self._store.anew_run(self.group, known)
                self._reset(state)
                return
            if state.head < self.head:
                return
            if state.head == self.head:
                self.cancelled = state.cancelled
                self._end_cancelled()
                return
            # If the group is cancelled, its `close` is the last of the missing events.
            self.cancelled = False
            if self.head != self.origin and self.head >= self._announced(expected_head):
                # The rest is left to the hint that announces it, as in a page.
                return
            if self.head == state.origin:
                self.first, self.origin = state.first, state.origin
            if not await self._add_page(expected_head):
                self._reset(state)
                return

    async def _catch_up(self, expected_head: float) -> bool:
        """Fetch the events after the head.

        Args:
            expected_head: The head that hints say the group has reached.

        Returns:
            Whether those were all. If not, the group's state has to be read.
        """
        while self.head != self.origin:
            page = await self._add_page(expected_head)
            # Only the state shows whether a group is cancelled: it may have been reopened since.
            if not page or page[-1].closes or page[-1].number != self.head:
                return False
            self.cancelled = False
            # A short page is not always the last one: a page of large events is short, too.
            if len(page) < PAGE and self.head >= expected_head:
                return True
        return False

    async def _add_page(self, expected_head: float) -> list[Entry]:
        """Add the announced events of a page after the head. Return them, or nothing if there is a
        gap before.

        Events that nobody has announced yet are left to the hint that will: they may follow a kick
        that this hub has not heard of, either.
        """
        page = await self._reader.page(self.group, self._start_after(self.head), PAGE)
        announced = self._announced(expected_head)
        page = [entry for entry in page if entry.number <= announced]
        # Hints may have moved the head meanwhile. Events that they brought are skipped.
        entries, gap = join(self._start_after(self.head), page)
        self._add(entries)
        return page if entries or not gap else []

    def _announced(self, expected_head: float) -> float:
        # Hints may have come since the fetch began.
        return max(expected_head, self._expected_head)

    def recheck_cancelled(self) -> None:
        """Ask the store again whether the group is cancelled.

        If it was reopened unheard, a stream that begins now would be ended for good.
        """
        if self.has_state and self.cancelled:
            self.cancelled = False
            self.heal(self.head)

    def compare(self, hint: Hint) -> None:
        """Take the group's state in the store, even if the store has gone back."""
        self.hear_of_producer(hint.producer)
        if self.has_state and hint.head < self.head:
            # It has gone back, or the hint is old. What nobody has announced yet is not fetched.
            self.heal(self.head)
        else:
            self._take(hint)

    @property
    def is_followed(self) -> bool:
        """Whether the stream of a client follows the group."""
        return any(stream.is_counted for stream in self.streams)

    # Earlier events

    def state_after(self, number: int | None, history: int) -> GroupState | None:
        """Return the group's state if memory has all that a stream needs to begin, or else None.

        Args:
            number: The number in the client's position, if there is one.
            history: How many past events the client gets if it has no position.
        """
        if not self.has_state or self.cancelled or (number is None and history):
            # Only the store knows which past events are too old. The tail may have older ones.
            return None
        state = GroupState(self.first, self.head, self.tail.first, origin=self.origin)
        begin = self.head if number is None else number
        return state if self.tail.first - 1 <= begin <= self.head else None

    async def read(self, after: int) -> list[EncodedEvent]:
        """Return one or more of the events that follow a number.

        Raises:
            HistoryLostError: The events are no longer kept.
        """
        after = self._start_after(after)
        if self.tail.first > after + 1:
            # Streams that come back together wait here for the one that reads for all.
            async with self._tail_extension_lock:
                while after + 1 < self.tail.first <= after + _MAX_TAIL_EXTENSION:
                    if not await self._extend_tail():
                        break
        if self.tail.first <= after + 1:
            return self.tail.after(after)
        reading = self._pages.get(after)
        if reading is None:
            reading = self._pages[after] = start_eagerly(self._read_page(after), self._loop)
            reading.add_done_callback(partial(self._note_read, after))
        # Not awaited itself, since other streams wait for the page, too.
        await asyncio.wait([reading])
        return reading.result()

    def _note_read(self, after: int, reading: asyncio.Task[list[EncodedEvent]]) -> None:
        self._pages.pop(after, None)
        if not reading.cancelled():
            # Whoever waited for it may have gone. Otherwise asyncio would log its error.
            reading.exception()

    def in_memory(self, after: int) -> list[EncodedEvent]:
        """Return the events that follow a number, if they are in memory."""
        after = self._start_after(after)
        return self.tail.after(after) if self.tail.first <= after + 1 else []

    async def _read_page(self, after: int) -> list[EncodedEvent]:
        # Pages end at multiples of PAGE, so that streams with different numbers soon share them.
        limit = PAGE - after % PAGE
        entries, _ = join(after, await self._reader.page(self.group, after, limit))
        if not entries:
            raise HistoryLostError
        # What nobody has announced yet may follow a kick that this hub has not heard of, either.
        latest = self.head if after < self.head else inf
        events = [self._encoded(entry) for entry in entries if entry.number <= latest]
        self.tail.supersede_older(events)
        return events

    async def _extend_tail(self) -> bool:
        """Read events before the tail, if there is room.

        Returns:
            Whether to go on: the tail is longer, or the next page is a smaller one.
        """
        if not self.tail.has_room:
            return False
        last, step = self.tail.first - 1, self._tail_extension_step
        page = await self._reader.page(self.group, last - step, step)
        size = sum(len(entry.wire) for entry in page)
        if page and page[-1].number < last and len(page) < step:
            # The page was full before it reached the tail.
            self._tail_extension_step = len(page)
            return True
        if 2 * size <= READ_BYTES:
            self._tail_extension_step = min(2 * step, PAGE)
        return self.tail.prepend(self._encoded(entry) for entry in reversed(page))

    def _start_after(self, number: int) -> int:
        """Return the number to read after, for a position: the origin stands for all events."""
        return self.first - 1 if number == self.origin else number

    def _reset(self, state: GroupState) -> None:
        """Take the store's state though events before it are lost, and end the streams."""
        logger.debug(
            "The store has lost events of %s, so its %d streams begin anew.",
            self.group,
            len(self.streams),
            extra={"group": self.group, "head": state.head},
        )
        self._adopt(state)
        self._pending.clear()
        each(list(self.streams), lambda stream: stream.end("reset", jittered_retry))

    def _adopt(self, state: GroupState) -> None:
        self.first, self.head = state.first, state.head
        self.origin, self.cancelled = state.origin, state.cancelled
        self.hear_of_producer(state.producer)
        self.tail.clear(self.head + 1)

    def hear_of_producer(self, producer: int) -> None:
        """Take the token of the group's producer, as the store says. If the group was handed over,
        streams end whose clients start the next producer."""
        self.producer = producer
        if producer == HANDED_OVER:
            restarting = [stream for stream in self.streams if stream.restarts]
            each(restarting, lambda stream: stream.end("handed over", jittered_retry))

    def _add(self, entries: Iterable[Entry]) -> None:
        events = [self._encoded(entry) for entry in entries]
        if not events:
            return
        self.head = events[-1].number
        self.tail.append(events)
        self._deliver(events)

    def _encoded(self, entry: Entry) -> EncodedEvent:
        return EncodedEvent(self.group, entry, self._positions.format(entry.number))

    # Fan-out

    def _deliver(self, events: Sequence[EncodedEvent]) -> None:
        if not self.has_new_events:
            self._fan_out.add(self)
        self._pending.extend(events)

    @property
    def has_new_events(self) -> bool:
        """Whether some streams do not have all new events yet."""
        return self._batch is not None or bool(self._pending)

    def hand_out(self, limit: int) -> int:
        """Hand new events to up to ``limit`` streams. Return to how many."""
        if self._batch is None:
            self._begin_batch()
        batch = self._batch
        if batch is None:
            return 0
        # By hand, since `each` would take as long as a stream that takes an event.
        count, now = 0, self._loop.time()
        for stream in self._without_batch:
            count += 1
            try:
                stream.take(self, batch, now)
            except BaseException as error:
                stream.fail(error)
                if must_propagate(error):
                    raise
            if count == limit and length_hint(self._without_batch):
                return count
        self._batch, self._without_batch = None, _NOBODY
        return count

    def _begin_batch(self) -> None:
        events, self._pending = self._pending, []
        # Events whose group began anew are gone.
        if not events:
            return
        try:
            batch, streams = Batch(events), list(self.streams)
        except Exception as error:
            # There may be no memory to join them. Clients that come back get them bit by bit.
            failure = error
            each(list(self.streams), lambda stream: stream.fail(failure))
        else:
            self._batch, self._without_batch = batch, iter(streams)
            if batch.is_large:
                self._hold(batch)

    def _hold(self, batch: Batch) -> None:
        """Keep a batch for a while that is too large for the streams to take at once.

        The store may not have all of it, and each stream would ask the store for it.
        """
        self.tail.hold(batch.events)
        if self._tail_release:
            self._tail_release.cancel()
        release, context = self.tail.let_go, Context()
        self._tail_release = self._loop.call_later(_HOLD_SECONDS, release, context=context)

    def _end_cancelled(self) -> None:
        if self.cancelled:
            each(list(self.streams), lambda stream: stream.end_if_cancelled())
