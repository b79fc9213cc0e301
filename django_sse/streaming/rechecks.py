"""Checks again whether open streams may go on, long after the requests have ended."""

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
from typing import Any, Final, TypeVar

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
from django_sse.access.session_claims import SessionClaim, kept_sessions
from django_sse.concurrency.tasks import Coalescer, must_propagate
from django_sse.concurrency.threads import (
    OwnThread,
    Result,
    close_old_connections,
    leave_pools,
    publish_waiting,
    shares_thread,
)
from django_sse.conf import conf
from django_sse.groups.entries import GroupState, Hint, closing_wire
from django_sse.groups.namespaces import namespace_context
from django_sse.logs import log_seldom, logger
from django_sse.stores.base import EventStore
from django_sse.stores.timed_thread import TimedThread
from django_sse.streaming.jitter import jittered_retry
from django_sse.streaming.permission_rechecks import PermissionRechecks
from django_sse.streaming.store_reader import StoreReader
from django_sse.streaming.stream import OWNER_CHECK_SECONDS, Stream
from django_sse.streaming.subscription import each

# After a check of all logins, the pause is this many times as long as the check took. So checks
# never cost much.
_PAUSE_FACTOR: Final = 20
# After how long a user who was not found is looked for again.
_AGAIN_SECONDS: Final = 1.0
# The pause before the store is asked again about a kick, after it has failed.
_LOOK_UP_AGAIN_SECONDS: Final = 0.1
# How long one round of questions to custom backends may take.
_BACKENDS_SECONDS: Final = 10.0

# How many logins are checked at a time. With more, an answer could be taken for one that hangs.
_LOGINS_AT_A_TIME: Final = 500

# How many seconds claims pile up while many come: each question connects to the database.
_PAUSE_BETWEEN_CLAIMS: Final = 0.1

_Logins = Mapping[Login, Collection[Stream]]
Item = TypeVar("Item", Login, SessionClaim)
_Sessions = Mapping[SessionClaim, Mapping[str, Any]]


class Rechecks:
    """Ends the streams of a hub that may not go on.

    The event store says whose streams were ended. The users in the database show which logins are
    still valid. A view that defines ``still_allowed`` decides about its own streams.

    Args:
        streams: The open streams of the hub. The collection changes as streams come and go.
        store: The hub's store.
        reader: The hub's reader of the store.
        interval: Returns the minimum number of seconds between two checks of all logins.
    """

    def __init__(
        self,
        streams: Collection[Stream],
        store: EventStore,
        reader: StoreReader,
        interval: Callable[[], float],
    ) -> None:
        self.owned: dict[str, dict[Stream, None]] = {}
        """The streams, by the owner keys of their owners."""
        # By login, too: to sort them out anew for each check would cost more than the check.
        self._logins: dict[Login, dict[Stream, None]] = {}
        self._streams = streams
        self._store = store
        self._reader = reader
        self._interval = interval
        self._thread = TimedThread("django-sse-logins", _ThreadConnections)
        self._permission_rechecks = PermissionRechecks(
            lambda streams: self._look_for_sessions(_by_login(streams))
        )
        # The owner keys that doorbells have named. Two of these, so that a database that hangs does
        # not delay the end of streams.
        self._to_look_up = Coalescer(self._look_up_in_time)
        self._to_check = Coalescer(partial(_try, self._check_users))
        # The logins whose user was not found, with the time of the first check that missed it.
        self._absent_since: dict[Login, float] = {}
        # When custom backends were last asked about each login, and whether to ask one now.
        self._asked_at: dict[Login, float] = {}
        self._is_urgent = asyncio.Event()
        # The sessions of clients that come back.
        self._claims = Coalescer(
            self._kept_sessions, self._close_if_unused, pause=_PAUSE_BETWEEN_CLAIMS
        )

    def add(self, stream: Stream) -> None:
        """Recheck a stream from now on."""
        if login := stream.owner.login:
            of_login = self._logins.setdefault(login, {})
            newest = next(reversed(of_login), None)
            if newest and newest.owner == stream.owner:
                # Another tab of the same browser. What is known of its owner is kept once.
                stream.owner = newest.owner
            of_login[stream] = None
        for owner_key in stream.owner.keys:
            self.owned.setdefault(owner_key, {})[stream] = None
        self._permission_rechecks.add(stream)

    def remove(self, stream: Stream) -> None:
        """Stop rechecking a stream."""
        for owner_key in stream.owner.keys:
            self.owned[owner_key].pop(stream, None)
            if not self.owned[owner_key]:
                del self.owned[owner_key]
        if login := stream.owner.login:
            self._logins[login].pop(stream, None)
            if not self._logins[login]:
                del self._logins[login]
                self._absent_since.pop(login, None)
        self._permission_rechecks.remove(stream)

    async def aclose(self) -> None:
        """Close the database connection. Another one is opened when it is needed."""
        await self._thread.aclose()

    # Owners

    def hear(self, hint: Hint) -> None:
        """Take a hint about an owner key.

        A hint with a head says that the owner's streams were ended; one without, that the user has
        changed.
        """
        if hint.head:
            self.hear_kick(hint.group)
        else:
            self._to_check.add([hint.group])

    def hear_kick(self, owner_key: str) -> None:
        """Look an owner key up if it has streams, and let their new events wait for the answer."""
        if streams := list(self.owned.get(owner_key, ())):
            looked_up = self._to_look_up.add([owner_key])
            each(streams, lambda stream: stream.pause_until(looked_up))

    async def look_up(self, owner_keys: Iterable[str]) -> None:
        """Ask the store about owner keys that have streams, and end streams that it has ended.

        Raises:
            Exception: The event store could not be read.
        """
        if owner_keys := [owner_key for owner_key in owner_keys if owner_key in self.owned]:
            for owner_key, state in (await self._reader.states(owner_keys)).items():
                await self.compare(owner_key, state)

    async def _look_up_in_time(self, owner_keys: Collection[str]) -> None:
        """Look owner keys up, again and again while streams wait for it and the store fails."""
        loop = asyncio.get_running_loop()
        ends = loop.time() + OWNER_CHECK_SECONDS
        while not await _try(self.look_up, owner_keys):
            if loop.time() >= ends:
                break
            await asyncio.sleep(_LOOK_UP_AGAIN_SECONDS)

    async def check_newcomer(self, stream: Stream) -> None:
        """Ask the store about the owner of a stream that was added, and end the stream if the store
        has ended it. The owner's other streams are not looked at: there may be thousands.

        Raises:
            Exception: The event store could not be read.
        """
        if stream.owner.keys:
            for owner_key, state in (await self._reader.states(stream.owner.keys)).items():
                await self._end_if_ended([stream], owner_key, state)

    async def compare(self, owner_key: str, state: GroupState) -> None:
        """End the streams that an owner key's state in the store has ended.

        Raises:
            Exception: The event store could not be read.
        """
        await self._end_if_ended(self.owned.get(owner_key, ()), owner_key, state)

    async def _end_if_ended(
        self, streams: Iterable[Stream], owner_key: str, state: GroupState
    ) -> None:
        ended = [stream for stream in streams if stream.owner.is_ended(owner_key, state)]
        if ended:
            entries = await self._store.aread(owner_key, state.first - 1, 1)
            closing = entries[0].wire if entries else closing_wire(None)
            each(ended, lambda stream: _shut(stream, closing, stream.owner.keys[owner_key]))

    # Logins

    async def watch_logins(self) -> None:
        """Check all logins and their sessions, again and again."""
        loop = asyncio.get_running_loop()
        failing = set()
        while True:
            began = loop.time()
            for what, check_all in (
                ("logins", self._check_logins),
                ("sessions", self._look_for_sessions),
            ):
                # Separately, since users and sessions may be kept in different places.
                try:
                    await check_all(self._open_logins())
                    failing.discard(what)
                except BaseException as error:
                    if must_propagate(error):
                        raise
                    if what not in failing:
                        logger.exception("The %s of open streams cannot be checked.", what)
                    failing.add(what)
            took = loop.time() - began
            await asyncio.sleep(max(self._interval(), _PAUSE_FACTOR * took))

    def _open_logins(self) -> _Logins:
        """Return the streams by login, without those that come while the logins are checked."""
        return {login: list(streams) for login, streams in self._logins.items()}

    async def _check_users(self, owner_keys: Collection[str]) -> None:
        streams = {stream for owner_key in owner_keys for stream in self.owned.get(owner_key, ())}
        logins = _by_login(streams)
        self._ask_backends_soon(logins)
        await self._check_logins(logins)

    async def _check_logins(self, logins: _Logins) -> None:
        """End the streams of those logins that are no longer valid according to the database."""
        logins = _with_backends(logins, custom=False)
        async for some, checked in self._ask_each_tenant(_by_tenant(logins), check_logins):
            self._act_on({login: logins[login] for login in some}, checked)

    async def kept_session(self, claim: SessionClaim) -> Mapping[str, Any] | None:
        """Return a session's data if a claim about it is true and its login is valid, else None.

        It is None as well if this could not be found out. While the database answers, more claims
        pile up. They are checked together.
        """
        return (await asyncio.shield(self._claims.add([claim]))).get(claim)

    async def _kept_sessions(self, claims: Collection[SessionClaim]) -> _Sessions:
        kept: dict[SessionClaim, Mapping[str, Any]] = {}
        try:
            async for _, some in self._ask_each_tenant(_by_tenant(claims), kept_sessions):
                kept |= some
        except BaseException as error:
            if must_propagate(error):
                raise
            # The claims of other tenants have been answered.
            log_seldom("Some sessions could not be checked.", exc_info=error)
        return kept

    async def _close_if_unused(self) -> None:
        if not self._streams:
            await self.aclose()

    async def watch_backends(self) -> None:
        """Ask custom backends about their logins, one at a time, again and again.

        This is separate from all other checks, which these backends must not delay.
        """
        loop = asyncio.get_running_loop()
        pause = 0.0
        while True:
            began = loop.time()
            took: float | None = 0.0
            try:
                took = await self._ask_backends(began - pause)
            except BaseException as error:
                if must_propagate(error):
                    raise
                log_seldom(
                    "Authentication backends could not be asked about logins.", exc_info=error
                )
            pause = _rest() if took is None else max(self._interval(), _PAUSE_FACTOR * took)
            if took is None:
                # A doorbell must not cut this pause short: more threads would hang.
                await asyncio.sleep(pause)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._is_urgent.wait()
            self._is_urgent.clear()

    async def _ask_backends(self, before: float) -> float | None:
        """Ask about logins while there is time. Those not asked about for longest come first.

        Args:
            before: Logins that were asked about after this time are skipped (the loop's time).

        Returns:
            How many seconds the answers took; None if the backends do not answer in time.
        """
        loop = asyncio.get_running_loop()
        took, hangs = 0.0, False
        logins = _with_backends(self._open_logins(), custom=True)
        self._asked_at = {login: at for login, at in self._asked_at.items() if login in logins}
        due = [login for login in logins if self._asked_at.get(login, -inf) <= before]
        due.sort(key=lambda login: self._asked_at.get(login, -inf))
        if not due:
            return took
        with OwnThread() as thread:
            for login in due:
                if took > _BACKENDS_SECONDS:
                    break
                asked = self._asked_at[login] = loop.time()
                try:
                    checked = await asyncio.create_task(
                        _acheck_within(login), context=thread.within(Context())
                    )
                except BaseException as error:
                    if must_propagate(error):
                        raise
                    # No answer does not mean no. The thread may hang, or its connection be broken.
                    thread.give_up()
                    log_seldom("%s failed to look up a user.", login.backend, exc_info=error)
                    if isinstance(error, TimeoutError):
                        # It is this login that hangs, until a second one does.
                        self._asked_at[login] = loop.time() + _rest()
                        if hangs:
                            return None
                        hangs = True
                        continue
                else:
                    self._act_on({login: logins[login]}, checked)
                took += loop.time() - asked
        return took

    def _ask_backends_soon(self, logins: _Logins) -> None:
        if logins := _with_backends(logins, custom=True):
            now = asyncio.get_running_loop().time()
            for login in logins:
                # Not if it hangs: more threads would.
                if self._asked_at.get(login, now) <= now:
                    self._asked_at.pop(login, None)
            self._is_urgent.set()

    def _act_on(self, logins: _Logins, checked: LoginCheck) -> None:
        for login, streams in logins.items():
            absent = login in checked.absent
            if not absent:
                self._absent_since.pop(login, None)
            if login in checked.gone:
                each(streams, _log_out)
            elif login in checked.changed:
                # The password may have been changed in this same session, which then goes on.
                each(streams, _send_back)
            if absent:
                self._note_absent(login, streams)

    def _note_absent(self, login: Login, streams: Collection[Stream]) -> None:
        """End streams whose user was not found twice: a replica may not have the user yet."""
        loop = asyncio.get_running_loop()
        if login not in self._logins:
            # Its last stream has left meanwhile.
            return
        if login not in self._absent_since:
            self._absent_since[login] = loop.time()
            for owner_key in {stream.owner.user for stream in streams if stream.owner.user}:
                hint = Hint(owner_key, 0, cancelled=False)
                loop.call_later(_AGAIN_SECONDS, self.hear, hint)
        elif loop.time() - self._absent_since[login] >= _AGAIN_SECONDS:
            # A custom backend may read a replica that lags longer. The next request asks it again.
            each(streams, _send_back if finds_users_itself(login.backend) else _log_out)

    async def _look_for_sessions(self, logins: _Logins) -> None:
        """End streams whose session is gone or has a new key, so that their clients come back."""
        async for _, gone in self._ask_each_tenant(_by_tenant(logins), without_session):
            if ended := [stream for login in gone for stream in logins[login]]:
                # If the session was logged out, the store knows, though no doorbell may have come.
                try:
                    await publish_waiting()
                    await self.look_up(
                        {owner_key for stream in ended for owner_key in stream.owner.keys}
                    )
                except BaseException as error:
                    # The next comparison with the store finds the end.
                    if must_propagate(error):
                        raise
            each(ended, _send_back)

    async def _ask_each_tenant(
        self, tenants: Mapping[str, Sequence[Item]], question: Callable[[Sequence[Item]], Result]
    ) -> AsyncIterator[tuple[Sequence[Item], Result]]:
        """Ask about the logins or sessions of each tenant, in the tenant and some at a time.

        Yields:
            Some of them, and the answer about them.

        Raises:
            Exception: Some questions had no answer. All others were asked first.
        """
        failure: BaseException | None = None
        for namespace, some in _in_parts(tenants):
            ask = partial(_ask_within, namespace, question, some)
            try:
                answer = await (sync_to_async(ask)() if shares_thread() else self._thread.run(ask))
            except BaseException as error:
                if must_propagate(error):
                    raise
                failure = error
            else:
                yield some, answer
        if failure:
            raise failure

    # Views

    async def ask_views(self) -> None:
        """Ask the views that have ``still_allowed``, again and again."""
        await self._permission_rechecks.ask()


class _ThreadConnections:
    """All database connections of the thread that makes this object, to close them together."""

    def __init__(self) -> None:
        leave_pools()
        self._default = connections[DEFAULT_DB_ALIAS]

    @property
    def connection(self) -> Any:
        """The driver's connection that is most likely to hang."""
        return self._default.connection

    def close(self) -> None:
        connections.close_all()


async def _try(
    process: Callable[[Collection[str]], Awaitable[None]], owner_keys: Collection[str]
) -> bool:
    """Process owner keys that doorbells have named, or log that it failed.

    Returns:
        Whether they were processed.
    """
    try:
        await process(owner_keys)
    except BaseException as error:
        if must_propagate(error):
            raise
        # If nobody asks again, the next comparison with the store, or check of logins, finds it.
        log_seldom("Owners that a doorbell has named could not be checked.", exc_info=error)
        return False
    return True


def _rest() -> float:
    """For how many seconds nothing is asked about what has hung."""
    return _PAUSE_FACTOR * _BACKENDS_SECONDS


def _by_login(streams: Iterable[Stream]) -> _Logins:
    found: dict[Login, list[Stream]] = {}
    for stream in streams:
        if login := stream.owner.login:
            found.setdefault(login, []).append(stream)
    return found


def _with_backends(logins: _Logins, *, custom: bool) -> _Logins:
    """Return the logins whose backends have their own way of finding users, or the others."""
    paths = {login.backend for login in logins}
    wanted = {path for path in paths if finds_users_itself(path) is custom}
    return {login: streams for login, streams in logins.items() if login.backend in wanted}


def _by_tenant(items: Iterable[Item]) -> dict[str, list[Item]]:
    tenants: dict[str, list[Item]] = {}
    for item in items:
        tenants.setdefault(item.namespace, []).append(item)
    return tenants


def _in_parts(tenants: Mapping[str, Sequence[Item]]) -> Iterator[tuple[str, Sequence[Item]]]:
    for namespace, items in tenants.items():
        for begin in range(0, len(items), _LOGINS_AT_A_TIME):
            yield namespace, items[begin : begin + _LOGINS_AT_A_TIME]


def _shut(stream: Stream, closing: bytes, group: str | None = None) -> None:
    """End a stream because its owner may not see it any more.

    Args:
        stream: The stream.
        closing: The encoded ``close`` event to send.
        group: The group that the owner may not see; None for all groups. If the stream has other
            groups, its client comes back for them.
    """
    if group is None or [group] == list(stream.groups):
        stream.end("shut", lambda: stream.for_good(closing))
    elif group in stream.groups:
        stream.end("shut out of a group", jittered_retry)


def _log_out(stream: Stream) -> None:
    _shut(stream, closing_wire("logged out"))


def _send_back(stream: Stream) -> None:
    """End a stream so that its client comes back, and stops if nobody is logged in then."""
    stream.end("login changed", lambda: stream.for_good(jittered_retry()))


def _ask_within(
    namespace: str, question: Callable[[Sequence[Item]], Result], items: Sequence[Item]
) -> Result:
    close_old_connections()
    try:
        with namespace_context(namespace):
            return question(items)
    finally:
        close_old_connections()


async def _acheck_within(login: Login) -> LoginCheck:
    if conf().NAMESPACE_CONTEXT is None:
        return await acheck_with_backend(login)

    def check_within() -> LoginCheck:
        with namespace_context(login.namespace):
            # The backend's blocking calls run in this thread, which is in the tenant.
            return async_to_sync(acheck_with_backend)(login)

    return await sync_to_async(check_within)()
