"""Whether open streams may go on: asked again, long after the requests that they were opened by."""

import asyncio
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import suppress
from contextvars import Context
from functools import partial
from math import inf
from typing import Any, Final

from asgiref.sync import async_to_sync, sync_to_async
from django.db import DEFAULT_DB_ALIAS, connections

from django_sse.access.logins import (
    LoginCheck,
    acheck_with_backend,
    check_logins,
    finds_users_itself,
    without_session,
)
from django_sse.access.owners import Login
from django_sse.concurrency.tasks import must_propagate, spawn
from django_sse.concurrency.threads import OwnThread, Result
from django_sse.conf import conf
from django_sse.groups.entries import GroupState, Hint, closing_wire
from django_sse.groups.namespaces import namespace_context
from django_sse.logs import log_seldom, logger
from django_sse.stores.base import EventStore
from django_sse.stores.timed_thread import TimedThread, unpooled
from django_sse.streaming.jitter import jittered_retry
from django_sse.streaming.permission_rechecks import PermissionRechecks
from django_sse.streaming.store_reader import StoreReader
from django_sse.streaming.stream import Stream
from django_sse.streaming.subscription import each

# Checking all logins pauses for so many times as long as it took, so that it never costs much.
_LOGINS_PAUSE: Final = 20
# When a user who was not found is looked for again.
_AGAIN_SECONDS: Final = 1.0
# How long backends that find users in ways of their own are asked at a stretch.
_BACKENDS_SECONDS: Final = 10.0

# Logins that are checked at a time: one answer must not take as long as one that hangs.
_AT_A_TIME: Final = 500

_Logins = Mapping[Login, Collection[Stream]]


class Rechecks:
    """Ends the streams of a hub that may not go on any more.

    The event store says whose streams were ended, the users in the database which logins still
    hold, and a view that has ``still_allowed`` speaks for its own streams.

    Args:
        streams: The open streams of the hub, those that come later included.
        store: The hub's store.
        reader: What reads it for the hub.
        interval: Returns the seconds between two looks at all logins, at the least.
    """

    def __init__(
        self,
        streams: Collection[Stream],
        store: EventStore,
        reader: StoreReader,
        interval: Callable[[], float],
    ) -> None:
        self.owned: dict[str, set[Stream]] = {}
        """The streams by the owner keys of their owners."""
        self._streams = streams
        self._store = store
        self._reader = reader
        self._interval = interval
        self._thread = TimedThread("django-sse-logins", _OfThread)
        self._questions = PermissionRechecks()
        # The owner keys that doorbells have named. Apart: a database that hangs holds up no kick.
        self._to_look_up = _Batcher(self.look_up)
        self._to_check = _Batcher(self._check_users)
        # The logins whose user was not found, with the time of the first such look.
        self._missed: dict[Login, float] = {}
        # When backends were asked about each of their logins, and whether one is to be asked now.
        self._asked: dict[Login, float] = {}
        self._is_urgent = asyncio.Event()

    def add(self, stream: Stream) -> None:
        """Note whose a stream is."""
        for owner_key in stream.owner.keys:
            self.owned.setdefault(owner_key, set()).add(stream)
        self._questions.add(stream)

    def remove(self, stream: Stream) -> None:
        """Forget a stream that was added."""
        for owner_key in stream.owner.keys:
            self.owned[owner_key].discard(stream)
            if not self.owned[owner_key]:
                del self.owned[owner_key]
        login = stream.owner.login
        others = self.owned.get(stream.owner.user or "", ())
        if login and not any(other.owner.login == login for other in others):
            self._missed.pop(login, None)
        self._questions.remove(stream)

    async def aclose(self) -> None:
        """Close the connection to the database; another one is opened when it is needed."""
        await self._thread.aclose()

    # Owners

    def hear(self, hint: Hint) -> None:
        """Take what a doorbell says of an owner key: it was ended or, without a head, its user has
        changed."""
        if hint.head:
            looked_up = self._to_look_up.add(hint.group)
            # What comes after it waits for the answer.
            each(list(self.owned.get(hint.group, ())), lambda stream: stream.hold(looked_up))
        else:
            self._to_check.add(hint.group)

    async def look_up(self, owner_keys: Iterable[str]) -> None:
        """Ask the store for those of the owner keys that have streams, and end what it has ended.

        Raises:
            Exception: The event store could not be read.
        """
        if owner_keys := [owner_key for owner_key in owner_keys if owner_key in self.owned]:
            for owner_key, state in (await self._reader.states(owner_keys)).items():
                await self.compare(owner_key, state)

    async def compare(self, owner_key: str, state: GroupState) -> None:
        """End the streams that an owner key's state in the store has ended.

        Raises:
            Exception: The event store could not be read.
        """
        ended = [
            stream
            for stream in self.owned.get(owner_key, ())
            if stream.owner.is_ended(owner_key, state)
        ]
        if ended:
            entries = await self._store.aread(owner_key, state.first - 1, 1)
            closing = entries[0].wire if entries else closing_wire(None)
            each(ended, lambda stream: _shut(stream, closing, stream.owner.keys[owner_key]))

    # Logins

    async def watch_logins(self) -> None:
        """Check all logins, and look for their sessions, again and again."""
        loop = asyncio.get_running_loop()
        failing = set()
        while True:
            began = loop.time()
            for what, check_all in (
                ("logins", self._check_logins),
                ("sessions", self._look_for_sessions),
            ):
                # Apart: users and sessions may be kept in different places.
                try:
                    await check_all(self._streams)
                    failing.discard(what)
                except BaseException as error:
                    if must_propagate(error):
                        raise
                    if what not in failing:
                        logger.exception("Whether the %s of streams hold cannot be read.", what)
                    failing.add(what)
            took = loop.time() - began
            await asyncio.sleep(max(self._interval(), _LOGINS_PAUSE * took))

    async def _check_users(self, owner_keys: Collection[str]) -> None:
        streams = {stream for owner_key in owner_keys for stream in self.owned.get(owner_key, ())}
        self._ask_backends_soon(streams)
        await self._check_logins(streams)

    async def _check_logins(self, streams: Collection[Stream]) -> None:
        """End those of the streams whose login does not hold any more, as the database says."""
        logins = _by_login(streams, own_ways=False)
        async for of_tenant, checked in self._ask_each_tenant(logins, check_logins):
            self._act_on(of_tenant, checked)

    async def watch_backends(self) -> None:
        """Ask the backends that find users in ways of their own, one login at a time, again and
        again. Apart from all others, whom they must not hold up."""
        loop = asyncio.get_running_loop()
        pause = 0.0
        while True:
            began = loop.time()
            answers = True
            try:
                answers = await self._ask_backends(began - pause)
            except BaseException as error:
                if must_propagate(error):
                    raise
                log_seldom("Backends cannot be asked about logins.", exc_info=error)
            pause = max(self._interval(), _LOGINS_PAUSE * (loop.time() - began))
            if not answers:
                # Who rings does not make more threads hang.
                await asyncio.sleep(pause)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._is_urgent.wait()
            self._is_urgent.clear()

    async def _ask_backends(self, before: float) -> bool:
        """Ask about the logins that were not asked about since, those first that were not for
        longest, as long as there is time. Return whether the backends answer in time."""
        loop = asyncio.get_running_loop()
        ends = loop.time() + _BACKENDS_SECONDS
        logins = _by_login(self._streams, own_ways=True)
        self._asked = {login: at for login, at in self._asked.items() if login in logins}
        due = [login for login in logins if self._asked.get(login, -inf) <= before]
        due.sort(key=lambda login: self._asked.get(login, -inf))
        if not due:
            return True
        with OwnThread() as thread:
            for login in due:
                if loop.time() > ends:
                    break
                self._asked[login] = loop.time()
                try:
                    checked = await asyncio.create_task(
                        _acheck_within(login), context=thread.within(Context())
                    )
                except BaseException as error:
                    if must_propagate(error):
                        raise
                    # No answer is no no. The thread may hang, or have a connection that is broken.
                    thread.give_up()
                    log_seldom("%s could not find a user.", login.backend, exc_info=error)
                    if isinstance(error, TimeoutError):
                        return False
                else:
                    self._act_on({login: logins[login]}, checked)
        return True

    def _ask_backends_soon(self, streams: Iterable[Stream]) -> None:
        if logins := _by_login(streams, own_ways=True):
            for login in logins:
                self._asked.pop(login, None)
            self._is_urgent.set()

    def _act_on(self, logins: _Logins, checked: LoginCheck) -> None:
        for login, streams in logins.items():
            absent = login in checked.absent
            if not absent:
                self._missed.pop(login, None)
            if login in checked.gone:
                each(streams, _log_out)
            elif login in checked.changed:
                # Its session may be the one that the password was changed in, and go on.
                each(streams, _send_back)
            if absent:
                self._note_absent(login, streams)

    def _note_absent(self, login: Login, streams: Collection[Stream]) -> None:
        """End streams whose user was not found before either: a replica may not have it yet."""
        loop = asyncio.get_running_loop()
        if login not in self._missed:
            self._missed[login] = loop.time()
            for owner_key in {stream.owner.user for stream in streams if stream.owner.user}:
                hint = Hint(owner_key, 0, cancelled=False)
                loop.call_later(_AGAIN_SECONDS, self.hear, hint)
        elif loop.time() - self._missed[login] >= _AGAIN_SECONDS:
            # A backend may read where a user is not for longer: the next request asks it again.
            each(streams, _send_back if finds_users_itself(login.backend) else _log_out)

    async def _look_for_sessions(self, streams: Collection[Stream]) -> None:
        """Send the clients back whose session is gone, or has another key now."""
        logins = _by_login(streams, own_ways=None)
        async for of_tenant, gone in self._ask_each_tenant(logins, without_session):
            if ended := [stream for login in gone for stream in of_tenant[login]]:
                # Of one that was logged out the store says so, whether or not that was heard yet.
                try:
                    await self.look_up(
                        {owner_key for stream in ended for owner_key in stream.owner.keys}
                    )
                except BaseException as error:
                    # The next comparison with the store finds it.
                    if must_propagate(error):
                        raise
            each(ended, _send_back)

    async def _ask_each_tenant(
        self, logins: _Logins, question: Callable[[Collection[Login]], Result]
    ) -> AsyncIterator[tuple[_Logins, Result]]:
        """Ask about the logins of each tenant, in the tenant, some at a time; yields both.

        Raises:
            Exception: About some of them there was no answer; the others were asked about first.
        """
        tenants: dict[str, list[Login]] = {}
        for login in logins:
            tenants.setdefault(login.namespace, []).append(login)
        failure: BaseException | None = None
        for namespace, some in _in_parts(tenants):
            of_tenant = {login: logins[login] for login in some}
            ask = partial(_ask_within, namespace, question, some)
            try:
                answer = await self._thread.run(ask)
            except BaseException as error:
                if must_propagate(error):
                    raise
                failure = error
            else:
                yield of_tenant, answer
        if failure:
            raise failure

    # Views

    async def ask_views(self) -> None:
        """Ask the views that have ``still_allowed``, again and again."""
        await self._questions.ask()


class _OfThread:
    """The connections of the thread that this is made in, to close all of them with it."""

    def __init__(self) -> None:
        for alias in connections:
            if connections[alias].settings_dict["OPTIONS"].get("pool"):
                connections[alias] = unpooled(alias)
        self._of_project = connections[DEFAULT_DB_ALIAS]

    @property
    def connection(self) -> Any:
        """The driver's connection that is the most likely one to hang."""
        return self._of_project.connection

    def close(self) -> None:
        connections.close_all()


class _Batcher:
    """Deals with names, all that have piled up at once: anybody may ring often.

    Args:
        deal: Deals with some names.
    """

    def __init__(self, deal: Callable[[Collection[str]], Awaitable[None]]) -> None:
        self._deal = deal
        self._names: set[str] = set()
        self._dealt: asyncio.Future[None] | None = None
        self._dealing: asyncio.Task[None] | None = None

    def add(self, name: str) -> asyncio.Future[None]:
        """Deal with a name soon; return what is done once that is over, also where it fails."""
        self._names.add(name)
        dealt = self._dealt = self._dealt or asyncio.get_running_loop().create_future()
        if self._dealing is None or self._dealing.done():
            self._dealing = spawn(self._deal_with_all())
        return dealt

    async def _deal_with_all(self) -> None:
        while dealt := self._dealt:
            names, self._names, self._dealt = self._names, set(), None
            try:
                await self._deal(names)
            except BaseException as error:
                if must_propagate(error):
                    raise
                # The next comparison with the store, or sweep of the logins, finds it.
                log_seldom("What a doorbell says of owners cannot be read.", exc_info=error)
            finally:
                dealt.set_result(None)


def _by_login(streams: Iterable[Stream], *, own_ways: bool | None) -> _Logins:
    """Return the streams of the logins whose backends find users in ways of their own, or else of
    the others; None for all."""
    found: dict[Login, list[Stream]] = {}
    for stream in streams:
        if login := stream.owner.login:
            found.setdefault(login, []).append(stream)
    if own_ways is None:
        return found
    paths = {login.backend for login in found}
    wanted = {path for path in paths if finds_users_itself(path) is own_ways}
    return {login: streams for login, streams in found.items() if login.backend in wanted}


def _in_parts(tenants: Mapping[str, Sequence[Login]]) -> Iterator[tuple[str, Sequence[Login]]]:
    for namespace, logins in tenants.items():
        for begin in range(0, len(logins), _AT_A_TIME):
            yield namespace, logins[begin : begin + _AT_A_TIME]


def _shut(stream: Stream, closing: bytes, group: str | None = None) -> None:
    """End a stream that its owner may not go on with.

    Args:
        stream: The stream.
        closing: The wire of the ``close`` to send.
        group: The only group that this is about; with others, the client comes back for them.
    """
    if group is None or [group] == list(stream.groups):
        stream.end("shut", lambda: stream.for_good(closing))
    elif group in stream.groups:
        stream.end("shut out of a group", jittered_retry)


def _log_out(stream: Stream) -> None:
    _shut(stream, closing_wire("logged out"))


def _send_back(stream: Stream) -> None:
    """End a stream so that its client comes back, for good if nobody is logged in then."""
    stream.end("login changed", lambda: stream.for_good(jittered_retry()))


def _ask_within(
    namespace: str, question: Callable[[Collection[Login]], Result], logins: Collection[Login]
) -> Result:
    with namespace_context(namespace):
        return question(logins)


async def _acheck_within(login: Login) -> LoginCheck:
    if conf().NAMESPACE_CONTEXT is None:
        return await acheck_with_backend(login)

    def check_within() -> LoginCheck:
        with namespace_context(login.namespace):
            # What the backend does in threads comes back to this one, which is in the tenant.
            return async_to_sync(acheck_with_backend)(login)

    return await sync_to_async(check_within)()
