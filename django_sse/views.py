"""The class-based view that streams Channels groups."""

import inspect
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Collection,
    Iterable,
    Mapping,
    Sequence,
)
from typing import Any, ClassVar, Final, TypeVar

from asgiref.sync import iscoroutinefunction, sync_to_async
from django.core.exceptions import ImproperlyConfigured, PermissionDenied
from django.http import (
    Http404,
    HttpRequest,
    HttpResponseBadRequest,
    HttpResponseForbidden,
    HttpResponseNotFound,
)
from django.http.response import HttpResponseBase
from django.views import View

from django_sse.access.logins import check_session, current_user, renew_login, with_login
from django_sse.access.owners import is_nobody, loaded, owner_of
from django_sse.concurrency.tasks import in_time
from django_sse.concurrency.threads import request_context
from django_sse.conf import MILLISECONDS, SECONDS_OR_OFF, Rule, conf, is_whole
from django_sse.event import Event
from django_sse.exceptions import InvalidGroup
from django_sse.groups.entries import GroupState
from django_sse.groups.names import check_pattern, expand_group, validate_group
from django_sse.groups.namespaces import acurrent_namespace, full_name
from django_sse.groups.position import LOST, TERMINAL_MARK, parse_position
from django_sse.groups.replay import is_lost, starting_point
from django_sse.http.addresses import client_address
from django_sse.http.cors import cross_origin
from django_sse.http.refusals import STORE_AWAY, told
from django_sse.http.response import (
    PLAIN_TEXT,
    EventStreamResponse,
    GroupStreamResponse,
    HeadersResponse,
    last_event_id,
    no_content,
    no_store,
    not_found,
    unavailable,
)
from django_sse.http.sessions import with_session
from django_sse.mixins import tests_of
from django_sse.stores import get_store
from django_sse.stores.read_limits import READ_SECONDS
from django_sse.streaming.filtering import MessageHandler
from django_sse.streaming.hub import current_hub, limit_reached_by
from django_sse.streaming.limits import RequestedStream

ViewT = TypeVar("ViewT", bound=Callable[..., Any])

_WITHOUT_GROUPS: Final = (
    'There is no group for {} to stream: set `groups = ["news"]`, or write `async def '
    "get_groups(self)`."
)

MESSAGE_TYPES: Final = "_django_sse_message_types"
"""The attribute in which ``on_message`` stores the message types that a method handles."""


class EventStreamView(View):
    """Streams the events of Channels groups.

    A view may also handle plain Channels messages of its groups, as a consumer does: see
    ``django_sse.decorators.on_message``. Messages of type ``sse.event`` need no handler.
    """

    groups: ClassVar[Sequence[str]] = ()
    """The groups, with the URL's keyword arguments in braces: ``["news", "job-{pk}"]``."""

    history: int = 0
    """How many past events of each group a client without a position gets. A cancel before a
    ``reopen`` counts as one of them."""

    replay_events: int | None = None
    """How many events of a group a returning client may have missed and still gets. If it missed
    more, it gets ``reset``. None: as many as are kept."""

    replay_age: float | None = None
    """How many seconds old the first event that a returning client missed may be. If it is older,
    the client gets ``reset`` and not the events. None: as long as they are kept."""

    retry: int | None = None
    """Milliseconds that the browser waits before it reconnects. None: ``DJANGO_SSE["RETRY"]``."""

    heartbeat: float | None = None
    """Seconds of silence before a comment is sent. None: ``DJANGO_SSE["HEARTBEAT"]``; 0: never."""

    channel_messages: bool = True
    """Whether plain Channels messages are streamed. Each group then takes one channel in every
    process that streams it, so set this to False where each user has a group."""

    _handlers: ClassVar[Mapping[str, str]] = {}
    """The methods that handle plain Channels messages, by type."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _refuse_replaced_methods(cls)
        _refuse_djangos_mixins(cls)
        cls._handlers = _handlers_of(cls)

    @classmethod
    def as_view(cls, **initkwargs: Any) -> Callable[..., Any]:
        """Return the view, exempt from ``ATOMIC_REQUESTS``: a stream is not a transaction.

        Raises:
            ImproperlyConfigured: The view has no group; ``groups`` is text and not a list; a
                pattern can never make a group name; a number is invalid; there are both ``history``
                and ``initial_events``, which both tell a new client of the past; or a method is
                ``async`` and must not be, or the other way round.
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
        for name, rule in _RULES.items():
            _check_value(cls, name, rule, initkwargs.get(name, getattr(cls, name)))
        for name in _SIGNATURES:
            _check_method(cls, name, initkwargs.get(name, getattr(cls, name)))
        shows_state = initkwargs.get("initial_events", cls.initial_events)
        if (
            initkwargs.get("history", cls.history)
            and shows_state is not EventStreamView.initial_events
        ):
            raise ImproperlyConfigured(
                f"{cls.__name__} has both `history` and `initial_events`. Choose one: they both "
                "tell a new client what happened before."
            )
        view = cross_origin(with_session(with_login(super().as_view(**initkwargs))))
        return exempt_from_atomic_requests(view)

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

    async def get_owner(self) -> Any:
        """Return who owns the stream: a user, its primary key, or None.

        ``cancel(user=...)`` ends the streams that a user owns, and limits count them. By default,
        the owner is the user of the request, whatever has authenticated it: ``auser()``, or else
        ``user``.
        """
        return await current_user(self.request)

    async def still_allowed(self) -> bool:
        """Return whether the stream may go on.

        It is called every ``RECHECK_INTERVAL``, long after the request. Before each call, the
        session and the user are read again, and the tests of the mixins are run. When the stream
        opens, ``authorize`` is called instead.

        An exception means no. But if the database, the network or the sessions fail, or time,
        memory or threads run out, it is called once more. If that fails, too, the client is sent
        back to ``authorize``.
        """
        return True

    # HTTP

    async def get(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        """Answer with the stream, with 204 if it is over, or with a refusal."""
        try:
            return await self._answer(request)
        except InvalidGroup as error:
            return not_found(error)
        except Http404:
            return no_store(HttpResponseNotFound())
        except PermissionDenied:
            return no_store(HttpResponseForbidden())

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
        namespace = await acurrent_namespace()
        owner = (await owner_of(request, user, groups)).within(namespace)
        groups = [full_name(namespace, group) for group in groups]
        try:
            sent = parse_position(sent_id, groups)
            states = await current_hub().states(groups, sent, self.history, owner.keys)
            too_old = await in_time(self._groups_too_old(sent, states), READ_SECONDS)
            sent |= dict.fromkeys(too_old, LOST)
        except Exception as error:
            return unavailable(request, STORE_AWAY, error)
        groups = owner.groups_left(groups, states)
        begin = starting_point(
            {group: number for group, number in sent.items() if group in groups},
            {group: states[group] for group in groups},
            self.history,
            self.replay_events,
        )
        if begin.over:
            return no_content()
        requested = RequestedStream(groups, owner.user, self._client_address())
        # The stream counts only once it joins the hub. But only here can the status still tell the
        # client that a limit is reached.
        if limit := limit_reached_by(requested):
            return unavailable(request, limit)
        with_state = begin.fresh and self._overrides("initial_events")
        filters = self._overrides("filter_event")
        rechecks = conf().RECHECK_INTERVAL > 0 and (
            self._overrides("still_allowed") or bool(tests_of(self))
        )
        return GroupStreamResponse(
            request,
            begin.position,
            retry=conf().RETRY if self.retry is None else self.retry,
            reset=begin.reset,
            initial_events=_initial_events_of(self) if with_state else None,
            stream_options={
                "heartbeat": (conf().HEARTBEAT if self.heartbeat is None else self.heartbeat)
                or None,
                "filter_event": self.filter_event if filters else None,
                "message_handler": self._message_handler if self._handlers else None,
                "wants_messages": self.channel_messages,
                "owner": owner,
                "address": requested.address,
                "still_allowed": self._is_still_allowed if rechecks else None,
                "context": request_context() if filters or self._handlers or rechecks else None,
            },
        )

    async def head(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        """Answer with the headers only: a stream without an end would never complete."""
        response = await self.get(request, *args, **kwargs)
        if not isinstance(response, EventStreamResponse):
            return response
        headers = HeadersResponse(request)
        # Keep what an overriding `get` has set.
        headers.headers, headers.cookies = response.headers, response.cookies
        return headers

    async def _groups_too_old(
        self, sent: Mapping[str, int], states: Mapping[str, GroupState]
    ) -> list[str]:
        """Return the groups in which the client has missed an event older than ``replay_age``.

        Raises:
            Exception: The event store could not be read.
        """
        if self.replay_age is None:
            return []
        # Leave out the groups of which the client has missed nothing, or more than is kept.
        behind = {
            group: number
            for group, number in sent.items()
            if number < states[group].head and not is_lost(number, states[group])
        }
        if not behind:
            return []
        since = await sync_to_async(get_store().clock.time)() - self.replay_age
        too_old = []
        for group, number in behind.items():
            missed = await get_store().aread(group, number, 1)
            # The hub may still have older events than the store keeps.
            next_number = max(number + 1, states[group].first)
            if not missed or missed[0].number != next_number or missed[0].time < since:
                too_old.append(group)
        return too_old

    async def _is_still_allowed(self) -> bool:
        renew_login(self.request)
        await check_session(self.request)
        for test in tests_of(self):
            if not await test():
                return False
        return await self.still_allowed()

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
        return no_store(HttpResponseForbidden(why, content_type=PLAIN_TEXT))

    def _client_address(self) -> str | None:
        """Return the client's address if there is a limit per address, else None."""
        if conf().MAX_STREAMS_PER_ADDRESS is None:
            return None
        return client_address(
            self.request.META.get("REMOTE_ADDR"),
            self.request.headers.get("X-Forwarded-For", ""),
            conf().TRUSTED_PROXIES,
        )

    # Handlers of plain Channels messages

    def _message_handler(self, message_type: str) -> MessageHandler | None:
        name = self._handlers.get(message_type)
        return getattr(self, name) if name else None

    def _overrides(self, name: str) -> bool:
        # Arguments of `as_view` override methods on the instance.
        method = getattr(self, name)
        return getattr(method, "__func__", method) is not getattr(EventStreamView, name)


def _initial_events_of(view: EventStreamView) -> AsyncGenerator[Event, None]:
    """Return the async generator of ``initial_events``, to be closed when the client leaves.

    Raises:
        ImproperlyConfigured: ``initial_events`` returned something else.
    """
    events: Any = view.initial_events()
    if not isinstance(events, AsyncIterator):
        if inspect.iscoroutine(events):
            events.close()
        raise ImproperlyConfigured(
            f"{type(view).__name__}.initial_events returned {type(events).__name__}. Write it as "
            "`async def initial_events(self)` that yields each Event."
        )
    return events if isinstance(events, AsyncGenerator) else (event async for event in events)


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


# None means the value of the setting, or as much as is kept.
_RULES: Final = {
    "history": Rule("a whole number from 0", is_whole),
    "replay_events": Rule("a whole number from 0, or None", lambda n: n is None or is_whole(n)),
    "replay_age": Rule(
        "a finite number of seconds above 0, or None (`replay_events = 0` replays nothing)",
        lambda age: age is None or (age != 0 and SECONDS_OR_OFF.admits(age)),
    ),
    "retry": Rule(
        f"{MILLISECONDS.accepts}, or None", lambda n: n is None or MILLISECONDS.admits(n)
    ),
    "heartbeat": Rule(
        f"{SECONDS_OR_OFF.accepts}, or None", lambda n: n is None or SECONDS_OR_OFF.admits(n)
    ),
}


def _check_value(view: type, name: str, rule: Rule, value: Any) -> None:
    # A property has no value before a request.
    if not hasattr(value, "__get__") and not rule.admits(value):
        raise ImproperlyConfigured(f"{view.__name__}.{name} must be {rule.accepts}, not {value!r}.")


def _refuse_replaced_methods(view: type) -> None:
    """Refuse a view in which a method of the project replaces a private one of ``EventStreamView``.

    Raises:
        ImproperlyConfigured: There is such a method.
    """
    for name, original in vars(EventStreamView).items():
        is_private = name.startswith("_") and not name.startswith("__") and name != "_handlers"
        if is_private and inspect.getattr_static(view, name) is not original:
            raise ImproperlyConfigured(
                f"{view.__name__}.{name} replaces a private method of EventStreamView. Choose "
                "another name."
            )


def _handlers_of(view: type) -> dict[str, str]:
    """Return the names of a view's handlers of plain Channels messages, by message type.

    Handlers are inherited. A class that overrides one need not declare it again.

    Raises:
        ImproperlyConfigured: Two methods handle the same type, or a handler can only fail.
    """
    types_of: dict[str, Collection[str]] = {}
    for base in reversed(view.__mro__):
        for name, value in vars(base).items():
            if types := inspect.getattr_static(value, MESSAGE_TYPES, None):
                types_of[name] = types
    handlers: dict[str, str] = {}
    for name, types in types_of.items():
        method = getattr(view, name)
        if method is None:
            # As with `__hash__`, None takes back what a base class declares.
            continue
        if not callable(method) or not _is_plain(method):
            raise ImproperlyConfigured(
                f"{view.__name__}.{name} handles Channels messages of type {', '.join(types)}, so "
                f"it has to be `def {name}(self, message)`: it is called on the event loop and "
                "must not wait."
            )
        for message_type in types:
            if message_type in handlers:
                raise ImproperlyConfigured(
                    f"{view.__name__} has two handlers for Channels messages of type "
                    f"{message_type!r}: {handlers[message_type]} and {name}. Declare only one of "
                    "them with @on_message."
                )
            handlers[message_type] = name
    return handlers


def _is_plain(method: Callable[..., Any]) -> bool:
    """Return whether a method is neither ``async`` nor a generator function."""
    original = inspect.unwrap(method)
    return not (
        iscoroutinefunction(method)
        or iscoroutinefunction(original)
        or inspect.isgeneratorfunction(original)
        or inspect.isasyncgenfunction(original)
    )


_MIXINS: Final = ("LoginRequiredMixin", "PermissionRequiredMixin", "UserPassesTestMixin")


def _refuse_djangos_mixins(view: type) -> None:
    """Refuse Django's access mixins, which read the user synchronously and redirect.

    Raises:
        ImproperlyConfigured: The view has one.
    """
    for base in view.__mro__:
        # Compared by name, because they cannot be imported in a project without users.
        if base.__module__ == "django.contrib.auth.mixins" and base.__name__ in _MIXINS:
            raise ImproperlyConfigured(
                f"{view.__name__} has {base.__name__} of django.contrib.auth.mixins, which fails "
                "on async views and redirects to a page that an EventSource cannot use. Import "
                f"{base.__name__} from django_sse.mixins instead."
            )


# The signatures that a project's methods must have.
_SIGNATURES: Final = {
    "get_groups": "async def get_groups(self)`",
    "authorize": "async def authorize(self, groups)`",
    "get_owner": "async def get_owner(self)`",
    "still_allowed": "async def still_allowed(self)`",
    "initial_events": "async def initial_events(self)` with `yield`",
    "filter_event": (
        "def filter_event(self, event)`: it is called on the event loop and must not wait"
    ),
}


def _check_method(view: type, name: str, method: Any) -> None:
    """Refuse a method that can only fail, in each request or long after it.

    Raises:
        ImproperlyConfigured: The method is async and must not be, or the other way round.
    """
    original = inspect.unwrap(method)
    is_async = iscoroutinefunction(method) or iscoroutinefunction(original)
    if name == "filter_event":
        fits = _is_plain(method)
    elif name == "initial_events":
        # A plain function may return an async generator.
        fits = not (is_async or inspect.isgeneratorfunction(original))
    else:
        fits = is_async or not inspect.isfunction(original)
    if not fits:
        raise ImproperlyConfigured(f"{view.__name__}.{name} has to be `{_SIGNATURES[name]}.")


class _AllAliases(set[str]):
    """Contains the alias of every database, even of one that is added later."""

    def __contains__(self, alias: object) -> bool:
        return True


def exempt_from_atomic_requests(view: ViewT) -> ViewT:
    """Return the view exempt from ``ATOMIC_REQUESTS``, which Django refuses for async views."""
    # `transaction.non_atomic_requests` adds one alias to this attribute.
    setattr(view, "_non_atomic_requests", _AllAliases())  # noqa: B010
    return view
