"""The class-based views: of Channels groups, and of a view's own generator."""

import inspect
import json
import sys
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Collection,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import aclosing, suppress
from contextvars import copy_context
from functools import partial
from typing import Any, ClassVar, Final

from asgiref.sync import sync_to_async
from django.core.exceptions import (
    ImproperlyConfigured,
    PermissionDenied,
    RequestDataTooBig,
)
from django.http import (
    HttpRequest,
    HttpResponseBadRequest,
    RawPostDataException,
)
from django.http.response import HttpResponseBase
from django.views import View

from django_sse.access.logins import set_djangos_user
from django_sse.access.owners import Owner, is_nobody, loaded, user_group, user_id_of
from django_sse.concurrency.tasks import in_time
from django_sse.concurrency.threads import without_thread
from django_sse.conf import SETTING, conf
from django_sse.encoding import as_json
from django_sse.event import Event, encode_published
from django_sse.exceptions import AlreadyProducing, GroupCancelled
from django_sse.groups.entries import GroupState
from django_sse.groups.names import (
    USER_GROUP_PATTERN,
    check_pattern,
    expand_group,
    validate_group,
)
from django_sse.groups.namespaces import full_name, require_namespace
from django_sse.groups.position import LEFT_MARK, LOST, TERMINAL_MARK, parse_position
from django_sse.groups.producer_tokens import HANDED_OVER
from django_sse.groups.replay import StartingPoint, is_lost, starting_point
from django_sse.http.base_view import StreamView
from django_sse.http.refusals import STORE_AWAY, told
from django_sse.http.response import (
    EventStreamResponse,
    HandedOffResponse,
    last_event_id,
    no_content,
    no_store,
    refused,
    unavailable,
)
from django_sse.http.resume_tickets import Ticket, issue, mark_as_resumable
from django_sse.http.view_checks import handlers_of, require_override
from django_sse.mixins import (
    LoginRequiredMixin,
    PermissionRequiredMixin,
    UserPassesTestMixin,
)
from django_sse.producing import start_for
from django_sse.publishing import acancel
from django_sse.stores import get_store
from django_sse.stores.read_limits import READ_SECONDS
from django_sse.streaming.filtering import MessageHandler
from django_sse.streaming.generation import Generation
from django_sse.streaming.hub import current_hub
from django_sse.streaming.limits import TooManyStreams
from django_sse.streaming.roster import UNNAMED, Attendance, require_memory
from django_sse.streaming.stream import Dialect

ALL: Final = sys.maxsize
"""As ``history``: all events that are kept."""

_WITHOUT_GROUPS: Final = (
    'There is no group for {} to stream: set `groups = ["news"]`, or write `async def '
    "get_groups(self)`."
)


class EventStreamView(StreamView):
    """Streams the events of Channels groups.

    A view may also handle plain Channels messages of its groups, as a consumer does: see
    ``django_sse.decorators.on_message``. Messages of type ``sse.event`` need no handler.
    """

    groups: ClassVar[Sequence[str]] = ()
    """The groups, with the URL's keyword arguments in braces: ``["news", "job-{pk}"]``."""

    history: int = 0
    """How many past events of each group a client without a position gets; ``ALL`` for all that are
    kept. A cancel before a ``reopen`` counts as one of them."""

    newest_of_keys: bool = False
    """Whether a client without a position, or one that has lost events, first gets the newest event
    of each key of the groups (``Event.key``), without an id, in their order. With ``history``: of
    each key that is not among its past events."""

    replay_events: int | None = None
    """How many events of a group a returning client may have missed and still gets. If it missed
    more, it gets ``reset``. None: as many as are kept."""

    replay_age: float | None = None
    """How many seconds old the first event that a returning client missed may be. If it is older,
    the client gets ``reset`` and not the events. None: as long as they are kept."""

    channel_messages: bool = True
    """Whether plain Channels messages are streamed. Each group then takes one channel in every
    process that streams it, so set this to False where each user has a group."""

    resume_seconds: float = 0
    """How long a client that was let in may come back to its stream without being asked again, for
    example after a deploy. Only its login is checked then. 0: not at all. See "Resume tickets" in
    the documentation."""

    presence: bool = False
    """Whether ``django_sse.presence`` tells who has streams of the view, over all processes. A
    member's first stream publishes a ``join`` event to each of its groups, and the end of her last
    one a ``leave`` event. See "Presence" in the documentation."""

    stoppable: bool = False
    """Whether a client that may stream the groups may also cancel them, by DELETE. The reason is
    then ``stopped``."""

    _handlers: ClassVar[Mapping[str, str]] = {}
    """The methods that handle plain Channels messages, by type."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._handlers = handlers_of(cls)

    @classmethod
    def as_view(cls, **initkwargs: Any) -> Callable[..., Any]:
        """Return the view, exempt from ``ATOMIC_REQUESTS``: a stream is not a transaction.

        Raises:
            ImproperlyConfigured: The view has no group; ``groups`` is text and not a list; a
                pattern can never make a group name; a number is invalid; there are both ``history``
                and ``initial_events``, which both tell a new client of the past; a method is
                ``async`` and must not be, or the other way round; or there are ``resume_seconds``
                and something that needs each request; or there is ``presence``, and events are kept
                for too short a time.
        """
        groups = initkwargs.get("groups", cls.groups)
        _require_list(groups)
        if (
            not groups
            and initkwargs.get("get_groups", cls.get_groups) is EventStreamView.get_groups
        ):
            raise ImproperlyConfigured(_WITHOUT_GROUPS.format(cls.__name__))
        for pattern in groups if isinstance(groups, Collection) else ():
            check_pattern(pattern)
        view = super().as_view(**initkwargs)
        shows_state = initkwargs.get("initial_events", cls.initial_events)
        if (
            initkwargs.get("history", cls.history)
            and shows_state is not EventStreamView.initial_events
        ):
            raise ImproperlyConfigured(
                f"{cls.__name__} has both `history` and `initial_events`. Choose one: they both "
                "tell a new client what happened before."
            )
        if initkwargs.get("presence", cls.presence):
            require_memory(cls.__name__)
        if seconds := initkwargs.get("resume_seconds", cls.resume_seconds):
            _require_resumable(cls, initkwargs, seconds)
            mark_as_resumable(view, cls, groups, seconds, partial(_resume, cls, initkwargs))
        return view

    # Methods for projects to override

    async def get_groups(self) -> Iterable[str]:
        """Return the names of the groups to stream. This default expands ``groups``.

        Raises:
            InvalidGroup: The URL's arguments make no valid group name. The answer is then 404.
        """
        if not self.groups:
            raise ImproperlyConfigured(_WITHOUT_GROUPS.format(type(self).__name__))
        return [expand_group(pattern, self.kwargs) for pattern in self.groups]

    async def authorize(self, groups: Sequence[str]) -> HttpResponseBase | Iterable[str] | None:
        """Decide which of the groups the client may stream. This default allows all of them.

        Returns:
            None to allow all groups, the groups that are allowed, or a response to send instead of
            a stream.

        Raises:
            PermissionDenied: No group is allowed.
        """
        return None

    async def get_member(self) -> Any:
        """Return what others are told of the stream's owner, as JSON, by ``join`` and ``leave``
        events and by ``django_sse.presence``. This default returns the user's primary key as text.

        None: the stream is counted, and nobody is named. It is called if ``presence`` is True and
        the stream has an owner.
        """
        return user_id_of(await loaded(await self.get_owner()))

    async def initial_events(self) -> AsyncIterator[Event]:
        """Yield the current state, for a client that does not know it or has lost events."""
        return
        yield

    def filter_event(self, event: Event) -> Event | None:
        """Return the event to send in place of this one, or None to hide it from this stream.

        It is called on the event loop for every event, so it must not wait for anything. It runs in
        the context of the request, for example in its language. If it raises an exception, the
        event is hidden and the error is logged.
        """
        return event

    # HTTP

    def setup(self, request: HttpRequest, *args: Any, **kwargs: Any) -> None:
        """Set what all methods use."""
        super().setup(request, *args, **kwargs)
        if not self.stoppable:
            self.http_method_names = [name for name in self.http_method_names if name != "delete"]

    async def delete(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        """Cancel the groups that the client may stream, and answer with 204."""
        return await self._told(self._stop())

    async def _stop(self) -> HttpResponseBase:
        groups = await self._allowed_groups()
        if isinstance(groups, HttpResponseBase):
            return groups
        user = await loaded(await self.get_owner())
        namespace, owner = await self._owner(user, groups)
        names = {full_name(namespace, group): group for group in groups}
        try:
            states = await current_hub().states(list(names), {}, 0, owner.keys)
            # Whoever was cancelled stops nobody.
            for name in owner.groups_left(list(names), states):
                await acancel(names[name], reason="stopped")
        except Exception as error:
            return unavailable(self.request, STORE_AWAY, error)
        return no_content()

    async def _answer(self, request: HttpRequest) -> HttpResponseBase:
        sent_id = last_event_id(request)
        user = await loaded(await self.get_owner())
        if sent_id.endswith(TERMINAL_MARK) and is_nobody(user):
            # The client's login is over, and so is its stream. `authorize` need not be asked.
            return no_content()
        groups = await self._allowed_groups()
        if isinstance(groups, HttpResponseBase):
            return groups
        if self._overrides("authorize"):
            # `authorize` may have authenticated the user.
            user = await loaded(await self.get_owner())
        namespace, owner = await self._owner(user, groups)
        plain_names, groups = groups, [full_name(namespace, group) for group in groups]
        try:
            sent = parse_position(sent_id, groups)
            states, begin = await self._beginning(sent, groups, owner)
        except Exception as error:
            return unavailable(request, STORE_AWAY, error)
        if begin.over:
            return no_content()
        response = self._group_stream(begin, owner, await self._attendance(owner))
        try:
            refusal = await self._start_work(plain_names, states, user, owner.began)
        except BaseException:
            response.give_up_place()
            raise
        if refusal:
            response.give_up_place()
            return refusal
        # A ticket is for all groups: it would outlive what keeps the owner out of one of them.
        if self.resume_seconds and len(states) == len(plain_names):
            await issue(request, plain_names, owner)
        return response

    async def _start_work(
        self,
        groups: Sequence[str],
        states: Mapping[str, GroupState],
        user: Any,
        logged_in_at: float,
    ) -> HttpResponseBase | None:
        """Start what publishes to the groups, if the view does that.

        Args:
            groups: The names of the groups.
            states: The states of those that the owner may still stream, by their full names.
            user: The owner of the stream.
            logged_in_at: When the owner logged in, as ``Owner.began``.

        Returns:
            None, or a refusal to send instead of the stream.
        """
        return None

    async def _beginning(
        self, sent: Mapping[str, int], groups: list[str], owner: Owner
    ) -> tuple[dict[str, GroupState], StartingPoint]:
        """Return the states of the groups that the owner may still stream, and where the stream
        starts.

        Args:
            sent: The numbers in the client's position, by group.
            groups: The full names of the groups.
            owner: The owner of the stream.

        Raises:
            Exception: The event store could not be read.
        """
        states = await current_hub().states(groups, sent, self.history, owner.keys)
        if self.replay_age is not None:
            too_old = await in_time(
                self._groups_too_old(sent, states, self.replay_age), READ_SECONDS
            )
            sent = {**sent, **dict.fromkeys(too_old, LOST)}
        left = {group: states[group] for group in owner.groups_left(groups, states)}
        sent = {group: number for group, number in sent.items() if group in left}
        return left, starting_point(sent, left, self.history, self.replay_events)

    async def _attendance(self, owner: Owner) -> Attendance | None:
        """Return as whom the stream is present in its groups; None if that is not kept.

        Raises:
            InvalidEvent: What ``get_member`` returns cannot be published.
        """
        if not self.presence:
            return None
        if owner.user_id is None:
            return UNNAMED
        if not self._overrides("get_member"):
            return Attendance(owner.user_id, owner.user_id)
        info = await self.get_member()
        if info is None:
            return UNNAMED
        # As JSON tells it, since it is compared with what the store has: a UUID becomes text.
        info = json.loads(as_json(info))
        encode_published(Event({"member": info}), conf().MAX_EVENT_BYTES)
        return Attendance(owner.user_id, info)

    def _group_stream(
        self, begin: StartingPoint, owner: Owner, attendance: Attendance | None
    ) -> HandedOffResponse:
        """Return the stream.

        Args:
            begin: Where the stream starts.
            owner: The owner of the stream.
            attendance: As whom it is present.

        Raises:
            TooManyStreams: A limit is reached.
        """
        with_state = begin.fresh and self._overrides("initial_events")
        view = self._lasting()
        return self._stream(
            owner,
            begin.position,
            {
                "filter_event": view.filter_event if self._overrides("filter_event") else None,
                "message_handler": view._message_handler if self._handlers else None,
                "wants_messages": self.channel_messages,
                "dialect": self._dialect(),
                "restarts": self._restarts(),
                "attendance": attendance,
            },
            reset=begin.reset,
            newest_of_keys=begin.fresh and self.newest_of_keys,
            initial_events=(
                _in_tenant(owner.namespace, _generator_of(view, "initial_events"))
                if with_state
                else None
            ),
        )

    async def _resume(
        self, request: HttpRequest, ticket: Ticket, owner: Owner
    ) -> HandedOffResponse | None:
        """Return the stream that a ticket resumes, or None if the client must get anything else.

        Raises:
            Exception: The event store could not be read.
        """
        if self._restarts():
            # This client may have to start a producer that was handed over.
            return None
        sent_id = last_event_id(request)
        groups = [full_name(ticket.namespace, group) for group in ticket.groups]
        sent = parse_position(sent_id, groups)
        # The view judges a client that has a mark, or no position that can be read.
        if sent_id.endswith(TERMINAL_MARK) or any(
            sent.get(group, LOST) == LOST for group in groups
        ):
            return None
        left, begin = await self._beginning(sent, groups, owner)
        # A store that has lost events may have lost the ends of streams as well.
        if list(left) != groups or begin.over or begin.reset:
            return None
        if isinstance(self, LoginRequiredMixin):
            login = owner.login
            if login is None or login.session_store is None:
                return None
            set_djangos_user(request, login.session_store(login.session_key))
            self._ask_again_later()
        try:
            return self._group_stream(begin, owner, await self._attendance(owner))
        except TooManyStreams:
            return None

    def _restarts(self) -> bool:
        """Return whether the client, when it comes back, starts a producer that was handed over."""
        return False

    def _dialect(self) -> Dialect | None:
        """Return what the client understands in place of this library's ids and ``close``."""
        return None

    async def _groups_too_old(
        self, sent: Mapping[str, int], states: Mapping[str, GroupState], replay_age: float
    ) -> list[str]:
        """Return the groups in which the client has missed an event older than ``replay_age``.

        Raises:
            Exception: The event store could not be read.
        """
        # Leave out the groups of which the client has missed nothing, or more than is kept.
        behind = {
            group: number
            for group, number in sent.items()
            if number < states[group].head and not is_lost(number, states[group])
        }
        if not behind:
            return []
        since = await sync_to_async(get_store().clock.time)() - replay_age
        too_old = []
        for group, number in behind.items():
            missed = await get_store().aread(group, number, 1)
            # The hub may still have older events than the store keeps.
            next_number = max(number + 1, states[group].first)
            if not missed or missed[0].number != next_number or missed[0].time < since:
                too_old.append(group)
        return too_old

    async def _allowed_groups(self) -> list[str] | HttpResponseBase:
        groups = _unique(await self.get_groups())
        if len(groups) > conf().MAX_GROUPS:
            return no_store(
                HttpResponseBadRequest(
                    f"A stream has at most {conf().MAX_GROUPS} groups, not {len(groups)}."
                )
            )
        allowed = await self.authorize(groups)
        if isinstance(allowed, HttpResponseBase):
            return allowed
        if isinstance(allowed, bool | Mapping):
            raise ImproperlyConfigured(
                f"{type(self).__name__}.authorize returned {allowed}. Return None to allow all "
                "groups, return a list of the allowed groups, or raise PermissionDenied."
            )
        if allowed is not None:
            groups = _unique(allowed)
        if groups:
            return groups
        why = told(
            f"{type(self).__name__} has no group for this request: get_groups returned none, or "
            "authorize allowed none."
        )
        return refused(403, why)

    # Handlers of plain Channels messages

    def _message_handler(self, message_type: str) -> MessageHandler | None:
        name = self._handlers.get(message_type)
        return getattr(self, name) if name else None


class UserEventStreamView(LoginRequiredMixin, EventStreamView):
    """Streams to each user what ``publish_to_user`` publishes to her.

    The user is the owner of the stream. Others have no part in it, and visitors who are not logged
    in get 401. The view also streams its ``groups``, which may be empty.
    """

    channel_messages: bool = False
    _own_groups: ClassVar[Sequence[str]] = (USER_GROUP_PATTERN,)

    async def get_groups(self) -> Iterable[str]:
        """Return the owner's own group, and those of ``groups``.

        Raises:
            PermissionDenied: ``get_owner`` says that nobody owns the stream.
            InvalidGroup: As for ``EventStreamView``.
        """
        owner = await loaded(await self.get_owner())
        if is_nobody(owner):
            raise PermissionDenied
        others = await super().get_groups() if self.groups else ()
        return [user_group(owner), *others]


class EventProducerView(EventStreamView):
    """Streams a group, and runs the generator that produces to it: once, for all clients.

    The first client that comes, by GET or POST, starts the generator. It runs as a producer, in the
    background of this process, and to its end, also if nobody reads it. Clients that come later
    follow it, from any process, and get all of it.
    """

    http_method_names: Sequence[str] = ("get", "head", "post", "delete", "options")
    _starts_work: ClassVar[bool] = True

    history: int = ALL

    restartable: bool = False
    """Whether the generator begins again in another process if the server of this one shuts down.
    The next client that comes there starts it, and the group goes on."""

    stop_when_unread: float | None = None
    """After how many seconds in which no client of any process has followed the group the generator
    is closed; None for never. It takes longer, as ``start_producing`` says."""

    @classmethod
    def as_view(cls, **initkwargs: Any) -> Callable[..., Any]:
        """Return the view, exempt from ``ATOMIC_REQUESTS``: a stream is not a transaction.

        Raises:
            ImproperlyConfigured: The view has no ``events``; or as for ``EventStreamView``.
        """
        require_override(
            cls, "events", initkwargs.get("events", cls.events), EventProducerView.events
        )
        return super().as_view(**initkwargs)

    async def events(self) -> AsyncIterator[Any]:
        """Yield each ``Event``, or the data of one, to publish it.

        When it returns, the group is closed with the reason ``complete``. To give another reason,
        raise ``Close``. If it raises something else, the reason is ``failed``.

        It runs after its request has ended. Each of its blocking calls, such as those to the
        database, runs in a new thread with new connections, in the tenant of the request.
        """
        return
        yield

    async def post(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        """Answer as to GET. The stream goes on at the same URL by GET: RFC 9110, 8.7."""
        response = await self.get(request, *args, **kwargs)
        if isinstance(response, EventStreamResponse):
            response["Content-Location"] = request.get_full_path()
        return response

    def _restarts(self) -> bool:
        return self.restartable

    async def _start_work(
        self,
        groups: Sequence[str],
        states: Mapping[str, GroupState],
        user: Any,
        logged_in_at: float,
    ) -> HttpResponseBase | None:
        if len(groups) != 1:
            raise ImproperlyConfigured(
                f"{type(self).__name__} produces to one group, not to {len(groups)}: {groups}."
            )
        [state] = states.values()
        is_produced = state.producer not in (0, HANDED_OVER)
        if self.request.method == "HEAD" or state.cancelled or is_produced:
            return None
        if refusal := await sync_to_async(_refusal_of_body)(self.request):
            return refusal
        events = _generator_of(self._lasting(), "events")
        try:
            caller = self._client_address() or ""
            await start_for(
                caller,
                events,
                group=groups[0],
                owner=user,
                stop_when_unread=self.stop_when_unread,
                restartable=self.restartable,
                owned_since=logged_in_at,
            )
        except (AlreadyProducing, GroupCancelled):
            # Another client was faster.
            pass
        except (RuntimeError, ImproperlyConfigured):
            # It would fail in each request: without a server that has an event loop, or a setting.
            raise
        except Exception as error:
            return unavailable(self.request, STORE_AWAY, error)
        return None


class EventGeneratorView(StreamView):
    """Streams what its async generator yields, to one client.

    Its requests may also be POSTs. ``request.last_event_id`` is the id of the last event that the
    client says it has received, or "".
    """

    http_method_names: Sequence[str] = ("get", "head", "post", "options")

    retry_on_error: bool = False
    """Whether the client comes back if the generator raises an exception, and it runs again. If
    not, the client gets ``close`` with the reason ``failed``, and then 204."""

    stays_in_request: bool = False
    """Whether the generator runs in its request, and keeps the request's thread and database
    connection, with what a middleware has set in them. Otherwise, uploaded files are refused with
    415, and a body above ``DATA_UPLOAD_MAX_MEMORY_SIZE`` that is no form with parts with 413."""

    @classmethod
    def as_view(cls, **initkwargs: Any) -> Callable[..., Any]:
        """Return the view, exempt from ``ATOMIC_REQUESTS``: a stream is not a transaction.

        Raises:
            ImproperlyConfigured: The view has no ``events``; a value is invalid; or a method is
                ``async`` and must not be, or the other way round.
        """
        require_override(
            cls, "events", initkwargs.get("events", cls.events), EventGeneratorView.events
        )
        return super().as_view(**initkwargs)

    async def events(self) -> AsyncIterator[Any]:
        """Yield each ``Event``, or the data of one.

        When it returns, the client gets ``close`` with the reason ``complete``, and then 204. To
        give another reason, raise ``Close``. It is cancelled as soon as the stream ends.

        It runs after its request has ended. Each of its blocking calls, such as those to the
        database, runs in a new thread with new connections, in the tenant of the request.
        """
        return
        yield

    async def post(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        """Answer as to GET."""
        return await self.get(request, *args, **kwargs)

    async def _answer(self, request: HttpRequest) -> HttpResponseBase:
        sent_id = last_event_id(request)
        if sent_id == TERMINAL_MARK:
            return no_content()
        user = await loaded(await self.get_owner())
        if sent_id.endswith(LEFT_MARK) and is_nobody(user):
            # The client's login is over, and so is its stream.
            return no_content()
        namespace, owner = await self._owner(user, ())
        try:
            states = await current_hub().states((), {}, 0, owner.keys)
        except Exception as error:
            return unavailable(request, STORE_AWAY, error)
        if owner.is_out(states):
            return no_content()
        last_id = sent_id.removesuffix(LEFT_MARK)
        setattr(request, "last_event_id", last_id)  # noqa: B010
        generation = Generation(
            _generator_of(self._lasting(), "events"),
            last_id,
            without_thread(copy_context()),
            namespace=namespace,
            caller=owner.user or self._client_address() or "",
            retry_on_error=self.retry_on_error,
        )
        response = self._stream(owner, {}, {"generation": generation})
        if self.stays_in_request:
            response.stays_because = "its view says so"
        elif conf().NAMESPACE is not None and conf().NAMESPACE_CONTEXT is None:
            # The tenant may be in the thread or the connection of the request, and nowhere else.
            response.stays_because = "there is a NAMESPACE without NAMESPACE_CONTEXT"
        if request.method == "POST" and not self.stays_in_request:
            refusal = await sync_to_async(_refusal_of_body)(request)
            # The generator gets the body, too, which was read just now.
            self._lasting()
            return refusal or response
        return response


def _generator_of(view: View, name: str) -> AsyncGenerator[Any, None]:
    """Return the async generator that a view's method makes, to be closed when the client leaves.

    Raises:
        ImproperlyConfigured: The method returned something else.
    """
    events: Any = getattr(view, name)()
    if not isinstance(events, AsyncIterator):
        if inspect.iscoroutine(events):
            events.close()
        raise ImproperlyConfigured(
            f"{type(view).__name__}.{name} returned {type(events).__name__}. Write it as `async "
            f"def {name}(self)` that yields each Event."
        )
    return events if isinstance(events, AsyncGenerator) else (event async for event in events)


async def _in_tenant(
    namespace: str, events: AsyncGenerator[Any, None]
) -> AsyncGenerator[Any, None]:
    """Yield what a generator yields, unless its request's tenant was left meanwhile.

    Raises:
        ImproperlyConfigured: The current tenant is another one.
    """
    async with aclosing(events):
        await require_namespace(namespace)
        async for event in events:
            yield event


def _refusal_of_body(request: HttpRequest) -> HttpResponseBase | None:
    """Read a request's body into memory, since Django closes it with the request.

    Returns:
        The refusal of a body that is too large for that, or that has uploaded files, which are
        closed as well; otherwise None. The client chooses its body, and must not choose to keep a
        thread and a connection.
    """
    # A body that was read otherwise has been dealt with.
    with suppress(RawPostDataException):
        if request.content_type == "multipart/form-data":
            if request.FILES:
                return refused(415, "This stream takes no files.")
        else:
            try:
                request.body  # noqa: B018
            except RequestDataTooBig:
                return refused(413, "The body is too large.")
    return None


def _unique(groups: Iterable[str]) -> list[str]:
    _require_list(groups)
    return list(dict.fromkeys(map(validate_group, groups)))


def _require_list(groups: Iterable[str]) -> None:
    if isinstance(groups, str):
        raise ImproperlyConfigured(
            f"Groups must be a list of names, but {groups!r} is one name: give [{groups!r}]."
        )
    if not isinstance(groups, Iterable):
        raise ImproperlyConfigured(
            f"Groups must be a list of names, not {type(groups).__name__}: {groups!r}."
        )


# What a view asks in each request, or of each event in the name of a request.
_NEEDING_REQUEST: Final = (
    *("authorize", "get_owner", "get_member", "filter_event", "still_allowed"),
    *("dispatch", "get", "setup"),
)
_SETTLED_BEFORE_REQUEST: Final = (
    *("history", "replay_events", "replay_age", "retry", "heartbeat", "channel_messages"),
    *("resume_seconds", "presence"),
)


def _require_resumable(
    view: type[EventStreamView], initkwargs: Mapping[str, Any], seconds: float
) -> None:
    """Refuse ``resume_seconds`` where a stream that is resumed without Django would be another one.

    Raises:
        ImproperlyConfigured: The view has something that needs each request, or the time is longer
            than the store remembers who was cancelled.
    """
    why = ""
    for name in _NEEDING_REQUEST:
        definers = {base for base in view.__mro__ if name in vars(base)}
        if name in initkwargs or definers - {View, *view._bases(), LoginRequiredMixin}:
            why = f"`{name}`, which needs each request"
    for mixin in (PermissionRequiredMixin, UserPassesTestMixin):
        if issubclass(view, mixin):
            why = f"{mixin.__name__}, which is asked in each request"
    if view._handlers:
        why = "handlers of Channels messages, which may use the request"
    for name in _SETTLED_BEFORE_REQUEST:
        if hasattr(initkwargs.get(name, inspect.getattr_static(view, name)), "__get__"):
            why = f"a property `{name}`, which may use the request"
    if why:
        raise ImproperlyConfigured(
            f"{view.__name__} has `resume_seconds`, with which streams are resumed without a "
            f"request, and {why}. Remove one of them. LoginRequiredMixin, `get_groups` and "
            "`initial_events` can stay."
        )
    try:
        longest = conf().CANCEL_TTL
    except ImproperlyConfigured:
        # Let `manage.py check`, which imports this view, tell what is wrong.
        return
    if not hasattr(seconds, "__get__") and seconds > longest:
        raise ImproperlyConfigured(
            f"{view.__name__}.resume_seconds must be at most {SETTING}['CANCEL_TTL'], which is "
            f"{longest} seconds: a user who was cancelled is forgotten after that."
        )


async def _resume(
    view_class: type[EventStreamView],
    initkwargs: Mapping[str, Any],
    request: HttpRequest,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    ticket: Ticket,
    owner: Owner,
) -> HandedOffResponse | None:
    view = view_class(**initkwargs)
    view.setup(request, *args, **kwargs)
    return await view._resume(request, ticket, owner)
