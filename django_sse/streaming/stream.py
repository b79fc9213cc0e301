"""One client's open stream: which events it has taken, and its phases from opening to end."""

import asyncio
import logging
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Collection,
    Iterator,
    Mapping,
    Sequence,
)
from contextvars import Context
from enum import Enum
from itertools import islice
from math import inf
from time import time
from typing import ClassVar, Final, Protocol

from django_sse.access.owners import NOBODY, Owner
from django_sse.concurrency.signal_calls import is_heard
from django_sse.concurrency.tasks import Turns, must_propagate, spawn
from django_sse.conf import conf
from django_sse.event import Event, encode_published, with_id
from django_sse.exceptions import InvalidEvent
from django_sse.groups.entries import Entry, GroupState, closing_wire
from django_sse.groups.namespaces import plain_name
from django_sse.groups.position import LEFT_MARK, TERMINAL_MARK, format_position
from django_sse.logs import log_seldom, logger
from django_sse.signals import stream_closed, stream_opened
from django_sse.streaming.encoded_events import Batch, EncodedEvent
from django_sse.streaming.filtering import EventFilter, MessageHandler, filtered, handled
from django_sse.streaming.generation import Generation
from django_sse.streaming.jitter import jittered_age, jittered_retry
from django_sse.streaming.open_stream import OpenStream, announce_closed, announce_opened
from django_sse.streaming.roster import Attendance
from django_sse.streaming.send_queue import SEND_BYTES, LastBytes, Send, SendQueue
from django_sse.streaming.subscription import HistoryLostError, Subscription
from django_sse.streaming.tally import Tally

HEARTBEAT: Final = b":\n\n"

Question = Callable[[], Awaitable[bool]]

# After these reasons to end, no remaining events are sent: the owner may have lost the right to see
# them.
_BARRING_REASONS: Final = frozenset(
    {"shut", "shut out of a group", "login changed", "permission unknown"}
)

# How long a stream waits for an answer about its owner, in seconds. Anybody may ring, again and
# again, and must not stop it for ever.
OWNER_CHECK_SECONDS: Final = 2.0

# How many events are rendered in one turn of the event loop. A filter may hide all of them, so that
# they never fill a send.
_EVENTS_A_TURN: Final = 500


class Dialect(Protocol):
    """Another protocol in server-sent events, for clients that know nothing of positions and of
    ``close``."""

    def event(self, wire: bytes) -> bytes:
        """Return what the client gets of an event, without its id."""

    def end(self, wire: bytes) -> bytes:
        """Return the last bytes of the stream, given what a client of this library would get."""


class StoreAwayError(Exception):
    """The event store could not be read while a stream began."""


class Registry(Protocol):
    """The part of a hub that a stream uses."""

    loop: asyncio.AbstractEventLoop
    tally: Tally

    @property
    def current(self) -> "Registry":
        """The present hub of the loop. A hub without streams is discarded."""

    async def join(self, stream: "Stream", groups: Sequence[str]) -> None:
        """Let a stream follow its groups."""

    async def newest(self, group: str, after: int) -> list[Entry]:
        """Return a page of the newest event of each key of a group."""

    def leave(self, stream: "Stream") -> None:
        """Remove a stream."""


class Phase(Enum):
    """The phases of a stream, in order. Only a live stream may go back, to catching up."""

    OPENING = "Django sends the first bytes."
    CATCHING_UP = "The stream reads events that its client has missed, then those that came since."
    LIVE = "The stream takes the events that the hub hands out."
    FINISHING = "The stream takes nothing more, and still has its last bytes to send."
    ENDED = "Nothing more is sent to the client."


# Ticks come a little late. A heartbeat that misses its tick by less than this does not wait for the
# next one.
_EARLY_SECONDS: Final = 0.1

# A stream that waits for the store sends heartbeats, too.
_BEATING_PHASES: Final = (Phase.CATCHING_UP, Phase.LIVE)


class Stream:
    """A client's stream: of one or more groups, or of a generator.

    ``open`` lets the stream follow its groups, and ``serve`` gives it its connection. The stream
    then catches up with its groups and takes the events that the hub hands out. When it ends,
    ``ended`` is set once, to the reason.

    Args:
        hub: The hub of the running loop.
        position: The number of the last event that the client has, by group.
        generation: The generator whose events are sent; None for a stream of groups.
        heartbeat: Seconds of silence before a comment is sent; None for never.
        filter_event: Returns the event to send in place of the given one, or None to hide it.
        message_handler: Returns the handler for a type of Channels message, if there is one.
        wants_messages: Whether plain Channels messages are streamed.
        owner: The owner of the stream.
        address: The client's address, for the limit per address; None if it is not known.
        dialect: What the client understands in place of this library's ids and ``close``.
        restarts: Whether the client, when it comes back, starts a producer that was handed over.
        attendance: As whom the stream is present in its groups; None if that is not kept.
        still_allowed: Returns whether the stream may go on. It is asked now and then.
        context: The context in which ``filter_event``, message handlers and ``still_allowed`` are
            called; None for an empty one.
    """

    is_counted: ClassVar[bool] = True
    """Whether limits count the stream."""

    __slots__ = (
        "__weakref__",
        "_catching_up",
        "_closing",
        "_context",
        "_ends_at",
        "_filter_event",
        "_generation",
        "_group",
        "_has_position",
        "_heartbeat",
        "_hub",
        "_last",
        "_message_handler",
        "_moved_unseen",
        "_numbers",
        "_opened_at",
        "_owner_check",
        "_pause_ends_at",
        "_queue",
        "_shares_chunks",
        "address",
        "attendance",
        "dialect",
        "ended",
        "is_barred",
        "next_look",
        "owner",
        "phase",
        "restarts",
        "still_allowed",
        "subscriptions",
        "wants_messages",
    )

    def __init__(
        self,
        hub: Registry,
        position: Mapping[str, int],
        *,
        generation: Generation | None = None,
        heartbeat: float | None = None,
        filter_event: EventFilter | None = None,
        message_handler: Callable[[str], MessageHandler | None] | None = None,
        wants_messages: bool = True,
        owner: Owner = NOBODY,
        address: str | None = None,
        dialect: Dialect | None = None,
        restarts: bool = False,
        attendance: Attendance | None = None,
        still_allowed: Question | None = None,
        context: Context | None = None,
    ) -> None:
        self.phase = Phase.OPENING
        self.next_look = 0
        self.owner = owner
        self.address = address
        self.dialect = dialect
        self.restarts = restarts
        self.attendance = attendance
        self.still_allowed = still_allowed
        self._context = context
        self.subscriptions: tuple[Subscription, ...] = ()
        self.wants_messages = wants_messages
        self.ended: asyncio.Future[str] = hub.loop.create_future()
        self.is_barred = False
        """Whether the owner may have lost the right to see more. The stream then ends as soon as it
        is served."""
        self._hub = hub
        self._queue = SendQueue(hub.loop, self)
        # The number of the last event that was taken, by group. A stream of one group keeps only
        # the number: a dict would take 200 bytes, and longer for each event.
        self._numbers: dict[str, int] | None = None
        self._group, self._last = "", 0
        if len(position) == 1:
            [(self._group, self._last)] = position.items()
        else:
            self._numbers = dict(position)
        self._generation = generation
        self._heartbeat = inf if heartbeat is None else heartbeat
        self._filter_event = filter_event
        self._message_handler = message_handler
        self._catching_up: asyncio.Task[None] | None = None
        self._owner_check: asyncio.Future[None] | None = None
        self._pause_ends_at = 0.0
        self._moved_unseen = False
        self._closing: bytes | None = None
        self._opened_at: float | None = None
        # Whether the bytes that it sends are those of all streams of its group.
        self._shares_chunks = False
        self._has_position = True
        self._ends_at = hub.loop.time() + jittered_age()

    @property
    def groups(self) -> Collection[str]:
        """The names of the stream's groups."""
        return (self._group,) if self._numbers is None else self._numbers.keys()

    @property
    def context(self) -> Context:
        """The context of what is called after the request."""
        if self._context is None:
            self._context = Context()
        return self._context

    @property
    def user(self) -> str | None:
        """The owner key of the user who owns the stream; None if nobody does."""
        return self.owner.user

    async def open(self) -> None:
        """Follow the groups, so that no new event is missed from here on.

        A stream that has ended does nothing.

        Raises:
            TooManyStreams: A limit does not allow one more stream.
            Exception: The event store could not be read.
        """
        if self.phase is not Phase.ENDED:
            # The last stream may have left the hub since this one was made.
            self._hub = self._hub.current
            await self._hub.join(self, list(self.groups))
            if self.is_counted and not self.ended.done():
                self._opened_at = time()
                self._hub.tally.opened += 1
                if is_heard(stream_opened):
                    announce_opened(self.info, self._position())

    @property
    def is_busy(self) -> bool:
        """Whether something is being sent to the client, or waits for it."""
        return self._queue.busy_since is not None or bool(self._queue.pending_bytes)

    @property
    def info(self) -> OpenStream:
        """What can be told of the stream."""
        since = self._queue.busy_since
        return OpenStream(
            tuple(map(plain_name, self.groups)),
            namespace=self.owner.namespace,
            user=self.owner.user_id,
            opened_at=self._opened_at or time(),
            sent_bytes=self._queue.sent_bytes,
            waiting_bytes=self._queue.pending_bytes,
            seconds_sending=0.0 if since is None else self._hub.loop.time() - since,
        )

    def note_reset(self) -> None:
        """Note that the client is told that it has lost events."""
        self._hub.tally.resets += 1
        logger.debug(
            "A client of %s is told that it has lost events (`reset`).",
            ", ".join(self.info.groups),
            extra={"groups": self.info.groups},
        )

    def follow(self, subscription: Subscription) -> None:
        """Add a subscription in which the hub has entered this stream."""
        self.subscriptions += (subscription,)
        self._shares_chunks = (
            self._filter_event is None and self.dialect is None and len(self.subscriptions) == 1
        )

    def leave_request(self) -> None:
        """Release what the generator, if there is one, has kept of its request."""
        if self._generation:
            self._generation.leave_request()

    def serve(self, send: Send, *, in_place: bool = False) -> None:
        """Send the events that the client has missed, then new ones.

        Args:
            send: As for ``SendQueue.connect``.
            in_place: As for ``SendQueue.connect``.
        """
        self._queue.connect(send, in_place=in_place)
        if self.phase is Phase.OPENING:
            self._enter(Phase.CATCHING_UP)

    def _enter(self, phase: Phase) -> None:
        """Change the phase. No other place does."""
        self.phase = phase
        catching_up, self._catching_up = self._catching_up, None
        if catching_up and catching_up is not asyncio.current_task():
            catching_up.cancel()
        if phase is Phase.CATCHING_UP:
            task = spawn(self._catch_up())
            if self.phase is Phase.CATCHING_UP:
                self._catching_up = task
        elif phase is Phase.LIVE:
            self._pause_ends_at = 0.0
            self._queue.release()
            self.end_if_cancelled()
            if self._generation:
                self._generation.start(self)
        elif self._generation:
            self._generation.stop()

    async def ready(self) -> bool:
        """Wait until all that was sent has gone out, and the generator may send more.

        Returns:
            Whether the stream goes on.
        """
        while True:
            if self.phase is Phase.CATCHING_UP and self._catching_up:
                # Its owner's streams may have been ended, and the store has not answered yet.
                await asyncio.wait([self._catching_up])
            elif self.phase is Phase.LIVE and self._queue.busy_since is not None:
                # More than BACKLOG_BYTES must not wait behind a heartbeat.
                await self._queue.idle()
            else:
                break
        if self.phase is not Phase.LIVE:
            # The generator is cancelled here, and not in what it awaits to close itself.
            await asyncio.sleep(0)
        return self.phase is Phase.LIVE

    def send(self, chunk: bytes) -> None:
        """Send the chunk of one event of the generator. The stream has to be ready."""
        self._queue.push(chunk)
        self._hub.tally.delivered += 1

    # Taking

    async def _catch_up(self) -> None:
        failed = False
        # Events in memory are taken without waiting, so let other tasks run in between.
        turns = Turns()
        while self.phase is Phase.CATCHING_UP:
            try:
                if self._queue.busy_since is not None:
                    await self._queue.idle()
                    # The pause begins once the client has read.
                    self._pause_ends_at = self._end_of_pause() if self._owner_check else 0.0
                await self._wait_for_owner_check()
                behind = next((sub for sub in self.subscriptions if self._is_behind(sub)), None)
                if behind is None:
                    self._enter(Phase.LIVE)
                    break
                read = await behind.read(self._taken(behind.group))
                events = islice(read, _EVENTS_A_TURN)
                if self._queue.busy_since is not None or self._is_paused():
                    # A heartbeat was sent meanwhile, and the client may take a while to read it. Or
                    # the owner's streams may have been ended meanwhile.
                    continue
                chunk = self._render(behind.group, events)
                self._queue.push(chunk)
                self._pause_ends_at = 0.0
                # Do not keep them in memory while the client reads.
                del read, events
                await turns.give_way(len(chunk))
            except HistoryLostError:
                self.end("reset", jittered_retry)
            except BaseException as error:
                if must_propagate(error):
                    raise
                if not failed:
                    logger.exception("A stream could not replay missed events; it tries again.")
                failed = True
                await asyncio.sleep(1.0)

    def pause_until(self, checked: asyncio.Future[None]) -> None:
        """Take no new events until the store has said whether the owner's streams were ended.

        Otherwise a kicked user would get what is published right after the kick. What the hub has
        in memory by now is from before it, and is sent.
        """
        if self.phase is Phase.LIVE:
            for subscription in self.subscriptions:
                events = subscription.in_memory(self._taken(subscription.group))
                self._queue.push(self._render(subscription.group, iter(events)))
        self._owner_check = checked
        # All doorbells before the stream goes on share one pause, since anybody may ring again and
        # again.
        if not self._pause_ends_at:
            self._pause_ends_at = self._end_of_pause()
        if self.phase is Phase.LIVE:
            self._enter(Phase.CATCHING_UP)

    def _end_of_pause(self) -> float:
        return self._hub.loop.time() + OWNER_CHECK_SECONDS

    def _is_paused(self) -> bool:
        return self._owner_check is not None and self._hub.loop.time() < self._pause_ends_at

    async def _wait_for_owner_check(self) -> None:
        """Wait for the last answer about the owner, until the pause ends at the latest."""
        while check := self._owner_check:
            seconds = self._pause_ends_at - self._hub.loop.time()
            if seconds > 0:
                await asyncio.wait([check], timeout=seconds)
            if self._owner_check is check:
                self._owner_check = None

    def _is_behind(self, subscription: Subscription) -> bool:
        return self._taken(subscription.group) < subscription.head

    def take(self, subscription: Subscription, batch: Batch, now: float) -> None:
        """Take new events of a group. Events that were taken before are skipped.

        Args:
            subscription: The group.
            batch: The events.
            now: The loop's time, in seconds.
        """
        if self.phase is not Phase.LIVE:
            if self.phase in (Phase.OPENING, Phase.CATCHING_UP):
                self._hold_messages(batch)
            return
        if (batch.is_large or batch.has_keys) and self._takes_later(batch):
            self._hold_messages(batch)
            self._enter(Phase.CATCHING_UP)
            return
        # A stream that shares chunks has one group.
        if (
            self._shares_chunks
            and self._last < batch.first
            and (batch.is_plain or not self._differs_in(batch))
        ):
            if batch.last:
                self._last = batch.last
                self._moved_unseen = batch.moves_unseen
            if batch.closing:
                self._closing = batch.closing.wire
            self._queue.push(batch.chunk, now)
            self._hub.tally.delivered += batch.count
        else:
            group = subscription.group
            events = iter(batch.after(self._taken(group), with_messages=self.wants_messages))
            while self.phase is Phase.LIVE and (chunk := self._render(group, events)):
                self._queue.push(chunk)
        if subscription.cancelled:
            self.end_if_cancelled()

    def _takes_later(self, batch: Batch) -> bool:
        """Return whether to take a batch as a stream that catches up does: a large one bit by bit,
        or of one with keys only the newest events, once the client has read."""
        if self._queue.busy_since is None:
            return batch.is_large and bool(batch.last)
        return batch.has_keys

    def _hold_messages(self, batch: Batch) -> None:
        # Messages are not stored, and so cannot be read later.
        for encoded in batch.messages if self.wants_messages else ():
            if chunk := self._chunk(encoded):
                self._queue.hold(chunk)

    def _differs_in(self, batch: Batch) -> bool:
        if batch.is_large:
            return True
        if batch.excluded and not batch.excluded.isdisjoint(self.owner.keys):
            return True
        return bool(batch.messages) and (
            not self.wants_messages or self._message_handler is not None
        )

    def _render(self, group: str, events: Iterator[EncodedEvent]) -> bytes:
        """Render as many events as fit in one send, and count them as taken.

        Returns:
            The bytes to send; nothing if all of the events are hidden.
        """
        before = self._taken(group)
        try:
            return b"".join(self._chunks(group, events))
        except BaseException as error:
            # None of these events is sent now. All are sent when the client comes back.
            self._note_taken(group, before)
            self.fail(error)
            if must_propagate(error):
                raise
            return b""

    def _taken(self, group: str) -> int:
        return self._last if self._numbers is None else self._numbers[group]

    def _note_taken(self, group: str, number: int) -> None:
        if self._numbers is None:
            self._last = number
        else:
            self._numbers[group] = number

    def _chunks(self, group: str, events: Iterator[EncodedEvent]) -> Iterator[bytes]:
        room = min(SEND_BYTES, conf().BACKLOG_BYTES)
        for encoded in events:
            if encoded.number:
                self._note_taken(group, encoded.number)
            if encoded.closes:
                # `close` is sent once all groups are cancelled. One from before a reopen never is.
                self._closing = encoded.wire
                self._moved_unseen = True
                continue
            if encoded.is_superseded:
                self._moved_unseen = True
                continue
            chunk = self._chunk(encoded)
            if encoded.number:
                self._moved_unseen = not chunk
            if chunk:
                self._hub.tally.delivered += 1
            yield chunk
            room -= len(chunk)
            if room <= 0:
                break

    def _chunk(self, encoded: EncodedEvent) -> bytes:
        if encoded.message is not None:
            find = self._message_handler
            handler = find and find(str(encoded.message.get("type")))
            return (
                handled(encoded.group, encoded.message, handler, self.context) if handler else b""
            )
        if encoded.exclude in self.owner.keys:
            return b""
        if self._shares_chunks:
            return encoded.chunk
        wire = encoded.wire
        if self._filter_event is not None:
            wire = filtered(encoded, self._filter_event, self.context)
        if self.dialect is not None:
            return self.dialect.event(wire) if wire else wire
        return with_id(self._position(), wire) if wire and encoded.number else wire

    def encode(self, event: Event) -> bytes:
        """Return the bytes of an initial event; nothing if the view's filter hides it.

        Raises:
            InvalidEvent: It is not an Event, or could not be published, either.
        """
        if not isinstance(event, Event):
            raise InvalidEvent(f"initial_events has to yield an Event, not {type(event).__name__}.")
        wire = encode_published(event, conf().MAX_EVENT_BYTES)
        chunk = self._chunk(EncodedEvent("", Entry(0, wire)))
        self._hub.tally.delivered += bool(chunk)
        return chunk

    async def newest_of_keys(self) -> AsyncGenerator[bytes, None]:
        """Yield the newest event of each key of the groups, up to the stream's position, without
        ids. A newer one is yet to come.

        Raises:
            StoreAwayError: The event store could not be read.
        """
        for group in list(self.groups):
            after, last = 0, self._taken(group)
            while after < last:
                try:
                    page = await self._hub.newest(group, after)
                except Exception as error:
                    raise StoreAwayError from error
                if not page:
                    break
                after = page[-1].number
                known = (entry for entry in page if entry.number <= last)
                chunks = [self._chunk(EncodedEvent(group, e._replace(number=0))) for e in known]
                self._hub.tally.delivered += sum(map(bool, chunks))
                yield b"".join(chunks)

    def _position(self) -> str:
        if self._numbers is None:
            return format_position({self._group: self._last})
        return format_position(self._numbers)

    # Time

    def tick(self, now: float, send_timeout: float) -> float:
        """Send a heartbeat if one is due. End the stream if it is too old or a send takes too long.

        Args:
            now: The loop's time, in seconds.
            send_timeout: How many seconds a client may take for a chunk; inf for any time.

        Returns:
            When something may be due again, by the loop's time.
        """
        if now >= self._ends_at:
            self.end("max age", jittered_retry)
        queue = self._queue
        if queue.busy_since is not None:
            if now - queue.busy_since > send_timeout:
                self.end("send timeout")
            return now
        silence = self._heartbeat - _EARLY_SECONDS
        if now - queue.last_sent >= silence and self.phase in _BEATING_PHASES:
            # If hidden events have moved the position, the heartbeat carries it to the client.
            tells_position = self._moved_unseen and self.dialect is None
            queue.push(with_id(self._position(), b"") if tells_position else HEARTBEAT, now)
            self._moved_unseen = False
        # The next send may begin at once, and then take too long.
        return min(self._ends_at, queue.last_sent + silence, now + send_timeout)

    # Ending

    def end(self, reason: str, last_bytes: LastBytes | None = None) -> None:
        """End the stream, now or after its last bytes. Ending it again changes nothing.

        Args:
            reason: The reason that ``ended`` is set to.
            last_bytes: Returns the bytes to send at the end, after those that are being sent.
        """
        self.is_barred |= reason in _BARRING_REASONS
        if self.phase is Phase.ENDED:
            return
        if last_bytes is None:
            self._enter(Phase.ENDED)
            self.ended.set_result(reason)
            self._hub.leave(self)
            self._queue.discard()
            if self._opened_at is not None:
                self._hub.tally.closed[reason] += 1
                if is_heard(stream_closed):
                    announce_closed(self.info, reason)
        # If the stream is shut while its last bytes wait, the client gets `close` if there is time.
        elif self.phase is not Phase.FINISHING or reason == "shut":
            self._enter(Phase.FINISHING)
            try:
                self._queue.finish(reason, self._translated(last_bytes))
            except Exception:
                logger.exception("A stream ends without its last bytes, which could not be sent.")
                self.end(reason)

    def _translated(self, last_bytes: LastBytes) -> LastBytes:
        dialect = self.dialect
        return (lambda: dialect.end(last_bytes())) if dialect else last_bytes

    def has_sent_all_of(self, states: Mapping[str, GroupState]) -> bool:
        """Whether all events of the groups have gone out that these states know of, and the end
        that follows from them."""
        if self.phase is Phase.LIVE:
            is_over = all(state.cancelled for state in states.values())
            taken = all(self._taken(group) >= state.head for group, state in states.items())
            return taken and not is_over and self._queue.busy_since is None
        return self.phase is Phase.ENDED

    def end_if_cancelled(self) -> None:
        """Send ``close`` and end, if all groups are cancelled and no event is left to send."""
        if self.phase is not Phase.LIVE or not self.subscriptions:
            return
        for subscription in self.subscriptions:
            if not subscription.cancelled or self._is_behind(subscription):
                return
        self.end(
            "cancelled", lambda: with_id(self._position(), self._closing or closing_wire(None))
        )

    def fail(self, error: BaseException) -> None:
        """End the stream after a failure. Its client reconnects."""
        log_seldom(
            "A stream failed, so its client has to reconnect.",
            level=logging.ERROR,
            exc_info=error,
        )
        self.end("failed", jittered_retry)

    def for_good(self, wire: bytes) -> bytes:
        """Return last bytes after which the client gets 204 if it may not come back.

        When the client comes back, its login may be over, and then nothing else would tell the
        client to stop. So its id does.
        """
        if self._generation:
            return with_id(self._generation.last_event_id + LEFT_MARK, wire)
        return with_id((self._position() if self._has_position else "") + TERMINAL_MARK, wire)

    def leave_without_position(self) -> None:
        """Have the client come back as a new one: it did not get the whole initial state."""
        self._has_position = False
