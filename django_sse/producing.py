"""Producers: work that publishes to a group, and owns the group while it lasts.

A producer outlives the clients that read it. Whoever streams its group gets all that it publishes.
"""

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from inspect import isasyncgen
from itertools import islice
from typing import Any, Final, TypeVar

from asgiref.sync import AsyncToSync
from django.utils.asyncio import async_unsafe

from django_sse.access.owners import NOBODY, Owner, is_nobody, loaded, user_key
from django_sse.concurrency.tasks import must_propagate, spawn
from django_sse.concurrency.threads import LoopThread, request_context
from django_sse.conf import SETTING, conf
from django_sse.doorbells import doorbell_of
from django_sse.event import as_event, encode_published
from django_sse.exceptions import AlreadyProducing, Cancelled, Close, GroupCancelled, InvalidEvent
from django_sse.groups.entries import Hint, Kind, NewEntry, closing_wire
from django_sse.groups.names import validate_group
from django_sse.groups.namespaces import acurrent_namespace, current_namespace, full_name
from django_sse.groups.replay import filling
from django_sse.logs import log_seldom, logger
from django_sse.stores import get_store
from django_sse.stores.read_limits import READ_BYTES
from django_sse.streaming.generation import without_request
from django_sse.streaming.hub import current_hub
from django_sse.streaming.lapses import INTERRUPTED, renewal_seconds
from django_sse.streaming.watch import Watch

Result = TypeVar("Result")

# How long events are gathered by default, in seconds.
_FLUSH_SECONDS: Final = 0.02
# How many events are appended together, and how many bytes may wait before a producer waits.
_MOST_EVENTS: Final = 500
_WAITING_BYTES: Final = READ_BYTES
# The pause after an error of the store.
_PAUSE_SECONDS: Final = 0.5
# How long the last words of a producer may take whose event loop ends.
_FAREWELL_SECONDS: Final = 2.0

_thread: Final = LoopThread("django-sse-produce")


class AsyncProducer:
    """Publishes to a group that it owns. ``aproduce`` makes it."""

    def __init__(self, group: str, owner: Any, namespace: str, flush_seconds: float) -> None:
        self.group = validate_group(group)
        self.cancelled = False
        """Whether what the producer does is not wanted any more: its group was cancelled, or its
        owner's streams were ended."""
        self._full_name = full_name(namespace, group)
        self._owner_key = None if is_nobody(owner) else user_key(owner)
        self._namespace = namespace
        self._flush_seconds = flush_seconds
        self._store = get_store()
        self._ring = doorbell_of(self._store).ring
        # One more for each event that was appended: see `NewEntry`.
        self._token = (secrets.randbits(29) + 1) << 24
        self._last_number = 0
        self._published_bytes = 0
        # What waits to be appended, and what the producer waits for if that is much.
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._has_waiting = asyncio.Event()
        self._has_room = asyncio.Event()
        self._appending = asyncio.Lock()
        self._on_cancel: Callable[[], object] = lambda: None
        self._tasks: list[asyncio.Task[None]] = []

    async def apublish(self, data: Any, *, event: str | None = None) -> None:
        """Publish an event to the group.

        Events that follow each other quickly are gathered for ``flush_seconds``, and published
        together. While the event store is away they wait, and then so does the producer.

        Args:
            data: An ``Event``, or its data.
            event: The type of the event, if ``data`` is not an ``Event``.

        Raises:
            Cancelled: The group was cancelled, or the owner's streams were ended.
            InvalidEvent: The event cannot be published, or with it the producer would have
                published more than ``PRODUCER_BYTES``.
        """
        wire = encode_published(as_event(data, event), conf().MAX_EVENT_BYTES)
        self._refuse_if_cancelled()
        if self._published_bytes + len(wire) > conf().PRODUCER_BYTES:
            raise InvalidEvent(
                f"A producer may publish {SETTING}['PRODUCER_BYTES'], which is "
                f"{conf().PRODUCER_BYTES} bytes, since all of it is kept."
            )
        self._published_bytes += len(wire)
        self._waiting.append(wire)
        self._waiting_bytes += len(wire)
        self._has_waiting.set()
        while self._waiting_bytes > _WAITING_BYTES:
            self._has_room.clear()
            await self._has_room.wait()
            self._refuse_if_cancelled()

    async def _begin(self) -> None:
        """Take the group.

        Raises:
            AlreadyProducing: The group has a producer.
            GroupCancelled: The group is cancelled.
            Exception: The event store could not be written.
        """
        dead_after = int(conf().PRODUCER_TTL * 1_000_000)
        claim = NewEntry(
            self._full_name, INTERRUPTED, Kind.BEGIN, at=dead_after, producer=self._token
        )
        try:
            [closed_at] = await self._store.aappend_apart([claim], self._ring)
        except AlreadyProducing:
            raise AlreadyProducing(self.group) from None
        except GroupCancelled:
            raise GroupCancelled(self.group) from None
        if closed_at is not None:
            logger.warning("The last producer of group %r has died.", self._full_name)
            raise GroupCancelled(self.group)
        self._tasks = [spawn(self._flush()), spawn(self._renew()), spawn(self._watch())]

    async def _run(self, events: AsyncGenerator[Any, Any]) -> None:
        """Publish what a generator yields, to its end."""
        task = asyncio.current_task()
        assert task
        self._on_cancel = task.cancel
        try:
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
        """Publish what waits, and close the group for good, unless it is cancelled already.

        Args:
            error: What has ended the work; None for its end.
        """
        # From here on, a cancel is no reason to stop.
        self._on_cancel = lambda: None
        if error is None:
            await self._finish("complete")
        elif isinstance(error, Close):
            await self._finish(error.reason)
        elif not must_propagate(error):
            await self._finish("failed")
        else:
            # The event loop or the process ends, and need not wait for a store that is away.
            try:
                async with asyncio.timeout(_FAREWELL_SECONDS):
                    await self._finish("interrupted")
            except TimeoutError:
                # Others notice that the producer is gone.
                logger.warning("Group %r could not be closed in time.", self._full_name)

    async def _finish(self, reason: str) -> None:
        try:
            await self._append_waiting()
            if not self.cancelled:
                await self._close(reason)
        except Cancelled:
            pass
        finally:
            self._stop_tasks()

    def _refuse_if_cancelled(self) -> None:
        if self.cancelled:
            raise Cancelled(self.group)

    def _cancel(self) -> None:
        self.cancelled = True
        self._waiting.clear()
        self._waiting_bytes = 0
        self._has_room.set()
        self._on_cancel()
        self._stop_tasks()

    def _stop_tasks(self) -> None:
        for task in self._tasks:
            if task is not asyncio.current_task():
                task.cancel()

    # Appending

    async def _flush(self) -> None:
        while True:
            await self._has_waiting.wait()
            self._has_waiting.clear()
            while self._waiting:
                try:
                    await self._append_waiting()
                except Cancelled:
                    return
                await asyncio.sleep(self._flush_seconds)

    async def _append_waiting(self) -> None:
        async with self._appending:
            while self._waiting:
                wires = list(islice(self._waiting, _MOST_EVENTS))
                wires = wires[: filling(map(len, wires), READ_BYTES)]
                entries = [
                    NewEntry(self._full_name, wire, producer=self._token + place)
                    for place, wire in enumerate(wires)
                ]
                await self._append(entries, self._ring)
                # A cancel that came meanwhile has cleared what waits.
                self._refuse_if_cancelled()
                for _ in entries:
                    self._waiting_bytes -= len(self._waiting.popleft())
                self._token += len(entries)
                self._has_room.set()

    async def _close(self, reason: str) -> None:
        async with self._appending:
            wire = closing_wire(reason)
            closing = NewEntry(self._full_name, wire, Kind.CLOSE, producer=self._token)
            await self._append([closing], self._ring)

    async def _append(
        self, entries: Sequence[NewEntry], ring: Callable[[Sequence[Hint]], None]
    ) -> None:
        """Append entries once, however long the store is away.

        Raises:
            Cancelled: The group is not this producer's any more.
        """
        after = self._token + sum(entry.kind is Kind.EVENT for entry in entries)
        while True:
            try:
                try:
                    numbers = await self._store.aappend_apart(entries, ring)
                except GroupCancelled:
                    if await self._is_appended(after):
                        return
                else:
                    self._last_number = max(self._last_number, *(n or 0 for n in numbers))
                    return
            except Cancelled:
                raise
            except BaseException as error:
                if must_propagate(error):
                    raise
                log_seldom("A producer cannot publish; it tries again.", exc_info=error)
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _is_appended(self, after: int) -> bool:
        """Whether the store has appended what it has refused now: its first answer was lost.

        Args:
            after: The token that the group has then.

        Raises:
            Cancelled: The group is not this producer's any more.
        """
        state = (await self._store.astates([self._full_name]))[self._full_name]
        # An append whose answer was lost has rung nobody.
        self._ring([Hint(self._full_name, state.head, state.cancelled)])
        if state.producer == after:
            self._last_number = max(self._last_number, state.head)
            return True
        if state.producer == 0 and not state.cancelled and state.head < self._last_number:
            # The store has forgotten the group. Its streams begin anew, and so does the producer.
            claim = NewEntry(self._full_name, INTERRUPTED, Kind.BEGIN, producer=self._token)
            await self._store.aappend_apart([claim], self._ring)
        elif state.producer != self._token:
            self._cancel()
            raise Cancelled(self.group)
        return False

    # What goes on beside it

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(renewal_seconds())
            async with self._appending:
                renewal = NewEntry(self._full_name, b"", Kind.RENEW, producer=self._token)
                try:
                    await self._append([renewal], lambda hints: None)
                except Cancelled:
                    return

    async def _watch(self) -> None:
        owner = self._owner()
        while not self.cancelled:
            watch = Watch(current_hub(), self._full_name, owner)
            try:
                await watch.open()
                await asyncio.wait([watch.ended])
                if watch.is_barred:
                    # Its owner's streams were ended, and with them goes what is made for them.
                    self._cancel()
                    await self._close("stopped")
                elif watch.ended.result() == "cancelled":
                    self._cancel()
            except Cancelled:
                return
            except BaseException as error:
                if must_propagate(error):
                    raise
                log_seldom("A producer cannot follow its group.", exc_info=error)
            finally:
                watch.end("over")
            if not self.cancelled:
                await asyncio.sleep(_PAUSE_SECONDS)

    def _owner(self) -> Owner:
        if self._owner_key is None:
            return NOBODY
        owner = Owner(
            {self._owner_key: None}, user=self._owner_key, began=self._store.clock.known()
        )
        return owner.within(self._namespace)


async def start_producing(
    events: AsyncIterator[Any],
    *,
    group: str,
    owner: Any = None,
    flush_seconds: float = _FLUSH_SECONDS,
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

    Raises:
        AlreadyProducing: The group has a producer. Stream the group to follow it.
        GroupCancelled: The group is cancelled, for example since its producer has ended.
        InvalidGroup: Not a valid group name.
        TypeError, ValueError: ``events`` is no async generator; or ``owner`` is no user.
        RuntimeError: The event loop ends with the caller. Use ``produce`` there.
        Exception: The event store could not be written.
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
        producer = AsyncProducer(group, await loaded(owner), namespace, flush_seconds)
        await producer._begin()
    except BaseException:
        await events.aclose()
        raise
    caller = producer._owner().user or producer._full_name
    spawn(producer._run(events), without_request(request_context(), namespace, caller))


@asynccontextmanager
async def aproduce(
    group: str, *, owner: Any = None, flush_seconds: float = _FLUSH_SECONDS
) -> AsyncIterator[AsyncProducer]:
    """Own a group for an ``async with`` block, and publish to it.

    The group is closed at the end of the block, as ``start_producing`` says. ``Close`` ends the
    block, and no exception leaves it. Once the group was cancelled, ``apublish`` raises
    ``Cancelled``, and ``cancelled`` is True.

    Args:
        group: A Channels group name. Only one producer at a time publishes to it.
        owner: A user or its primary key. ``cancel(user=...)`` stops the producer, too.
        flush_seconds: How many seconds events are gathered that follow each other quickly.

    Raises:
        Exception: As for ``start_producing``.
    """
    namespace = await acurrent_namespace()
    producer = AsyncProducer(group, await loaded(owner), namespace, flush_seconds)
    await producer._begin()
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

    def publish(self, data: Any, *, event: str | None = None) -> None:
        """Do what ``AsyncProducer.apublish`` does, from synchronous code."""
        _wait_for(self._producer.apublish(data, event=event))


@async_unsafe("produce() would block the running event loop: use `async with aproduce()` there.")
@contextmanager
def produce(
    group: str, *, owner: Any = None, flush_seconds: float = _FLUSH_SECONDS
) -> Iterator[Producer]:
    """Do what ``aproduce`` does, in synchronous code: a task of a queue, a command, a thread.

    What is published is outside of any transaction.
    """
    # A lazy user is looked up here, where this may block.
    is_nobody(owner)
    producer = AsyncProducer(group, owner, current_namespace(), flush_seconds)
    _wait_for(producer._begin())
    try:
        yield Producer(producer)
    except BaseException as error:
        _wait_for(producer._end(error))
        if not isinstance(error, Close):
            raise
    else:
        _wait_for(producer._end(None))


def _wait_for(coroutine: Coroutine[Any, Any, Result]) -> Result:
    return asyncio.run_coroutine_threadsafe(coroutine, _thread.loop()).result()
