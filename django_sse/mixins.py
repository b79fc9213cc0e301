"""Access mixins for async class-based views, whose refusals clients of event streams understand.

Django's own mixins of these names read the user synchronously, which raises in an async view. They
also redirect to a login page: an EventSource follows the redirect, gets HTML, and gives up.

If several mixins of a view each have a test or permissions, all of them are checked. A class that
overrides what it inherits replaces it, as everywhere in Python.

Rights may be taken away, so all of this is checked again every ``RECHECK_INTERVAL`` while a stream
is open.
"""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from asgiref.sync import iscoroutinefunction, sync_to_async
from django.core.exceptions import ImproperlyConfigured, PermissionDenied
from django.http import (
    Http404,
    HttpRequest,
    HttpResponse,
    HttpResponseForbidden,
    HttpResponseNotFound,
)
from django.views import View

from django_sse.access.logins import resolve_user, user_of
from django_sse.access.owners import is_nobody
from django_sse.http.base_view import Test, remember_test
from django_sse.http.cors import add_cors, is_preflight, preflight_answer
from django_sse.http.response import no_store
from django_sse.http.sessions import unavailable_without_session
from django_sse.logs import log_seldom
from django_sse.streaming.permission_rechecks import LoginEndedError, WrongAnswerError, is_yes

if TYPE_CHECKING:
    _Base = View
else:
    # A mixin is not a view itself.
    _Base = object

# RFC 9110, 15.5.2, requires a challenge with a 401. Browsers prompt for the schemes that they know,
# and they do not know this one.
_CHALLENGE: Final = 'Cookie realm="login"'

_PERMISSIONS: Final = "permission_required"
_TEST: Final = "test_func"


class AccessMixin(_Base):
    """The base of the mixins, which refuses a class that its mixins would not guard."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if View in cls.__mro__ and cls.__mro__.index(View) < cls.__mro__.index(AccessMixin):
            raise ImproperlyConfigured(
                f"{cls.__name__} names its access mixins after the view, where nothing calls them: "
                "put them first, as in `class Mine(LoginRequiredMixin, EventStreamView)`."
            )

    @classmethod
    def as_view(cls, **initkwargs: Any) -> Any:
        """Return the view.

        Raises:
            ImproperlyConfigured: The view is not async, or a mixin has nothing to check.
        """
        if not cls.view_is_async:
            raise ImproperlyConfigured(
                f"{cls.__name__} is not an async view, which the mixins of django_sse need: write "
                "its handlers as `async def`, or use the mixins of django.contrib.auth."
            )
        view = super().as_view(**initkwargs)
        if issubclass(cls, LoginRequiredMixin | PermissionRequiredMixin | UserPassesTestMixin):
            # Django's LoginRequiredMiddleware would redirect every request, even preflights.
            view.login_required = False  # type: ignore[attr-defined]
        return view


class LoginRequiredMixin(AccessMixin):
    """Answers 401 to users who are not logged in."""

    __was_active = False

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        """Answer the request, or refuse it. A preflight has no cookies, and is answered here."""
        answer = partial(super().dispatch, request, *args, **kwargs)
        self._ask_again_later()
        return _answer_if(self.__is_logged_in, request, answer)

    def _ask_again_later(self) -> None:
        remember_test(self, self.__is_still_logged_in)

    async def __is_logged_in(self) -> bool:
        user = await _user(self.request)
        # A backend may let inactive users in. But a user who was active, and is not, is out.
        is_active = bool(getattr(user, "is_active", True))
        is_out = self.__was_active and not is_active
        self.__was_active |= is_active
        # A primary key has no `is_authenticated`, and is not the user of a request.
        is_in = bool(getattr(user, "is_authenticated", False)) and not is_nobody(user)
        return is_in and not is_out

    async def __is_still_logged_in(self) -> bool:
        if not await self.__is_logged_in():
            raise LoginEndedError
        return True


class PermissionRequiredMixin(AccessMixin):
    """Answers 403 to users who lack a permission, and 401 to users who are not logged in."""

    permission_required: str | Sequence[str] | None = None
    """The permission, such as ``"news.view_headline"``, or several of them."""

    @classmethod
    def as_view(cls, **initkwargs: Any) -> Any:
        """Return the view.

        Raises:
            ImproperlyConfigured: ``permission_required`` is missing, or empty in one of the
                classes; the view has a method of Django's mixin, which nothing would call; or the
                view is not async.
        """
        _refuse_methods_of_django(cls, "has_permission", "get_permission_required")
        definitions = _definitions(cls, PermissionRequiredMixin, _PERMISSIONS, initkwargs)
        for definer, permissions in definitions:
            # A property has no value before a request.
            if not hasattr(permissions, "__get__") and not (
                # A generator could be read only once.
                isinstance(permissions, Collection) and _permission_names(permissions)
            ):
                raise ImproperlyConfigured(
                    f"{definer.__name__} needs `permission_required`, such as "
                    '`permission_required = "news.view_headline"`, or a list of them.'
                )
        return super().as_view(**initkwargs)

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        """Answer the request, or refuse it. A preflight has no cookies, and is answered here."""
        answer = partial(super().dispatch, request, *args, **kwargs)
        remember_test(self, self.__has_permissions)
        return _answer_if(self.__has_permissions, request, answer)

    async def __has_permissions(self) -> bool:
        permissions: list[str] = []
        for required in _bound_values(self, PermissionRequiredMixin, _PERMISSIONS):
            if not (names := _permission_names(required)):
                return False
            permissions += names
        user = await _user(self.request)
        if is_nobody(user) or not permissions:
            return False
        # Not `ahas_perms`, which ignores what a project overrides of the sync methods. Backends
        # that are not async override only those.
        return bool(await sync_to_async(user.has_perms)(permissions))


class UserPassesTestMixin(AccessMixin):
    """Answers 403 to users who do not pass a test, and 401 to users who are not logged in."""

    @classmethod
    def as_view(cls, **initkwargs: Any) -> Any:
        """Return the view.

        Raises:
            ImproperlyConfigured: ``test_func`` is missing, or not async in one of the classes; the
                view has a method of Django's mixin, which nothing would call; or the view is not
                async.
        """
        _refuse_methods_of_django(cls, "get_test_func")
        for definer, test_func in _definitions(cls, UserPassesTestMixin, _TEST, initkwargs):
            if not iscoroutinefunction(test_func):
                raise ImproperlyConfigured(f"{definer.__name__} needs `async def test_func(self)`.")
        return super().as_view(**initkwargs)

    async def test_func(self) -> bool:
        """Return whether ``self.request`` may be answered. ``PermissionDenied`` means no, too.

        This default returns True, for tests that also call ``super().test_func()``.
        """
        return True

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        """Answer the request, or refuse it. A preflight has no cookies, and is answered here."""
        answer = partial(super().dispatch, request, *args, **kwargs)
        remember_test(self, self.__passes)
        return _answer_if(self.__passes, request, answer)

    async def __passes(self) -> bool:
        tests = _bound_values(self, UserPassesTestMixin, _TEST)
        try:
            for test_func in tests:
                if not is_yes(await test_func()):
                    return False
        except PermissionDenied:
            return False
        except WrongAnswerError as error:
            view = type(self).__qualname__
            log_seldom(
                f"test_func of {view} gave a wrong answer: this counts as a no.",
                level=logging.ERROR,
                exc_info=error,
            )
            return False
        return bool(tests)


def _refuse_methods_of_django(view: type, *names: str) -> None:
    for name in names:
        if hasattr(view, name):
            raise ImproperlyConfigured(
                f"{view.__name__} has `{name}`, which Django's mixin calls and that of django_sse "
                "does not: write `async def test_func(self)` of UserPassesTestMixin instead."
            )


def _permission_names(permissions: Any) -> list[str]:
    """Return the names of the required permissions, or an empty list if one of them is empty."""
    names = [permissions] if isinstance(permissions, str) else list(permissions or ())
    return names if all(names) else []


def _definers(cls: type, mixin: type, name: str) -> list[type]:
    """Return the classes that define what a mixin checks.

    A class that defines it replaces what its bases define. Otherwise each of its bases counts. The
    mixin itself does not count.
    """
    if name in vars(cls):
        return [] if cls is mixin else [cls]
    definers = [definer for base in cls.__bases__ for definer in _definers(base, mixin, name)]
    return list(dict.fromkeys(definers))


def _definitions(
    view: type, mixin: type, name: str, initkwargs: Mapping[str, Any]
) -> list[tuple[type, Any]]:
    """Return what a mixin checks, each value with the class that defines it; None, if no class
    does.

    Raises:
        ImproperlyConfigured: An argument of ``as_view`` would replace what several classes define.
    """
    definers = _definers(view, mixin, name)
    if name in initkwargs:
        _refuse_to_replace(view, definers, name)
        return [(view, initkwargs[name])]
    return [(definer, getattr(definer, name)) for definer in definers] or [(view, None)]


def _bound_values(view: View, mixin: type, name: str) -> list[Any]:
    """Return what a mixin checks, bound to a view as its attributes are.

    Raises:
        ImproperlyConfigured: What was set on the view would replace what several classes define.
    """
    definers = _definers(type(view), mixin, name)
    if name in vars(view):
        _refuse_to_replace(type(view), definers, name)
        return [vars(view)[name]]
    bound = []
    for definer in definers:
        value = vars(definer)[name]
        bound.append(value.__get__(view, type(view)) if hasattr(value, "__get__") else value)
        # A cached property keeps its value on the view, where the next one would find it.
        vars(view).pop(name, None)
    return bound


def _refuse_to_replace(view: type, definers: Sequence[type], name: str) -> None:
    if len(definers) > 1:
        raise ImproperlyConfigured(
            f"{view.__name__} sets `{name}` on the view, which would replace what "
            f"{' and '.join(definer.__name__ for definer in definers)} ask for. Override it in the "
            "class of the view, or write a property in the mixin."
        )


async def _answer_if(test: Test, request: HttpRequest, answer: Callable[[], Any]) -> Any:
    if is_preflight(request):
        return preflight_answer(request)
    await resolve_user(request)
    try:
        passed = await test()
    except Http404:
        return add_cors(request, no_store(HttpResponseNotFound()))
    if passed:
        return await answer()
    if is_nobody(await _user(request)):
        if unavailable := await unavailable_without_session(request):
            return add_cors(request, unavailable)
        refusal = HttpResponse(status=401, headers={"WWW-Authenticate": _CHALLENGE})
    else:
        refusal = HttpResponseForbidden()
    return add_cors(request, no_store(refusal))


async def _user(request: HttpRequest) -> Any:
    if not hasattr(request, "auser") and not hasattr(request, "user"):
        raise ImproperlyConfigured(
            "The mixins of django_sse need AuthenticationMiddleware in MIDDLEWARE."
        )
    return await user_of(request)
