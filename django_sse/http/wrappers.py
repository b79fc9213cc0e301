"""What comes before and after a view, written once for sync and for async views."""

import functools
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar, cast

from asgiref.sync import iscoroutinefunction
from django.http import HttpRequest
from django.http.response import HttpResponseBase

ViewT = TypeVar("ViewT", bound=Callable[..., Any])

# With the request and the URL's keyword arguments.
Before = Callable[[HttpRequest, Mapping[str, Any]], HttpResponseBase | None]
AsyncBefore = Callable[[HttpRequest, Mapping[str, Any]], Awaitable[HttpResponseBase | None]]
After = Callable[[HttpRequest, HttpResponseBase], HttpResponseBase]


def wrapped(
    view: ViewT,
    *,
    before: Before | None = None,
    abefore: AsyncBefore | None = None,
    after: After | None = None,
) -> ViewT:
    """Return a view, sync or async as the one given, with what comes before and after it.

    Args:
        view: The view.
        before: Returns an answer, and the view does not run, or None.
        abefore: Does so instead for an async view, where something has to be waited for.
        after: Returns what is answered, given what the view has answered.
    """

    def finished(request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
        return after(request, response) if after else response

    if iscoroutinefunction(view):

        @functools.wraps(view)
        async def awrapper(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
            if abefore:
                answer = await abefore(request, kwargs)
            else:
                answer = before(request, kwargs) if before else None
            return answer or finished(request, await view(request, *args, **kwargs))

        return cast("ViewT", awrapper)

    @functools.wraps(view)
    def wrapper(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        answer = before(request, kwargs) if before else None
        return answer or finished(request, view(request, *args, **kwargs))

    return cast("ViewT", wrapper)
