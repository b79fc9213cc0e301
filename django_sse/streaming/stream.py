"""One open connection: what it has taken, what waits for its client, and how it ends."""

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextvars import Context
from copy import deepcopy
from math import inf
from random import uniform
from typing import Final, Protocol

from django_sse.access.owners import NOBODY, Owner
from django_sse.concurrency.tasks import Turns, is_order, spawn, start_eagerly
from django_sse.conf import conf
from django_sse.doorbells.mailbox import Message
from django_sse.event import Event, encode_published, with_id
from django_sse.exceptions import InvalidEvent
from django_sse.groups.entries import Entry, closing_wire
from django_sse.groups.position import TERMINAL_MARK, format_position
from django_sse.groups.replay import filling
from django_sse.logs import log_first, log_seldom, logger, view_name
from django_sse.stores.base import READ_BYTES
from django_sse.streaming.blocks import Batch, Block
from django_sse.streaming.subscription import HistoryLostError, Subscription

HEARTBEAT: Final = b":\n\n"

CLIENT_GONE: Final = (OSError, RuntimeError)
"""What a server's ``send`` may raise for a client that has gone: an OSError, as ASGI says, or the
RuntimeError of uvloop below uvicorn, where that has not heard of it yet."""

Send = Callable[[bytes], Awaitable[None]]
MessageHandler = Callable[[Message], Event | None]
Question = Callable[[], Awaitable[bool]]

# Reasons to end for which nothing more of what is left may be sent: its owner may not, or perhaps
# not, see it any more.
_BARRING: Final = frozenset({"shut", "shut out of a group", "login changed", "permission unknown"})

# With how many bytes a send is full, however few events that are: the server has a copy of them for
# as long as its client does not read.
SEND_BYTES: Final = READ_BYTES

# A stream ends at most this part of MAX_AGE early.
_AGE_JITTER: Final = 0.2


class WrongResultError(TypeError):
    """A view's method has returned what it may not."""


class Registry(Protocol):
    """The hub, as far as a stream knows it."""

    loop: asyncio.AbstractEventLoop
    now: float

    @property
    def current(self) -> "Registry":
        """The hub of the loop now: one without streams is discarded."""

    async def join(self, stream: "Stream", groups: Sequence[str]) -> None:
        """Let a stream follow its groups."""

    def leave(self, stream: "Stream") -> None:
        """Forget a stream."""


def jittered_seconds() -> float:
    """Return one to two times RETRY, in seconds: clients shall not come back all at once."""
    # Where RETRY is less than half a second, they would, or nearly so.
    return uniform(1, 2) * max(conf().RETRY / 1000, 0.5)


def jittered_retry() -> bytes:
    """Return a ``retry`` that sends a client back at a time of its own."""
    return Event(retry=round(jittered_seconds() * 1000)).encode()


def jittered_age() -> float:
    """Return after how many seconds a stream is to end, which is about MAX_AGE; inf for never."""
    max_age = conf().MAX_AGE
    return uniform(1 - _AGE_JITTER, 1) * max_age if max_age else inf


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
        owner: Whose stream it is.
        address: Where its client is, for a limit of streams per address; None if not known.
        still_allowed: Says whether it may go on; asked now and then.
        context: What the three of them are called in, with what is set there; an empty one for
            None.
    """

    __slots__ = (
        "__weakref__",
        "_backlog",
        "_barred",
        "_busy_since",
        "_catching_up",
        "_closing",
        "_ends_at",
        "_farewell",
        "_filter_event",
        "_finishing",
        "_has_position",
        "_heartbeat",
        "_hub",
        "_last_sent",
        "_live",
        "_message_handler",
        "_moved_unseen",
        "_parked",
        "_pending_bytes",
        "_send",
        "_sending",
        "_taken",
        "address",
        "context",
        "ended",
        "owner",
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
        filter_event: Callable[[Event], Event | None] | None = None,
        message_handler: Callable[[str], MessageHandler | None] | None = None,
        wants_messages: bool = True,
        owner: Owner = NOBODY,
        address: str | None = None,
        still_allowed: Question | None = None,
        context: Context | None = None,
    ) -> None:
        self._hub = hub
        self.owner = owner
        self.address = address
        self.still_allowed = still_allowed
        self.context = context or Context()
        self.subscriptions: list[Subscription] = []
        self.wants_messages = wants_messages
        self.ended: asyncio.Future[str] = self._hub.loop.create_future()
        self._taken = dict(position)
        self._heartbeat = heartbeat
        self._filter_event = filter_event
        self._message_handler = message_handler
        self._send: Send | None = None
        # Live: caught up, so that what the hub hands out is sent. Plain messages wait for that.
        self._live = False
        self._parked: list[bytes] = []
        self._catching_up: asyncio.Task[None] | None = None
        self._sending: asyncio.Task[None] | None = None
        self._busy_since: float | None = None
        self._last_sent = self._hub.now
        self._backlog: list[bytes] = []
        # Of what is being sent, what waits for that, and what is parked.
        self._pending_bytes = 0
        self._moved_unseen = False
        self._closing: bytes | None = None
        # Why it is about to end, and with which bytes.
        self._finishing: str | None = None
        self._barred = False
        self._has_position = True
        self._farewell: Callable[[], bytes] | None = None
        # The hub's own clock stands still while it has no streams.
        self._ends_at = self._hub.loop.time() + jittered_age()

    @property
    def groups(self) -> Collection[str]:
        """The names of its groups."""
        return self._taken.keys()

    @property
    def user(self) -> str | None:
        """The mark of the user whose it is."""
        return self.owner.user

    # Opening and serving

    async def open(self) -> None:
        """Follow the groups, so that nothing new is missed from here on; not if it has ended.

        Raises:
            TooManyStreams: One more would be too many.
            Exception: The event store could not be read.
        """
        if not self.ended.done():
            # Since this stream was made, its hub's last one may have left it.
            self._hub = self._hub.current
            await self._hub.join(self, list(self._taken))

    def follow(self, subscription: Subscription) -> None:
        """Note a subscription that the hub has entered this stream in."""
        self.subscriptions.append(subscription)

    def serve(self, send: Send) -> None:
        """Send what was missed, then what comes."""
        self._send = send
        self._catching_up = spawn(self._catch_up())

    async def _catch_up(self) -> None:
        failed = False
        # What is in memory, and is taken at once, never waits by itself.
        turns = Turns()
        while not self.ended.done() and not self._finishing:
            try:
                behind = next((sub for sub in self.subscriptions if self._is_behind(sub)), None)
                if behind is None:
                    break
                blocks = iter(await behind.read(self._taken[behind.group]))
                if self._sending:
                    # A heartbeat that went out meanwhile.
                    await asyncio.wait([self._sending])
                    continue
                chunk = self._render(behind.group, blocks)
                # A client may take its time for the next line.
                del blocks
                if chunk:
                    self._pending_bytes += len(chunk)
                    await self._send_now(chunk)
                await turns.give_way(len(chunk))
            except HistoryLostError:
                self.dismiss("reset")
            except BaseException as error:
                if is_order(error):
                    raise
                if not failed:
                    logger.exception("A stream could not be replayed; trying again.")
                failed = True
                await asyncio.sleep(1.0)
        if not self.ended.done():
            self._go_live()
            self.end_if_cancelled()

    def _is_behind(self, subscription: Subscription) -> bool:
        return self._taken[subscription.group] < subscription.head

    def _go_live(self) -> None:
        self._live = True
        self._catching_up = None
        parked, self._parked = b"".join(self._parked), []
        self._pending_bytes -= len(parked)
        if self._finishing:
            self._say_farewell()
        else:
            self._push(parked)

    # Taking what the hub hands out

    def take(self, subscription: Subscription, batch: Batch) -> None:
        """Take what is new in a group; what was taken already is skipped."""
        if self._finishing:
            return
        falls_behind = False
        if batch.is_large and batch.last and self._live and self._busy_since is None:
            # It takes all of that, but not at once.
            falls_behind, self._live = True, False
        if not self._live:
            for block in batch.messages if self.wants_messages else ():
                self._park(self._chunk(block))
            if falls_behind:
                self._catching_up = spawn(self._catch_up())
            return
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
            self._push(batch.chunk)
        else:
            blocks = iter(batch.after(taken, with_messages=self.wants_messages))
            while chunk := self._render(group, blocks):
                self._push(chunk)
                if self.ended.done() or self._finishing:
                    break
        if subscription.cancelled:
            self.end_if_cancelled()

    def _differs_in(self, batch: Batch) -> bool:
        if batch.excluded and not batch.excluded.isdisjoint(self.owner.marks):
            return True
        return bool(batch.messages) and (
            not self.wants_messages or self._message_handler is not None
        )

    def _shares_chunks(self) -> bool:
        return self._filter_event is None and len(self.subscriptions) == 1

    def _render(self, group: str, blocks: Iterator[Block]) -> bytes:
        """Return what this stream sends of some blocks, as many of them as one send takes, and
        count those as taken; nothing where none of them is shown."""
        before = self._taken[group]
        try:
            return b"".join(self._chunks(group, blocks))
        except BaseException as error:
            # None of it is sent, and all of it to who comes back.
            self._taken[group] = before
            self.fail(error)
            if is_order(error):
                raise
            return b""

    def _chunks(self, group: str, blocks: Iterator[Block]) -> Iterator[bytes]:
        room = min(SEND_BYTES, conf().BACKLOG_BYTES)
        for block in blocks:
            if block.number:
                self._taken[group] = block.number
            if block.closes:
                # Sent when all groups are cancelled; one of before a reopen is not sent at all.
                self._closing = block.wire
                self._moved_unseen = True
                continue
            chunk = self._chunk(block)
            if block.number:
                self._moved_unseen = not chunk
            yield chunk
            room -= len(chunk)
            if room <= 0:
                break

    def _chunk(self, block: Block) -> bytes:
        if block.message is not None:
            return self._handled(block.group, block.message)
        if block.exclude in self.owner.marks:
            return b""
        if self._shares_chunks():
            return block.chunk
        wire = block.wire if self._filter_event is None else self._filtered(block)
        return with_id(self._position(), wire) if wire and block.number else wire

    def encode(self, event: Event) -> bytes:
        """Return what is sent of an event of the view's own: nothing where its filter hides it.

        Raises:
            InvalidEvent: It is no event, or could not be published, either.
        """
        if not isinstance(event, Event):
            raise InvalidEvent(f"initial_events has to yield an Event, not {type(event).__name__}.")
        wire = encode_published(event, conf().MAX_EVENT_BYTES)
        return self._chunk(Block("", Entry(0, wire)))

    def _filtered(self, block: Block) -> bytes:
        """Return what the view's filter shows of an event; what it fails with is hidden."""
        assert self._filter_event is not None
        try:
            event = block.event()
            shown = self.context.run(self._filter_event, event)
            return block.wire if shown is event else _wire_of(shown)
        except BaseException as error:
            if is_order(error):
                raise
            self._log_hidden(block, error)
            return b""

    def _log_hidden(self, block: Block, error: BaseException) -> None:
        view = view_name(self._filter_event)
        failed = f"{view}: filter_event failed, so its streams do not show"
        if isinstance(error, WrongResultError) or not block.number:
            # It fails with all of them, or this one has no id.
            log_seldom(
                f"{failed} an event of %s.",
                f"group {block.group!r}" if block.group else "initial_events",
                level=logging.ERROR,
                exc_info=error,
            )
        else:
            log_first(
                (view, block.group, block.number),
                f"{failed} event %s of group %r.",
                format_position({block.group: block.number}),
                block.group,
                exc_info=error,
            )

    def _handled(self, group: str, message: Message) -> bytes:
        """Return what the view's handler makes of a message; nothing where it fails."""
        handler = self._message_handler and self._message_handler(str(message.get("type")))
        if not handler:
            return b""
        try:
            # A copy of all of it: it is every stream's message.
            return _wire_of(self.context.run(handler, deepcopy(message)))
        except BaseException as error:
            if is_order(error):
                raise
            log_seldom(
                f"{view_name(handler)}: a message handler failed, so its streams do not show a "
                "message of type %r to group %r.",
                message.get("type"),
                group,
                level=logging.ERROR,
                exc_info=error,
            )
            return b""

    def _position(self) -> str:
        return format_position(self._taken)

    def _park(self, chunk: bytes) -> None:
        self._parked.append(chunk)
        self._bound_pending(chunk)

    # Sending

    def _push(self, chunk: bytes) -> None:
        if not chunk or self.ended.done():
            return
        if self._busy_since is not None:
            self._backlog.append(chunk)
            self._bound_pending(chunk)
            return
        self._pending_bytes += len(chunk)
        # From here on, and not only once the task has begun, which without eager start is later.
        self._busy_since = self._hub.now
        task = start_eagerly(self._send_backlog(chunk))
        if not task.done():
            self._sending = task

    def _bound_pending(self, chunk: bytes) -> None:
        # A client that is too slow resumes from its last id: nothing is lost, and nothing piles up.
        self._pending_bytes += len(chunk)
        if self._pending_bytes > conf().BACKLOG_BYTES:
            self.end("backlog full")

    async def _send_backlog(self, chunk: bytes) -> None:
        await self._send_now(chunk)
        while self._backlog and not self.ended.done():
            count = filling(map(len, self._backlog), SEND_BYTES)
            chunk = b"".join(self._backlog[:count])
            del self._backlog[:count]
            await self._send_now(chunk)
        self._sending = None
        if self._finishing:
            self.end(self._finishing)

    async def _send_now(self, chunk: bytes) -> None:
        assert self._send is not None
        self._busy_since = self._last_sent = self._hub.now
        try:
            await self._send(chunk)
        except CLIENT_GONE:
            self.end("disconnected")
        except BaseException as error:
            if is_order(error):
                raise
            logger.exception("Sending to a stream failed; it is ended.")
            self.end("send failed")
        self._busy_since = None
        self._pending_bytes -= len(chunk)

    def tick(self, now: float, send_timeout: float | None) -> None:
        """Send a heartbeat where one is due; end the stream if a send takes too long (seconds), or
        if it is too old."""
        if now >= self._ends_at:
            self.dismiss("max age")
        if self._busy_since is not None:
            if send_timeout is not None and now - self._busy_since > send_timeout:
                self.end("send timeout")
        elif (
            # Also where it waits for the store.
            (self._live or self._catching_up)
            and self._heartbeat is not None
            and now - self._last_sent >= self._heartbeat
        ):
            # Where the position has moved unseen, the heartbeat takes it to the client.
            self._push(with_id(self._position(), b"") if self._moved_unseen else HEARTBEAT)
            self._moved_unseen = False

    # Ending

    def end_if_cancelled(self) -> None:
        """Send ``close`` and end, if all groups are cancelled and the client has got the rest."""
        if not self._live or self._finishing or not self.subscriptions:
            return
        for subscription in self.subscriptions:
            if not subscription.cancelled or self._is_behind(subscription):
                return
        closing = with_id(self._position(), self._closing or closing_wire(None))
        self._finish("cancelled", lambda: closing)

    def dismiss(self, reason: str) -> None:
        """End the stream so that its client comes back, at a time of its own."""
        self._finish(reason, jittered_retry)

    def dismiss_unless_logged_in(self) -> None:
        """End the stream so that its client comes back, for good if nobody is logged in then."""
        self._finish("login changed", lambda: with_id(self._last_position(), jittered_retry()))

    def shut(self, closing: bytes, group: str | None = None) -> None:
        """End the stream as one that its owner may not go on with.

        Args:
            closing: The wire of the ``close`` to send.
            group: The only group that this is about; with others, the client comes back for them.
        """
        if group is None or [group] == list(self._taken):
            self._finish("shut", lambda: with_id(self._last_position(), closing))
        elif group in self._taken:
            self.dismiss("shut out of a group")

    @property
    def is_finishing(self) -> bool:
        """Whether it has its last bytes, or was sent them."""
        return self._finishing is not None

    @property
    def is_barred(self) -> bool:
        """Whether its owner may not, or perhaps not, see more: it ends as soon as it is served."""
        return self._barred

    def leave_without_position(self) -> None:
        """Let who comes back begin as a new client: it was not sent all of the first state."""
        self._has_position = False

    def _last_position(self) -> str:
        # The login may be over by the time that the client comes back, and with it what would
        # say that the client is to stop.
        return (self._position() if self._has_position else "") + TERMINAL_MARK

    def fail(self, error: BaseException) -> None:
        """End the stream, which has failed by itself, so that its client comes back."""
        log_seldom("A stream failed; its client is sent back.", level=logging.ERROR, exc_info=error)
        try:
            self.dismiss("failed")
        except Exception:
            logger.exception("A stream that failed cannot say so to its client.")
            self.end("failed")

    def end(self, reason: str) -> None:
        """End the stream now. Ending it again changes nothing."""
        if self.ended.done():
            return
        self.ended.set_result(reason)
        self._hub.leave(self)
        self._backlog.clear()
        self._parked.clear()
        for task in (self._catching_up, self._sending):
            if task and task is not asyncio.current_task():
                task.cancel()

    def _finish(self, reason: str, farewell: Callable[[], bytes]) -> None:
        """End the stream with some last bytes, after what is being sent."""
        self._barred |= reason in _BARRING
        if self.ended.done():
            return
        # Who is shut out amid a dismissal is told so instead, while there is time.
        if self._finishing and not (reason == "shut" and self._farewell):
            return
        self._finishing, self._farewell = reason, farewell
        if self._live:
            self._say_farewell()
        elif self._catching_up and self._waits_for_store():
            self._catching_up.cancel()
            self._go_live()

    def _waits_for_store(self) -> bool:
        # What is sent meanwhile is a heartbeat.
        is_sending = self._busy_since is not None and self._sending is None
        return not is_sending and self._catching_up is not asyncio.current_task()

    def _say_farewell(self) -> None:
        assert self._finishing
        assert self._farewell
        farewell, self._farewell = self._farewell, None
        self._push(farewell())
        if self._busy_since is None:
            self.end(self._finishing)


def _wire_of(shown: object) -> bytes:
    """Return the wire of what a view's filter or handler has returned.

    Raises:
        WrongResultError: It is neither an event nor None.
        InvalidEvent: It could not be published, either.
    """
    if shown is None:
        return b""
    if inspect.iscoroutine(shown):
        shown.close()
        raise WrongResultError(
            "It has to be a plain `def`, not `async def`: it is called on the event loop for each "
            "stream, and must not wait."
        )
    if not isinstance(shown, Event):
        raise WrongResultError(f"It has to return an Event or None, not {type(shown).__name__}.")
    return encode_published(shown, conf().MAX_EVENT_BYTES)
