"""Runs the async generator of a view, and sends what it yields to one stream."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from contextvars import Context
from functools import partial
from typing import Any, Final, Protocol

from django_sse.concurrency.tasks import Turns, must_propagate, spawn
from django_sse.concurrency.threads import CleanThreads, request_context, shares_thread
from django_sse.conf import conf
from django_sse.event import FORBIDDEN_IN_FIELD, Event, as_event, refuse_reserved_name, with_id
from django_sse.exceptions import Close, InvalidEvent
from django_sse.groups.entries import closing_wire
from django_sse.groups.namespaces import namespace_context, require_namespace
from django_sse.groups.position import TERMINAL_MARK
from django_sse.logs import logger
from django_sse.streaming.jitter import jittered_retry
from django_sse.streaming.send_queue import LastBytes

# For the blocking calls of all generators whose requests are over.
_threads: Final = CleanThreads(at_once=2, most=40, most_each=10, patience=30.0)


def without_request(context: Context, namespace: str, caller: str) -> Context:
    """Return a context for a generator that is in no request.

    Each blocking call has a new thread in it, with new connections.

    Args:
        context: The context of the request, without its resources.
        namespace: The tenant in which blocking calls run.
        caller: Who makes them: those of one caller do not stop those of others.
    """
    if shares_thread() and conf().NAMESPACE_CONTEXT is None:
        return context.copy()
    return _threads.within(context, caller, partial(namespace_context, namespace))


class GeneratorStream(Protocol):
    """The part of a stream that its generator uses."""

    async def ready(self) -> bool:
        """Wait until all that was sent has gone out, and more may be sent.

        Return whether the stream goes on.
        """

    def send(self, chunk: bytes) -> None:
        """Send a chunk. The stream has to be ready."""

    def end(self, reason: str, last_bytes: LastBytes) -> None:
        """End the stream after its last bytes."""


class Generation:
    """Runs an async generator once, for one stream.

    One task runs the generator from start to end, so that it can close what it opens.

    Args:
        events: The generator. It yields events, or their data.
        last_event_id: The last id that its client has.
        context: The context of the request, in which the generator runs.
        namespace: The tenant in which its blocking calls run after the request.
        caller: Who makes them: the user, or the address of a client that is nobody.
        retry_on_error: Whether the client comes back, and the generator runs again, if it raises.
    """

    def __init__(
        self,
        events: AsyncGenerator[Any, None],
        last_event_id: str,
        context: Context,
        *,
        namespace: str,
        caller: str,
        retry_on_error: bool,
    ) -> None:
        self._events: AsyncGenerator[Any, None] | None = events
        self._context = context
        self._namespace = namespace
        self._caller = caller
        self._retry_on_error = retry_on_error
        # No event has had such an id. The client may have put it into the URL.
        self.last_event_id = "" if FORBIDDEN_IN_FIELD.search(last_event_id) else last_event_id
        self._task: asyncio.Task[None] | None = None

    def leave_request(self) -> None:
        """Keep nothing of the request: its thread and its connections are released.

        From now on each blocking call of the generator has a new thread, with new connections.
        """
        context = self._context.run(request_context)
        self._context = without_request(context, self._namespace, self._caller)

    def start(self, stream: GeneratorStream) -> None:
        """Run the generator, if it does not run yet."""
        if events := self._events:
            self._events = None
            self._task = spawn(self._run(events, stream), self._context)
            self._task.add_done_callback(self._finished)

    def stop(self) -> None:
        """Cancel the generator, and close it."""
        if self._task is None:
            self._finished()
        elif self._task is not asyncio.current_task() and not self._task.cancelling():
            # Once: a second time would cancel what the generator awaits to clean up.
            self._task.cancel()

    def _finished(self, _: object = None) -> None:
        self._events = self._task = None
        self._context = Context()

    async def _run(self, events: AsyncGenerator[Any, None], stream: GeneratorStream) -> None:
        # Already here, for a generator that ends its stream before it first waits.
        self._task = asyncio.current_task()
        wire = closing_wire("complete")
        # A generator and its client may both be so fast that nothing here has to wait.
        turns = Turns()
        has_begun = False
        try:
            try:
                async with aclosing(events):
                    await require_namespace(self._namespace)
                    has_begun = True
                    async for item in events:
                        event = as_event(item)
                        refuse_reserved_name(event.event)
                        _refuse_reserved_id(event)
                        chunk = event.encode()
                        if not await stream.ready():
                            return
                        self.last_event_id = self.last_event_id if event.id is None else event.id
                        stream.send(chunk)
                        if not await stream.ready():
                            return
                        await turns.give_way(len(chunk))
            except Close as close:
                wire = closing_wire(close.reason, close.result)
        except BaseException as error:
            if must_propagate(error):
                # If the stream has not ended, something else has cancelled the generator.
                stream.end("failed", jittered_retry)
                raise
            logger.exception("A generator view failed, so its stream is ended.")
            if self._retry_on_error or not has_begun:
                stream.end("failed", jittered_retry)
                return
            wire = closing_wire("failed")
        closing = with_id(TERMINAL_MARK, wire)
        stream.end("complete", lambda: closing)


def _refuse_reserved_id(event: Event) -> None:
    if event.id is not None and event.id.endswith(TERMINAL_MARK):
        raise InvalidEvent(
            f"The id {event.id!r} ends in {TERMINAL_MARK!r}, which tells a client that comes back "
            "to stop. Choose another id."
        )
