"""Access to async class-based views, refused in a way that clients of event streams understand.

Django's own mixins of these names read the user synchronously, which raises in an async view, and
redirect to a login page: an EventSource follows, gets HTML, and gives up.

Several mixins that have each a test, or permissions, of their own are all asked. A class that
overrides what it inherits replaces that, as anywhere in Python.

Rights may be taken away, so tests and permissions are asked again every ``RECHECK_INTERVAL`` while
a stream is open. Logins are watched for all streams.
"""

import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
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

from django_sse.access.logins import is_found_by_others, resolve_user, user_of
from django_sse.access.owners import is_nobody
from django_sse.http.cors import add_cors, is_preflight, preflight_answer
from django_sse.http.response import no_store
from django_sse.logs import log_seldom
from django_sse.streaming.permission_rechecks import WrongAnswerError, is_yes

if TYPE_CHECKING:
    _Base = View
else:
    # Mixins are no views themselves.
    _Base = object

# RFC 9110, 15.5.2, wants a challenge with a 401. Browsers prompt for the schemes that they know,
# and do not know this one.
_CHALLENGE: Final = 'Cookie realm="login"'

_PERMISSIONS: Final = "permission_required"
_TEST: Final = "test_func"
# Where a view keeps what its mixins have asked for, to ask it again.
_ASKED: Final = "_django_sse_asked"

Test = Callable[[], Awaitable[bool]]


class AccessMixin(_Base):
    """What the mixins have in common: says at once where one of them would not guard its view."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if View in cls.__mro__ and cls.__mro__.index(View) < cls.__mro__.index(AccessMixin):
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
        view = super().as_view(**initkwargs)
        if issubclass(cls, LoginRequiredMixin | PermissionRequiredMixin | UserPassesTestMixin):
            # Django's LoginRequiredMiddleware would redirect, preflights as well.
            view.login_required = False  # type: ignore[attr-defined]
        return view


class LoginRequiredMixin(AccessMixin):
    """Answers 401 to who is not logged in."""

    __was_active = False

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        """Answer the request, or refuse it. A preflight has no cookies, and is answered here."""
        answer = partial(super().dispatch, request, *args, **kwargs)
        if is_found_by_others(request):
            # Django's own logins are watched.
            _ask_again_later(self, self.__is_logged_in)
        return _answer_if(self.__is_logged_in, request, answer)

    async def __is_logged_in(self) -> bool:
        user = await _user(self.request)
        # A backend may let inactive users in. But one who was active, and is not, is out.
        is_active = bool(getattr(user, "is_active", True))
        is_out = self.__was_active and not is_active
        self.__was_active |= is_active
        # A primary key says nothing of that, and is no user of a request.
        is_in = bool(getattr(user, "is_authenticated", False)) and not is_nobody(user)
        return is_in and not is_out


class PermissionRequiredMixin(AccessMixin):
    """Answers 403 to users without all of the permissions, and 401 to who is not logged in."""

    permission_required: str | Sequence[str] | None = None
    """The permission, such as ``"news.view_headline"``, or several of them."""

    @classmethod
    def as_view(cls, **initkwargs: Any) -> Any:
        """Return the view.

        Raises:
            ImproperlyConfigured: There is no ``permission_required``, or that of a mixin is empty,
                or there is a method of Django's mixin that is not asked, or the view is not async.
        """
        _refuse_djangos(cls, "has_permission", "get_permission_required")
        for owner, permissions in _declared(cls, PermissionRequiredMixin, _PERMISSIONS, initkwargs):
            # A property says so at each request.
            if not hasattr(permissions, "__get__") and not (
                # A generator would say so once.
                isinstance(permissions, Collection) and _names(permissions)
            ):
                raise ImproperlyConfigured(
                    f"{owner.__name__} needs `permission_required`, such as "
                    '`permission_required = "news.view_headline"`, or a list of them.'
                )
        return super().as_view(**initkwargs)

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        """Answer the request, or refuse it. A preflight has no cookies, and is answered here."""
        answer = partial(super().dispatch, request, *args, **kwargs)
        _ask_again_later(self, self.__has_permissions)
        return _answer_if(self.__has_permissions, request, answer)

    async def __has_permissions(self) -> bool:
        permissions: list[str] = []
        for asked in _bound(self, PermissionRequiredMixin, _PERMISSIONS):
            if not (names := _names(asked)):
                return False
            permissions += names
        user = await _user(self.request)
        if is_nobody(user) or not permissions:
            return False
        # Not `ahas_perms`, which passes over what a project overrides of the sync ones, as backends
        # do that are not async.
        return bool(await sync_to_async(user.has_perms)(permissions))


class UserPassesTestMixin(AccessMixin):
    """Answers 403 to users who do not pass a test, and 401 to who is not logged in."""

    @classmethod
    def as_view(cls, **initkwargs: Any) -> Any:
        """Return the view.

        Raises:
            ImproperlyConfigured: There is no ``test_func``, or one is not async, or there is a
                method of Django's mixin that is not asked, or the view is not async.
        """
        _refuse_djangos(cls, "get_test_func")
        for owner, test_func in _declared(cls, UserPassesTestMixin, _TEST, initkwargs):
            if not iscoroutinefunction(test_func):
                raise ImproperlyConfigured(f"{owner.__name__} needs `async def test_func(self)`.")
        return super().as_view(**initkwargs)

    async def test_func(self) -> bool:
        """Say whether ``self.request`` may be answered. ``PermissionDenied`` says no, too.

        This one says yes, for tests that ask ``super().test_func()`` as well.
        """
        return True

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        """Answer the request, or refuse it. A preflight has no cookies, and is answered here."""
        answer = partial(super().dispatch, request, *args, **kwargs)
        _ask_again_later(self, self.__passes)
        return _answer_if(self.__passes, request, answer)

    async def __passes(self) -> bool:
        tests = _bound(self, UserPassesTestMixin, _TEST)
        try:
            for test_func in tests:
                if not is_yes(await test_func()):
                    return False
        except PermissionDenied:
            return False
        except WrongAnswerError as error:
            view = type(self).__qualname__
            log_seldom(
                f"test_func of {view} is taken for a no.", level=logging.ERROR, exc_info=error
            )
            return False
        return bool(tests)


def tests_of(view: View) -> Sequence[Test]:
    """Return what the mixins of a view have asked its request for, to ask it again."""
    tests: Sequence[Test] = vars(view).get(_ASKED, ())
    return tests


def _ask_again_later(view: View, test: Test) -> None:
    vars(view).setdefault(_ASKED, []).append(test)


def _refuse_djangos(view: type, *names: str) -> None:
    for name in names:
        if hasattr(view, name):
            raise ImproperlyConfigured(
                f"{view.__name__} has `{name}`, which Django's mixin asks and that of django_sse "
                "does not: write `async def test_func(self)` of UserPassesTestMixin instead."
            )


def _names(permissions: Any) -> list[str]:
    """Return the names of the permissions asked for; none, if one of them is empty."""
    names = [permissions] if isinstance(permissions, str) else list(permissions or ())
    return names if all(names) else []


def _owners(cls: type, mixin: type, name: str) -> list[type]:
    """Return the classes that say what to ask for: a class that does so speaks for its bases, and
    where it does not, each of its bases speaks for itself. The mixin itself asks for nothing."""
    if name in vars(cls):
        return [] if cls is mixin else [cls]
    owners = [owner for base in cls.__bases__ for owner in _owners(base, mixin, name)]
    return list(dict.fromkeys(owners))


def _declared(
    view: type, mixin: type, name: str, initkwargs: Mapping[str, Any]
) -> list[tuple[type, Any]]:
    """Return what is asked for, each with the class that says so; None, if no class does.

    Raises:
        ImproperlyConfigured: An argument of ``as_view`` would replace what several classes say.
    """
    owners = _owners(view, mixin, name)
    if name in initkwargs:
        _refuse_to_replace(view, owners, name)
        return [(view, initkwargs[name])]
    return [(owner, getattr(owner, name)) for owner in owners] or [(view, None)]


def _bound(view: View, mixin: type, name: str) -> list[Any]:
    """Return what is asked for, bound to a view as its attributes are.

    Raises:
        ImproperlyConfigured: What was set on the view would replace what several classes say.
    """
    owners = _owners(type(view), mixin, name)
    if name in vars(view):
        _refuse_to_replace(type(view), owners, name)
        return [vars(view)[name]]
    bound = []
    for owner in owners:
        said = vars(owner)[name]
        bound.append(said.__get__(view, type(view)) if hasattr(said, "__get__") else said)
        # A cached property keeps its value there, where the next one would find it.
        vars(view).pop(name, None)
    return bound


def _refuse_to_replace(view: type, owners: Sequence[type], name: str) -> None:
    if len(owners) > 1:
        raise ImproperlyConfigured(
            f"{view.__name__} sets `{name}` on the view, in place of what "
            f"{' and '.join(owner.__name__ for owner in owners)} ask for. Override it in the class "
            "of the view, or write a property in the mixin."
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
