"""Decorators for views that stream, and for handlers of plain Channels messages."""

import functools
import inspect
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import contextmanager
from typing import Any, Final, TypeVar, overload

from asgiref.sync import iscoroutinefunction
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest, StreamingHttpResponse
from django.http.response import HttpResponseBase

from django_sse.concurrency.tasks import in_time
from django_sse.event import Event
from django_sse.exceptions import InvalidGroup
from django_sse.groups.entries import GroupState
from django_sse.groups.names import check_pattern, expand_group
from django_sse.groups.namespaces import acurrent_namespace, current_namespace, full_name
from django_sse.http.base_view import exempt_from_atomic_requests
from django_sse.http.cors import cross_origin
from django_sse.http.response import (
    CONTENT_TYPE,
    no_content,
    not_found,
    stream_headers,
)
from django_sse.http.view_checks import MESSAGE_TYPES
from django_sse.http.wrappers import wrapped
from django_sse.logs import logger
from django_sse.mixins import AccessMixin
from django_sse.stores import get_store
from django_sse.stores.read_limits import READ_SECONDS
from django_sse.views import EventGeneratorView, EventProducerView, EventStreamView

View = Callable[..., Any]
ViewT = TypeVar("ViewT", bound=View)
HandlerT = TypeVar("HandlerT", bound=Callable[..., Event | None])
Guard = Callable[..., Awaitable[HttpResponseBase | Iterable[str] | None]]
GeneratorView = Callable[..., AsyncIterator[Any]]

_HANDLERS: Final = ("dispatch", *EventStreamView.http_method_names)
# The methods in which an EventStreamView may refuse a client.
_GUARDING: Final = ("authorize", "get_groups", "get", "dispatch", "setup")


class EventStreamRequest(HttpRequest):
    """The request of a view behind ``event_generator``, for annotations only: the view gets
    Django's request, with this attribute."""

    last_event_id: str
    """The id of the last event that the client says it has received, or ""."""


def event_stream(*patterns: str, **options: Any) -> Callable[[Guard], View]:
    """Turn a function that guards groups into a view that streams them.

    ``@event_stream("job-{pk}")`` goes on an ``async def`` that does what
    ``EventStreamView.authorize`` does: it returns None to allow all groups, the groups that are
    allowed, or a response, or raises ``PermissionDenied``.

    Args:
        patterns: The groups, with the URL's keyword arguments in braces.
        options: Attributes of ``EventStreamView``, such as ``history``, ``retry`` and
            ``heartbeat``.

    Raises:
        TypeError: No group is named, or the function is not an ``async def`` without ``yield``.
        ImproperlyConfigured: As for ``EventStreamView.as_view``.
    """
    if not patterns or not all(isinstance(pattern, str) for pattern in patterns):
        raise TypeError(
            'Name a group: @event_stream("job-{pk}") on an `async def` that guards it. For an '
            "async generator, which makes events for one client, use @event_generator."
        )
    return functools.partial(_group_view, patterns, options)


@overload
def event_generator(view: GeneratorView, /) -> View: ...


@overload
def event_generator(**options: Any) -> Callable[[GeneratorView], View]: ...


def event_generator(*views: GeneratorView, **options: Any) -> View:
    """Turn an async generator into a view that streams what it yields, to one client.

    The generator yields an ``Event``, or the data of one. When it returns, the client is told to
    stop; ``Close`` gives another reason. If it raises an exception, the client is told to stop as
    well, unless the view has ``retry_on_error=True``. ``request.last_event_id`` is the id of the
    last event that the client has received, or "": see ``EventStreamRequest``.

    Args:
        views: The generator, if the decorator has no options.
        options: Attributes of ``EventGeneratorView``: ``retry_on_error``, ``stays_in_request``,
            ``retry`` and ``heartbeat``.

    Raises:
        TypeError: The view is not an async generator, or there is no such option.
        ImproperlyConfigured: An option is invalid.
    """
    as_view = functools.partial(_generator_view, options)
    return as_view(*views) if views else as_view


def event_producer(pattern: str, **options: Any) -> Callable[[GeneratorView], View]:
    """Turn an async generator into a view that produces to a group, and streams the group.

    ``@event_producer("answer-{pk}")`` goes on an async generator that yields each ``Event``, or the
    data of one. The first client starts it, by GET or POST. It runs to its end, whoever leaves, and
    all clients that come meanwhile or later get all of it: see ``EventProducerView``.

    Args:
        pattern: The group, with the URL's keyword arguments in braces.
        options: Attributes of ``EventProducerView``, such as ``stoppable``, ``retry`` and
            ``heartbeat``.

    Raises:
        TypeError: The view is not an async generator, no group is named, or there is no such
            option.
        ImproperlyConfigured: An option is invalid.
    """
    if not isinstance(pattern, str):
        raise TypeError(
            'Name the group: @event_producer("answer-{pk}"). For an async generator that makes '
            "events for one client, use @event_generator."
        )
    return functools.partial(_producer_view, pattern, options)


def _group_view(patterns: Sequence[str], options: dict[str, Any], guard: Guard) -> View:
    if not iscoroutinefunction(guard):
        raise TypeError(
            f"@event_stream({', '.join(map(repr, patterns))}) goes on an `async def` without "
            f"`yield`, which guards the groups; {guard!r} is not one. For an async generator, use "
            "@event_generator."
        )

    class GuardedView(EventStreamView):
        groups = patterns

        async def authorize(self, groups: Sequence[str]) -> HttpResponseBase | Iterable[str] | None:
            return await guard(self.request, *self.args, **self.kwargs)

    return _named_after(guard, GuardedView, options)


def _producer_view(pattern: str, options: dict[str, Any], generate: GeneratorView) -> View:
    _require_generator("event_producer", generate)

    class ProducerView(EventProducerView):
        groups = (pattern,)

        def events(self) -> AsyncIterator[Any]:
            return generate(self.request, *self.args, **self.kwargs)

    return _named_after(generate, ProducerView, options)


def _require_generator(decorator: str, generate: GeneratorView) -> None:
    if not inspect.isasyncgenfunction(generate):
        raise TypeError(
            f"@{decorator} goes on an async generator (`async def` with `yield`), and "
            f'{generate!r} is not one. To stream a group, use @event_stream("job-{{pk}}").'
        )


def _generator_view(options: dict[str, Any], generate: GeneratorView) -> View:
    _require_generator("event_generator", generate)

    class GeneratorView(EventGeneratorView):
        def events(self) -> AsyncIterator[Any]:
            return generate(self.request, *self.args, **self.kwargs)

    return _named_after(generate, GeneratorView, options)


def _named_after(
    function: Callable[..., Any], view: type[EventStreamView | EventGeneratorView], options: Any
) -> View:
    # Errors name the function.
    view.__name__ = getattr(function, "__name__", view.__name__)
    view.__qualname__ = getattr(function, "__qualname__", view.__qualname__)
    # Last, because `wraps` copies an exemption of the function, which may be for some databases
    # only.
    return exempt_from_atomic_requests(functools.wraps(function)(view.as_view(**options)))


def event_stream_headers(view: ViewT) -> ViewT:
    """Give your own streaming view, sync or async, the headers of an event stream.

    Responses that do not stream are left alone.
    """
    return _as_stream_view(wrapped(view, after=_with_headers))


def no_content_when_cancelled(*patterns: str) -> Callable[[ViewT], ViewT]:
    """Answer 204, which stops EventSource, once all of these groups are cancelled.

    This is for your own streaming view, sync or async. Put whatever guards the view above this
    decorator, which shows what is cancelled to every client that gets this far.

    Args:
        patterns: The groups, with the URL's keyword arguments in braces.

    Raises:
        TypeError: No group is named, or the view has a guard below this decorator.
        ImproperlyConfigured: A pattern can never make a group name.
    """
    if not patterns:
        raise TypeError('Name a group: @no_content_when_cancelled("job-{pk}").')
    for pattern in patterns:
        check_pattern(pattern)

    def expand(kwargs: Mapping[str, Any]) -> list[str] | HttpResponseBase:
        try:
            return [expand_group(pattern, kwargs) for pattern in patterns]
        except InvalidGroup as error:
            return not_found(error)

    def before(request: HttpRequest, kwargs: Mapping[str, Any]) -> HttpResponseBase | None:
        if isinstance(groups := expand(kwargs), HttpResponseBase):
            return groups
        groups = _full_names(current_namespace(), groups)
        with _ignore_store_errors():
            return _no_content_if_cancelled(get_store().states(groups))
        return None

    async def abefore(request: HttpRequest, kwargs: Mapping[str, Any]) -> HttpResponseBase | None:
        if isinstance(groups := expand(kwargs), HttpResponseBase):
            return groups
        groups = _full_names(await acurrent_namespace(), groups)
        with _ignore_store_errors():
            states = await in_time(get_store().astates(groups), READ_SECONDS)
            return _no_content_if_cancelled(states)
        return None

    def decorator(view: ViewT) -> ViewT:
        if _is_guarded(view):
            raise TypeError(
                f"@no_content_when_cancelled({', '.join(map(repr, patterns))}) would show what is "
                f"cancelled even to clients that {view!r} refuses. Put what guards the view above "
                "it. An EventStreamView answers 204 by itself."
            )
        return _as_stream_view(wrapped(view, before=before, abefore=abefore))

    return decorator


def on_message(*types: str) -> Callable[[HandlerT], HandlerT]:
    """Declare a method of an ``EventStreamView`` as the handler of plain Channels messages.

    ``@on_message("card.moved")`` goes on a plain function ``def card_moved(self, message)``, which
    returns an ``Event``, or None to send nothing. It is called on the event loop for each message
    and each stream, so it must not wait. Nothing else of a view can be called from the channel
    layer.

    Args:
        types: The exact ``type`` of the messages, or several types if the method handles them all.
            Types that begin with ``sse.`` belong to the library.

    Raises:
        TypeError: No type is named.
        ImproperlyConfigured: A type belongs to the library. When the class is made: the method is
            ``async``, or another method handles the same type.
    """
    if not types or not all(isinstance(name, str) and name for name in types):
        raise TypeError('Name the type of the messages: @on_message("card.moved").')
    for name in types:
        if name.startswith("sse."):
            raise ImproperlyConfigured(
                f"@on_message({name!r}): types that begin with 'sse.' are handled by django_sse "
                "itself. Choose another one."
            )

    def decorator(handler: HandlerT) -> HandlerT:
        declared = getattr(handler, MESSAGE_TYPES, ())
        setattr(handler, MESSAGE_TYPES, tuple(dict.fromkeys((*types, *declared))))
        return handler

    return decorator


def _with_headers(request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
    if isinstance(response, StreamingHttpResponse):
        if request.method == "HEAD":
            # A stream without an end would never complete the response.
            response.streaming_content = _nothing() if response.is_async else ()
        response["Content-Type"] = CONTENT_TYPE
        for name, value in stream_headers(request).items():
            response[name] = value
    return response


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield


def _is_guarded(view: View) -> bool:
    """Return whether a view lets in only some users, as far as that can be seen."""
    view_class = getattr(view, "view_class", None)
    methods = [getattr(view_class, name, None) for name in _HANDLERS]
    return (
        # Django's user_passes_test, and every decorator made with it, sets this attribute.
        any(hasattr(each, "redirect_field_name") for each in (view, *methods))
        # Django's access mixins have this. They cannot be imported in a project without users.
        or hasattr(view_class, "handle_no_permission")
        or AccessMixin in getattr(view_class, "__mro__", ())
        or any(
            getattr(view_class, name, None) is not getattr(base, name, None)
            for base in (EventStreamView, EventGeneratorView)
            if base in getattr(view_class, "__mro__", ())
            for name in _GUARDING
        )
    )


def _as_stream_view(view: ViewT) -> ViewT:
    """Give a project's own streaming view what all views that stream have."""
    view = cross_origin(view)
    # A sync view may want its transaction.
    return exempt_from_atomic_requests(view) if iscoroutinefunction(view) else view


def _full_names(namespace: str, groups: Iterable[str]) -> list[str]:
    return [full_name(namespace, group) for group in groups]


@contextmanager
def _ignore_store_errors() -> Iterator[None]:
    try:
        yield
    except Exception:
        # An EventSource never reconnects after a 500, so the view runs.
        logger.exception("The event store could not be read, so the groups count as not cancelled.")


def _no_content_if_cancelled(states: Mapping[str, GroupState]) -> HttpResponseBase | None:
    return no_content() if all(state.cancelled for state in states.values()) else None
