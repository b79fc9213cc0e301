"""Asks views whether their streams are still allowed, long after the requests that they came by."""

import asyncio
import inspect
import logging
from collections.abc import Container, Mapping
from contextlib import ExitStack
from functools import partial
from math import inf
from typing import Final, NamedTuple

from asgiref.sync import async_to_sync, sync_to_async
from django.core.exceptions import PermissionDenied
from django.db import Error as DatabaseFailure

from django_sse.concurrency.tasks import must_propagate
from django_sse.concurrency.threads import OwnThread
from django_sse.conf import conf
from django_sse.groups.entries import closing_wire
from django_sse.groups.namespaces import namespace_context
from django_sse.logs import log_seldom, view_name
from django_sse.streaming.jitter import jittered_retry
from django_sse.streaming.stream import Question, Stream

# How long a view may take to say whether its stream is still allowed.
_ANSWER_SECONDS: Final = 10.0
# How long one that was told to stop may take to do so.
_GRACE_SECONDS: Final = 1.0
# Streams that are asked about at once: they share a thread for what they do in threads.
_AT_ONCE: Final = 10
# How long one counts as one of these: views that are slow put off nobody else for longer.
_PLACE_SECONDS: Final = 1.0
# When a view is asked again that could not say.
_AGAIN_SECONDS: Final = 2.0
# Views are asked this part of RECHECK_INTERVAL early, so that many are asked while there is a
# thread with a connection.
_EARLY: Final = 0.05
# Exceptions that are looked through for the one that has caused them, which may be itself.
_CAUSES: Final = 10


class WrongAnswerError(TypeError):
    """A view's question was answered by what is neither True nor False."""


class PermissionRechecks:
    """Asks about each stream every ``RECHECK_INTERVAL``, and ends those that are not allowed.

    Where the database, the network or the time fails, the stream is asked about again, and after
    that its client is sent back, to be authorized anew. Every other exception is a no.
    """

    def __init__(self) -> None:
        # Each in the order in which they are due: who was not asked about for longest comes first.
        # By tenant, so that those of one that is being asked need not be looked through.
        self._due: dict[str, dict[Stream, float]] = {}
        self._due_again: dict[Stream, float] = {}

    def add(self, stream: Stream) -> None:
        """Ask about a stream from now on, if its view has something to say."""
        if stream.still_allowed:
            of_tenant = self._due.setdefault(stream.owner.namespace, {})
            of_tenant[stream] = _now() + conf().RECHECK_INTERVAL

    def remove(self, stream: Stream) -> None:
        """Ask about a stream no more."""
        self._take(stream)
        self._due_again.pop(stream, None)

    async def ask(self) -> None:
        """Ask whenever it is time, again and again."""
        while True:
            await asyncio.sleep(self._seconds_to_next())
            try:
                with ExitStack() as threads:
                    await self._ask_all_due(threads)
            except BaseException as error:
                if must_propagate(error):
                    raise
                # Who was not asked about is still due.
                log_seldom("Views cannot be asked.", level=logging.ERROR, exc_info=error)
                await asyncio.sleep(_AGAIN_SECONDS)

    def _seconds_to_next(self, busy: Container[str | None] = ()) -> float:
        # Who is added meanwhile is not due before that either.
        latest = _now() + conf().RECHECK_INTERVAL
        again = next(iter(self._due_again.values()), inf)
        return max(min(latest, self._front(busy)[1], again) - _now(), 0.0)

    def _take_due(self, busy: Container[str | None]) -> tuple[Stream, bool] | None:
        """Take the next stream to ask about; with it, whether that is for the second time.

        Args:
            busy: The tenants that are passed over.
        """
        stream, due = next(iter(self._due_again.items()), (None, inf))
        if stream and due <= _now():
            del self._due_again[stream]
            return stream, True
        stream, due = self._front(busy)
        if stream and due <= _now() + _EARLY * conf().RECHECK_INTERVAL:
            self._take(stream)
            return stream, False
        return None

    def _front(self, busy: Container[str | None]) -> tuple[Stream | None, float]:
        """Return the stream that is due first, of a tenant that is not busy, and when it is."""
        fronts = (
            next(iter(of_tenant.items()))
            for tenant, of_tenant in self._due.items()
            if tenant not in busy
        )
        return min(fronts, key=lambda front: front[1], default=(None, inf))

    def _take(self, stream: Stream) -> None:
        tenant = stream.owner.namespace
        of_tenant = self._due.get(tenant, {})
        of_tenant.pop(stream, None)
        if not of_tenant:
            self._due.pop(tenant, None)

    async def _ask_all_due(self, threads: ExitStack) -> None:
        in_tenants = conf().NAMESPACE_CONTEXT is not None
        asking: dict[asyncio.Task[None], _Place] = {}
        # Without tenants all share the one; a tenant has one alone, in which it is entered.
        idle = [threads.enter_context(OwnThread())]
        try:
            while True:
                busy = {place.tenant for place in asking.values()}
                if not _is_full(asking) and (taken := self._take_due(busy)):
                    stream, again = taken
                    tenant = stream.owner.namespace if in_tenants and not again else None
                    if again:
                        # In which nothing else can be in the way.
                        thread, ask = OwnThread(), self._ask_apart
                    elif tenant is None:
                        thread, ask = idle[0], self._ask
                    else:
                        thread = idle.pop() if idle else threads.enter_context(OwnThread())
                        ask = self._ask
                    # In copies: what the view sets in it is not there when it is asked again.
                    task = asyncio.create_task(
                        ask(stream, thread), context=thread.within(stream.context)
                    )
                    asking[task] = _Place(_now() + _PLACE_SECONDS, tenant, thread)
                    continue
                if not asking:
                    return
                done, _ = await asyncio.wait(
                    asking,
                    timeout=_PLACE_SECONDS if _is_full(asking) else self._seconds_to_next(busy),
                    return_when=asyncio.FIRST_COMPLETED,
                )
                for task in done:
                    place = asking.pop(task)
                    if place.tenant is not None:
                        idle.append(place.thread)
        finally:
            for task in asking:
                task.cancel()
            if asking:
                await asyncio.wait(asking)

    async def _ask_apart(self, stream: Stream, thread: OwnThread) -> None:
        """Ask again, in a thread for that alone."""
        with thread:
            await self._ask(stream, thread, again=True)

    async def _ask(self, stream: Stream, thread: OwnThread, *, again: bool = False) -> None:
        assert stream.still_allowed
        if stream.ended.done():
            return
        try:
            allowed = is_yes(await _answer_of(_question_of(stream)))
        except PermissionDenied:
            allowed = False
        except BaseException as error:
            # Also what is no Exception, such as a panic in an extension.
            if must_propagate(error):
                raise
            if _is_of_surroundings(error):
                # The thread may hang, or have a connection that is broken.
                thread.give_up()
                if again:
                    self._log(stream, "its clients are sent back to be authorized anew", error)
                    stream.end("permission unknown", jittered_retry)
                elif not stream.ended.done():
                    self._due_again[stream] = _now() + _AGAIN_SECONDS
                return
            self._log(stream, "that is a no", error)
            allowed = False
        if not allowed:
            wire = closing_wire("not allowed any more")
            stream.end("shut", lambda: stream.for_good(wire))
        elif not stream.ended.done():
            self.add(stream)

    def _log(self, stream: Stream, what_follows: str, error: BaseException) -> None:
        assert stream.still_allowed
        # Of each view apart, where there may be thousands of streams.
        message = f"still_allowed of {view_name(stream.still_allowed)} failed: {what_follows}."
        log_seldom(message, level=logging.ERROR, exc_info=error)


class _Place(NamedTuple):
    """One of those who are asked at once."""

    ends: float
    """When others may have it."""

    tenant: str | None
    """The tenant that is asked nothing else meanwhile."""

    thread: OwnThread


def _is_full(asking: Mapping[asyncio.Task[None], _Place]) -> bool:
    return sum(place.ends > _now() for place in asking.values()) >= _AT_ONCE


async def _answer_of(question: Question) -> bool:
    """Return what a view says, in time.

    Raises:
        TimeoutError: It says nothing; it is left behind, even where it takes no notice of that.
    """
    answer = asyncio.ensure_future(question())
    try:
        await asyncio.wait([answer], timeout=_ANSWER_SECONDS)
        if not answer.done():
            raise TimeoutError("It has not answered in time.")
        return answer.result()
    finally:
        # What it still raises is nobody's; asyncio would log it.
        answer.add_done_callback(lambda done: done.cancelled() or done.exception())
        answer.cancel()
        await asyncio.wait([answer], timeout=_GRACE_SECONDS)


def is_yes(answer: object) -> bool:
    """Return what a view's question was answered, where only True is a yes, and False
    or None a no.

    Raises:
        WrongAnswerError: It would be true without being meant so, such as a response, or a
            coroutine that nobody has awaited.
    """
    # Not by its truth, which may be a query.
    if answer is None or isinstance(answer, bool):
        return bool(answer)
    if inspect.iscoroutine(answer):
        answer.close()
        raise WrongAnswerError("The answer has to be True or False, not a coroutine: `await` it.")
    raise WrongAnswerError(f"The answer has to be True or False, not {type(answer).__name__}.")


def _question_of(stream: Stream) -> Question:
    """Return what asks a stream's view, in the tenant that the stream was opened in."""
    assert stream.still_allowed
    if conf().NAMESPACE_CONTEXT is None:
        return stream.still_allowed
    return partial(sync_to_async(_answer_within), stream)


def _answer_within(stream: Stream) -> bool:
    assert stream.still_allowed
    with namespace_context(stream.owner.namespace):
        # What the view does in threads comes back to this one, which is in the tenant.
        return async_to_sync(stream.still_allowed)()


def _is_of_surroundings(error: BaseException | None) -> bool:
    """Whether the database, the network or the time has failed, which is no answer; also where a
    library says so by an exception of its own."""
    for _ in range(_CAUSES):
        # A TimeoutError is an OSError.
        if error is None or isinstance(error, DatabaseFailure | OSError):
            break
        if isinstance(error, BaseExceptionGroup):
            return all(_is_of_surroundings(each) for each in error.exceptions)
        error = error.__cause__ or error.__context__
    return isinstance(error, DatabaseFailure | OSError)


def _now() -> float:
    return asyncio.get_running_loop().time()
