"""Producers: work that publishes to a group, and owns the group while it lasts.

A producer outlives the clients that read it. Whoever streams its group gets all that it publishes.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from inspect import isasyncgen
from itertools import islice
from typing import Any, Final, TypeVar

from asgiref.sync import AsyncToSync, sync_to_async
from django.utils.asyncio import async_unsafe

from django_sse.access.owners import NOBODY, Owner, is_nobody, loaded, user_key
from django_sse.concurrency.tasks import must_propagate, spawn
from django_sse.concurrency.threads import LoopThread, request_context
from django_sse.conf import SECONDS_OR_NONE, SETTING, conf
from django_sse.doorbells import doorbell_of
from django_sse.exceptions import AlreadyProducing, Cancelled, Close, GroupCancelled, InvalidEvent
from django_sse.groups.entries import GroupState, Hint, Kind, NewEntry, closing_wire
from django_sse.groups.names import validate_group
from django_sse.groups.namespaces import (
    acurrent_namespace,
    current_namespace,
    full_name,
    require_namespace,
)
from django_sse.groups.producer_tokens import HANDED_OVER, is_same_producer, new_token
from django_sse.groups.replay import filling
from django_sse.logs import log_seldom, logger
from django_sse.servers.shutdown import await_before_daphne_ends
from django_sse.stores import get_store
from django_sse.stores.read_limits import READ_BYTES
from django_sse.streaming.generation import without_request
from django_sse.streaming.hub import current_hub
from django_sse.streaming.lapses import INTERRUPTED, hearing_seconds, renewal_seconds
from django_sse.streaming.readership import readers_key
from django_sse.streaming.watch import Watch
from django_sse.type_checks import encode_for

Result = TypeVar("Result")

# How long events are gathered by default, in seconds.
_FLUSH_SECONDS: Final = 0.05
# How many events are appended together, and how many bytes may wait before a producer waits.
_MOST_EVENTS: Final = 500
_WAITING_BYTES: Final = READ_BYTES
# The pause after an error of the store.
_PAUSE_SECONDS: Final = 0.5
# How long the last words of a producer may take whose event loop ends.
_FAREWELL_SECONDS: Final = 2.0
# How often a producer that could not begin looks whether it has its group nevertheless.
_GIVING_BACK_LOOKS: Final = 5
# Producers without an owner share what one user may have of the threads for blocking calls.
_OF_NOBODY: Final = "producers of nobody"

# The generators that run in this process.
_running: Final[dict[asyncio.Task[None], "AsyncProducer"]] = {}

_thread: Final = LoopThread("django-sse-produce")


class AsyncProducer:
    """Publishes to a group that it owns. ``aproduce`` makes it."""

    def __init__(
        self,
        group: str,
        owner: Any,
        namespace: str,
        *,
        flush_seconds: float,
        stop_when_unread: float | None,
        restartable: bool,
        owned_since: float | None = None,
    ) -> None:
        if not SECONDS_OR_NONE.admits(stop_when_unread):
            raise ValueError(
                f"stop_when_unread must be {SECONDS_OR_NONE.accepts}, not {stop_when_unread!r}."
            )
        self.group = validate_group(group)
        self.cancelled = False
        """Whether what the producer does is not wanted any more: its group was cancelled, its
        owner's streams were ended, or nobody reads it."""
        self._full_name = full_name(namespace, group)
        self._owner_key = None if is_nobody(owner) else user_key(owner)
        self._namespace = namespace
        self._flush_seconds = flush_seconds
        self._stop_when_unread = stop_when_unread
        # Whether the group goes on, with another producer, if this process ends.
        self._restartable = restartable
        # Whether the group was handed over to this producer.
        self._goes_on = False
        # When clients last said that they follow the group, and the looks for that since.
        self._followed_at = 0
        self._looks = 0
        self._store = get_store()
        self._ring = doorbell_of(self._store).ring
        # An end of its owner's streams that is older does not end it. None: when it begins.
        self._since = owned_since
        # One more for each event that the store has taken: see `NewEntry`.
        self._token = new_token(asks_for_readers=stop_when_unread is not None)
        # The first number of the group; 0 if that is not known.
        self._first_number = 0
        self._published_bytes = 0
        # What waits to be appended, and what the producer waits for if that is much.
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._has_room = asyncio.Event()
        # What is appended after all that waits, once the producer ends.
        self._last_entry: NewEntry | None = None
        self._has_work = asyncio.Event()
        self._is_ending = asyncio.Event()
        self._on_cancel: Callable[[], object] = lambda: None
        self._writing: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None

    async def apublish(
        self, data: Any, *, event: str | None = None, key: str | None = None
    ) -> None:
        """Publish an event to the group.

        Events that follow each other quickly are gathered for ``flush_seconds``, and published
        together. While the event store is away they wait, and then so does the producer.

        Args:
            data: An ``Event``, or its data.
            event: The type of the event, if ``data`` is not an ``Event``.
            key: The key of the event, if ``data`` is not an ``Event``.

        Raises:
            Cancelled: The group was cancelled, the owner's streams were ended, or nobody reads it.
            InvalidEvent: The event cannot be published, or with it the producer would have
                published more than ``PRODUCER_BYTES``.
            RuntimeError: The producer has ended.
        """
        wire = encode_for(self.group, data, event, key)
        self._refuse_if_over()
        if self._published_bytes + len(wire) > conf().PRODUCER_BYTES:
            raise InvalidEvent(
                f"A producer may publish {SETTING}['PRODUCER_BYTES'], which is "
                f"{conf().PRODUCER_BYTES} bytes, since all of it is kept."
            )
        self._published_bytes += len(wire)
        self._waiting.append(wire)
        self._waiting_bytes += len(wire)
        self._has_work.set()
        while self._waiting_bytes > _WAITING_BYTES:
            self._has_room.clear()
            await self._has_room.wait()
            self._refuse_if_over()

    def _refuse_if_over(self) -> None:
        if self.cancelled:
            raise Cancelled(self.group)
        if self._last_entry:
            raise RuntimeError(f"The producer of group {self.group!r} has ended.")

    # Beginning

    async def _begin(self) -> None:
        """Take the group.

        Raises:
            AlreadyProducing: The group has a producer.
            GroupCancelled: The group is cancelled.
            Exception: The event store could not be written.
        """
        if self._owner_key is not None and self._since is None:
            self._since = await sync_to_async(self._store.clock.time)()
        if self._restartable:
            self._goes_on = (await self._state()).producer == HANDED_OVER
        try:
            [closed_at] = await self._store.aappend_apart([self._claim()], self._ring)
        except AlreadyProducing:
            raise AlreadyProducing(self.group) from None
        except GroupCancelled:
            raise GroupCancelled(self.group) from None
        except BaseException as error:
            if not must_propagate(error):
                spawn(self._give_back())
            raise
        if closed_at is not None:
            logger.warning("The previous producer of group %r has died.", self._full_name)
            raise GroupCancelled(self.group)
        self._writing = spawn(self._write())
        self._watching = spawn(self._watch())

    def _claim(self) -> NewEntry:
        dead_after = int(conf().PRODUCER_TTL * 1_000_000)
        return NewEntry(
            self._full_name, INTERRUPTED, Kind.BEGIN, at=dead_after, producer=self._token
        )

    async def _begin_apart(self) -> None:
        """Take the group; leave it again if the caller is cancelled meanwhile."""
        begun = asyncio.get_running_loop().create_future()
        spawn(self._begin_or_leave(begun))
        try:
            await begun
        except asyncio.CancelledError:
            if not begun.cancelled() and not begun.exception():
                # It had begun right then.
                spawn(self._finish(self._interruption()))
            raise

    async def _begin_or_leave(self, begun: asyncio.Future[None]) -> None:
        if await self._begin_and_tell(begun) and begun.cancelled():
            await self._finish(self._interruption())

    async def _begin_and_tell(self, begun: asyncio.Future[None]) -> bool:
        """Take the group, and tell the caller, who may be cancelled by then.

        Returns:
            Whether it is taken.
        """
        try:
            await self._begin()
        except BaseException as error:
            if must_propagate(error):
                begun.cancel()
                raise
            if not begun.done():
                begun.set_exception(error)
            return False
        if not begun.done():
            begun.set_result(None)
        return True

    async def _give_back(self) -> None:
        """Leave the group to others, if the store has taken it for this producer and could not say
        so. It may do so late."""
        looks = 0
        while looks < _GIVING_BACK_LOOKS:
            try:
                if await self._try_to_give_back():
                    return
                looks += 1
                pause = conf().PRODUCER_TTL / _GIVING_BACK_LOOKS
            except BaseException as error:
                if must_propagate(error):
                    raise
                log_seldom("A producer that could not begin looks for its group.", exc_info=error)
                pause = _PAUSE_SECONDS
            await asyncio.sleep(pause)

    async def _try_to_give_back(self) -> bool:
        """Give the group back if it is this producer's. Return whether it was."""
        state = await self._state()
        if state.producer != self._token:
            return False
        if self._goes_on:
            entries = [NewEntry(self._full_name, b"", Kind.HAND_OVER, producer=self._token)]
        else:
            # Together, so that nobody is told of an end: the next producer's events follow.
            closing = NewEntry(self._full_name, INTERRUPTED, Kind.CLOSE, producer=self._token)
            entries = [closing, NewEntry(self._full_name, b"", Kind.REOPEN)]
        with suppress(GroupCancelled):
            await self._store.aappend_apart(entries, self._ring)
        return True

    # Working

    async def _begin_and_run(
        self, events: AsyncGenerator[Any, Any], begun: asyncio.Future[None]
    ) -> None:
        """Take the group, and publish what a generator yields, whatever becomes of the caller."""
        async with aclosing(events):
            if await self._begin_and_tell(begun):
                await self._run(events)

    async def _run(self, events: AsyncGenerator[Any, Any]) -> None:
        """Publish what a generator yields, to its end."""
        task = asyncio.current_task()
        assert task
        self._on_cancel = task.cancel
        try:
            if self.cancelled:
                raise Cancelled(self.group)
            async with aclosing(events):
                async for item in events:
                    await self.apublish(item)
        except BaseException as error:
            # The end that follows cancels the group, too.
            is_wanted = not self.cancelled
            if is_wanted and not isinstance(error, Close) and not must_propagate(error):
                logger.exception("The producer of group %r failed.", self._full_name)
            await self._end(error)
            if is_wanted and must_propagate(error):
                raise
        else:
            await self._end(None)

    async def _end(self, error: BaseException | None) -> None:
        """Close the group for good after what waits, unless it is cancelled already.

        Args:
            error: What has ended the work; None for its end.
        """
        # From here on, a cancel is no reason to stop.
        self._on_cancel = lambda: None
        if error is None:
            await self._finish(self._closing("complete"))
        elif isinstance(error, Close):
            await self._finish(self._closing(error.reason, error.result))
        elif not must_propagate(error):
            await self._finish(self._closing("failed"))
        else:
            # The event loop or the process ends, and need not wait for a store that is away.
            await self._finish(self._interruption(), seconds=_FAREWELL_SECONDS)

    @property
    def _can_be_handed_over(self) -> bool:
        """Whether it has begun, and another producer may go on with the group."""
        return self._restartable and self._writing is not None

    def _interruption(self) -> NewEntry:
        if self._restartable:
            return NewEntry(self._full_name, b"", Kind.HAND_OVER)
        return NewEntry(self._full_name, INTERRUPTED, Kind.CLOSE)

    async def _finish(self, entry: NewEntry, *, seconds: float | None = None) -> None:
        if not self.cancelled and not self._last_entry:
            self._end_with(entry)
        # The writer goes on if this is cancelled.
        if self._writing:
            await asyncio.wait([self._writing], timeout=seconds)

    def _closing(self, reason: str, result: Any = None) -> NewEntry:
        try:
            wire = closing_wire(reason, result)
            if len(wire) > conf().MAX_EVENT_BYTES:
                raise InvalidEvent(f"The result has {len(wire)} bytes, more than MAX_EVENT_BYTES.")
        except InvalidEvent:
            logger.exception("The result of group %r cannot be sent.", self._full_name)
            wire = closing_wire("failed")
        return NewEntry(self._full_name, wire, Kind.CLOSE)

    def _cancel(self, reason: str | None) -> None:
        """Stop the work.

        Args:
            reason: The reason with which the group is to be closed; None if it is closed already.
        """
        if self._last_entry:
            # It ends already, and this may be its own end.
            return
        self.cancelled = True
        self._waiting.clear()
        self._waiting_bytes = 0
        self._has_room.set()
        self._end_with(None if reason is None else self._closing(reason))
        self._on_cancel()

    def _end_with(self, entry: NewEntry | None) -> None:
        self._last_entry = entry
        self._is_ending.set()
        self._has_work.set()

    # Writing: one task does all of it, so that the token is always that of the store.

    async def _write(self) -> None:
        """Append what waits, and in the end what ends it."""
        try:
            with suppress(Exception):
                self._first_number = (await self._state()).first
            await self._write_to_the_end()
        except Cancelled:
            pass
        except BaseException:
            # The event loop ends.
            if not self._last_entry and not self.cancelled:
                self._end_with(self._interruption())
            try:
                async with asyncio.timeout(_FAREWELL_SECONDS):
                    await self._write_to_the_end()
            except Cancelled:
                pass
            except TimeoutError:
                # Others notice that the producer is gone.
                logger.warning("Group %r could not be closed in time.", self._full_name)
            raise
        finally:
            self._has_room.set()
            if self._watching:
                self._watching.cancel()

    async def _write_to_the_end(self) -> None:
        loop = asyncio.get_running_loop()
        renew_at = loop.time() + renewal_seconds()
        while self._waiting or not self._is_ending.is_set():
            if loop.time() >= renew_at:
                await self._append(self._renewal, ring=False)
                if self._stop_when_unread is not None:
                    await self._look_for_readers(self._stop_when_unread)
                renew_at = loop.time() + renewal_seconds()
            if self._waiting:
                await self._append_waiting()
                await _is_set_within(self._is_ending, self._flush_seconds)
            else:
                self._has_work.clear()
                await _is_set_within(self._has_work, renew_at - loop.time())
        if last := self._last_entry:
            await self._append(lambda: [last._replace(producer=self._token)])

    async def _append_waiting(self) -> None:
        taken = await self._append(self._next_entries)
        self._token += taken
        # A cancel that came meanwhile has cleared what waits.
        for _ in range(min(taken, len(self._waiting))):
            self._waiting_bytes -= len(self._waiting.popleft())
        self._has_room.set()

    def _next_entries(self) -> list[NewEntry]:
        wires = list(islice(self._waiting, _MOST_EVENTS))
        return [
            NewEntry(self._full_name, wire, producer=self._token + place)
            for place, wire in enumerate(wires[: filling(map(len, wires), READ_BYTES)])
        ]

    def _renewal(self) -> list[NewEntry]:
        return [NewEntry(self._full_name, b"", Kind.RENEW, producer=self._token)]

    async def _look_for_readers(self, seconds: float) -> None:
        """Stop if clients have not followed the group for so many seconds."""
        key = readers_key(self._full_name)
        try:
            followed_at = (await self._store.astates([key]))[key].head
        except BaseException as error:
            if must_propagate(error):
                raise
            log_seldom("A producer cannot see whether it is read.", exc_info=error)
            # Its readers could not say so, either.
            self._looks = 0
            return
        self._looks = self._looks + 1 if followed_at == self._followed_at else 0
        self._followed_at = followed_at
        # Looks are counted, and not seconds: whoever was paused has not looked. It takes others a
        # while to hear of the producer, and to miss a look or two is no silence.
        patience = seconds + conf().PRODUCER_TTL / 2 + hearing_seconds()
        if self._looks * renewal_seconds() >= patience:
            logger.info("Nobody reads group %r any more, so its producer stops.", self._full_name)
            self._cancel("unread")

    async def _append(self, make: Callable[[], Sequence[NewEntry]], *, ring: bool = True) -> int:
        """Append entries once, however long the store is away.

        Args:
            make: Returns the entries, as they are to be appended now.
            ring: Whether to tell other processes.

        Returns:
            How many of them the store has taken, from the first one on; 0 if none waits any more.

        Raises:
            Cancelled: The group is not this producer's any more.
        """
        while entries := make():
            try:
                try:
                    numbers = await self._store.aappend_apart(
                        entries, self._ring if ring else lambda hints: None
                    )
                except GroupCancelled:
                    if taken := await self._taken(entries):
                        return taken
                else:
                    self._first_number = self._first_number or numbers[0] or 0
                    return len(entries)
            except Cancelled:
                raise
            except BaseException as error:
                if must_propagate(error):
                    raise
                log_seldom("A producer cannot publish; it tries again.", exc_info=error)
            await asyncio.sleep(_PAUSE_SECONDS)
        return 0

    async def _taken(self, entries: Sequence[NewEntry]) -> int:
        """Return how many of the entries, which the store has refused, it had taken before: its
        answer was lost.

        Raises:
            Cancelled: The group is not this producer's any more.
        """
        state = await self._state()
        # An append whose answer was lost has rung nobody.
        self._ring([Hint(self._full_name, state.head, state.cancelled)])
        if not state.cancelled:
            taken = state.producer - self._token
            if 0 <= taken <= sum(entry.kind is Kind.EVENT for entry in entries):
                return taken
            if is_same_producer(state.producer, self._token):
                # The store has gone back to what it was, as from its last snapshot; or it has taken
                # what does not wait any more.
                self._token, self._first_number = state.producer, state.first
                return 0
            is_anew = self._first_number and state.first != self._first_number
            if state.producer == 0 and (is_anew or not state.first):
                # It has forgotten the group. Its streams begin anew, and so does the producer.
                with suppress(AlreadyProducing, GroupCancelled):
                    await self._store.aappend_apart([self._claim()], self._ring)
                    self._first_number = 0
                    return 0
        self._cancel(None)
        raise Cancelled(self.group)

    async def _state(self) -> GroupState:
        return (await self._store.astates([self._full_name]))[self._full_name]

    # What goes on beside it

    async def _watch(self) -> None:
        owner = self._owner()
        while not self._is_ending.is_set():
            watch = Watch(current_hub(), self._full_name, owner)
            try:
                await watch.open()
                await asyncio.wait([watch.ended])
                if watch.is_barred:
                    # Its owner's streams were ended, and with them goes what is made for them.
                    self._cancel("stopped")
                elif watch.ended.result() == "cancelled":
                    self._cancel(None)
            except BaseException as error:
                if must_propagate(error):
                    raise
                log_seldom("A producer cannot follow its group.", exc_info=error)
            finally:
                watch.end("over")
            if not self._is_ending.is_set():
                await asyncio.sleep(_PAUSE_SECONDS)

    def _owner(self) -> Owner:
        if self._owner_key is None:
            return NOBODY
        owner = Owner({self._owner_key: None}, user=self._owner_key, began=self._since or 0.0)
        return owner.within(self._namespace)


async def start_producing(
    events: AsyncIterator[Any],
    *,
    group: str,
    owner: Any = None,
    flush_seconds: float = _FLUSH_SECONDS,
    stop_when_unread: float | None = None,
    restartable: bool = False,
) -> None:
    """Publish what an async generator yields to a group, in the background of this process.

    It runs to its end, whether anybody reads it or not. Then the group is closed with the reason
    ``complete``, or with that of the ``Close`` that the generator raises. If it raises something
    else, the reason is ``failed``; if its process dies, ``interrupted``. ``cancel`` stops it: the
    generator is closed.

    The generator runs in the context of the caller. Its blocking calls have new threads, outside of
    any transaction.

    Args:
        events: The generator. It yields events, or their data.
        group: A Channels group name. Only one producer at a time publishes to it.
        owner: A user or its primary key. ``cancel(user=...)`` stops the producer, too.
        flush_seconds: How many seconds events are gathered that follow each other quickly.
        stop_when_unread: After how many seconds in which no client of any process has followed the
            group the producer is stopped, with the reason ``unread``; None for never. It takes
            longer by up to ``PRODUCER_TTL`` and the time between two comparisons with the store.
        restartable: Whether the group goes on, with another producer, if this process shuts down.
            It is closed then only if nobody begins to produce to it: not within ``PRODUCER_TTL``,
            nor within the time that clients take to come back.

    Raises:
        AlreadyProducing: The group has a producer. Stream the group to follow it.
        GroupCancelled: The group is cancelled, for example since its producer has ended.
        InvalidGroup: Not a valid group name.
        TypeError, ValueError: ``events`` is no async generator; ``owner`` is no user; or
            ``stop_when_unread`` is no such number.
        ImproperlyConfigured: The generator would be in another tenant, since there is no
            ``NAMESPACE_CONTEXT``.
        RuntimeError: The event loop ends with the caller. Use ``produce`` there.
        Exception: The event store could not be written.
    """
    await start_for(
        _OF_NOBODY,
        events,
        group=group,
        owner=owner,
        flush_seconds=flush_seconds,
        stop_when_unread=stop_when_unread,
        restartable=restartable,
    )


async def start_for(
    caller: str,
    events: AsyncIterator[Any],
    *,
    group: str,
    owner: Any,
    flush_seconds: float = _FLUSH_SECONDS,
    stop_when_unread: float | None,
    restartable: bool,
    owned_since: float | None = None,
) -> None:
    """Do what ``start_producing`` does, for a caller that is known.

    Args:
        caller: Who makes the blocking calls of the generator, if it has no owner.
        owned_since: When the owner logged in, by the store's clock, in seconds since the epoch, 0
            if that is not known. What has ended the owner's streams since then ends the producer.
            None for what ends them from now on.
        events, group, owner, flush_seconds, stop_when_unread, restartable: As for
            ``start_producing``.

    Raises:
        Exception: As for ``start_producing``.
    """
    if not isasyncgen(events):
        raise TypeError(
            f"start_producing() runs an async generator, not {type(events).__name__}. Call the "
            "function that has `yield` in it: start_producing(answer(question), ...)."
        )
    try:
        if asyncio.get_running_loop() in AsyncToSync.loop_thread_executors:
            raise RuntimeError(
                "start_producing() needs an event loop that goes on, such as that of an ASGI "
                "server. async_to_sync has made one for this call only: use produce() here."
            )
        namespace = await acurrent_namespace()
        producer = AsyncProducer(
            group,
            await loaded(owner),
            namespace,
            flush_seconds=flush_seconds,
            stop_when_unread=stop_when_unread,
            restartable=restartable,
            owned_since=owned_since,
        )
        context = without_request(request_context(), namespace, producer._owner().user or caller)
        await spawn(require_namespace(namespace), context)
    except BaseException:
        await events.aclose()
        raise
    begun = asyncio.get_running_loop().create_future()
    # Apart: a client that leaves cancels its request, and the group is perhaps taken already.
    running = spawn(producer._begin_and_run(events, begun), context)
    _running[running] = producer
    running.add_done_callback(_running.pop)
    await_before_daphne_ends(wind_down)
    await begun


async def wind_down() -> None:
    """Give the generators of this event loop ``PRODUCER_GRACE`` to end, and interrupt the rest.

    Those that are restartable are interrupted at once: their clients are back at other processes.
    """
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + conf().PRODUCER_GRACE
    # Until the last requests are over, others may begin.
    while (running := _running_in(loop)) and (seconds := ends_at - loop.time()) > 0:
        for task in running:
            if _running[task]._can_be_handed_over and not task.cancelling():
                task.cancel()
        await asyncio.wait(running, timeout=seconds)
    for task in running:
        task.cancel()
    if running:
        # A generator may hang while it closes.
        await asyncio.wait(running, timeout=2 * _FAREWELL_SECONDS)


def _running_in(loop: asyncio.AbstractEventLoop) -> list[asyncio.Task[None]]:
    return [task for task in _running if task.get_loop() is loop]


@asynccontextmanager
async def aproduce(
    group: str,
    *,
    owner: Any = None,
    flush_seconds: float = _FLUSH_SECONDS,
    stop_when_unread: float | None = None,
    restartable: bool = False,
) -> AsyncIterator[AsyncProducer]:
    """Own a group for an ``async with`` block, and publish to it.

    The group is closed at the end of the block, as ``start_producing`` says. ``Close`` ends the
    block, and no exception leaves it. Once the group was cancelled, ``apublish`` raises
    ``Cancelled``, and ``cancelled`` is True.

    Args:
        group: A Channels group name. Only one producer at a time publishes to it.
        owner: A user or its primary key. ``cancel(user=...)`` stops the producer, too.
        flush_seconds, stop_when_unread, restartable: As for ``start_producing``.

    Raises:
        Exception: As for ``start_producing``.
    """
    namespace = await acurrent_namespace()
    producer = AsyncProducer(
        group,
        await loaded(owner),
        namespace,
        flush_seconds=flush_seconds,
        stop_when_unread=stop_when_unread,
        restartable=restartable,
    )
    await producer._begin_apart()
    try:
        yield producer
    except BaseException as error:
        await producer._end(error)
        if not isinstance(error, Close):
            raise
    else:
        await producer._end(None)


class Producer:
    """Publishes to a group that it owns. ``produce`` makes it."""

    def __init__(self, producer: AsyncProducer) -> None:
        self._producer = producer

    @property
    def group(self) -> str:
        """The name of the group."""
        return self._producer.group

    @property
    def cancelled(self) -> bool:
        """Whether what the producer does is not wanted any more."""
        return self._producer.cancelled

    def publish(self, data: Any, *, event: str | None = None, key: str | None = None) -> None:
        """Do what ``AsyncProducer.apublish`` does, from synchronous code."""
        _wait_for(self._producer.apublish(data, event=event, key=key))


@async_unsafe("produce() would block the running event loop: use `async with aproduce()` there.")
@contextmanager
def produce(
    group: str,
    *,
    owner: Any = None,
    flush_seconds: float = _FLUSH_SECONDS,
    stop_when_unread: float | None = None,
    restartable: bool = False,
) -> Iterator[Producer]:
    """Do what ``aproduce`` does, in synchronous code: a task of a queue, a command, a thread.

    What is published is outside of any transaction.

    Raises:
        RuntimeError: In a transaction on SQLite, it would wait for itself.
        Exception: As for ``start_producing``.
    """
    get_store().refuse_apart()
    # A lazy user is looked up here, where this may block.
    is_nobody(owner)
    producer = AsyncProducer(
        group,
        owner,
        current_namespace(),
        flush_seconds=flush_seconds,
        stop_when_unread=stop_when_unread,
        restartable=restartable,
    )
    beginning = asyncio.run_coroutine_threadsafe(producer._begin_apart(), _thread.loop())
    try:
        beginning.result()
    except BaseException:
        # A task queue may have raised a time limit.
        if not beginning.cancel() and not beginning.exception():
            _wait_for(producer._finish(producer._interruption(), seconds=_FAREWELL_SECONDS))
        raise
    try:
        yield Producer(producer)
    except BaseException as error:
        _wait_for(producer._end(error))
        if not isinstance(error, Close):
            raise
    else:
        _wait_for(producer._end(None))


async def _is_set_within(event: asyncio.Event, seconds: float) -> None:
    """Wait until an event is set, for so many seconds at most."""
    with suppress(TimeoutError):
        async with asyncio.timeout(max(seconds, 0)):
            await event.wait()


def _wait_for(coroutine: Coroutine[Any, Any, Result]) -> Result:
    return asyncio.run_coroutine_threadsafe(coroutine, _thread.loop()).result()
