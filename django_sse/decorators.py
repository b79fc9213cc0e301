"""Decorators for function views: a group's stream, a generator's stream, headers, and the 204."""

import functools
import inspect
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Mapping,
    Sequence,
)
from typing import Any, Final, TypeVar, cast, overload

from asgiref.sync import iscoroutinefunction
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed, StreamingHttpResponse
from django.http.response import HttpResponseBase

from django_sse.access.logins import with_login
from django_sse.concurrency.tasks import in_time
from django_sse.exceptions import InvalidGroup
from django_sse.groups.entries import GroupState
from django_sse.groups.names import expand_group
from django_sse.groups.namespaces import acurrent_namespace, current_namespace, full_name
from django_sse.groups.position import TERMINAL_MARK
from django_sse.http.cors import cross_origin
from django_sse.http.response import (
    CONTENT_TYPE,
    GeneratorResponse,
    HeadersResponse,
    last_event_id,
    no_content,
    no_store,
    not_found,
    stream_headers,
)
from django_sse.logs import logger
from django_sse.mixins import AccessMixin
from django_sse.stores import get_store
from django_sse.stores.read_limits import READ_SECONDS
from django_sse.views import EventStreamView, exempt_from_atomic_requests

View = Callable[..., Any]
ViewT = TypeVar("ViewT", bound=View)
Guard = Callable[..., Awaitable[HttpResponseBase | Iterable[str] | None]]
GeneratorView = Callable[..., AsyncIterator[Any]]

_HANDLERS: Final = ("dispatch", *EventStreamView.http_method_names)
# What may refuse a client, in a view that has its own.
_REFUSING: Final = ("authorize", "get_groups", "get", "dispatch", "setup")
_GENERATOR_METHODS: Final = ("GET", "HEAD", "POST", "OPTIONS")

# A browser never comes back after a 500, so the view runs.
_NOT_READ: Final = "The event store could not be read; the group is taken for not cancelled."


@overload
def event_stream(pattern: GeneratorView, /) -> View: ...
@overload
def event_stream(pattern: str, /, *patterns: str, **options: Any) -> Callable[[Guard], View]: ...


def event_stream(pattern: str | GeneratorView, /, *patterns: str, **options: Any) -> Any:
    """Make an event stream of a view: of its groups, or of what it yields.

    ``@event_stream("job-{pk}")`` goes on an ``async def`` that guards the groups named, with the
    URL's keyword arguments in braces: it returns None to let the stream begin, the groups allowed,
    or a response, or raises ``PermissionDenied``. Options are the attributes of
    ``EventStreamView``: ``history``, ``retry``, ``heartbeat``, ``channel_messages``.

    ``@event_stream`` alone goes on an async generator: each ``Event``, or data of one, that it
    yields is sent. When it returns, the client is stopped; if it raises, the client comes back.
    ``request.last_event_id`` is the id of the last event that the client has got, or "".

    Raises:
        TypeError: The view is not of the kind asked for.
    """
    if isinstance(pattern, str):
        return functools.partial(_group_view, (pattern, *patterns), options)
    if not inspect.isasyncgenfunction(pattern):
        raise TypeError(
            "@event_stream without a group goes on an async generator (async def with yield). "
            'For the stream of a group name it: @event_stream("job-{pk}").'
        )
    return _generator_view(pattern)


def _group_view(patterns: Sequence[str], options: dict[str, Any], guard: Guard) -> View:
    if not iscoroutinefunction(guard):
        raise TypeError(
            f"@event_stream({', '.join(map(repr, patterns))}) goes on an `async def` without "
            f"`yield`, which guards the groups; {guard!r} is not one."
        )

    class GuardedView(EventStreamView):
        groups = patterns

        async def authorize(self, groups: Sequence[str]) -> HttpResponseBase | Iterable[str] | None:
            return await guard(self.request, *self.args, **self.kwargs)

    # Last: the guard may be exempt from the transactions of some databases only.
    return exempt_from_atomic_requests(functools.wraps(guard)(GuardedView.as_view(**options)))


def _generator_view(generate: GeneratorView) -> View:
    @functools.wraps(generate)
    async def view(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        if request.method == "OPTIONS":
            return HttpResponse(headers={"Allow": ", ".join(_GENERATOR_METHODS)})
        if request.method not in _GENERATOR_METHODS:
            return no_store(HttpResponseNotAllowed(_GENERATOR_METHODS))
        sent = last_event_id(request)
        if sent == TERMINAL_MARK:
            return no_content()
        if request.method == "HEAD":
            return HeadersResponse(request)
        setattr(request, "last_event_id", sent)  # noqa: B010  (HttpRequest does not declare it)
        events = cast("AsyncGenerator[Any, None]", generate(request, *args, **kwargs))
        return GeneratorResponse(request, events)

    return exempt_from_atomic_requests(cross_origin(with_login(view)))


def event_stream_headers(view: ViewT) -> ViewT:
    """Give a streaming view of one's own, sync or async, the headers of an event stream.

    Responses that do not stream are left alone.
    """
    if iscoroutinefunction(view):

        @functools.wraps(view)
        async def awrapper(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
            return _with_headers(request, await view(request, *args, **kwargs))

        return cast("ViewT", exempt_from_atomic_requests(cross_origin(awrapper)))

    @functools.wraps(view)
    def wrapper(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        return _with_headers(request, view(request, *args, **kwargs))

    return cast("ViewT", cross_origin(wrapper))


def no_content_when_cancelled(*patterns: str) -> Callable[[ViewT], ViewT]:
    """Answer 204, which stops EventSource, once all of these groups are cancelled.

    For a streaming view of one's own, sync or async. The groups may have the URL's keyword
    arguments in braces. What guards the view goes above it: whoever gets here is told what is
    cancelled.

    Raises:
        TypeError: No group is named, or the view has a guard of its own.
    """
    if not patterns:
        raise TypeError('Name a group: @no_content_when_cancelled("job-{pk}").')

    def decorator(view: ViewT) -> ViewT:
        if _is_guarded(view):
            raise TypeError(
                f"@no_content_when_cancelled({', '.join(map(repr, patterns))}) would tell what is "
                f"cancelled to whom {view!r} does not let in. Put what guards the view above it; "
                "an EventStreamView answers 204 by itself."
            )
        if iscoroutinefunction(view):

            @functools.wraps(view)
            async def awrapper(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
                try:
                    groups = _expand(patterns, kwargs)
                except InvalidGroup as error:
                    return not_found(error)
                namespace = await acurrent_namespace()
                try:
                    reading = get_store().astates(_within(namespace, groups))
                    states = await in_time(reading, READ_SECONDS)
                except Exception:
                    logger.exception(_NOT_READ)
                else:
                    if _all_cancelled(states):
                        return no_content()
                return cast("HttpResponseBase", await view(request, *args, **kwargs))

            return cast("ViewT", exempt_from_atomic_requests(cross_origin(awrapper)))

        @functools.wraps(view)
        def wrapper(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
            try:
                groups = _expand(patterns, kwargs)
            except InvalidGroup as error:
                return not_found(error)
            namespace = current_namespace()
            try:
                states = get_store().states(_within(namespace, groups))
            except Exception:
                logger.exception(_NOT_READ)
            else:
                if _all_cancelled(states):
                    return no_content()
            return cast("HttpResponseBase", view(request, *args, **kwargs))

        return cast("ViewT", cross_origin(wrapper))

    return decorator


def _with_headers(request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
    if isinstance(response, StreamingHttpResponse):
        if request.method == "HEAD":
            # A stream without an end would never complete the answer.
            response.streaming_content = _nothing() if response.is_async else ()
        response["Content-Type"] = CONTENT_TYPE
        for name, value in stream_headers(request).items():
            response[name] = value
    return response


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield


def _is_guarded(view: View) -> bool:
    """Say whether a view lets in some users alone, as far as that can be seen."""
    view_class = getattr(view, "view_class", None)
    methods = [getattr(view_class, name, None) for name in _HANDLERS]
    return (
        # What Django's user_passes_test, and all that is made of it, leaves on a view.
        any(hasattr(each, "redirect_field_name") for each in (view, *methods))
        # Of Django's access mixins, which cannot be imported where there are no users.
        or hasattr(view_class, "handle_no_permission")
        or AccessMixin in getattr(view_class, "__mro__", ())
        or any(
            getattr(view_class, name) is not getattr(EventStreamView, name)
            for name in _REFUSING
            if EventStreamView in getattr(view_class, "__mro__", ())
        )
    )


def _expand(patterns: Sequence[str], kwargs: Mapping[str, Any]) -> list[str]:
    return [expand_group(pattern, kwargs) for pattern in patterns]


def _within(namespace: str, groups: Iterable[str]) -> list[str]:
    return [full_name(namespace, group) for group in groups]


def _all_cancelled(states: Mapping[str, GroupState]) -> bool:
    return all(state.cancelled for state in states.values())
