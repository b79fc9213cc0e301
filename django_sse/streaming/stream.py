"""One open connection: which events it has taken, and how it goes on from its first to its last."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextvars import Context
from enum import Enum
from itertools import islice
from typing import Final, Protocol

from django_sse.access.owners import NOBODY, Owner
from django_sse.concurrency.tasks import Turns, must_propagate, spawn
from django_sse.conf import conf
from django_sse.event import Event, encode_published, with_id
from django_sse.exceptions import InvalidEvent
from django_sse.groups.entries import Entry, closing_wire
from django_sse.groups.position import TERMINAL_MARK, format_position
from django_sse.logs import log_seldom, logger
from django_sse.streaming.encoded_events import Batch, EncodedEvent
from django_sse.streaming.filtering import EventFilter, MessageHandler, filtered, handled
from django_sse.streaming.jitter import jittered_age, jittered_retry
from django_sse.streaming.send_queue import SEND_BYTES, LastBytes, Send, SendQueue
from django_sse.streaming.subscription import HistoryLostError, Subscription

HEARTBEAT: Final = b":\n\n"

Question = Callable[[], Awaitable[bool]]

# Reasons to end for which nothing more of what is left may be sent: its owner may not, or perhaps
# not, see it any more.
_BARRING: Final = frozenset({"shut", "shut out of a group", "login changed", "permission unknown"})


# How long a stream waits until it is known whether it may go on: anybody may ring, again and again.
_HELD_SECONDS: Final = 2.0

# Events that are rendered in one turn: a filter may hide all of them, and so fill no send.
_EVENTS_A_TURN: Final = 500


class Registry(Protocol):
    """The hub, as far as a stream knows it."""

    loop: asyncio.AbstractEventLoop

    @property
    def current(self) -> "Registry":
        """The hub of the loop now: one without streams is discarded."""

    async def join(self, stream: "Stream", groups: Sequence[str]) -> None:
        """Let a stream follow its groups."""

    def leave(self, stream: "Stream") -> None:
        """Forget a stream."""


class Phase(Enum):
    """Where a stream is on its way. It goes on in this order; only a live one may fall behind."""

    OPENING = "Django sends its first bytes."
    CATCHING_UP = "It reads what its client has missed; new events are read after that."
    LIVE = "It takes what the hub hands out."
    FINISHING = "It takes nothing more, and has its last bytes to send."
    ENDED = "Its client is sent nothing more."


class Stream:
    """A client's stream of one or more groups.

    It follows its groups from ``open`` on, is handed its connection by ``serve``, catches up with
    its groups and then takes what the hub hands out. ``ended`` is set, with the reason, once.

    Args:
        hub: The hub of the running loop.
        position: The number in each group that the client has got to.
        heartbeat: Seconds of silence before a comment is sent; None for never.
        filter_event: Returns the event to send instead of one, or None to hide it.
        message_handler: Returns the handler of a type of Channels message, if there is one.
        wants_messages: Whether plain Channels messages are streamed.
        owner: Who owns the stream.
        address: Where its client is, for a limit of streams per address; None if not known.
        still_allowed: Says whether it may go on; asked now and then.
        context: What the three of them are called in, with what is set there; an empty one for
            None.
    """

    __slots__ = (
        "__weakref__",
        "_catching_up",
        "_closing",
        "_ends_at",
        "_filter_event",
        "_has_position",
        "_heartbeat",
        "_held",
        "_hub",
        "_message_handler",
        "_moved_unseen",
        "_queue",
        "_taken",
        "address",
        "context",
        "ended",
        "is_barred",
        "owner",
        "phase",
        "still_allowed",
        "subscriptions",
        "wants_messages",
    )

    def __init__(
        self,
        hub: Registry,
        position: Mapping[str, int],
        *,
        heartbeat: float | None = None,
        filter_event: EventFilter | None = None,
        message_handler: Callable[[str], MessageHandler | None] | None = None,
        wants_messages: bool = True,
        owner: Owner = NOBODY,
        address: str | None = None,
        still_allowed: Question | None = None,
        context: Context | None = None,
    ) -> None:
        self.phase = Phase.OPENING
        self.owner = owner
        self.address = address
        self.still_allowed = still_allowed
        self.context = context or Context()
        self.subscriptions: tuple[Subscription, ...] = ()
        self.wants_messages = wants_messages
        self.ended: asyncio.Future[str] = hub.loop.create_future()
        self.is_barred = False
        """Whether its owner may not, or perhaps not, see more: it ends as soon as it is served."""
        self._hub = hub
        self._queue = SendQueue(hub.loop, self)
        self._taken = dict(position)
        self._heartbeat = heartbeat
        self._filter_event = filter_event
        self._message_handler = message_handler
        self._catching_up: asyncio.Task[None] | None = None
        self._held: asyncio.Future[None] | None = None
        self._moved_unseen = False
        self._closing: bytes | None = None
        self._has_position = True
        self._ends_at = hub.loop.time() + jittered_age()

    @property
    def groups(self) -> Collection[str]:
        """The names of its groups."""
        return self._taken.keys()

    @property
    def user(self) -> str | None:
        """The owner key of the user whose it is."""
        return self.owner.user

    async def open(self) -> None:
        """Follow the groups, so that nothing new is missed from here on; not if it has ended.

        Raises:
            TooManyStreams: One more would be too many.
            Exception: The event store could not be read.
        """
        if self.phase is not Phase.ENDED:
            # Since this stream was made, its hub's last one may have left it.
            self._hub = self._hub.current
            await self._hub.join(self, list(self._taken))

    def follow(self, subscription: Subscription) -> None:
        """Note a subscription that the hub has entered this stream in."""
        self.subscriptions += (subscription,)

    def serve(self, send: Send) -> None:
        """Send what was missed, then what comes."""
        self._queue.connect(send)
        if self.phase is Phase.OPENING:
            self._enter(Phase.CATCHING_UP)

    def _enter(self, phase: Phase) -> None:
        """Change the phase, which happens here alone."""
        self.phase = phase
        catching_up, self._catching_up = self._catching_up, None
        if catching_up and catching_up is not asyncio.current_task():
            catching_up.cancel()
        if phase is Phase.CATCHING_UP:
            task = spawn(self._catch_up())
            if self.phase is Phase.CATCHING_UP:
                self._catching_up = task
        elif phase is Phase.LIVE:
            self._queue.release()
            self.end_if_cancelled()

    # Taking

    async def _catch_up(self) -> None:
        failed = False
        # What is in memory, and is taken at once, never waits by itself.
        turns = Turns()
        while self.phase is Phase.CATCHING_UP:
            try:
                await self._queue.idle()
                is_patient = await self._let_go()
                behind = next((sub for sub in self.subscriptions if self._is_behind(sub)), None)
                if behind is None:
                    self._enter(Phase.LIVE)
                    break
                read = await behind.read(self._taken[behind.group])
                events = islice(read, _EVENTS_A_TURN)
                if self._queue.busy_since is not None or (self._held and is_patient):
                    # A heartbeat went out meanwhile, for which its client may take its time, or its
                    # owner may have been ended.
                    continue
                chunk = self._render(behind.group, events)
                self._queue.push(chunk)
                # Nor for as long as the client takes for these.
                del read, events
                await turns.give_way(len(chunk))
            except HistoryLostError:
                self.end("reset", jittered_retry)
            except BaseException as error:
                if must_propagate(error):
                    raise
                if not failed:
                    logger.exception("A stream could not be replayed; trying again.")
                failed = True
                await asyncio.sleep(1.0)

    def hold(self, known: asyncio.Future[None]) -> None:
        """Take nothing new until it is known whether its owner was ended, but what the hub has by
        now: what is published after a kick is not for who was kicked."""
        if self.phase is Phase.LIVE:
            for subscription in self.subscriptions:
                events = subscription.at_hand(self._taken[subscription.group])
                self._queue.push(self._render(subscription.group, iter(events)))
        self._held = known
        if self.phase is Phase.LIVE:
            self._enter(Phase.CATCHING_UP)

    async def _let_go(self) -> bool:
        """Wait as long as this is held, in moderation; say whether it is held no more."""
        ends = self._hub.loop.time() + _HELD_SECONDS
        while self._held and not self._held.done():
            if (seconds := ends - self._hub.loop.time()) <= 0:
                return False
            await asyncio.wait([self._held], timeout=seconds)
        self._held = None
        return True

    def _is_behind(self, subscription: Subscription) -> bool:
        return self._taken[subscription.group] < subscription.head

    def take(self, subscription: Subscription, batch: Batch) -> None:
        """Take what is new in a group; what was taken already is skipped."""
        if self.phase is Phase.LIVE:
            if batch.is_large and batch.last and self._queue.busy_since is None:
                # It takes all of that, but not at once.
                self._hold_messages(batch)
                self._enter(Phase.CATCHING_UP)
            else:
                self._take_now(subscription, batch)
        elif self.phase in (Phase.OPENING, Phase.CATCHING_UP):
            self._hold_messages(batch)

    def _hold_messages(self, batch: Batch) -> None:
        # They are not stored, and so cannot be read later.
        for encoded in batch.messages if self.wants_messages else ():
            self._queue.hold(self._chunk(encoded))

    def _take_now(self, subscription: Subscription, batch: Batch) -> None:
        group = subscription.group
        taken = self._taken[group]
        if (
            taken < batch.first
            and not batch.is_large
            and self._shares_chunks()
            and not self._differs_in(batch)
        ):
            if batch.last:
                self._taken[group] = batch.last
                self._moved_unseen = batch.closing is not None
            if batch.closing:
                self._closing = batch.closing.wire
            self._queue.push(batch.chunk)
        else:
            events = iter(batch.after(taken, with_messages=self.wants_messages))
            while self.phase is Phase.LIVE and (chunk := self._render(group, events)):
                self._queue.push(chunk)
        if subscription.cancelled:
            self.end_if_cancelled()

    def _differs_in(self, batch: Batch) -> bool:
        if batch.excluded and not batch.excluded.isdisjoint(self.owner.keys):
            return True
        return bool(batch.messages) and (
            not self.wants_messages or self._message_handler is not None
        )

    def _shares_chunks(self) -> bool:
        return self._filter_event is None and len(self.subscriptions) == 1

    def _render(self, group: str, events: Iterator[EncodedEvent]) -> bytes:
        """Return what this stream sends of some events, as many of them as one send takes, and
        count those as taken; nothing where none of them is shown."""
        before = self._taken[group]
        try:
            return b"".join(self._chunks(group, events))
        except BaseException as error:
            # None of it is sent, and all of it to who comes back.
            self._taken[group] = before
            self.fail(error)
            if must_propagate(error):
                raise
            return b""

    def _chunks(self, group: str, events: Iterator[EncodedEvent]) -> Iterator[bytes]:
        room = min(SEND_BYTES, conf().BACKLOG_BYTES)
        for encoded in events:
            if encoded.number:
                self._taken[group] = encoded.number
            if encoded.closes:
                # Sent when all groups are cancelled; one of before a reopen is not sent at all.
                self._closing = encoded.wire
                self._moved_unseen = True
                continue
            chunk = self._chunk(encoded)
            if encoded.number:
                self._moved_unseen = not chunk
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
        if self._shares_chunks():
            return encoded.chunk
        wire = encoded.wire
        if self._filter_event is not None:
            wire = filtered(encoded, self._filter_event, self.context)
        return with_id(self._position(), wire) if wire and encoded.number else wire

    def encode(self, event: Event) -> bytes:
        """Return what is sent of an event of the view's own: nothing where its filter hides it.

        Raises:
            InvalidEvent: It is no event, or could not be published, either.
        """
        if not isinstance(event, Event):
            raise InvalidEvent(f"initial_events has to yield an Event, not {type(event).__name__}.")
        wire = encode_published(event, conf().MAX_EVENT_BYTES)
        return self._chunk(EncodedEvent("", Entry(0, wire)))

    def _position(self) -> str:
        return format_position(self._taken)

    # Time

    def tick(self, now: float, send_timeout: float | None) -> None:
        """Send a heartbeat where one is due; end the stream if a send takes too long (seconds), or
        if it is too old.

        Args:
            now: The loop's time.
            send_timeout: How many seconds a client may take for a chunk; None for any time.
        """
        if now >= self._ends_at:
            self.end("max age", jittered_retry)
        if (busy_since := self._queue.busy_since) is not None:
            if send_timeout is not None and now - busy_since > send_timeout:
                self.end("send timeout")
        elif (
            # Also where it waits for the store.
            self.phase in (Phase.CATCHING_UP, Phase.LIVE)
            and self._heartbeat is not None
            and now - self._queue.last_sent >= self._heartbeat
        ):
            # Where the position has moved unseen, the heartbeat takes it to the client.
            heartbeat = with_id(self._position(), b"") if self._moved_unseen else HEARTBEAT
            self._queue.push(heartbeat)
            self._moved_unseen = False

    # Ending

    def end(self, reason: str, last_bytes: LastBytes | None = None) -> None:
        """End the stream: now, or after its last bytes. Ending it again changes nothing.

        Args:
            reason: Why, for ``ended``.
            last_bytes: Returns what is sent at the end, after what is on its way.
        """
        self.is_barred |= reason in _BARRING
        if self.phase is Phase.ENDED:
            return
        if last_bytes is None:
            self._enter(Phase.ENDED)
            self.ended.set_result(reason)
            self._hub.leave(self)
            self._queue.discard()
        # Who is shut out while he is sent back is told so instead, if there is time.
        elif self.phase is not Phase.FINISHING or reason == "shut":
            self._enter(Phase.FINISHING)
            try:
                self._queue.finish(reason, last_bytes)
            except Exception:
                logger.exception("A stream ends without a word to its client.")
                self.end(reason)

    def end_if_cancelled(self) -> None:
        """Send ``close`` and end, if all groups are cancelled and the client has got the rest."""
        if self.phase is not Phase.LIVE or not self.subscriptions:
            return
        for subscription in self.subscriptions:
            if not subscription.cancelled or self._is_behind(subscription):
                return
        self.end(
            "cancelled", lambda: with_id(self._position(), self._closing or closing_wire(None))
        )

    def fail(self, error: BaseException) -> None:
        """End the stream, which has failed by itself, so that its client comes back."""
        log_seldom("A stream failed; its client is sent back.", level=logging.ERROR, exc_info=error)
        self.end("failed", jittered_retry)

    def for_good(self, wire: bytes) -> bytes:
        """Return last bytes after which the client is answered 204 where it may not come back.

        The login may be over by the time that the client comes back, and with it what would say
        that the client is to stop. So its id says that.
        """
        return with_id((self._position() if self._has_position else "") + TERMINAL_MARK, wire)

    def leave_without_position(self) -> None:
        """Let who comes back begin as a new client: it was not sent all of the first state."""
        self._has_position = False
