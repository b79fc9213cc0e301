"""The hub of an event loop: it hears of each new event once, and serves all streams of the loop."""

import asyncio
from collections import ChainMap, deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from contextvars import Context
from itertools import chain, islice
from math import inf
from time import monotonic
from typing import Any, Final, TypeVar

from asgiref.sync import async_to_sync

from django_sse.access.session_claims import SessionClaim
from django_sse.channel_layer import default_layer
from django_sse.concurrency.forks import in_child
from django_sse.concurrency.loops import ByLoop
from django_sse.concurrency.tasks import must_propagate, spawn
from django_sse.conf import conf
from django_sse.doorbells import doorbell_of
from django_sse.doorbells.base import listen, published, stop_listening
from django_sse.doorbells.layer_channel import LAYER_SECONDS, LayerChannel
from django_sse.groups.entries import Entry, GroupState, Hint
from django_sse.groups.namespaces import layer_group
from django_sse.logs import log_seldom, logger
from django_sse.servers.shutdown import call_at_shutdown
from django_sse.stores import get_store
from django_sse.stores.base import Cursor
from django_sse.streaming.fan_out import STREAMS_A_TURN, FanOut
from django_sse.streaming.jitter import jittered_retry
from django_sse.streaming.lapses import close_lapsed
from django_sse.streaming.limits import Counted, Occupancy, TooManyStreams, counting, reached_limit
from django_sse.streaming.open_stream import OpenStream
from django_sse.streaming.presence import Attendants, attendants_of
from django_sse.streaming.readership import tell_producers
from django_sse.streaming.rechecks import Rechecks
from django_sse.streaming.reports import ASKED, REPORTS, ProcessReport, Reporter, report_of
from django_sse.streaming.store_reader import StoreReader
from django_sse.streaming.stream import Stream
from django_sse.streaming.subscription import ALL_TAILS_BYTES, PAGE, TAIL_BYTES, Subscription, each
from django_sse.streaming.tally import tally_of
from django_sse.streaming.timetable import Timetable

Answer = TypeVar("Answer")

# How often heartbeats and send timeouts are checked.
_TICK_SECONDS: Final = 1.0
# For how long it is remembered that the loop was late: longer than monitoring systems pause.
_LAG_SECONDS: Final = 60.0
# How often the store is asked for all groups, not only for changed ones, and how many at a time.
_SWEEP_SECONDS: Final = 60.0
_SWEEP_GROUPS: Final = 500
# How long hints may hold the event loop in one turn, unless a kick is among them.
_HEARING_SECONDS: Final = 0.005
# How long a client that does not read may delay a server's shutdown.
_FAREWELL_SECONDS: Final = 0.5

_hubs: Final[ByLoop["Hub"]] = ByLoop()
# What limits count, by event loop. A hub comes and goes while requested streams keep their places.
_occupancies: Final[ByLoop[Occupancy]] = ByLoop()
# The child of a fork does not count the streams of its parent.
in_child(_hubs.clear)
in_child(_occupancies.clear)


class _Followed(ChainMap[str, Any]):
    """All groups that a hub follows, of which each is in one of the maps."""

    def __len__(self) -> int:
        # A ChainMap would make a set of all first.
        return sum(map(len, self.maps))


def current_hub() -> "Hub":
    """Return the running loop's hub; make one if there is none.

    A hub starts with its first stream and is discarded after its last one.
    """
    loop = asyncio.get_running_loop()
    if loop not in _hubs or _hubs[loop].outdated:
        _hubs[loop] = Hub(loop)
    return _hubs[loop]


def forget_closed_loops() -> None:
    """Drop the hubs of event loops that were closed, and what they count."""
    _hubs.drop_closed()
    _occupancies.drop_closed()


def open_streams() -> int:
    """Return how many streams are open in this process."""
    return sum(hub.occupancy.streams for hub in _hubs.of_open_loops())


def streams() -> list[OpenStream]:
    """Return the open streams of clients in this process."""
    return [stream for hub in _hubs.of_open_loops() for stream in hub.open_streams()]


def report() -> ProcessReport:
    """Return the report of this process."""
    return report_of(_hubs.of_open_loops())


def ask_from_sync(question: Callable[[], Coroutine[Any, Any, Answer]]) -> Answer:
    """Return what asynchronous code answers that reads the event store, to synchronous code.

    Nothing stays open of it in a process that has no streams, such as that of a WSGI server.
    """

    async def ask() -> Answer:
        try:
            return await question()
        finally:
            if not any(hub.streams for hub in _hubs.of_open_loops()):
                await get_store().aclose()

    return async_to_sync(ask)()


def limit_reached_by(stream: Counted) -> str | None:
    """Return the name of the limit that this process would exceed with one more stream, or None."""
    with counting:
        return reached_limit(stream, _occupancies.of_open_loops(), conf())


def reserve(requested: Counted) -> Callable[[], None]:
    """Count a stream that is requested and has not begun, so that what its request starts does not
    exceed a limit.

    Returns:
        A function after which it does not count any more.

    Raises:
        TooManyStreams: A limit does not allow one more stream.
    """
    occupancy = current_hub().occupancy
    with counting:
        if limit := limit_reached_by(requested):
            raise TooManyStreams(limit)
        occupancy.add(requested)

    def release() -> None:
        with counting:
            occupancy.remove(requested)

    return release


class Hub:
    """Everything that runs once for all streams of an event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        # A dict for a set: one that has just grown takes half as much for each of its keys.
        self.streams: dict[Stream, None] = {}
        self.occupancy = _occupancies.of(loop, Occupancy)
        self.tally = tally_of(loop)
        self._subscriptions: dict[str, Subscription] = {}
        self._store = get_store()
        self._reader = StoreReader(self._store)
        self._rechecks = Rechecks(self.streams, self._store, self._reader, self._sync_interval)
        self._fan_out = FanOut(loop)
        self._reporter = Reporter(self._store, _hubs.of_open_loops, self)
        self._followed = _Followed(
            self._subscriptions, self._rechecks.owned, {ASKED: self._reporter}
        )
        self._layer = default_layer()
        self._receiver = doorbell_of(self._store).receiver(self)
        self._inbox: deque[Hint] = deque()
        self._inbox_is_read = True
        # Set once the end of an owner's streams is in the inbox.
        self._kick_is_rung = False
        self._comparing = asyncio.Event()
        self._synced = True
        self._swept = loop.time()
        self._heard_from_store = loop.time()
        # How late the last ticks were, in seconds.
        self._lags = deque[float](maxlen=round(_LAG_SECONDS / _TICK_SECONDS))
        self._tasks: list[asyncio.Task[None]] = []
        self._ticking: asyncio.TimerHandle | None = None
        self._closing: asyncio.Task[None] | None = None

    @property
    def current(self) -> "Hub":
        """The present hub of the loop: another one once the last stream of this one has left."""
        return current_hub()

    @property
    def outdated(self) -> bool:
        """Whether no stream is open, and the settings have changed since the hub was made."""
        if self.streams:
            return False
        return self._store is not get_store() or self._layer is not default_layer()

    @property
    def attendants(self) -> Attendants:
        """The members that have streams of the loop."""
        return attendants_of(self.loop, self._store)

    # Streams

    async def states(
        self,
        groups: Sequence[str],
        sent: Mapping[str, int],
        history: int,
        owner_keys: Iterable[str] = (),
    ) -> dict[str, GroupState]:
        """Return the states of a stream's groups and owner keys.

        A group's state comes from memory if that has all that the stream needs to begin.

        Args:
            groups: The groups of the stream.
            sent: The numbers in the client's position, by group.
            history: How many past events of a group go to a client that has no number in it.
            owner_keys: The keys of the stream's owner.

        Raises:
            Exception: The event store could not be read.
        """
        known = {
            group: state
            for group in groups
            if (subscription := self._subscriptions.get(group))
            and (state := subscription.state_after(sent.get(group), history))
        }
        unknown = [group for group in groups if group not in known] + list(owner_keys)
        return known | (await self._reader.states(unknown) if unknown else {})

    async def newest(self, group: str, after: int) -> list[Entry]:
        """Return a page of the newest event of each key: see ``EventStore.anewest``.

        Raises:
            Exception: The event store could not be read.
        """
        return await self._reader.newest(group, after, PAGE)

    async def kept_session(self, claim: SessionClaim) -> Mapping[str, Any] | None:
        """Return a session's data if a claim about it is true and its login is valid, else None.

        It is None as well if this could not be found out. Many claims are checked at a time.
        """
        return await self._rechecks.kept_session(claim)

    async def join(self, stream: Stream, groups: Sequence[str]) -> None:
        """Let a stream follow its groups. From now on it gets all their new events.

        Raises:
            TooManyStreams: A limit does not allow one more stream.
            Exception: The event store could not be read.
        """
        if stream.is_counted:
            with counting:
                if limit := limit_reached_by(stream):
                    raise TooManyStreams(limit)
                self.occupancy.add(stream)
        self.streams[stream] = None
        if len(self.streams) == 1:
            self._start()
        self._timetable.add(stream, self.loop.time())
        self._rechecks.add(stream)
        followed = [self._subscriptions.get(group) or self._subscribe(group) for group in groups]
        for subscription in followed:
            subscription.streams[stream] = None
            subscription.recheck_cancelled()
            stream.follow(subscription)
            if stream.wants_messages:
                self._hear_messages(subscription)
        for subscription in followed:
            # Shielded: a waiting stream that goes away must not cancel the subscription.
            await asyncio.shield(subscription.joined)
            if subscription.entering:
                await asyncio.wait([subscription.entering], timeout=LAYER_SECONDS)
        # The owner's streams may have been ended since the view checked.
        await self._rechecks.check_newcomer(stream)
        if stream.attendance and stream in self.streams:
            self.attendants.enter(stream)

    def leave(self, stream: Stream) -> None:
        """Remove a stream. The last stream of a group, or of the hub, closes it."""
        if stream not in self.streams:
            return
        del self.streams[stream]
        self._timetable.remove(stream)
        if stream.is_counted:
            with counting:
                self.occupancy.remove(stream)
        self._rechecks.remove(stream)
        if stream.attendance:
            self.attendants.leave(stream)
        for subscription in stream.subscriptions:
            subscription.streams.pop(stream, None)
            if not subscription.streams:
                self._unsubscribe(subscription)
        if not self.streams:
            self._stop()

    def _subscribe(self, group: str) -> Subscription:
        subscription = self._subscriptions[group] = Subscription(
            group, self._store, self._reader, self._fan_out
        )
        subscription.tail.bound(self._tail_bytes())
        spawn(self._open(subscription))
        if group == REPORTS:
            self._reporter.watch()
        return subscription

    async def _open(self, subscription: Subscription) -> None:
        try:
            # Listen first, then read, so that no event between the two is missed. Do not wait for a
            # layer that hangs: the sync finds the events that it does not announce.
            entering = spawn(self._receiver.enter(subscription.group))
            await asyncio.wait([entering], timeout=LAYER_SECONDS)
            states = await self._reader.states([subscription.group])
        except BaseException as error:
            # The streams that wait for this subscription end. Streams that come later try anew.
            self._forget(subscription)
            if must_propagate(error):
                subscription.joined.cancel()
                raise
            subscription.joined.set_exception(error)
            subscription.joined.exception()
        else:
            subscription.start(states[subscription.group])

    def _unsubscribe(self, subscription: Subscription) -> None:
        self._forget(subscription)
        subscription.close()
        if subscription.layer_channel:
            spawn(subscription.layer_channel.close())

    def _forget(self, subscription: Subscription) -> None:
        if self._subscriptions.get(subscription.group) is subscription:
            del self._subscriptions[subscription.group]
            spawn(self._receiver.leave(subscription.group))

    # New events

    def hear_soon(self, hints: Sequence[Hint]) -> None:
        """Take hints, from any thread. Hints for groups that no stream follows are dropped."""
        # Asked for each event: to ask a ChainMap takes several times as long.
        groups, owners = self._subscriptions, self._rechecks.owned
        for hint in hints:
            if hint.group in groups or hint.group == ASKED:
                self._inbox.append(hint)
            elif hint.group in owners:
                self._inbox.append(hint)
                if hint.head:
                    self._kick_is_rung = True
        if self._inbox:
            self._read_inbox_soon()

    def _read_inbox_soon(self) -> None:
        if not self._inbox_is_read:
            return
        self._inbox_is_read = False
        # To wake a loop from another thread takes two system calls.
        soon = self.loop.call_soon if self._is_running_here() else self.loop.call_soon_threadsafe
        try:
            soon(self._read_inbox, context=Context())
        except RuntimeError:
            # The loop was closed while streams were open. Nobody is left to hear the hints.
            self._inbox.clear()

    def _is_running_here(self) -> bool:
        try:
            return asyncio.get_running_loop() is self.loop
        except RuntimeError:
            return False

    def _read_inbox(self) -> None:
        # Set before reading, so that hints that come from here on schedule another read.
        self._inbox_is_read = True
        ends, at_once = self.loop.time() + _HEARING_SECONDS, 0
        try:
            while self._inbox:
                if self._kick_is_rung:
                    # A kick is heard in this turn, however much waits before it. In a later one,
                    # the store might have answered, with events from after the kick.
                    self._kick_is_rung = False
                    at_once = len(self._inbox)
                hint = self._inbox.popleft()
                at_once -= 1
                try:
                    self._hear(hint)
                except BaseException as error:
                    if must_propagate(error):
                        raise
                    self._fail(hint.group, error)
                if at_once <= 0 and not self._kick_is_rung and self.loop.time() >= ends:
                    break
        finally:
            # What a publisher in a thread has left may be thousands.
            if self._inbox:
                self._read_inbox_soon()

    def _hear(self, hint: Hint) -> None:
        if subscription := self._subscriptions.get(hint.group):
            subscription.hear(hint)
        elif hint.group == ASKED:
            self._reporter.hear()
        else:
            self._rechecks.hear(hint)

    def _fail(self, group: str, error: BaseException) -> None:
        """End the streams of a group that has failed, so that their clients come back.

        Streams of other groups go on.
        """
        log_seldom("New events of group %r could not be taken.", group, exc_info=error)
        streams = [stream for stream in self.streams if group in stream.groups]
        each(streams, lambda stream: stream.fail(error))

    async def look_up(self, stream: Stream) -> None:
        """Ask the store now whether it has ended a stream's owner.

        Raises:
            Exception: The event store could not be read.
        """
        await self._rechecks.look_up(stream.owner.keys)

    def compare_soon(self) -> None:
        """Ask the store for changes, at once or after the question under way."""
        self._comparing.set()

    # What is told of this hub

    def open_streams(self) -> list[OpenStream]:
        """Return the streams of clients. Works from any thread."""
        return [stream.info for stream in list(self.streams) if stream.is_counted]

    def busy_streams(self) -> list[OpenStream]:
        """Return the streams of clients that are sending, or have something to send. Works from any
        thread."""
        return [
            stream.info for stream in list(self.streams) if stream.is_counted and stream.is_busy
        ]

    @property
    def is_watching(self) -> bool:
        """Whether a stream of this hub shows the reports of processes."""
        return REPORTS in self._subscriptions

    @property
    def store_lag(self) -> float:
        """Seconds since the hub last heard from the store."""
        return self.loop.time() - self._heard_from_store

    @property
    def loop_lag(self) -> float:
        """Seconds that the event loop was late at most in the last minute. Works from any thread.

        Now counts, too: a loop that is blocked does not tick.
        """
        now = self.loop.time() - self._ticking.when() if self._ticking else 0.0
        return max(0.0, now, *list(self._lags))

    def streams_of(self, group: str) -> int:
        """Return how many streams of clients follow a group. Works from any thread."""
        return self.occupancy.groups[group]

    def _hear_messages(self, subscription: Subscription) -> None:
        """Listen for a group's plain Channels messages.

        These do not name their group, so each group needs a separate channel.
        """
        if self._layer is None or subscription.layer_channel:
            return
        subscription.layer_channel = LayerChannel(self._layer, subscription.hear_message)
        subscription.entering = spawn(
            subscription.layer_channel.enter(layer_group(subscription.group))
        )

    # Timers

    def _start(self) -> None:
        listen(self)
        spawn(self._receiver.open())
        self._tasks = [
            spawn(self._sync()),
            spawn(self._trim()),
            spawn(close_lapsed(self._store)),
            spawn(tell_producers(self._store, self._subscriptions)),
            spawn(self._renew_memberships()),
            spawn(self._rechecks.watch_logins()),
            spawn(self._rechecks.watch_backends()),
            spawn(self._rechecks.ask_views()),
        ]
        self._timetable = Timetable[Stream](self.loop.time(), _TICK_SECONDS)
        self._schedule_tick()
        self._stop_watching = call_at_shutdown(self._send_back)

    def _stop(self) -> None:
        stop_listening(self)
        self._stop_watching()
        self._reporter.close()
        _hubs.pop(self.loop, None)
        for task in self._tasks:
            task.cancel()
        if self._ticking:
            self._ticking.cancel()
        self._closing = spawn(self._close())

    async def closed(self) -> None:
        """Wait until nothing is left of a hub whose last stream has left."""
        if self._closing:
            await asyncio.wait([self._closing, *self._tasks])

    async def _close(self) -> None:
        await asyncio.wait([spawn(self._receiver.close())], timeout=LAYER_SECONDS)
        await self._rechecks.aclose()
        await self.attendants.idle()
        another = _hubs.get(self.loop)
        if another is None or another._store is not self._store:
            await self._store.aclose()

    def _tick(self) -> None:
        if self._ticking:
            self._lags.append(self.loop.time() - self._ticking.when())
        due = self._timetable.take_due(self.loop.time())
        self._schedule_tick()
        self._look_at_some(due)

    def _look_at_some(self, due: Iterator[Stream]) -> None:
        now, send_timeout = self.loop.time(), conf().SEND_TIMEOUT or inf
        some = islice(due, STREAMS_A_TURN)
        each(some, lambda stream: self._look_at(stream, now, send_timeout))
        if self._timetable.has_due:
            # Thousands of heartbeats may be due at once, such as after an event to all.
            self.loop.call_soon(self._look_at_some, due, context=Context())

    def _schedule_tick(self) -> None:
        when = self._timetable.next_tick
        self._ticking = self.loop.call_at(when, self._tick, context=Context())

    def _look_at(self, stream: Stream, now: float, send_timeout: float) -> None:
        again = now
        try:
            again = stream.tick(now, send_timeout)
        finally:
            if stream in self.streams:
                self._timetable.add(stream, again)

    def _send_back(self) -> None:
        """End all streams at shutdown, and have their clients reconnect."""
        each(list(self.streams), lambda stream: stream.end("shutdown", jittered_retry))
        now = self.loop.time()
        each(list(self.streams), lambda stream: stream.tick(now, _FAREWELL_SECONDS))

    async def _sync(self) -> None:
        cursor: Cursor = None
        while True:
            try:
                cursor = await self._compare_with_store(cursor)
                if not self._synced:
                    logger.info("The hub can compare itself with the event store again.")
                self._synced = True
            except BaseException as error:
                if must_propagate(error):
                    raise
                if self._synced:
                    logger.exception("The hub cannot compare itself with the event store.")
                self._synced = False
                # The store may have changed in any way meanwhile, so look at all groups next time.
                self._swept = -inf
            with suppress(TimeoutError):
                async with asyncio.timeout(self._sync_interval()):
                    await self._comparing.wait()
            self._comparing.clear()

    async def _compare_with_store(self, cursor: Cursor) -> Cursor:
        hints, cursor = await self._store.achanged(cursor, self._followed)
        self._heard_from_store = self.loop.time()
        changed = list(hints or ())
        # What this look has numbered, since its publisher had not done so yet.
        published.note(changed)
        if any(hint.group == ASKED for hint in changed):
            self._reporter.hear()
        try:
            # Owners first: a kicked user must not get what is published after the kick.
            await self._rechecks.look_up(hint.group for hint in changed)
        except Exception:
            # The kicked users' streams wait while the store is asked again.
            for hint in changed:
                self._rechecks.hear_kick(hint.group)
            raise
        finally:
            unread = self._unread()
            for hint in changed:
                if subscription := self._subscriptions.get(hint.group):
                    self._compare_group(subscription, hint, unread)
        if hints is None or self.loop.time() - self._swept > _SWEEP_SECONDS:
            self._swept = self.loop.time()
            await self._sweep()
        return cursor

    async def _sweep(self) -> None:
        groups = chain(list(self._rechecks.owned), list(self._subscriptions))
        while some := list(islice(groups, _SWEEP_GROUPS)):
            states = await self._store.astates(some)
            unread = self._unread()
            for group, state in states.items():
                if subscription := self._subscriptions.get(group):
                    hint = Hint(group, state.head, state.cancelled, producer=state.producer)
                    self._compare_group(subscription, hint, unread)
                    subscription.tail.bound(self._tail_bytes())
                else:
                    await self._rechecks.compare(group, state)

    async def _trim(self) -> None:
        # Separate from the sync, which must not wait for trimming.
        while True:
            if self._store.takes_trim_turn():
                try:
                    await self._store.atrim()
                except BaseException as error:
                    if must_propagate(error):
                        raise
                    log_seldom("Old events could not be dropped.", exc_info=error)
            await asyncio.sleep(max(self._store.trim_due - monotonic(), 1.0))

    def _unread(self) -> dict[str, Hint]:
        """Return the last hint of each group that is still to be read."""
        return {hint.group: hint for hint in self._inbox.copy()}

    def _compare_group(
        self, subscription: Subscription, hint: Hint, unread: Mapping[str, Hint]
    ) -> None:
        """Take the store's state of a group, of which a doorbell may have been lost."""
        try:
            waiting = unread.get(hint.group)
            # A reopen takes no number, so it is only told by what the group then is.
            if waiting and (
                waiting.head > hint.head
                or (waiting.head == hint.head and waiting.cancelled == hint.cancelled)
            ):
                # It was not lost. But no doorbell tells of a producer.
                subscription.hear_of_producer(hint.producer)
                return
            if subscription.has_state and hint.head > subscription.head:
                # A restarted layer silently forgets who is in the group.
                spawn(self._receiver.enter_again(hint.group))
                if subscription.layer_channel:
                    spawn(subscription.layer_channel.enter_again(layer_group(hint.group)))
            subscription.compare(hint)
        except BaseException as error:
            if must_propagate(error):
                raise
            self._fail(hint.group, error)

    async def _renew_memberships(self) -> None:
        # Separate from the sync, which must go on even if the layer hangs.
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            try:
                await self.renew_memberships()
            except BaseException as error:
                if must_propagate(error):
                    raise
                logger.exception("Group memberships on the channel layer could not be renewed.")

    async def renew_memberships(self) -> None:
        """Enter groups of the channel layer again where the membership may have lapsed."""
        await self._receiver.renew()
        for subscription in list(self._subscriptions.values()):
            if subscription.layer_channel:
                await subscription.layer_channel.renew()

    def _sync_interval(self) -> float:
        return conf().SYNC_INTERVAL or self._receiver.poll_seconds

    def _tail_bytes(self) -> int:
        return min(TAIL_BYTES, ALL_TAILS_BYTES // max(len(self._subscriptions), 1))
