"""Whether open streams may go on: asked again, long after the requests that they were opened by."""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from contextlib import suppress
from functools import partial
from typing import Final

from django.db import connections

from django_sse.logins import judge, without_session
from django_sse.logs import log_seldom, logger
from django_sse.namespaces import namespace_context
from django_sse.owners import Login
from django_sse.questions import Questions
from django_sse.stores.base import EventStore, GroupState, Hint, closing_wire
from django_sse.stores.states import StateReader
from django_sse.stream import Stream
from django_sse.tasks import spawn
from django_sse.threads import Result, WorkerThread

# Judging all logins pauses for so many times as long as it took, so that it never costs much.
_LOGINS_PAUSE: Final = 20


class Rechecks:
    """Ends the streams of a hub that may not go on any more.

    The event store says whose streams were ended, the users in the database which logins still
    hold, and a view that has ``still_allowed`` speaks for its own streams.

    Args:
        streams: The open streams of the hub, those that come later included.
        store: The hub's store.
        states: What reads its states.
        interval: Returns the seconds between two looks at all logins, at the least.
    """

    def __init__(
        self,
        streams: Collection[Stream],
        store: EventStore,
        states: StateReader,
        interval: Callable[[], float],
    ) -> None:
        self.owned: dict[str, set[Stream]] = {}
        """The streams by the marks of their owners."""
        self._streams = streams
        self._store = store
        self._states = states
        self._interval = interval
        self._thread = WorkerThread("django-sse-logins")
        self._questions = Questions()
        # The marks that doorbells have named, and what deals with them.
        self._to_look_up: set[str] = set()
        self._to_judge: set[str] = set()
        self._answering: asyncio.Task[None] | None = None

    def add(self, stream: Stream) -> None:
        """Note whose a stream is."""
        for mark in stream.owner.marks:
            self.owned.setdefault(mark, set()).add(stream)
        self._questions.add(stream)

    def remove(self, stream: Stream) -> None:
        """Forget a stream that was added."""
        for mark in stream.owner.marks:
            self.owned[mark].discard(stream)
            if not self.owned[mark]:
                del self.owned[mark]
        self._questions.remove(stream)

    async def aclose(self) -> None:
        """Close the connection to the database; another one is opened when it is needed."""
        await self._thread.aclose(connections.close_all)

    # Owners

    def hear(self, hint: Hint) -> None:
        """Take what a doorbell says of a mark: it was ended or, without a head, its user has
        changed."""
        (self._to_look_up if hint.head else self._to_judge).add(hint.group)
        if self._answering is None or self._answering.done():
            self._answering = spawn(self._answer())

    async def _answer(self) -> None:
        """Do what was heard, all of it that has piled up at once: anybody may ring often."""
        while self._to_look_up or self._to_judge:
            marks, self._to_look_up = self._to_look_up, set()
            changed, self._to_judge = self._to_judge, set()
            try:
                await self.look_up(marks)
                streams = {stream for mark in changed for stream in self.owned.get(mark, ())}
                await self._judge_logins(streams)
            except Exception as error:
                # The next comparison with the store, or sweep of the logins, finds it.
                log_seldom("What a doorbell says of owners cannot be read.", exc_info=error)

    async def look_up(self, marks: Iterable[str]) -> None:
        """Ask the store for those of the marks that have streams, and end what it has ended.

        Raises:
            Exception: The event store could not be read.
        """
        if marks := [mark for mark in marks if mark in self.owned]:
            for mark, state in (await self._states.read(marks)).items():
                await self.compare(mark, state)

    async def compare(self, mark: str, state: GroupState) -> None:
        """End the streams that a mark's state in the store has ended.

        Raises:
            Exception: The event store could not be read.
        """
        ended = [
            stream for stream in self.owned.get(mark, ()) if stream.owner.is_ended(mark, state)
        ]
        if ended:
            entries = await self._store.aread(mark, state.first - 1, 1)
            for stream in ended:
                stream.shut(
                    entries[0].wire if entries else closing_wire(None), stream.owner.marks[mark]
                )

    # Logins

    async def watch_logins(self) -> None:
        """Judge all logins, and look for their sessions, again and again."""
        loop = asyncio.get_running_loop()
        failing = set()
        while True:
            began = loop.time()
            for what, judge_all in (
                ("logins", self._judge_logins),
                ("sessions", self._look_for_sessions),
            ):
                # Apart: users and sessions may be kept in different places.
                try:
                    await judge_all(self._streams)
                    failing.discard(what)
                except Exception:
                    if what not in failing:
                        logger.exception("Whether the %s of streams hold cannot be read.", what)
                    failing.add(what)
            took = loop.time() - began
            await asyncio.sleep(max(self._interval(), _LOGINS_PAUSE * took))

    async def _judge_logins(self, streams: Collection[Stream]) -> None:
        """End those of the streams whose login does not hold any more."""
        async for owned, (gone, changed) in self._ask_each_tenant(streams, judge):
            for stream, login in owned:
                if login in gone:
                    stream.shut(closing_wire("logged out"))
                elif login in changed:
                    # Its session may be the one that the password was changed in, and go on.
                    stream.dismiss_unless_logged_in()

    async def _look_for_sessions(self, streams: Collection[Stream]) -> None:
        """Send the clients back whose session is gone, or has another key now."""
        async for owned, gone in self._ask_each_tenant(streams, without_session):
            if ended := [stream for stream, login in owned if login in gone]:
                # Of one that was logged out the store says so, whether or not that was heard yet.
                with suppress(Exception):
                    await self.look_up({mark for stream in ended for mark in stream.owner.marks})
            for stream in ended:
                stream.dismiss_unless_logged_in()

    async def _ask_each_tenant(
        self, streams: Collection[Stream], question: Callable[[set[Login]], Result]
    ) -> AsyncIterator[tuple[list[tuple[Stream, Login]], Result]]:
        """Ask about the logins of each tenant's streams, in the tenant; yields both.

        Raises:
            Exception: About one of them there was no answer; the others were asked about first.
        """
        of_tenants: dict[str, list[tuple[Stream, Login]]] = {}
        for stream in streams:
            if stream.owner.login:
                owned = of_tenants.setdefault(stream.owner.namespace, [])
                owned.append((stream, stream.owner.login))
        failure: Exception | None = None
        for namespace, owned in of_tenants.items():
            ask = partial(_ask_within, namespace, question, {login for _, login in owned})
            try:
                answer = await self._thread.run(ask)
            except Exception as error:
                failure = error
            else:
                yield owned, answer
        if failure:
            raise failure

    # Views

    async def ask_views(self) -> None:
        """Ask the views that have ``still_allowed``, again and again."""
        await self._questions.ask()


def _ask_within(
    namespace: str, question: Callable[[set[Login]], Result], logins: set[Login]
) -> Result:
    with namespace_context(namespace):
        return question(logins)
