"""Event streams in tests: opened with Django's test client, and read as an EventSource does."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import ExitStack, suppress
from copy import copy
from operator import methodcaller
from types import MappingProxyType, TracebackType
from typing import Any, Final, Self, cast

from asgiref.sync import sync_to_async
from channels.layers import InMemoryChannelLayer
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import request_finished
from django.db import close_old_connections
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.test import AsyncClient, Client
from django.test.client import AsyncClientHandler

from django_sse.channel_layer import default_layer
from django_sse.concurrency.threads import shared_thread
from django_sse.event import Decoder, Event
from django_sse.http.hand_off import HandOff, Message, Scope
from django_sse.http.refusals import REFUSED_STATUS, is_refused_softly
from django_sse.http.response import HandedOffResponse
from django_sse.http.stream_views import SCOPE_KEY, leads_to_stream
from django_sse.stores import get_store
from django_sse.streaming.hub import Hub, current_hub
from django_sse.streaming.stream import Phase, Stream
from django_sse.testing.loops import LoopBeside
from django_sse.testing.transactions import (
    commit_published,
    never_commits,
    waiting_for_commit,
)

# A failure is shown where the test expected something: pytest leaves these frames out, and so does
# unittest.
__tracebackhide__ = methodcaller("errisinstance", AssertionError)
__unittest = True

# How often something is looked at that nobody announces.
_POLL_SECONDS: Final = 0.001
# Turns of the event loop in which a message of the in-memory layer reaches a stream.
_TURNS: Final = 20
# The longest data of an event that a failure shows, and how much of a refusal's body.
_SHOWN: Final = 500

_ANY: Final = object()


def open_stream(
    client: AsyncClient | Client,
    path: str,
    *,
    timeout: float = 2.0,
    last_event_id: str | None = None,
    method: str = "get",
    **request: Any,
) -> "OpenStream":
    """Open an event stream: ``async with open_stream(client, "/events/") as stream``, or ``with``
    in a test that is not async.

    At the end of the block the client has left, and nothing of the stream runs any more. A request
    that is refused raises nothing here: ``stream.status`` says so, and every expectation fails.

    Args:
        client: Django's test client, or one that extends it, such as REST framework's: it makes
            the request, with its login and its cookies. The kind of ``with`` decides whether the
            test is async, and not the kind of client.
        path: The URL's path, perhaps with a query.
        timeout: How many seconds each expectation waits at most.
        last_event_id: The id after which the stream begins, as of a client that comes back.
        method: The name of the client's method: ``"post"`` for a stream that answers a POST.
        request: What the client's method takes, such as ``headers`` or ``data``.

    Raises:
        AssertionError: There was no answer in time.
        ImproperlyConfigured: A ``TestCase`` uses the database store.
        Exception: As raised by the view.
    """
    return OpenStream(client, path, timeout, last_event_id or "", method, request)


class OpenStream:
    """What ``open_stream`` returns, for ``async with`` or ``with``."""

    def __init__(self, *arguments: Any) -> None:
        self._arguments = arguments
        self._stack = ExitStack()

    async def __aenter__(self) -> "AsyncEventStream":
        self._stream = AsyncEventStream(*self._arguments)
        await self._stream._enter()
        return self._stream

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stream._exit(failed=kind is not None)

    def __enter__(self) -> "EventStream":
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            pass
        else:
            raise RuntimeError("An async test opens a stream with `async with open_stream(...)`.")
        with ExitStack() as stack:
            loop = stack.enter_context(LoopBeside())
            self._stream = AsyncEventStream(*self._arguments)
            loop.run(self._stream._enter())
            self._run = loop.run
            self._stack = stack.pop_all()
        return EventStream(self._stream, loop.run)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._stack:
            self._run(self._stream._exit(failed=kind is not None))


class AsyncEventStream:
    """An event stream in an async test, from ``async with open_stream(...)``."""

    def __init__(
        self,
        client: AsyncClient | Client,
        path: str,
        timeout: float,
        last_event_id: str,
        method: str,
        request: dict[str, Any],
    ) -> None:
        self.events: list[Event] = []
        """All events since the start, also those before a reconnect."""
        self._client = client
        self._path = path
        self._timeout = timeout
        self._id = last_event_id
        self._method = method
        self._request = request
        self._read = 0
        self._news = asyncio.Condition()
        self._connection: _Connection | None = None
        self._connections: list[_Connection] = []
        self._status_was_seen = False
        self._around = ExitStack()

    # What the client knows

    @property
    def status(self) -> int:
        """The status of the answer, as the client sees it: 200 for a stream, or that of a refusal,
        such as 204 or 403.

        An EventSource that is to come back is refused with 200, too: see ``refused_status``.
        """
        connection = self._connected
        # That it is 200 does not show that such a refusal was expected.
        self._status_was_seen |= connection.refused_status is None
        return connection.status

    @property
    def refused_status(self) -> int | None:
        """The status that a 200 stands for which refuses an EventSource for now, such as 503 or
        429: the header ``Refused-Status``. None for every other answer."""
        self._status_was_seen = True
        return self._connected.refused_status

    @property
    def response(self) -> HttpResponseBase:
        """The response, of which headers and cookies can be looked at."""
        return self._connected.response

    @property
    def last_event_id(self) -> str:
        """What the client sends as ``Last-Event-ID`` when it comes back."""
        return self._connected.decoder.last_event_id or self._id

    @property
    def retry(self) -> int | None:
        """How many milliseconds the client waits before it comes back, if it was told so."""
        return self._connected.decoder.reconnection_time

    @property
    def closed_with(self) -> Any:
        """The reason of the ``close`` event that has come; None if none has, or it gives none."""
        for event in self.events[-1:]:
            if event.event == "close":
                return event.json()["reason"]
        return None

    # Expectations

    async def next(self, event: str | None = None) -> Event:
        """Return the next event, which has to come.

        Args:
            event: The type that the event has to have; ``"message"`` for an event without one.

        Raises:
            AssertionError: No event came in time, or its type is another one.
        """
        self._expect_stream()
        wanted = "An event" if event is None else f"An event of type {event!r}"
        if not await self._in_time(lambda: self._unread or self._is_over):
            raise await self._failure(f"{wanted} did not come within {self._timeout:g} seconds.")
        if not self._unread:
            raise await self._failure(f"{wanted} did not come: the stream has ended.")
        came = self._unread[0]
        if event is not None and _type(came) != event:
            raise await self._failure(f"{wanted} was expected, but {_type(came)!r} came.")
        self._read += 1
        return came

    async def nothing(self, seconds: float = 0) -> None:
        """Assert that the stream has sent no event but those that ``next`` has returned.

        Waits until the stream has all that was published so far to its groups, which takes no
        longer than to deliver it. Heartbeats and other comments are no events.

        Args:
            seconds: How many seconds to wait in addition, for what nobody announces: the next event
                of a generator, or a message of a channel layer outside of this process.

        Raises:
            AssertionError: An event came, or the stream did not get all that was published in time.
            TypeError: ``seconds`` is missing for a stream of which nobody knows whether an event is
                on its way: a generator's, or that of a view which is not this library's.
        """
        self._expect_stream()
        if not await self._has_all() and not seconds:
            raise TypeError(
                f"Nobody knows when {self._path} sends its next event, since it has no groups. Say "
                "how long to wait for one: nothing(seconds=0.2)."
            )
        if seconds:
            await self._in_time(lambda: self._unread, seconds)
        if self._unread:
            raise await self._failure(
                f"No event was expected, but {_type(self._unread[0])!r} came."
            )

    async def closed(self, reason: Any = _ANY) -> Event:
        """Return the ``close`` that comes next and ends the stream for good.

        Args:
            reason: The reason that it has to give.

        Raises:
            AssertionError: Another event came, or none in time, or the reason is another one.
        """
        close = await self.next("close")
        if reason is not _ANY and (given := close.json()["reason"]) != reason:
            raise await self._failure(f"The stream was closed with {given!r}, not with {reason!r}.")
        await self.ended()
        return close

    async def ended(self) -> None:
        """Wait for the end of the stream, after which its client may come back.

        Raises:
            AssertionError: An event came before the end, or the end did not come in time.
        """
        self._expect_stream()
        if not await self._in_time(lambda: self._unread or self._is_over):
            raise await self._failure(f"The stream did not end within {self._timeout:g} seconds.")
        if self._unread:
            raise await self._failure(
                f"The end of the stream was expected, but {_type(self._unread[0])!r} came."
            )

    async def reconnect(self) -> Self:
        """Come back as an EventSource does: leave, and open the stream after the last id.

        Events that were not yet read with ``next`` come first. A member of a view with ``presence``
        neither leaves nor joins.

        Raises:
            Exception: As for ``open_stream``.
        """
        self._id = self.last_event_id
        await self._leave()
        await self._connect()
        return self

    # Connections

    async def _enter(self) -> None:
        with ExitStack() as stack:
            stack.enter_context(shared_thread(commit_published))
            if await sync_to_async(never_commits)(get_store()):
                raise ImproperlyConfigured(
                    "A TestCase never commits, so no stream can read what the database store has. "
                    'Set DJANGO_SSE = {"STORE": "memory"} for the tests, or use a '
                    "TransactionTestCase (in pytest: transactional_db)."
                )
            self._around = stack.pop_all()
        try:
            await self._connect()
        except BaseException:
            with self._around, suppress(AssertionError):
                await self._vanish()
            raise

    async def _exit(self, *, failed: bool) -> None:
        with self._around:
            try:
                await self._leave()
            finally:
                await self._vanish()
        if not failed and self._connected.is_refused and not self._status_was_seen:
            # Otherwise a test that expects nothing would not notice.
            self._expect_stream()

    async def _leave(self) -> None:
        if not await self._connected.leave(self._timeout):
            raise await self._failure(
                f"The view goes on {self._timeout:g} seconds after its client has left. Let what "
                "it awaits be cancelled."
            )

    async def _vanish(self) -> None:
        """Have nothing be left of a client that does not come back."""
        try:
            async with asyncio.timeout(self._timeout):
                for connection in self._connections:
                    await connection.forgo_grace()
        except TimeoutError as error:
            raise await self._failure(
                f"The event store did not take who is present within {self._timeout:g} seconds."
            ) from error
        for connection in self._connections:
            await connection.closed()

    async def _connect(self) -> None:
        self._status_was_seen = False
        headers = {"Accept": "text/event-stream", **self._request.get("headers", {})}
        if self._id:
            # As a browser sends it: UTF-8, which Django decodes as latin-1.
            headers["Last-Event-ID"] = self._id.encode().decode("latin-1")
        request = {**self._request, "headers": headers}
        connection = _Connection(self._take)
        self._connections.append(connection)
        try:
            async with asyncio.timeout(self._timeout):
                await connection.open(self._client, self._method, self._path, request)
        except TimeoutError as error:
            await connection.leave(self._timeout)
            raise await self._failure(
                f"{self._asked} was not answered within {self._timeout:g} seconds."
            ) from error
        except BaseException:
            await connection.leave(self._timeout)
            raise
        self._connection = connection

    @property
    def _connected(self) -> "_Connection":
        assert self._connection, "The stream is not open."
        return self._connection

    async def _take(self, events: list[Event]) -> None:
        async with self._news:
            self.events += events
            self._news.notify_all()

    @property
    def _unread(self) -> list[Event]:
        return self.events[self._read :]

    @property
    def _is_over(self) -> bool:
        return self._connected.is_over

    async def _in_time(self, condition: Callable[[], object], seconds: float | None = None) -> bool:
        """Wait until something is true. Return whether it is in time."""
        await sync_to_async(commit_published)()
        try:
            async with asyncio.timeout(self._timeout if seconds is None else seconds), self._news:
                await self._news.wait_for(lambda: bool(condition()))
        except TimeoutError:
            return bool(condition())
        return True

    async def _has_all(self) -> bool:
        """Wait until the stream has sent all that was published so far.

        Returns:
            Whether this can be known.
        """
        await sync_to_async(commit_published)()
        stream = self._connected.stream
        if stream is None or not stream.groups:
            return self._is_over
        states = await get_store().astates(list(stream.groups))
        hub = current_hub()
        try:
            async with asyncio.timeout(self._timeout):
                await hub.look_up(stream)
                while not stream.has_sent_all_of(states):
                    hub.compare_soon()
                    await asyncio.sleep(_POLL_SECONDS)
                if stream.phase is Phase.ENDED:
                    await self._connected.served()
        except TimeoutError as error:
            raise await self._failure(
                f"The stream did not get all that was published within {self._timeout:g} seconds."
            ) from error
        if isinstance(default_layer(), InMemoryChannelLayer):
            for _ in range(_TURNS):
                await asyncio.sleep(0)
        return True

    # Failures

    @property
    def _asked(self) -> str:
        return f"{self._method.upper()} {self._path}"

    def _expect_stream(self) -> None:
        self._status_was_seen = True
        connection = self._connected
        if not connection.is_refused and connection.is_event_stream:
            return
        said = connection.body.decode(errors="replace").strip()
        body = f" It said:\n{_short(said)}" if said else ""
        if connection.refused_status:
            raise AssertionError(
                f"{self._asked} was refused for now, with a 200 that stands for "
                f"{connection.refused_status} and has the client come back.{body}"
            )
        kind = connection.response.headers.get("Content-Type", "no content")
        raise AssertionError(
            f"{self._asked} was answered {connection.status} ({kind}), not with an event stream."
            f"{body}"
        )

    async def _failure(self, what: str) -> AssertionError:
        lines = [what, "", f"{self._asked} has sent:"]
        for place, event in enumerate(self.events):
            mark = " " if place < self._read else ">"
            data = _short(event.text).replace("\n", "\n" + " " * 8)
            lines.append(f"  {mark} {_type(event)}: {data}")
        if not self.events:
            lines.append("    no event")
        if self._unread:
            lines.append("  (> has not been read with next())")
        connection = self._connection
        if connection and connection.is_over:
            lines.append("  The stream has ended.")
        if waiting := await sync_to_async(waiting_for_commit)():
            lines.append(
                f"  {waiting} times something was published in a transaction that is still open: "
                "its commit sends it."
            )
        failure = AssertionError("\n".join(lines))
        if connection and connection.failure:
            failure.__cause__ = connection.failure
        return failure


class EventStream:
    """An event stream in a test that is not async, from ``with open_stream(...)``.

    It has what ``AsyncEventStream`` has, without ``await``.
    """

    def __init__(
        self, stream: AsyncEventStream, run: Callable[[Coroutine[Any, Any, Any]], Any]
    ) -> None:
        self._stream = stream
        self._run = run

    @property
    def events(self) -> list[Event]:
        """All events since the start, also those before a reconnect."""
        return self._stream.events

    @property
    def status(self) -> int:
        """As of ``AsyncEventStream``."""
        return self._stream.status

    @property
    def refused_status(self) -> int | None:
        """As of ``AsyncEventStream``."""
        return self._stream.refused_status

    @property
    def response(self) -> HttpResponseBase:
        """As of ``AsyncEventStream``."""
        return self._stream.response

    @property
    def last_event_id(self) -> str:
        """As of ``AsyncEventStream``."""
        return self._stream.last_event_id

    @property
    def retry(self) -> int | None:
        """As of ``AsyncEventStream``."""
        return self._stream.retry

    @property
    def closed_with(self) -> Any:
        """As of ``AsyncEventStream``."""
        return self._stream.closed_with

    def next(self, event: str | None = None) -> Event:
        """Do what ``AsyncEventStream.next`` does."""
        return cast("Event", self._do(self._stream.next(event)))

    def nothing(self, seconds: float = 0) -> None:
        """Do what ``AsyncEventStream.nothing`` does."""
        self._do(self._stream.nothing(seconds))

    def closed(self, reason: Any = _ANY) -> Event:
        """Do what ``AsyncEventStream.closed`` does."""
        return cast("Event", self._do(self._stream.closed(reason)))

    def ended(self) -> None:
        """Do what ``AsyncEventStream.ended`` does."""
        self._do(self._stream.ended())

    def reconnect(self) -> Self:
        """Do what ``AsyncEventStream.reconnect`` does."""
        self._do(self._stream.reconnect())
        return self

    def _do(self, expectation: Coroutine[Any, Any, Any]) -> Any:
        try:
            return self._run(expectation)
        except AssertionError as error:
            # What the loop has done meanwhile is not what failed.
            raise error.with_traceback(None) from error.__cause__


class _Connection:
    """One request, and what is sent for it, as by a server: the stream is handed off."""

    def __init__(self, take: Callable[[list[Event]], Awaitable[None]]) -> None:
        self.decoder = Decoder()
        self.body = b""
        self.is_over = False
        self.is_event_stream = False
        self.failure: BaseException | None = None
        self.response: HttpResponseBase
        self.status = 0
        self.refused_status: int | None = None
        self.hub: Hub | None = None
        self.hand_off: _HandOff | None = None
        self.scope: Scope = {}
        self.contents: Any = None
        self._take = take
        self._left = asyncio.Event()
        self._begun = asyncio.Event()
        self._in_request = True
        self._serving: asyncio.Task[None] | None = None

    @property
    def stream(self) -> Stream | None:
        """The server's stream, if it is one of this library."""
        return self.hand_off.stream if self.hand_off else None

    @property
    def is_refused(self) -> bool:
        """Whether there is no stream, or one that only says to come back."""
        return self.status != 200 or self.refused_status is not None

    async def open(
        self, client: AsyncClient | Client, method: str, path: str, request: dict[str, Any]
    ) -> None:
        """Send the request, and wait for the first bytes: from then on no new event is missed."""
        response = self.response = await _respond(client, self, method, path, request)
        self.status, self.refused_status = self._statuses(method, response)
        kind = response.headers.get("Content-Type", "")
        self.is_event_stream = kind.startswith("text/event-stream")
        if not isinstance(response, StreamingHttpResponse):
            self.body = cast("HttpResponse", response).content
            self.is_over = True
            self._release()
            return
        _undo_test_client(response, self.contents)
        self._serving = asyncio.create_task(self._serve(response))
        if isinstance(response, HandedOffResponse) or self.is_refused:
            await self._begun.wait()
        self.hub = current_hub()
        if self.stream and self.stream.attendance:
            await self.hub.attendants.written()
        if self.is_refused:
            await self.served()

    async def served(self) -> None:
        """Wait until nothing more is sent."""
        if self._serving:
            await asyncio.wait([self._serving])

    async def leave(self, seconds: float) -> bool:
        """Leave, as a client that disconnects. Return whether all is over in time."""
        self._left.set()
        if self._serving:
            if self._in_request:
                # Django cancels what serves a client that has gone.
                self._serving.cancel()
            await asyncio.wait([self._serving], timeout=seconds)
        self._release()
        return self._serving is None or self._serving.done()

    async def forgo_grace(self) -> None:
        """Have a client that has left and does not come back be present no more."""
        if self.hub and self.stream and self.stream.attendance:
            self.hub.attendants.forgo_grace(self.stream)
            await self.hub.attendants.written()

    async def closed(self) -> None:
        """Wait until nothing is left of a hub that has no other streams, nor their members."""
        if self.hub and not self.hub.streams and self.hub.attendants.is_idle:
            await self.hub.closed()

    async def receive(self) -> Message:
        """Receive the disconnect, once the client leaves."""
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Take what is sent to the client."""
        if message["type"] != "http.response.body":
            return
        chunk = message.get("body", b"")
        if self.is_refused:
            self.body += chunk
        if chunk:
            await self._take(self.decoder.feed(chunk))
            self._begun.set()

    def _statuses(self, method: str, response: HttpResponseBase) -> tuple[int, int | None]:
        """Return the status that the client gets, and the one that it stands for, if it does.

        Outside of Django, the ASGI wrapper turns what others answer into such a refusal.
        """
        status = response.status_code
        if stands_for := response.headers.get(REFUSED_STATUS):
            return status, int(stands_for)
        accept = dict(self.scope.get("headers", ())).get(b"accept", b"").decode("latin-1")
        is_soft = (
            status >= 500
            and is_refused_softly(method.upper(), accept)
            and ((self.hand_off and self.hand_off.is_for_stream) or leads_to_stream(self.scope))
        )
        return (200, status) if is_soft else (status, None)

    async def _serve(self, response: StreamingHttpResponse) -> None:
        assert self.hand_off
        try:
            try:
                await self.hand_off.respond(response)
            finally:
                await sync_to_async(_close)(response)
            self._in_request = False
            await self.hand_off.serve()
        except BaseException as error:
            self.failure = error
            if not isinstance(error, Exception):
                raise
        finally:
            self.is_over = True
            self._release()
            self._begun.set()
            await self._take([])

    def _release(self) -> None:
        if self.hand_off:
            self.hand_off.close()


class _HandOff(HandOff):
    """Knows the stream of its request."""

    stream: Stream | None = None

    def begin(self, stream: Stream) -> None:
        self.stream = stream
        super().begin(stream)


class _Handler:
    """Runs Django's test handler as below the ASGI wrapper."""

    def __init__(
        self,
        handler: AsyncClientHandler,
        connection: _Connection,
        noted: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self._handler = handler
        self._connection = connection
        # What is noted in the request.
        self._noted = noted

    async def __call__(self, scope: Scope) -> HttpResponseBase:
        connection = self._connection
        connection.scope = scope
        hand_off = connection.hand_off = _HandOff(scope, connection.receive, connection.send)
        if self._handler._middleware_chain is None:  # type: ignore[attr-defined]
            self._handler.load_middleware(is_async=True)
        # A copy, so that streams may be opened at the same time.
        handler: Any = copy(self._handler)
        respond = handler.get_response_async

        async def noted(request: HttpRequest) -> HttpResponseBase:
            vars(request).update(self._noted)
            response: HttpResponseBase = await respond(request)
            connection.contents = vars(response).copy()
            return response

        handler.get_response_async = noted
        return cast("HttpResponseBase", await handler({**scope, SCOPE_KEY: hand_off}))


def _undo_test_client(response: StreamingHttpResponse, contents: dict[str, Any]) -> None:
    """Give a response the content back that the test client has wrapped, as a middleware would."""
    for name in ("_iterator", "is_async", "_contents_set"):
        if name in contents:
            setattr(response, name, contents[name])


def _close(response: HttpResponseBase) -> None:
    """Close a response and keep the test's database connection, as Django's test client does."""
    request_finished.disconnect(close_old_connections)
    try:
        response.close()
    finally:
        request_finished.connect(close_old_connections)


async def _respond(
    client: AsyncClient | Client,
    connection: _Connection,
    method: str,
    path: str,
    request: dict[str, Any],
) -> HttpResponseBase:
    """Send a request as a test client makes it, and return Django's response."""
    if isinstance(client, AsyncClient):
        one: Any = copy(client)
        one.handler = _Handler(client.handler, connection)
        return cast("HttpResponseBase", await getattr(one, method)(path, **request))
    # In the test's thread: a client may query what it adds to a request.
    follow = request.get("follow", False)
    environ = await sync_to_async(_environ)(client, method, path, {**request, "follow": False})
    other: Any = AsyncClient(client.handler.enforce_csrf_checks, client.raise_request_exception)
    other.cookies.load(environ.pop("HTTP_COOKIE", ""))
    other.handler = _Handler(other.handler, connection, _forced_by(client))
    response: HttpResponseBase = await other.request(**_scope(environ))
    if follow:
        response = await other._ahandle_redirects(response, headers=request["headers"])
    client.cookies.update(response.cookies)
    return response


class _Made(BaseException):
    """A client has made a request."""


def _environ(client: Client, method: str, path: str, request: dict[str, Any]) -> dict[str, Any]:
    """Return the environ of a request as a client makes it, with all that it adds."""

    def take(environ: dict[str, Any]) -> None:
        raise _Made(environ)

    making: Any = copy(client)
    making.handler = take
    try:
        getattr(making, method)(path, **request)
    except _Made as made:
        environ: dict[str, Any] = made.args[0]
        return environ
    raise TypeError(f"{type(client).__name__}.{method} has sent no request.")


def _scope(environ: dict[str, Any]) -> dict[str, Any]:
    """Return what is the environ of a request in WSGI as the scope that it has in ASGI."""
    scheme, port = environ["wsgi.url_scheme"], environ["SERVER_PORT"]
    is_usual = (scheme, port) in (("http", "80"), ("https", "443"))
    headers = {"host": environ["SERVER_NAME"] + ("" if is_usual else f":{port}")}
    for name, value in environ.items():
        if name.startswith("HTTP_") or name in ("CONTENT_TYPE", "CONTENT_LENGTH"):
            headers[name.removeprefix("HTTP_").replace("_", "-").lower()] = str(value)
    return {
        "method": environ["REQUEST_METHOD"],
        "scheme": scheme,
        "server": (environ["SERVER_NAME"], port),
        "client": [environ["REMOTE_ADDR"], 0],
        "path": environ["PATH_INFO"].encode("latin-1").decode(),
        "query_string": environ["QUERY_STRING"].encode("latin-1").decode(),
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in headers.items()],
        "_body_file": environ["wsgi.input"],
    }


def _forced_by(client: Client) -> dict[str, Any]:
    """Return what REST framework's ``force_authenticate`` has a client set in each request."""
    forced = {"_force_auth_user": "_force_user", "_force_auth_token": "_force_token"}
    return {
        name: getattr(client.handler, of_handler)
        for name, of_handler in forced.items()
        if hasattr(client.handler, of_handler)
    }


def _type(event: Event) -> str:
    return event.event or "message"


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}… ({len(text)} characters)"
