"""What a hub knows of one group: its newest events, encoded, and the streams that follow it."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import Context
from itertools import islice
from math import inf
from operator import length_hint
from typing import Final, Protocol, TypeVar

from django_sse.concurrency.tasks import must_propagate, spawn, start_eagerly
from django_sse.conf import conf
from django_sse.doorbells.layer_channel import LayerChannel, Message
from django_sse.event import Event, encode_published
from django_sse.exceptions import InvalidEvent
from django_sse.groups.entries import Entry, GroupState, Hint
from django_sse.groups.replay import join
from django_sse.logs import log_seldom, logger
from django_sse.stores.base import EventStore
from django_sse.stores.read_limits import READ_BYTES
from django_sse.streaming.encoded_events import Batch, EncodedEvent, Tail
from django_sse.streaming.jitter import jittered_retry
from django_sse.streaming.send_queue import LastBytes
from django_sse.streaming.store_reader import StoreReader

# The type of a plain Channels message that needs no handler.
PLAIN_EVENT: Final = "sse.event"
# Bytes of the newest events kept in memory for streams that come back: of a group, and of all
# groups together.
TAIL_BYTES: Final = 1024 * 1024
ALL_TAILS_BYTES: Final = 64 * TAIL_BYTES
# Events read from the store at a time, if they are small: see READ_BYTES.
PAGE: Final = 100
# How many events the tail is lengthened by at the most, backwards, for one that comes back.
_LENGTHEN: Final = 5 * PAGE
# Streams served in one turn of the event loop, so that a large group never holds it for long.
STREAMS_A_TURN: Final = 256
# What a hint takes in memory beside its entries, nearly.
_HINT_BYTES: Final = 500
# How long a batch is kept that streams take bit by bit.
_HOLD_SECONDS: Final = 10.0
# After an error of the store.
_PAUSE_SECONDS: Final = 1.0


class HistoryLostError(Exception):
    """What a stream needs to go on is not kept any more."""


class Follower(Protocol):
    """A stream, as far as a subscription knows it."""

    def take(self, subscription: "Subscription", batch: "Batch") -> None:
        """Take what is new in the group."""

    def end_if_cancelled(self) -> None:
        """End, if nothing more can come."""

    def end(self, reason: str, last_bytes: LastBytes | None = None) -> None:
        """End, after last bytes if there are any."""

    def fail(self, error: BaseException) -> None:
        """End, for a failure of its own, so that the client comes back."""


FollowerT = TypeVar("FollowerT", bound=Follower)


def each(streams: Iterable[FollowerT], act: Callable[[FollowerT], object]) -> None:
    """Do something with each of the streams; one that fails ends, and harms no other."""
    for stream in streams:
        try:
            act(stream)
        except BaseException as error:
            stream.fail(error)
            if must_propagate(error):
                raise


class Subscription:
    """A group that streams of this hub follow.

    ``head`` is the last number known; what is delivered is always contiguous up to it.
    """

    def __init__(self, group: str, store: EventStore, reader: StoreReader) -> None:
        self.group = group
        self.streams: set[Follower] = set()
        self.first = 0
        self.head = 0
        self.origin = 0
        self.cancelled = False
        # For plain Channels messages, where a stream wants them; `entering` opens it.
        self.layer_channel: LayerChannel | None = None
        self.entering: asyncio.Task[None] | None = None
        self.joined = asyncio.get_running_loop().create_future()
        self._store = store
        self._reader = reader
        self.tail = Tail(TAIL_BYTES)
        self._lengthening = asyncio.Lock()
        # How many events a page takes that ends where the tail begins.
        self._step = PAGE
        # The pages that are being read for streams, by the number before them.
        self._pages: dict[int, asyncio.Task[list[EncodedEvent]]] = {}
        self._letting_go: asyncio.TimerHandle | None = None
        self._pending: list[EncodedEvent] = []
        self._fanning_out = False
        # What was heard before the state was read, and how many bytes that is.
        self._early: list[Hint] = []
        self._early_bytes = 0
        self._stale = False
        # The head that the store was last said to have.
        self._told: float = 0
        self._healing: asyncio.Task[None] | None = None

    # What is new

    def start(self, state: GroupState) -> None:
        """Take the state to begin with, then what was heard while it was read."""
        self._adopt(state)
        self.joined.set_result(None)
        early, self._early = self._early, []
        if self._stale:
            self.heal()
        for hint in early:
            self.hear(hint)

    def hear(self, hint: Hint) -> None:
        """Take a hint: deliver what it brings, fetch what it leaves out, skip what is known."""
        if not self.joined.done():
            self._keep_early(hint)
        elif hint.head > self.head:
            entries, gap = join(self.head, hint.entries)
            # A group's very first number is known to the store alone.
            if self.head != self.origin and not gap and entries and entries[-1].number == hint.head:
                self.cancelled = hint.cancelled
                self._add(entries)
            else:
                self.heal(hint.head)
        elif hint.head == self.head and hint.cancelled != self.cancelled:
            # Hints may overtake each other, so only the store can say which one is true.
            self.heal()

    def hear_message(self, message: Message) -> None:
        """Deliver a plain Channels message: live, without a number."""
        if message.get("type") != PLAIN_EVENT:
            self._deliver([EncodedEvent(self.group, Entry(0, b""), message)])
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
        # For as long as the store takes: what becomes too much is read from it instead.
        self._early_bytes += _HINT_BYTES + sum(len(entry.wire) for entry in hint.entries)
        if self._early_bytes <= TAIL_BYTES:
            self._early.append(hint)
        else:
            self._early.clear()
            self._stale = True
            self._told = inf

    def heal(self, head: float = inf) -> None:
        """Fetch from the store what is missing, now or after the fetch that is under way.

        Args:
            head: How far the group has got, if that is known.
        """
        self._stale = True
        self._told = max(self._told, head)
        if self._healing is None or self._healing.done():
            self._healing = spawn(self._heal())

    def close(self) -> None:
        """Ask the store no more: no stream is left."""
        for reading in (self._healing, *self._pages.values()):
            if reading:
                reading.cancel()
        if self._letting_go:
            self._letting_go.cancel()

    async def _heal(self) -> None:
        failed = False
        while self._stale and self.streams:
            try:
                self._stale = False
                told, self._told = self._told, 0
                await self._fetch(told)
            except BaseException as error:
                if must_propagate(error):
                    raise
                if not failed:
                    logger.exception("Reading group %r from the event store failed.", self.group)
                failed = self._stale = True
                self._told = inf
                await asyncio.sleep(_PAUSE_SECONDS)

    async def _fetch(self, told: float) -> None:
        while not await self._go_on(told):
            # The head may move on while the store is asked: a state below what was known before
            # is of a store that has gone back, one below what is known now is merely late.
            known = self.head
            state = (await self._reader.states([self.group]))[self.group]
            if state.head < known:
                if state.head != state.origin:
                    # What comes must not get numbers that clients have seen.
                    state = await self._store.anew_run(self.group, known)
                self._reset(state)
                return
            if state.head < self.head:
                return
            if state.head == self.head:
                self.cancelled = state.cancelled
                self._end_cancelled()
                return
            # What it was cancelled by, if anything, is not before the end of what is missing.
            self.cancelled = False
            if self.head == state.origin:
                self.first, self.origin = state.first, state.origin
            if not await self._add_page():
                self._reset(state)
                return

    async def _go_on(self, told: float) -> bool:
        """Fetch what follows the head; say whether that was all there is to know.

        Args:
            told: The head that the store was said to have.
        """
        while self.head != self.origin:
            page = await self._add_page()
            # Whether a group is cancelled shows in its state: it may have been reopened since.
            if not page or page[-1].closes or page[-1].number != self.head:
                return False
            self.cancelled = False
            # A page of large events is a short one, too, and not the last.
            if len(page) < PAGE and self.head >= told:
                return True
        return False

    async def _add_page(self) -> list[Entry]:
        """Take a page of what follows the head; return it, or nothing if that does not go on."""
        page = await self._reader.page(self.group, self._from(self.head), PAGE)
        # Hints were heard meanwhile: what they brought is skipped.
        entries, gap = join(self._from(self.head), page)
        self._add(entries)
        return page if entries or not gap else []

    def recheck_cancelled(self) -> None:
        """Ask again whether the group is cancelled: it may have been reopened unheard, and a stream
        that begins now would be ended for good."""
        if self.joined.done() and self.cancelled:
            self.cancelled = False
            self.heal()

    def compare(self, hint: Hint) -> None:
        """Hear what the store said of the group, also that it has gone back."""
        if self.joined.done() and hint.head < self.head:
            self.heal()
        else:
            self.hear(hint)

    # What was new a while ago

    def state_after(self, number: int | None, history: int) -> GroupState | None:
        """Return the group's state, if what is known here is enough to begin a stream with.

        Args:
            number: The position of the stream's client, if it has one.
            history: How many past events it gets if it has none.
        """
        if not self.joined.done() or self.cancelled or (number is None and history):
            # How much of the past is not too old, the store knows: the tail may be older.
            return None
        state = GroupState(self.first, self.head, self.tail.first, origin=self.origin)
        begin = self.head if number is None else number
        return state if self.tail.first - 1 <= begin <= self.head else None

    async def read(self, after: int) -> list[EncodedEvent]:
        """Return the events that follow a number, some of them, at least one.

        Raises:
            HistoryLostError: They are not kept any more.
        """
        after = self._from(after)
        if self.tail.first > after + 1:
            # Those who come back together wait here for the one that reads for all.
            async with self._lengthening:
                while after + 1 < self.tail.first <= after + _LENGTHEN:
                    if not await self._lengthen():
                        break
        if self.tail.first <= after + 1:
            return self.tail.after(after)
        if after not in self._pages:
            reading = self._pages[after] = start_eagerly(self._read_page(after))
            reading.add_done_callback(lambda _: self._pages.pop(after, None))
        # Shielded: it is others' page, too.
        return await asyncio.shield(self._pages[after])

    def at_hand(self, after: int) -> list[EncodedEvent]:
        """Return the events that follow a number, if they are in memory."""
        after = self._from(after)
        return self.tail.after(after) if self.tail.first <= after + 1 else []

    async def _read_page(self, after: int) -> list[EncodedEvent]:
        # All pages end alike, so that those who came from different numbers soon share them.
        limit = PAGE - after % PAGE
        entries, _ = join(after, await self._reader.page(self.group, after, limit))
        if not entries:
            raise HistoryLostError
        return [EncodedEvent(self.group, entry) for entry in entries]

    async def _lengthen(self) -> bool:
        """Read what comes before the tail, if there is room; say whether it has become longer."""
        if not self.tail.has_room:
            return False
        last, step = self.tail.first - 1, self._step
        page = await self._reader.page(self.group, last - step, step)
        size = sum(len(entry.wire) for entry in page)
        if page and page[-1].number < last and len(page) < step:
            # It was full before it came to where the tail begins.
            self._step = len(page)
            return True
        if 2 * size <= READ_BYTES:
            self._step = min(2 * step, PAGE)
        return self.tail.prepend(EncodedEvent(self.group, entry) for entry in reversed(page))

    def _from(self, number: int) -> int:
        """Return the number before the one that follows a position."""
        return self.first - 1 if number == self.origin else number

    def _reset(self, state: GroupState) -> None:
        """Go on from the store's state where the numbers between are lost, without the streams."""
        self._adopt(state)
        self._pending.clear()
        each(list(self.streams), lambda stream: stream.end("reset", jittered_retry))

    def _adopt(self, state: GroupState) -> None:
        self.first, self.head = state.first, state.head
        self.origin, self.cancelled = state.origin, state.cancelled
        self.tail.clear(self.head + 1)

    def _add(self, entries: Iterable[Entry]) -> None:
        events = [EncodedEvent(self.group, entry) for entry in entries]
        if not events:
            return
        self.head = events[-1].number
        self.tail.append(events)
        self._deliver(events)

    # Fan-out

    def _deliver(self, events: Sequence[EncodedEvent]) -> None:
        self._pending.extend(events)
        if not self._fanning_out:
            self._fanning_out = True
            asyncio.get_running_loop().call_soon(self._next_batch)

    def _next_batch(self) -> None:
        events, self._pending = self._pending, []
        if not events:
            self._fanning_out = False
            return
        try:
            batch = Batch(events)
        except Exception as error:
            # Such as no memory to join them. Who comes back gets them bit by bit.
            self._fanning_out = False
            failure = error
            each(list(self.streams), lambda stream: stream.fail(failure))
        else:
            if batch.is_large:
                self._hold(batch)
            self._fan_out(batch, iter(list(self.streams)))

    def _hold(self, batch: Batch) -> None:
        """Keep a batch for a moment that no stream takes at once: the store may not have all of it,
        and would be asked by each of them."""
        self.tail.hold(batch.events)
        if self._letting_go:
            self._letting_go.cancel()
        loop = asyncio.get_running_loop()
        self._letting_go = loop.call_later(_HOLD_SECONDS, self.tail.let_go, context=Context())

    def _fan_out(self, batch: Batch, streams: Iterator[Follower]) -> None:
        try:
            each(islice(streams, STREAMS_A_TURN), lambda stream: stream.take(self, batch))
        finally:
            # Also where the process is told to end: it may not do so.
            loop = asyncio.get_running_loop()
            if length_hint(streams):
                loop.call_soon(self._fan_out, batch, streams)
            else:
                loop.call_soon(self._next_batch)

    def _end_cancelled(self) -> None:
        if self.cancelled:
            each(list(self.streams), lambda stream: stream.end_if_cancelled())
