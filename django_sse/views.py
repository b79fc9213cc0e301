"""The class-based view that streams Channels groups."""

import inspect
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

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

from django_sse.access.logins import current_user, renew_login, with_login
from django_sse.access.owners import is_nobody, loaded, owner_of
from django_sse.concurrency.tasks import in_time
from django_sse.concurrency.threads import request_context
from django_sse.conf import conf
from django_sse.event import Event
from django_sse.exceptions import InvalidGroup
from django_sse.groups.entries import GroupState
from django_sse.groups.names import expand_group, validate_group
from django_sse.groups.namespaces import acurrent_namespace, full_name
from django_sse.groups.position import LOST, TERMINAL_MARK, parse_position
from django_sse.groups.replay import is_lost, starting_point
from django_sse.http.addresses import client_address
from django_sse.http.cors import cross_origin
from django_sse.http.refusals import STORE_AWAY
from django_sse.http.response import (
    EventStreamResponse,
    GroupStreamResponse,
    HeadersResponse,
    last_event_id,
    no_content,
    no_store,
    not_found,
    unavailable,
)
from django_sse.mixins import tests_of
from django_sse.stores import get_store
from django_sse.stores.read_limits import READ_SECONDS
from django_sse.streaming.filtering import MessageHandler
from django_sse.streaming.hub import current_hub, limit_reached_by
from django_sse.streaming.limits import RequestedStream

ViewT = TypeVar("ViewT", bound=Callable[..., Any])


class EventStreamView(View):
    """Streams the events of Channels groups.

    A view may also handle plain Channels messages of its groups, as a consumer does: a message of
    type ``news.update`` is given to ``def news_update(self, message)``, which returns an ``Event``,
    or None for nothing. Messages of type ``sse.event`` need no handler.
    """

    groups: ClassVar[Sequence[str]] = ()
    """The groups, with the URL's keyword arguments in braces: ``["news", "job-{pk}"]``."""

    history: int = 0
    """How many past events of each group a client without a position gets. Where a group was
    cancelled and reopened, that counts among them."""

    replay_events: int | None = None
    """How many events of a group a client that comes back may have missed, to be sent them; after
    more it is told ``reset``. None: as many as are kept."""

    replay_age: float | None = None
    """Seconds since the first event that a client that comes back has missed, for it to be sent
    them; after more it is told ``reset``. None: as long as they are kept."""

    retry: float | None = None
    """Seconds that the browser waits before it reconnects. None: ``DJANGO_SSE["RETRY"]``."""

    heartbeat: float | None = None
    """Seconds of silence before a comment is sent. None: ``DJANGO_SSE["HEARTBEAT"]``; 0: never."""

    channel_messages: bool = True
    """Whether plain Channels messages are streamed. Each group takes a channel of its own for that
    in every process with a stream of it: turn it off where there is a group for each user."""

    _handler_names: ClassVar[frozenset[str]] = frozenset()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _refuse_ours(cls)
        # The public methods that a project adds are its handlers of Channels messages; those that
        # it overrides, of a mixin such as `test_func`, are not.
        own = [
            base
            for base in cls.__mro__
            if base.__module__.partition(".")[0] not in ("django", "django_sse")
        ]
        theirs = [base for base in cls.__mro__ if base not in own]
        cls._handler_names = frozenset(
            name
            for base in own
            for name, value in vars(base).items()
            if inspect.isfunction(value)
            and not name.startswith("_")
            and not any(hasattr(base, name) for base in theirs)
            and name not in cls.http_method_names
        )

    @classmethod
    def as_view(cls, **initkwargs: Any) -> Callable[..., Any]:
        """Return the view, exempt from ATOMIC_REQUESTS: a stream is no transaction.

        Raises:
            ImproperlyConfigured: ``groups`` is text instead of a list, or there is ``history``
                beside ``initial_events``, which both are the past, or a method is ``async`` that
                may not be, or is not that has to be.
        """
        _refuse_text(initkwargs.get("groups", cls.groups))
        for name in ("get_groups", "get_owner", "still_allowed", "initial_events", "filter_event"):
            _refuse_misfit(cls, name, initkwargs.get(name, getattr(cls, name)))
        shows_state = initkwargs.get("initial_events", cls.initial_events)
        if (
            initkwargs.get("history", cls.history)
            and shows_state is not EventStreamView.initial_events
        ):
            raise ImproperlyConfigured(
                f"{cls.__name__} has both `history` and `initial_events`. Choose one: they both "
                "tell a new client what happened before."
            )
        view = cross_origin(with_login(super().as_view(**initkwargs)))
        return exempt_from_atomic_requests(view)

    # What a project's view says

    async def get_groups(self) -> Iterable[str]:
        """Return the names of the groups to stream."""
        if not self.groups:
            raise ImproperlyConfigured(
                f"{type(self).__name__} needs `groups`, or `async def get_groups(self)`."
            )
        return [expand_group(pattern, self.kwargs) for pattern in self.groups]

    async def authorize(self, groups: Sequence[str]) -> HttpResponseBase | Iterable[str] | None:
        """Decide who may stream the groups: None allows all of them.

        Returns:
            None, the groups that are allowed, or a response to send instead of a stream.

        Raises:
            PermissionDenied: None of them is allowed.
        """
        return None

    async def initial_events(self) -> AsyncGenerator[Event, None]:
        """Yield the state as of now, for a client that does not know it or has lost events."""
        return
        yield

    def filter_event(self, event: Event) -> Event | None:
        """Return the event to send instead of this one, or None to hide it from this stream.

        Called on the event loop for every event, in the context of the request, such as its
        language: it must not wait for anything. An event that it fails with is hidden, and logged.
        """
        return event

    async def get_owner(self) -> Any:
        """Return whose stream it is, for ``cancel(user=...)`` and limits: a user, its primary key,
        or None.

        By default the user of the request, whatever has authenticated it: ``auser()``, or else
        ``user``.
        """
        return await current_user(self.request)

    async def still_allowed(self) -> bool:
        """Say whether the stream may go on; asked every ``RECHECK_INTERVAL``, long after the
        request, with its session and its user read again, and behind the tests of the mixins.

        It is not asked as the stream is opened: ``authorize`` is.

        What it raises is a no. Where the database, the network or the time fails, it is asked
        again, and after that the client is sent back to ``authorize``.
        """
        return True

    # HTTP

    async def get(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        """Answer with the stream, with 204 where it is over, or with why it is refused."""
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
            # Its login is over, and so is its stream: no guard needs to be asked.
            return no_content()
        groups = await self._allowed_groups()
        if isinstance(groups, HttpResponseBase):
            return groups
        if self._overrides("authorize"):
            # It may be what has authenticated the user.
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
        # It counts once it registers; here a client can still be told by the status.
        if limit := limit_reached_by(requested):
            return unavailable(request, limit)
        with_state = begin.fresh and self._overrides("initial_events")
        filters = self._overrides("filter_event")
        asks = self._overrides("still_allowed") or bool(tests_of(self))
        return GroupStreamResponse(
            request,
            begin.position,
            retry=conf().RETRY if self.retry is None else self.retry,
            reset=begin.reset,
            initial_events=self.initial_events() if with_state else None,
            stream_options={
                "heartbeat": (conf().HEARTBEAT if self.heartbeat is None else self.heartbeat)
                or None,
                "filter_event": self.filter_event if filters else None,
                "message_handler": self._message_handler if self._handler_names else None,
                "wants_messages": self.channel_messages,
                "owner": owner,
                "address": requested.address,
                "still_allowed": self._ask_again if asks else None,
                "context": request_context() if filters or self._handler_names or asks else None,
            },
        )

    async def head(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        """Answer with the headers alone: a stream without an end would never complete it."""
        response = await self.get(request, *args, **kwargs)
        if not isinstance(response, EventStreamResponse):
            return response
        headers = HeadersResponse(request)
        # With what an overriding `get` has set.
        headers.headers, headers.cookies = response.headers, response.cookies
        return headers

    async def _groups_too_old(
        self, sent: Mapping[str, int], states: Mapping[str, GroupState]
    ) -> list[str]:
        """Return the groups in which the client has missed what is older than ``replay_age``.

        Raises:
            Exception: The event store could not be read.
        """
        if self.replay_age is None:
            return []
        # Who has missed nothing, or more than is kept, is not asked about.
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
            # What the hub still has of it may be older than what the store keeps.
            next_number = max(number + 1, states[group].first)
            if not missed or missed[0].number != next_number or missed[0].time < since:
                too_old.append(group)
        return too_old

    async def _ask_again(self) -> bool:
        renew_login(self.request)
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
                f"{type(self).__name__}.authorize has returned {allowed}. Return None to allow "
                "all groups or those that are allowed, or raise PermissionDenied."
            )
        if allowed is not None:
            groups = _unique(allowed)
        return groups or no_store(HttpResponseForbidden())

    def _client_address(self) -> str | None:
        """Return where the client is, if there is a limit for it."""
        if conf().MAX_STREAMS_PER_ADDRESS is None:
            return None
        return client_address(
            self.request.META.get("REMOTE_ADDR"),
            self.request.headers.get("X-Forwarded-For", ""),
            conf().TRUSTED_PROXIES,
        )

    # Handlers of plain Channels messages

    def _message_handler(self, message_type: str) -> MessageHandler | None:
        name = message_type.replace(".", "_")
        return getattr(self, name) if name in self._handler_names else None

    def _overrides(self, name: str) -> bool:
        # Also on the instance, as by an argument of `as_view`.
        method = getattr(self, name)
        return getattr(method, "__func__", method) is not getattr(EventStreamView, name)


def _unique(groups: Iterable[str]) -> list[str]:
    _refuse_text(groups)
    return list(dict.fromkeys(map(validate_group, groups)))


def _refuse_text(groups: Iterable[str]) -> None:
    if isinstance(groups, str):
        raise ImproperlyConfigured(
            f"Groups are a list of names, and {groups!r} is one name: give [{groups!r}]."
        )
    if not isinstance(groups, Iterable):
        raise ImproperlyConfigured(
            f"Groups are a list of names, not {type(groups).__name__}: {groups!r}."
        )


def _refuse_ours(view: type) -> None:
    """Refuse a helper of a project's with the name of one of ours, which it would replace.

    Raises:
        ImproperlyConfigured: There is one.
    """
    for name, ours in vars(EventStreamView).items():
        is_helper = name.startswith("_") and not name.startswith("__") and name != "_handler_names"
        if is_helper and inspect.getattr_static(view, name) is not ours:
            raise ImproperlyConfigured(
                f"{view.__name__}.{name} has the name of a method of EventStreamView's own, which "
                "it would replace: choose another one."
            )


def _refuse_misfit(view: type, name: str, method: Any) -> None:
    """Refuse a method that can only fail, in each request or long after it.

    Raises:
        ImproperlyConfigured: It is async and must not be, or the other way round.
    """
    original = inspect.unwrap(method)
    is_async = iscoroutinefunction(method) or iscoroutinefunction(original)
    makes_events = inspect.isgeneratorfunction(original)
    if name == "filter_event":
        fits = not (is_async or makes_events or inspect.isasyncgenfunction(original))
        wanted = "def filter_event(self, event)`: it is called on the event loop and must not wait"
    elif name == "initial_events":
        # A plain function may return what an async generator function makes.
        fits = not (is_async or makes_events)
        wanted = "async def initial_events(self)` with `yield`"
    else:
        fits = is_async or not inspect.isfunction(original)
        wanted = f"async def {name}(self)`"
    if not fits:
        raise ImproperlyConfigured(f"{view.__name__}.{name} has to be `{wanted}.")


class _EveryAlias(set[str]):
    """The databases whose transactions are not put round a view: those, too, that come later."""

    def __contains__(self, alias: object) -> bool:
        return True


def exempt_from_atomic_requests(view: ViewT) -> ViewT:
    """Return the view without a transaction round it, which Django refuses for async views."""
    # Where `transaction.non_atomic_requests` notes one alias.
    setattr(view, "_non_atomic_requests", _EveryAlias())  # noqa: B010
    return view
