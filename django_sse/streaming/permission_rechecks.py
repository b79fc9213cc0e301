"""Asks views whether their streams are still allowed, long after the requests have ended."""

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Collection, Container, Mapping
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
# How long a cancelled view may take to stop.
_GRACE_SECONDS: Final = 1.0
# How many streams are asked about at once, each in a thread of its own.
_MAX_CONCURRENT: Final = 10
# How long a stream counts towards that limit. So a slow view delays others by no more than this.
_SLOT_SECONDS: Final = 1.0
# After how long a view that could not answer is asked again.
_RETRY_SECONDS: Final = 2.0
# How long to wait where RECHECK_INTERVAL is off.
_OFF_SECONDS: Final = 60.0
# Views may be asked early by this fraction of RECHECK_INTERVAL, so that many are asked while there
# is a thread with a connection.
_EARLY_FRACTION: Final = 0.05
# How many causes of an exception are followed. The limit ends a chain that leads to itself.
_MAX_CAUSES: Final = 10
# Failures that say nothing about a permission. A TimeoutError is an OSError.
_FAILURES: Final = (DatabaseFailure, OSError, MemoryError)


class WrongAnswerError(TypeError):
    """A view's method has to answer True or False, and did not."""


class LoginEndedError(PermissionDenied):
    """Nobody is logged in. The session may only have got another key."""


class CredentialsEndedError(PermissionDenied):
    """What a request has shown, such as a token, is not accepted any more. Its client may have got
    something newer meanwhile."""


class PermissionRechecks:
    """Asks about each stream every ``RECHECK_INTERVAL``, and ends streams that are not allowed.

    If the database or the network fails, or time runs out, the stream is asked about again. If that
    fails, too, the stream ends, and its client reconnects to be authorized anew. Every other
    exception means no.

    Args:
        look_for_sessions: Ends those of some streams whose session is gone or has a new key.
    """

    def __init__(self, look_for_sessions: Callable[[Collection[Stream]], Awaitable[None]]) -> None:
        self._look_for_sessions = look_for_sessions
        # By tenant, so that all streams of a busy tenant can be skipped. Each dict is in the order
        # in which its streams are due.
        self._due: dict[str, dict[Stream, float]] = {}
        self._due_again: dict[Stream, float] = {}

    def add(self, stream: Stream) -> None:
        """Ask about a stream from now on, if its view defines ``still_allowed``."""
        if stream.still_allowed:
            of_tenant = self._due.setdefault(stream.owner.namespace, {})
            of_tenant[stream] = _now() + _interval()

    def remove(self, stream: Stream) -> None:
        """Stop asking about a stream."""
        self._take(stream)
        self._due_again.pop(stream, None)

    async def ask(self) -> None:
        """Ask about all streams that are due, again and again."""
        while True:
            await asyncio.sleep(self._seconds_to_next())
            try:
                with ExitStack() as threads:
                    await self._ask_all_due(threads)
            except BaseException as error:
                if must_propagate(error):
                    raise
                # Streams that were not asked about are still due.
                log_seldom(
                    "Views could not be asked whether their streams are still allowed.",
                    level=logging.ERROR,
                    exc_info=error,
                )
                await asyncio.sleep(_RETRY_SECONDS)

    def _seconds_to_next(self, busy: Container[str | None] = ()) -> float:
        # Streams that are added meanwhile are not due before that, either.
        latest = _now() + _interval()
        again = next(iter(self._due_again.values()), inf)
        return max(min(latest, self._next_due(busy)[1], again) - _now(), 0.0)

    def _take_due(self, busy: Container[str | None]) -> tuple[Stream, bool] | None:
        """Take the next stream to ask about.

        Args:
            busy: The tenants to skip.

        Returns:
            The stream, and whether it is asked about for the second time.
        """
        stream, due = next(iter(self._due_again.items()), (None, inf))
        if stream and due <= _now():
            del self._due_again[stream]
            return stream, True
        stream, due = self._next_due(busy)
        if stream and due <= _now() + _EARLY_FRACTION * _interval():
            self._take(stream)
            return stream, False
        return None

    def _next_due(self, busy: Container[str | None]) -> tuple[Stream | None, float]:
        """Return the stream that is due first, and when. Busy tenants are skipped."""
        firsts = (
            next(iter(of_tenant.items()))
            for tenant, of_tenant in self._due.items()
            if tenant not in busy
        )
        return min(firsts, key=lambda first: first[1], default=(None, inf))

    def _take(self, stream: Stream) -> None:
        tenant = stream.owner.namespace
        of_tenant = self._due.get(tenant, {})
        of_tenant.pop(stream, None)
        if not of_tenant:
            self._due.pop(tenant, None)

    async def _ask_all_due(self, threads: ExitStack) -> None:
        in_tenants = conf().NAMESPACE_CONTEXT is not None
        asking: dict[asyncio.Task[None], _Slot] = {}
        # A question has a thread to itself while it lasts: what a view sets in its database
        # connection, such as a tenant, must not answer the question about another stream.
        idle: list[OwnThread] = []
        try:
            while True:
                busy = {slot.tenant for slot in asking.values()}
                # Before a stream is taken: one that was taken is not due any more.
                new_thread = OwnThread()
                if not _is_full(asking) and (taken := self._take_due(busy)):
                    stream, again = taken
                    tenant = stream.owner.namespace if in_tenants and not again else None
                    # A second question has a new thread, where nothing else can be in the way.
                    is_new = again or not idle
                    thread = threads.enter_context(new_thread) if is_new else idle.pop()
                    # `within` copies the context, so that nothing a view sets in it is kept.
                    task = asyncio.create_task(
                        self._ask(stream, thread, again=again),
                        context=thread.within(stream.context),
                    )
                    asking[task] = _Slot(_now() + _SLOT_SECONDS, tenant, thread, stream)
                    continue
                if not asking:
                    return
                done, _ = await asyncio.wait(
                    asking,
                    timeout=_SLOT_SECONDS if _is_full(asking) else self._seconds_to_next(busy),
                    return_when=asyncio.FIRST_COMPLETED,
                )
                for task in done:
                    slot = asking.pop(task)
                    idle.append(slot.thread)
                    if task.cancelled() or task.exception():
                        self._ask_again(slot.stream)
        finally:
            for task in asking:
                task.cancel()
            if asking:
                await asyncio.wait(asking)
            for slot in asking.values():
                self._ask_again(slot.stream)

    def _ask_again(self, stream: Stream) -> None:
        if not stream.ended.done():
            self._due_again[stream] = _now() + _RETRY_SECONDS

    async def _ask(self, stream: Stream, thread: OwnThread, *, again: bool) -> None:
        assert stream.still_allowed
        if stream.ended.done():
            return
        try:
            allowed = is_yes(await _answer_of(_question_of(stream)))
        except LoginEndedError:
            await self._look_for_session(stream)
            if stream.is_barred:
                return
            allowed = False
        except CredentialsEndedError:
            stream.end("login changed", lambda: stream.for_good(jittered_retry()))
            return
        except PermissionDenied:
            allowed = False
        except BaseException as error:
            # Some failures are not Exceptions, such as a panic in an extension module.
            if must_propagate(error):
                raise
            if _is_infrastructure_failure(error):
                # The thread may hang, or its connection may be broken.
                thread.give_up()
                if again:
                    stream.end("permission unknown", jittered_retry)
                    self._log(stream, "its clients reconnect to be authorized anew", error)
                else:
                    self._ask_again(stream)
                return
            self._log(stream, "this counts as a no", error)
            allowed = False
        if not allowed:
            wire = closing_wire("not allowed any more")
            stream.end("shut", lambda: stream.for_good(wire))
        elif not stream.ended.done():
            self.add(stream)

    async def _look_for_session(self, stream: Stream) -> None:
        """Send a stream's client back if its session is gone, as far as this can be found out."""
        try:
            async with asyncio.timeout(_GRACE_SECONDS):
                await self._look_for_sessions([stream])
        except BaseException as error:
            if must_propagate(error):
                raise

    def _log(self, stream: Stream, what_follows: str, error: BaseException) -> None:
        assert stream.still_allowed
        # One message per view, since there may be thousands of streams.
        message = f"still_allowed of {view_name(stream.still_allowed)} failed: {what_follows}."
        log_seldom(message, level=logging.ERROR, exc_info=error)


class _Slot(NamedTuple):
    """One of the questions that are asked at once."""

    ends: float
    """When it no longer counts towards ``_MAX_CONCURRENT``."""

    tenant: str | None
    """No other question about this tenant is asked meanwhile. None excludes no tenant."""

    thread: OwnThread
    stream: Stream


def _is_full(asking: Mapping[asyncio.Task[None], _Slot]) -> bool:
    return sum(slot.ends > _now() for slot in asking.values()) >= _MAX_CONCURRENT


async def _answer_of(question: Question) -> bool:
    """Return a view's answer.

    Raises:
        TimeoutError: The view did not answer in time. It is cancelled and left behind, even if it
            ignores that.
    """
    answer = asyncio.ensure_future(question())
    try:
        await asyncio.wait([answer], timeout=_ANSWER_SECONDS)
        if not answer.done():
            raise TimeoutError(f"The view did not answer within {_ANSWER_SECONDS:g} seconds.")
        return answer.result()
    finally:
        # Retrieve a late exception, which nobody reads and asyncio would log.
        answer.add_done_callback(lambda done: done.cancelled() or done.exception())
        answer.cancel()
        await asyncio.wait([answer], timeout=_GRACE_SECONDS)


def is_yes(answer: object) -> bool:
    """Return a view's answer as a bool: True means yes, False and None mean no.

    Raises:
        WrongAnswerError: The answer is something else, such as a response or a coroutine that was
            not awaited. It could be truthy without being meant as a yes.
    """
    # Do not test the truth value, which may run a query.
    if answer is None or isinstance(answer, bool):
        return bool(answer)
    if inspect.iscoroutine(answer):
        answer.close()
        raise WrongAnswerError("The answer has to be True or False, not a coroutine: `await` it.")
    raise WrongAnswerError(f"The answer has to be True or False, not {type(answer).__name__}.")


def _question_of(stream: Stream) -> Question:
    """Return a function that asks a stream's view in the tenant that the stream was opened in."""
    assert stream.still_allowed
    if conf().NAMESPACE_CONTEXT is None:
        return stream.still_allowed
    return partial(sync_to_async(_answer_within), stream)


def _answer_within(stream: Stream) -> bool:
    assert stream.still_allowed
    with namespace_context(stream.owner.namespace):
        # The view's blocking calls run in this thread, which is in the tenant.
        return async_to_sync(stream.still_allowed)()


def _is_infrastructure_failure(error: BaseException | None) -> bool:
    """Return whether the database or the network failed, or time, memory or threads ran out. This
    is not an answer.

    A library may wrap such an exception in another one, so causes are followed.
    """
    for _ in range(_MAX_CAUSES + 1):
        if error is None:
            return False
        if isinstance(error, _FAILURES) or _is_lack_of_threads(error):
            return True
        if isinstance(error, BaseExceptionGroup):
            return all(_is_infrastructure_failure(each) for each in error.exceptions)
        error = error.__cause__ or error.__context__
    return False


def _is_lack_of_threads(error: BaseException) -> bool:
    # CPython has no exception class for this.
    return isinstance(error, RuntimeError) and error.args == ("can't start new thread",)


def _interval() -> float:
    # While it is off, no stream is added. Those of before are asked about now and then.
    return conf().RECHECK_INTERVAL or _OFF_SECONDS


def _now() -> float:
    return asyncio.get_running_loop().time()
