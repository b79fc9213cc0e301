"""What views of groups and views of generators have in common."""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Final, Self, TypeVar

from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponseForbidden, HttpResponseNotFound
from django.http.response import HttpResponseBase
from django.views import View

from django_sse.access.logins import check_session, current_user, renew_login, with_login
from django_sse.access.owners import Owner, owner_of
from django_sse.concurrency.threads import request_context
from django_sse.conf import conf
from django_sse.exceptions import InvalidGroup
from django_sse.groups.namespaces import acurrent_namespace
from django_sse.http.addresses import client_address
from django_sse.http.cors import cross_origin
from django_sse.http.response import (
    EventStreamResponse,
    HandedOffResponse,
    HeadersResponse,
    no_store,
    not_found,
    unavailable,
)
from django_sse.http.sessions import with_session
from django_sse.http.view_checks import (
    METHODS,
    VALUES,
    check_method,
    check_value,
    refuse_djangos_mixins,
    refuse_replaced_methods,
)
from django_sse.streaming.hub import limit_reached_by, reserve
from django_sse.streaming.limits import RequestedStream, TooManyStreams
from django_sse.type_checks import Declared, declare

ViewT = TypeVar("ViewT", bound=Callable[..., Any])
Copied = TypeVar("Copied")

Test = Callable[[], Awaitable[bool]]

# The attribute in which a view keeps the tests of its mixins, to repeat them later.
_TESTS: Final = "_django_sse_tests"
# The attribute in which a view keeps its copy that lasts.
_LASTING: Final = "_django_sse_lasting"

# The modules of the views of this package.
_MODULES: Final = (
    *(__name__, "django_sse.views", "django_sse.admin"),
    *("django_sse.contrib.ai_sdk", "django_sse.contrib.rest_framework"),
)

# Options of a stream that are called after the request, in its context.
_CALLED_LATER: Final = ("filter_event", "message_handler")


class StreamView(View):
    """What views of groups and views of generators have in common."""

    retry: int | None = None
    """Milliseconds that the browser waits before it reconnects. None: ``DJANGO_SSE["RETRY"]``.

    Each client is told a random time of one to two times this.
    """

    heartbeat: float | None = None
    """Seconds of silence before a comment is sent. None: ``DJANGO_SSE["HEARTBEAT"]``; 0: never."""

    event_types: Mapping[str, Any] = {}
    """The types of the events, with those of their data: ``{"headline": Headline}``. They are for
    ``sse_types`` and for schemas of an API. ``DJANGO_SSE["CHECK_EVENT_TYPES"]`` checks what is
    published."""

    _own_groups: ClassVar[Sequence[str]] = ()
    """Patterns of groups that the view streams beside its ``groups``."""

    _starts_work: ClassVar[bool] = False
    """Whether a request may start work that goes on without its stream."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        refuse_replaced_methods(cls, cls._bases())
        refuse_djangos_mixins(cls)

    @classmethod
    def _bases(cls) -> list[type]:
        """Return the views of this package that this one is made of."""
        return [base for base in cls.__mro__ if base.__module__ in _MODULES]

    @classmethod
    def as_view(cls, **initkwargs: Any) -> Callable[..., Any]:
        """Return the view, exempt from ``ATOMIC_REQUESTS``: a stream is not a transaction.

        Raises:
            ImproperlyConfigured: A number is invalid; or a method is ``async`` and must not be, or
                the other way round.
        """
        for check, names in ((check_value, VALUES), (check_method, METHODS)):
            for name in names:
                if hasattr(cls, name):
                    check(cls, name, initkwargs.get(name, getattr(cls, name)))
        view = cross_origin(with_session(with_login(super().as_view(**initkwargs))))
        groups = initkwargs.get("groups", getattr(cls, "groups", ()))
        # An iterator can be read only once.
        patterns = groups if isinstance(groups, Collection) else ()
        types = initkwargs.get("event_types", cls.event_types)
        declare(view, Declared(cls, types, (*patterns, *cls._own_groups)))
        return exempt_from_atomic_requests(view)

    # Methods for projects to override

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
        opens, what guards the view is asked instead, such as ``authorize``.

        An exception means no. But if the database, the network or the sessions fail, or time,
        memory or threads run out, it is called once more. If that fails, too, the client comes
        back, and what guards the view is asked.
        """
        return True

    # HTTP

    async def get(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        """Answer with the stream, with 204 if it is over, or with a refusal."""
        return await self._told(self._answer(request))

    async def _told(self, answer: Awaitable[HttpResponseBase]) -> HttpResponseBase:
        """Return an answer, or the refusal for what it raises."""
        try:
            return await answer
        except InvalidGroup as error:
            return not_found(error)
        except Http404:
            return no_store(HttpResponseNotFound())
        except PermissionDenied:
            return no_store(HttpResponseForbidden())
        except TooManyStreams as error:
            return unavailable(self.request, error.limit)

    async def _answer(self, request: HttpRequest) -> HttpResponseBase:
        raise NotImplementedError

    async def head(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        """Answer with the headers only: a stream without an end would never complete."""
        response = await self.get(request, *args, **kwargs)
        if not isinstance(response, EventStreamResponse):
            return response
        if isinstance(response, HandedOffResponse):
            response.give_up_place()
        headers = HeadersResponse(request)
        # Keep what an overriding `get` has set.
        headers.headers, headers.cookies = response.headers, response.cookies
        return headers

    def http_method_not_allowed(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        """Refuse a request of another method."""
        refuse: Any = super().http_method_not_allowed

        async def answer() -> HttpResponseBase:
            return no_store(await refuse(request, *args, **kwargs))

        return answer()

    async def _owner(self, user: Any, groups: Sequence[str]) -> tuple[str, Owner]:
        """Return the tenant of the request, and the owner of its stream there."""
        namespace = await acurrent_namespace()
        return namespace, (await owner_of(self.request, user, groups)).within(namespace)

    def _stream(
        self,
        owner: Owner,
        position: Mapping[str, int],
        stream_options: Mapping[str, Any],
        **beginning: Any,
    ) -> HandedOffResponse:
        """Return the stream.

        Args:
            owner: The owner of the stream.
            position: The number in each group that the stream starts after.
            stream_options: Keyword arguments of ``Stream`` that only one kind of view has.
            beginning: Keyword arguments of ``HandedOffResponse``.

        Raises:
            TooManyStreams: A limit is reached.
        """
        is_limited = conf().MAX_STREAMS_PER_ADDRESS is not None
        address = self._client_address() if is_limited else None
        rechecks = self._is_rechecked()
        retry = conf().RETRY if self.retry is None else self.retry
        heartbeat = conf().HEARTBEAT if self.heartbeat is None else self.heartbeat
        called_later = rechecks or any(stream_options.get(name) for name in _CALLED_LATER)
        options = {
            **stream_options,
            "heartbeat": heartbeat or None,
            "owner": owner,
            "address": address,
            "still_allowed": self._is_still_allowed if rechecks else None,
            "context": request_context() if called_later else None,
        }
        requested = RequestedStream(position.keys(), owner.user, address)
        # The stream counts only once it joins the hub. But only here can the status still tell the
        # client that a limit is reached. Last: only the response gives back a reserved place.
        if self._starts_work:
            beginning["release"] = reserve(requested)
        elif limit := limit_reached_by(requested):
            raise TooManyStreams(limit)
        return HandedOffResponse(
            self.request,
            position,
            retry=retry,
            stream_options=options,
            **beginning,
        )

    def _is_rechecked(self) -> bool:
        return conf().RECHECK_INTERVAL > 0 and (
            self._overrides("still_allowed") or bool(tests_of(self))
        )

    def _lasting(self) -> Self:
        """Return the view of what is called after the request, such as a generator.

        Its request keeps the session and the user that it has now, while rechecks read again those
        of this one. Call this again once the body was read.
        """
        if not self._is_rechecked():
            return self
        kept = vars(self)
        if _LASTING not in kept:
            kept[_LASTING] = _copied(self)
            kept[_LASTING].request = _copied(self.request)
        lasting: Self = kept[_LASTING]
        _update(lasting.request, self.request)
        return lasting

    async def _is_still_allowed(self) -> bool:
        renew_login(self.request)
        await check_session(self.request)
        for test in tests_of(self):
            if not await test():
                return False
        return await self.still_allowed()

    def _client_address(self) -> str | None:
        """Return the client's address, or None if it is not known."""
        return client_address(
            self.request.META.get("REMOTE_ADDR"),
            self.request.headers.get("X-Forwarded-For", ""),
            conf().TRUSTED_PROXIES,
        )

    def _overrides(self, name: str) -> bool:
        # Arguments of `as_view` override methods on the instance.
        method = getattr(self, name)
        return getattr(method, "__func__", method) is not getattr(self._bases()[0], name)


def tests_of(view: View) -> Sequence[Test]:
    """Return the tests that the mixins of a view have run on its request, to repeat them."""
    tests: Sequence[Test] = vars(view).get(_TESTS, ())
    return tests


def remember_test(view: View, test: Test) -> None:
    """Keep a test that a mixin of a view has run on its request."""
    vars(view).setdefault(_TESTS, []).append(test)


def copy_of_request(request: HttpRequest) -> HttpRequest:
    """Return a copy of a request, whose session and user may be read again without its own."""
    copied = _copied(request)
    _update(copied, request)
    return copied


def _update(request: HttpRequest, original: HttpRequest) -> None:
    vars(request).update(vars(original))
    auser = getattr(original, "auser", None)
    if isinstance(auser, partial) and auser.args == (original,):
        # Django's own, or this library's.
        vars(request)["auser"] = partial(auser.func, request)


def _copied(original: Copied) -> Copied:
    # Not `copy`, for which a request leaves out its body.
    copied: Copied = object.__new__(type(original))
    vars(copied).update(vars(original))
    return copied


class _AllAliases(set[str]):
    """Contains the alias of every database, even of one that is added later."""

    def __contains__(self, alias: object) -> bool:
        return True


def exempt_from_atomic_requests(view: ViewT) -> ViewT:
    """Return the view exempt from ``ATOMIC_REQUESTS``, which Django refuses for async views."""
    # `transaction.non_atomic_requests` adds one alias to this attribute.
    setattr(view, "_non_atomic_requests", _AllAliases())  # noqa: B010
    return view
