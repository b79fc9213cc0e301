"""Access to async class-based views, refused in a way that clients of event streams understand.

Django's own mixins of these names read the user synchronously, which raises in an async view, and
redirect to a login page: an EventSource follows, gets HTML, and gives up.
"""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from asgiref.sync import iscoroutinefunction
from django.core.exceptions import ImproperlyConfigured, PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseForbidden
from django.views import View

from django_sse.cors import add_cors, is_preflight
from django_sse.response import no_store

if TYPE_CHECKING:
    _Base = View
else:
    # Mixins are no views themselves.
    _Base = object

# RFC 9110, 15.5.2, wants a challenge with a 401. Browsers prompt for the schemes that they know,
# and do not know this one.
_CHALLENGE: Final = 'Cookie realm="login"'


class _AccessMixin(_Base):
    """Says at once where a mixin would not guard its view."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if View in cls.__mro__ and cls.__mro__.index(View) < cls.__mro__.index(_AccessMixin):
            raise ImproperlyConfigured(
                f"{cls.__name__} names its access mixins after the view, where nothing asks them: "
                "put them first, as in `class Mine(LoginRequiredMixin, EventStreamView)`."
            )

    @classmethod
    def as_view(cls, **initkwargs: Any) -> Any:
        """Return the view.

        Raises:
            ImproperlyConfigured: The view is not async, or a mixin is not told what to ask for.
        """
        if not cls.view_is_async:
            raise ImproperlyConfigured(
                f"{cls.__name__} is no async view, which the mixins of django_sse are for: write "
                "its handlers as `async def`, or take the mixins of django.contrib.auth."
            )
        return super().as_view(**initkwargs)


class LoginRequiredMixin(_AccessMixin):
    """Answers 401 to who is not logged in."""

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        """Answer the request, or refuse it. A preflight has no cookies, and passes."""
        answer = partial(super().dispatch, request, *args, **kwargs)
        return _answer_if(self._is_logged_in, request, answer)

    async def _is_logged_in(self) -> bool:
        return bool((await _user(self.request)).is_authenticated)


class PermissionRequiredMixin(_AccessMixin):
    """Answers 403 to users without all of the permissions, and 401 to who is not logged in."""

    permission_required: str | Sequence[str] | None = None
    """The permission, such as ``"news.view_headline"``, or several of them."""

    @classmethod
    def as_view(cls, **initkwargs: Any) -> Any:
        """Return the view.

        Raises:
            ImproperlyConfigured: There is no ``permission_required``, or the view is not async.
        """
        if not initkwargs.get("permission_required", cls.permission_required):
            raise ImproperlyConfigured(
                f"{cls.__name__} needs `permission_required`, such as "
                '`permission_required = "news.view_headline"`.'
            )
        return super().as_view(**initkwargs)

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        """Answer the request, or refuse it. A preflight has no cookies, and passes."""
        answer = partial(super().dispatch, request, *args, **kwargs)
        return _answer_if(self._has_permissions, request, answer)

    async def _has_permissions(self) -> bool:
        asked = self.permission_required
        permissions = [asked] if isinstance(asked, str) else asked
        return bool(await (await _user(self.request)).ahas_perms(permissions))


class UserPassesTestMixin(_AccessMixin):
    """Answers 403 to users who do not pass a test, and 401 to who is not logged in."""

    @classmethod
    def as_view(cls, **initkwargs: Any) -> Any:
        """Return the view.

        Raises:
            ImproperlyConfigured: There is no async ``test_func``, or the view is not async.
        """
        own = cls.test_func is not UserPassesTestMixin.test_func
        if not own or not iscoroutinefunction(cls.test_func):
            raise ImproperlyConfigured(f"{cls.__name__} needs `async def test_func(self)`.")
        return super().as_view(**initkwargs)

    async def test_func(self) -> bool:
        """Say whether ``self.request`` may be answered. ``PermissionDenied`` says no, too."""
        raise NotImplementedError

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        """Answer the request, or refuse it. A preflight has no cookies, and passes."""
        answer = partial(super().dispatch, request, *args, **kwargs)
        return _answer_if(self._passes, request, answer)

    async def _passes(self) -> bool:
        try:
            return await self.test_func()
        except PermissionDenied:
            return False


async def _answer_if(
    test: Callable[[], Awaitable[bool]], request: HttpRequest, answer: Callable[[], Any]
) -> Any:
    if is_preflight(request) or await test():
        return await answer()
    if (await _user(request)).is_authenticated:
        refusal: HttpResponse = HttpResponseForbidden()
    else:
        refusal = HttpResponse(status=401, headers={"WWW-Authenticate": _CHALLENGE})
    return add_cors(request, no_store(refusal))


async def _user(request: HttpRequest) -> Any:
    if not hasattr(request, "auser"):
        raise ImproperlyConfigured(
            "The mixins of django_sse need AuthenticationMiddleware in MIDDLEWARE."
        )
    return await request.auser()
