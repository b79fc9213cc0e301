"""Access, through all of Django: middleware, sessions, users, and the hand-off."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, cast

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth import login as auth_login
from django.contrib.auth.backends import ModelBackend
from django.contrib.auth.decorators import login_required, permission_required, user_passes_test
from django.contrib.auth.middleware import AuthenticationMiddleware
from django.contrib.auth.models import AnonymousUser, Permission, User
from django.contrib.sessions.backends.db import SessionStore
from django.core.exceptions import ImproperlyConfigured, PermissionDenied
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse, StreamingHttpResponse
from django.test import AsyncClient, RequestFactory
from django.urls import path
from django.utils.functional import SimpleLazyObject, cached_property
from django.views import View
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_GET, require_safe
from django.views.decorators.vary import vary_on_headers
from pytest_django import Settings

from django_sse import Event, apublish
from django_sse.asgi import get_asgi_application
from django_sse.decorators import event_generator, event_stream
from django_sse.mixins import (
    AccessMixin,
    LoginRequiredMixin,
    PermissionRequiredMixin,
    UserPassesTestMixin,
)
from django_sse.streaming.hub import open_streams
from django_sse.views import EventStreamView
from tests.http.test_asgi import Request, streaming
from tests.streams import get, reading, until

APP = "https://app.example.com"
PERMISSION = "auth.view_user"


class Members(LoginRequiredMixin, EventStreamView):
    groups = ["news"]


class Readers(PermissionRequiredMixin, EventStreamView):
    groups = ["news"]
    permission_required = PERMISSION


class Lucky(UserPassesTestMixin, EventStreamView):
    """Whom the request names may pass."""

    groups = ["news"]

    async def test_func(self) -> bool:
        user = await self.request.auser()
        if "deny" in self.request.GET:
            raise PermissionDenied
        return user.get_username() == self.request.GET.get("lucky")


class Stacked(LoginRequiredMixin, PermissionRequiredMixin, UserPassesTestMixin, EventStreamView):
    groups = ["news"]
    permission_required = [PERMISSION, "auth.change_user"]

    async def test_func(self) -> bool:
        return "lucky" in self.request.GET


def asks(name: str) -> Any:
    """Return a test that wants to be named by the request, and notes that it was asked."""

    async def test_func(self: Any) -> bool:
        asked_for.append(name)
        return name in self.request.GET

    return test_func


asked_for: list[str] = []


class StaffOnly(UserPassesTestMixin):
    test_func = asks("staff")


class InTenant(UserPassesTestMixin):
    test_func = asks("tenant")


class OfTenant(InTenant):
    """Adds to its base's test."""

    async def test_func(self) -> bool:
        return await super().test_func() and "of" in self.request.GET


class ByTheWay:
    """No mixin of the library's."""

    test_func = asks("by-the-way")


class Cooperative(UserPassesTestMixin):
    async def test_func(self) -> bool:
        return "cooperative" in self.request.GET and await super().test_func()


class TwoTests(StaffOnly, InTenant, EventStreamView):
    groups = ["news"]


class OverriddenTest(OfTenant, StaffOnly, EventStreamView):
    groups = ["news"]


class BetweenThem(OfTenant, StaffOnly, InTenant, EventStreamView):
    """Another test keeps the first one from asking the last."""

    groups = ["news"]


class PlainTest(StaffOnly, ByTheWay, EventStreamView):
    groups = ["news"]


class OwnTest(StaffOnly, InTenant, EventStreamView):
    groups = ["news"]
    test_func = asks("own")


class CooperativeTest(Cooperative, EventStreamView):
    groups = ["news"]


class Viewers(PermissionRequiredMixin):
    permission_required = PERMISSION


class Changers(PermissionRequiredMixin):
    permission_required = ("auth.change_user",)


class TwoPermissions(Viewers, Changers, EventStreamView):  # type: ignore[misc]
    groups = ["news"]


class Said(PermissionRequiredMixin):
    @property
    def permission_required(self) -> str:  # type: ignore[override]
        return f"auth.{self.request.GET['may']}_user"


class SaidByTheRequest(Said, Viewers, EventStreamView):  # type: ignore[override]
    groups = ["news"]


class OwnPermission(Viewers, Changers, EventStreamView):
    groups = ["news"]
    permission_required = (PERMISSION,)  # type: ignore[assignment]


class ViewersAtOnce(PermissionRequiredMixin):
    @cached_property
    def permission_required(self) -> list[str]:  # type: ignore[override]
        return ["auth.view_user"]


class ChangersAtOnce(PermissionRequiredMixin):
    @cached_property
    def permission_required(self) -> list[str]:  # type: ignore[override]
        return ["auth.change_user"]


class TwoCached(ViewersAtOnce, ChangersAtOnce, EventStreamView):
    groups = ["news"]


class ByTheUrl(PermissionRequiredMixin):
    permission_required = PERMISSION

    def setup(self, *args: Any, **kwargs: Any) -> None:
        super().setup(*args, **kwargs)
        self.permission_required = PERMISSION


class SetUp(ByTheUrl, Changers, EventStreamView):  # type: ignore[misc]
    """What is set on the view would replace what the other mixin asks for."""

    groups = ["news"]


class OfStaff(StaffOnly):
    """Renames it."""


class OfAnybody(StaffOnly):
    async def test_func(self) -> bool:
        return True


class InheritedTest(OfStaff, OfAnybody, EventStreamView):
    groups = ["news"]


times_asked: list[None] = []


class InDepartment(UserPassesTestMixin):
    async def test_func(self) -> bool:
        times_asked.append(None)
        user = await self.request.auser()
        return user.is_authenticated and bool(user.is_staff)


class Department(InDepartment, EventStreamView):
    groups = ["news"]


class DepartmentWithoutAuser(UserPassesTestMixin, EventStreamView):
    groups = ["news"]

    async def test_func(self) -> bool:
        times_asked.append(None)
        return await sync_to_async(lambda: bool(self.request.user.is_staff))()


class Found(UserPassesTestMixin, EventStreamView):
    groups = ["news"]

    async def test_func(self) -> bool:
        raise Http404


class AsksNothing(AccessMixin, EventStreamView):
    groups = ["news"]


class Page(LoginRequiredMixin, View):
    """A view that is no stream."""

    async def get(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse("for members")


class Secretive(UserPassesTestMixin, View):
    """A view that answers OPTIONS itself."""

    async def test_func(self) -> bool:
        return False

    async def get(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse("for members")

    async def options(self, request: HttpRequest) -> HttpResponse:  # type: ignore[override]
        return HttpResponse("for members")


async def guard(request: HttpRequest) -> None: ...


async def generate(request: HttpRequest) -> AsyncIterator[Event]:
    yield Event("for members")
    await asyncio.Event().wait()


async def is_someone(user: User | AnonymousUser) -> bool:
    return user.get_username() == "someone"


# Round the view, round the guard of a group, and round a generator.
DECORATORS: dict[str, Any] = {
    "login": login_required,
    "permission": permission_required(PERMISSION),
    "forbidding": permission_required(PERMISSION, raise_exception=True),
    "test": user_passes_test(is_someone),  # type: ignore[arg-type]
    "never-cache": never_cache,
    "vary": vary_on_headers("X-Tenant"),
    "get": require_GET,
    "safe": require_safe,
    "exempt": csrf_exempt,
}
PLACES = ("outside", "guard", "generator")


@event_stream("news")
async def guarded_by_name(request: HttpRequest, name: str) -> None:
    if (await request.auser()).get_username() != name:
        raise PermissionDenied


@event_generator
async def generated_for(request: HttpRequest) -> AsyncIterator[str]:
    yield (await request.auser()).get_username()


urlpatterns = [
    path("guarded-by-name/<str:name>/", guarded_by_name),
    path("generated-for/", generated_for),
    path("members/", Members.as_view()),
    path("readers/", Readers.as_view()),
    path("lucky/", Lucky.as_view()),
    path("stacked/", Stacked.as_view()),
    path("page/", Page.as_view()),
    path("department/", Department.as_view()),
    path("found/", Found.as_view()),
    path("asks-nothing/", AsksNothing.as_view()),
    path("secretive/", Secretive.as_view()),
    path("two-tests/", TwoTests.as_view()),
    path("overridden-test/", OverriddenTest.as_view()),
    path("plain-test/", PlainTest.as_view()),
    path("between-them/", BetweenThem.as_view()),
    path("own-test/", OwnTest.as_view()),
    path("cooperative-test/", CooperativeTest.as_view()),
    path("two-permissions/", TwoPermissions.as_view()),
    path("two-cached/", TwoCached.as_view()),
    path("own-permission/", OwnPermission.as_view()),
    path("set-up/", SetUp.as_view()),
    path("inherited/", InheritedTest.as_view()),
    path("said-permission/", SaidByTheRequest.as_view()),
]
for _name, _decorator in DECORATORS.items():
    urlpatterns += [
        path(f"outside/{_name}/", _decorator(event_stream("news")(guard))),
        path(f"guard/{_name}/", event_stream("news")(_decorator(guard))),
        path(f"generator/{_name}/", _decorator(event_generator(generate))),
    ]

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.urls(__name__),
    pytest.mark.usefixtures("of_members"),
]


@pytest.fixture
def of_members(settings: Settings, everything_ends: None) -> None:
    settings.DJANGO_SSE = {
        "STORE": "memory",
        "ALLOWED_ORIGINS": [APP],
        "ALLOW_CREDENTIALS": True,
    }


def user_with(*permissions: str) -> User:
    user = User.objects.create_user("someone")
    names = [permission.partition(".")[2] for permission in permissions]
    user.user_permissions.set(Permission.objects.filter(codename__in=names))
    return user


async def log_in(*permissions: str) -> bytes:
    """Return the cookies of a user who is logged in."""
    client = AsyncClient()
    await client.aforce_login(await sync_to_async(user_with)(*permissions))
    return f"sessionid={client.cookies['sessionid'].value}".encode()


async def ask(url: str, cookie: bytes = b"", *, method: str = "GET", headers: Any = ()) -> Request:
    """Return an answer that is no stream, to a page of another origin."""
    path_, _, query = url.partition("?")
    sent = [(b"host", b"testserver"), (b"origin", APP.encode()), (b"cookie", cookie), *headers]
    request = Request(
        get_asgi_application(),
        path_,
        query_string=query.encode(),
        headers=sent,
        method=method,
        server=("testserver", 80),
    )
    await request.start()
    await request.rest()
    return request


def with_cookie(url: str, cookie: bytes) -> Any:
    path_, _, query = url.partition("?")
    headers = [(b"host", b"testserver"), (b"cookie", cookie)]
    return streaming(get_asgi_application(), path_, query_string=query.encode(), headers=headers)


def assert_refused(answer: Request, status: int) -> None:
    assert answer.status == status
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["access-control-allow-origin"] == APP
    assert answer.headers["access-control-allow-credentials"] == "true"
    assert {"Origin", "Cookie"} <= set(answer.headers["vary"].split(", "))
    assert "location" not in answer.headers
    # RFC 9110, 15.5.2; and none that a browser prompts for: RFC 9110, 11.6.1.
    scheme = answer.headers.get("www-authenticate", "").partition(" ")[0].lower()
    assert scheme not in ("basic", "digest", "negotiate", "ntlm")
    assert bool(scheme) is (status == 401)
    assert open_streams() == 0


async def assert_streams(url: str, cookie: bytes) -> Request:
    request: Request
    async with with_cookie(url, cookie) as request:
        await apublish("news", "for members")
        assert (await request.next_events())[0].text == "for members"
    return request


# The mixins


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    "url", ["/members/", "/readers/", "/lucky/", "/lucky/?deny", "/stacked/", "/page/"]
)
async def test_who_is_not_logged_in_is_answered_401(url: str, method: str) -> None:
    assert_refused(await ask(url, method=method), 401)


async def test_a_session_that_has_ended_is_answered_401() -> None:
    assert_refused(await ask("/members/", b"sessionid=1234567890abcdef1234567890abcdef"), 401)


@pytest.mark.parametrize("url", ["/readers/", "/lucky/?lucky=other", "/lucky/?deny", "/stacked/"])
async def test_who_may_not_is_answered_403(url: str) -> None:
    assert_refused(await ask(url, await log_in()), 403)


@pytest.mark.parametrize("url", ["/members/", "/lucky/?lucky=someone"])
async def test_a_user_who_is_logged_in_is_streamed_to(url: str) -> None:
    await assert_streams(url, await log_in())


async def test_a_user_with_the_permission_is_streamed_to() -> None:
    await assert_streams("/readers/", await log_in(PERMISSION))


async def test_permissions_that_properties_keep_are_all_asked_for() -> None:
    cookie = await log_in(PERMISSION)
    assert_refused(await ask("/two-cached/", cookie), 403)
    permission = await Permission.objects.aget(codename="change_user")
    await (await User.objects.aget()).user_permissions.aadd(permission)
    await assert_streams("/two-cached/", cookie)


class Refusing(ModelBackend):
    """Refuses permissions where Django's sync methods ask it."""

    def has_perm(self, user_obj: Any, perm: str, obj: Any = None) -> bool:
        raise PermissionDenied


async def test_a_backend_that_is_not_async_is_asked_for_permissions(settings: Settings) -> None:
    cookie = await log_in(PERMISSION)
    settings.AUTHENTICATION_BACKENDS = [
        f"{__name__}.Refusing",
        "django.contrib.auth.backends.ModelBackend",
    ]
    assert_refused(await ask("/readers/", cookie), 403)


class Suspending(ModelBackend):
    """Finds no user who is suspended, where Django's sync methods ask it."""

    def get_user(self, user_id: Any) -> Any:
        user = super().get_user(user_id)
        return None if user and user.first_name == "suspended" else user


async def test_a_user_whom_a_backend_that_is_not_async_refuses_is_nobody(
    settings: Settings,
) -> None:
    settings.AUTHENTICATION_BACKENDS = [f"{__name__}.Suspending"]
    cookie = await log_in(PERMISSION)
    await assert_streams("/members/", cookie)
    await User.objects.aupdate(first_name="suspended")
    assert_refused(await ask("/members/", cookie), 401)


def lowers_user(get_response: Callable[[HttpRequest], Any]) -> Callable[..., Any]:
    """Takes an admin's rights away where she has not asked for them."""

    async def middleware(request: HttpRequest) -> Any:
        user: Any = request.user
        await sync_to_async(bool)(user)
        user.is_superuser = False
        return await get_response(request)

    return middleware


setattr(lowers_user, "async_capable", True)  # noqa: B010
setattr(lowers_user, "sync_capable", False)  # noqa: B010


async def test_what_a_middleware_does_to_the_user_counts(settings: Settings) -> None:
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, f"{__name__}.lowers_user"]
    client = AsyncClient()
    await client.aforce_login(await User.objects.acreate_superuser("admin"))
    assert (await client.get("/readers/")).status_code == 403
    assert (await client.get("/members/")).status_code == 200


async def test_mixins_all_have_to_pass() -> None:
    cookie = await log_in(PERMISSION)
    assert_refused(await ask("/stacked/?lucky", cookie), 403)
    permission = await Permission.objects.aget(codename="change_user")
    await (await User.objects.aget()).user_permissions.aadd(permission)
    assert_refused(await ask("/stacked/", cookie), 403)
    await assert_streams("/stacked/?lucky", cookie)


@pytest.mark.parametrize(
    ("url", "refused"),
    [
        ("/two-tests/?staff&tenant", ["/two-tests/?staff", "/two-tests/?tenant"]),
        (
            "/overridden-test/?staff&tenant&of",
            [f"/overridden-test/?{query}" for query in ("staff&tenant", "staff&of", "tenant&of")],
        ),
        (
            "/between-them/?staff&tenant&of",
            [f"/between-them/?{query}" for query in ("staff&tenant", "staff&of", "tenant&of")],
        ),
        ("/plain-test/?staff&by-the-way", ["/plain-test/?staff", "/plain-test/?by-the-way"]),
        # What a mixin inherits is asked for, whatever another one makes of it.
        ("/inherited/?staff", ["/inherited/"]),
        # A method of the view's own goes before what it inherits.
        ("/own-test/?own", ["/own-test/?staff&tenant"]),
        ("/cooperative-test/?cooperative", ["/cooperative-test/"]),
    ],
)
async def test_each_test_of_a_mixin_has_to_pass(url: str, refused: list[str]) -> None:
    cookie = await log_in()
    for other in refused:
        assert_refused(await ask(other, cookie), 403)
    await assert_streams(url, cookie)


async def test_after_a_no_nothing_else_is_asked() -> None:
    cookie = await log_in()
    asked_for.clear()
    assert_refused(await ask("/two-tests/?tenant", cookie), 403)
    assert asked_for == ["staff"]
    await assert_streams("/two-tests/?staff&tenant", cookie)
    assert asked_for == ["staff", "staff", "tenant"]


@pytest.mark.parametrize("permission", [PERMISSION, "auth.change_user"])
async def test_the_permissions_of_each_mixin_are_asked_for(permission: str) -> None:
    cookie = await log_in(permission)
    assert_refused(await ask("/two-permissions/", cookie), 403)
    other = {PERMISSION, "auth.change_user"} - {permission}
    codename = other.pop().partition(".")[2]
    user = await User.objects.aget()
    await user.user_permissions.aadd(await Permission.objects.aget(codename=codename))
    await assert_streams("/two-permissions/", cookie)


async def test_a_permission_of_the_view_goes_before_those_that_it_inherits() -> None:
    await assert_streams("/own-permission/", await log_in(PERMISSION))


async def test_what_several_mixins_ask_for_is_not_replaced_by_what_is_set_on_the_view() -> None:
    with pytest.raises(ImproperlyConfigured, match="what Viewers and Changers ask for"):
        TwoPermissions.as_view(permission_required=PERMISSION)
    # Where it is set for each request, nobody is let in.
    assert (await ask("/set-up/", await log_in(PERMISSION))).status == 500


async def test_a_permission_may_depend_on_the_request() -> None:
    cookie = await log_in(PERMISSION, "auth.change_user")
    assert_refused(await ask("/said-permission/?may=delete", cookie), 403)
    await assert_streams("/said-permission/?may=change", cookie)


async def test_a_mixin_that_asks_for_nothing_now_lets_nobody_in_beside_another() -> None:
    assert_refused(await ask("/said-permission/?may=", await log_in(PERMISSION)), 403)


@pytest.mark.parametrize("view", [UserPassesTestMixin, PermissionRequiredMixin])
async def test_a_mixin_that_asks_for_nothing_lets_nobody_in(view: type[Any]) -> None:
    """As where a view is not made by ``as_view``, which refuses it."""
    careless = type("Careless", (view, EventStreamView), {"groups": ["news"]})()
    request = get()
    user = await sync_to_async(user_with)(PERMISSION)
    request.auser = sync_to_async(lambda: user)
    careless.setup(request)
    assert (await careless.dispatch(request)).status_code == 403


async def test_an_async_view_that_is_no_stream_can_be_guarded() -> None:
    cookie = await log_in()
    assert (await ask("/page/", cookie)).status == 200
    assert_refused(await ask("/page/", method="OPTIONS"), 401)


@pytest.mark.parametrize("allowed", [[], ["https://other.example.com"], [APP], ["*"]])
@pytest.mark.parametrize(
    "url", ["/members/", "/readers/", "/lucky/?deny", "/stacked/", "/page/", "/secretive/"]
)
async def test_a_preflight_is_answered_without_asking_anybody(
    url: str, allowed: list[str], settings: Settings
) -> None:
    settings.DJANGO_SSE = {"STORE": "memory", "ALLOWED_ORIGINS": allowed}
    headers = [(b"access-control-request-method", b"GET")]
    request = await ask(url, method="OPTIONS", headers=headers)
    assert request.status == 204
    assert not request.body
    given = {name for name in request.headers if name.startswith("access-control-")}
    if allowed in ([APP], ["*"]):
        assert {"access-control-allow-origin", "access-control-allow-headers"} <= given
    else:
        assert not given


async def test_options_that_is_no_preflight_is_guarded_like_any_request() -> None:
    assert_refused(await ask("/secretive/", method="OPTIONS"), 401)
    assert_refused(await ask("/secretive/", await log_in(), method="OPTIONS"), 403)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_what_looks_like_a_preflight_without_being_one_does_not_pass(method: str) -> None:
    headers = [(b"access-control-request-method", b"GET")]
    assert_refused(await ask("/page/", method=method, headers=headers), 401)


async def test_a_gate_that_sets_the_user_to_nobody_counts_though_auser_was_set() -> None:
    class Members(LoginRequiredMixin, EventStreamView):
        groups = ["news"]

    request = get(headers={"Accept": "text/event-stream"})
    user = await sync_to_async(user_with)()
    request.user, request.auser = user, sync_to_async(lambda: user)
    assert (await Members.as_view()(request)).status_code == 200
    request.user = AnonymousUser()
    assert (await Members.as_view()(request)).status_code == 401


async def coroutine() -> bool:
    return False


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (HttpResponse, "not HttpResponse"),
        (coroutine, "`await` it"),
        (lambda: "no", "not str"),
        (lambda: [False], "not list"),
    ],
    ids=["response", "coroutine", "text", "list"],
)
async def test_an_answer_that_is_true_without_being_meant_so_is_a_no(
    answer: Any, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Careless(UserPassesTestMixin, EventStreamView):
        groups = ["news"]

        async def test_func(self) -> Any:
            return answer()

    request = get()
    user = await sync_to_async(user_with)()
    request.auser = sync_to_async(lambda: user)
    assert (await Careless.as_view()(request)).status_code == 403
    [error] = [record for record in caplog.records if record.levelname == "ERROR"]
    assert "Careless gave a wrong answer: this counts as a no" in error.getMessage()
    assert told in caplog.text


@pytest.mark.parametrize("url", ["/readers/", "/department/"])
async def test_rights_that_are_taken_away_end_the_streams_that_they_let_in(
    url: str, settings: Settings
) -> None:
    settings.DJANGO_SSE = {**settings.DJANGO_SSE, "RECHECK_INTERVAL": 1}
    cookie = await log_in(PERMISSION)
    everyone = User.objects.filter(username="someone")
    await everyone.aupdate(is_staff=True)
    request: Request
    async with with_cookie(url, cookie) as request:
        await apublish("news", "for members")
        assert (await request.next_events())[0].text == "for members"
        await everyone.aupdate(is_staff=False)
        await (await everyone.aget()).user_permissions.aclear()
        [close] = await request.next_events()
        assert (close.event, close.json()) == ("close", {"reason": "not allowed any more"})
    assert_refused(await ask(url, cookie), 403)


def of_a_token(request: Any, user: User) -> None:
    request.user = user


def of_a_token_for_async_views_as_well(request: Any, user: User) -> None:
    async def auser() -> User:
        return user

    request.user, request.auser = user, auser


def beside_a_session(request: Any, user: User) -> None:
    in_a_session(request, user)
    of_a_token_for_async_views_as_well(request, user)


def in_a_session(request: Any, user: User) -> None:
    request.session = SessionStore()
    auth_login(request, user)
    request.session.save()
    AuthenticationMiddleware(lambda _: HttpResponse()).process_request(request)


def by_way_of_a_gate(request: Any, user: User) -> None:
    in_a_session(request, user)
    whoever = request.user

    def found() -> Any:
        suspended = not User.objects.get(pk=user.pk).is_staff
        return AnonymousUser() if suspended else whoever

    request.user = SimpleLazyObject(found)


@pytest.mark.parametrize(
    "authenticate",
    [
        of_a_token,
        of_a_token_for_async_views_as_well,
        beside_a_session,
        in_a_session,
        by_way_of_a_gate,
    ],
)
async def test_however_a_user_was_found_his_rights_are_read_again(
    authenticate: Callable[[Any, User], None], settings: Settings
) -> None:
    settings.DJANGO_SSE = {**settings.DJANGO_SSE, "RECHECK_INTERVAL": 1}
    user = await sync_to_async(user_with)(PERMISSION)
    everyone = User.objects.filter(pk=user.pk)
    await everyone.aupdate(is_staff=True)
    user = await everyone.aget()
    request = get()
    await sync_to_async(authenticate)(request, user)
    view = Department if hasattr(request, "auser") else DepartmentWithoutAuser
    async with reading(await view.as_view()(request)) as reader:
        await apublish("news", "for members")
        assert (await reader.next_event()).data == "for members"
        asked_before = len(times_asked)
        await until(lambda: len(times_asked) > asked_before)
        await apublish("news", "still for members")
        assert (await reader.next_event()).data == "still for members"
        await everyone.aupdate(is_staff=False)
        assert [event.event for event in await reader.rest()] == ["close"]


async def close_the_gate(users: QuerySet[User]) -> None:
    await users.aupdate(is_staff=False)


async def deactivate(users: QuerySet[User]) -> None:
    await users.aupdate(is_active=False)


async def delete(users: QuerySet[User]) -> None:
    await users.adelete()


@pytest.mark.parametrize(
    ("authenticate", "end"),
    [
        (by_way_of_a_gate, close_the_gate),
        (of_a_token, delete),
        (of_a_token, deactivate),
        (of_a_token_for_async_views_as_well, delete),
        (of_a_token_for_async_views_as_well, deactivate),
    ],
)
async def test_a_login_that_another_middleware_vouches_for_is_asked_about_again(
    authenticate: Callable[[Any, User], None],
    end: Callable[[QuerySet[User]], Awaitable[None]],
    settings: Settings,
) -> None:
    settings.DJANGO_SSE = {**settings.DJANGO_SSE, "RECHECK_INTERVAL": 1}
    everyone = User.objects.filter(pk=(await sync_to_async(user_with)(PERMISSION)).pk)
    await everyone.aupdate(is_staff=True)
    request = get()
    await sync_to_async(authenticate)(request, await everyone.aget())
    async with reading(await Members.as_view()(request)) as reader:
        await apublish("news", "for members")
        assert (await reader.next_event()).data == "for members"
        await end(everyone)
        assert [event.event for event in await reader.rest()] == ["close"]


async def test_a_test_that_finds_nothing_is_a_refusal_that_nobody_keeps() -> None:
    answer = await ask("/found/", await log_in())
    assert answer.status == 404
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["access-control-allow-origin"] == APP


# Django's LoginRequiredMiddleware


@pytest.fixture
def login_required_everywhere(settings: Settings) -> None:
    settings.MIDDLEWARE = [
        *settings.MIDDLEWARE,
        "django.contrib.auth.middleware.LoginRequiredMiddleware",
    ]


@pytest.mark.usefixtures("login_required_everywhere")
@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("url", ["/members/", "/readers/", "/lucky/?deny", "/stacked/", "/page/"])
async def test_where_all_have_to_log_in_views_with_a_guard_answer_401(
    url: str, method: str
) -> None:
    assert_refused(await ask(url, method=method), 401)


@pytest.mark.usefixtures("login_required_everywhere")
async def test_where_all_have_to_log_in_preflights_pass_and_members_are_streamed_to() -> None:
    headers = [(b"access-control-request-method", b"GET")]
    answer = await ask("/members/", method="OPTIONS", headers=headers)
    assert answer.status == 204
    assert answer.headers["access-control-allow-origin"] == APP
    await assert_streams("/members/", await log_in())


@pytest.mark.usefixtures("login_required_everywhere")
@pytest.mark.parametrize("url", ["/outside/exempt/", "/generator/exempt/"])
async def test_where_all_have_to_log_in_no_view_without_a_guard_is_open(url: str) -> None:
    assert (await ask(url)).status == 302


@pytest.mark.usefixtures("login_required_everywhere")
async def test_where_all_have_to_log_in_a_base_that_asks_nothing_opens_nothing() -> None:
    assert (await ask("/asks-nothing/")).status == 302


# What would guard nothing


def test_a_mixin_behind_the_view_is_refused_when_the_class_is_made() -> None:
    with pytest.raises(ImproperlyConfigured, match="put them first"):
        type("Behind", (EventStreamView, LoginRequiredMixin), {})
    with pytest.raises(ImproperlyConfigured, match="Behind names its access mixins after the view"):
        type("Behind", (UserPassesTestMixin, View, LoginRequiredMixin), {})


WITHOUT_PERMISSION = [None, "", [], (), [""], [PERMISSION, ""], iter([PERMISSION])]


@pytest.mark.parametrize("permission", WITHOUT_PERMISSION)
def test_a_permission_mixin_without_a_permission_is_refused(permission: Any) -> None:
    class Careless(PermissionRequiredMixin, EventStreamView):
        groups = ["news"]
        permission_required = permission

    with pytest.raises(ImproperlyConfigured, match="Careless needs `permission_required`"):
        Careless.as_view()
    Careless.as_view(permission_required=PERMISSION)


@pytest.mark.parametrize("permission", WITHOUT_PERMISSION)
def test_so_is_one_beside_a_mixin_with_a_permission(permission: Any) -> None:
    class Careless(PermissionRequiredMixin):
        permission_required = permission

    class View(Viewers, Careless, EventStreamView): ...

    with pytest.raises(ImproperlyConfigured, match="Careless needs `permission_required`"):
        View.as_view()


@pytest.mark.parametrize(
    ("mixin", "method"),
    [
        (PermissionRequiredMixin, "has_permission"),
        (PermissionRequiredMixin, "get_permission_required"),
        (UserPassesTestMixin, "get_test_func"),
    ],
)
def test_a_method_of_djangos_mixins_that_would_not_be_asked_is_refused(
    mixin: type[Any], method: str
) -> None:
    said = {
        "permission_required": PERMISSION,
        "test_func": asks("staff"),
        method: lambda self: False,
    }
    view: Any = type("Ported", (mixin, EventStreamView), said)
    with pytest.raises(ImproperlyConfigured, match=f"Ported has `{method}`"):
        view.as_view()


def test_a_test_that_is_missing_or_sync_is_refused() -> None:
    class Missing(UserPassesTestMixin, EventStreamView): ...

    class Sync(UserPassesTestMixin, EventStreamView):
        def test_func(self) -> bool:  # type: ignore[override]
            return True

    class SyncMixin(UserPassesTestMixin):
        def test_func(self) -> bool:  # type: ignore[override]
            return True

    class Second(StaffOnly, SyncMixin, EventStreamView): ...

    for view, name in ((Missing, "Missing"), (Sync, "Sync"), (Second, "SyncMixin")):
        with pytest.raises(
            ImproperlyConfigured, match=rf"^{name} needs `async def test_func\(self\)`"
        ):
            view.as_view()


@pytest.mark.parametrize(
    "mixin", [LoginRequiredMixin, PermissionRequiredMixin, UserPassesTestMixin]
)
def test_a_sync_view_is_refused(mixin: type[Any]) -> None:
    async def test_func(self: Any) -> bool:
        return True

    attributes = {
        "permission_required": PERMISSION,
        "test_func": test_func,
        "get": lambda self, request: HttpResponse(),
    }
    view: Any = type("SyncPage", (mixin, View), attributes)
    with pytest.raises(ImproperlyConfigured, match="SyncPage is not an async view"):
        view.as_view()


async def test_a_project_without_users_is_told(settings: Settings) -> None:
    settings.MIDDLEWARE = []
    with pytest.raises(ImproperlyConfigured, match="need AuthenticationMiddleware"):
        await AsyncClient().get("/members/")


# Django's own decorators


@pytest.mark.parametrize(
    ("place", "name"),
    [
        (place, name)
        for place in PLACES
        for name in DECORATORS
        # These change a response, and a guard returns none.
        if place != "guard" or name not in ("never-cache", "vary")
    ],
)
async def test_a_decorator_of_djangos_lets_a_user_pass(place: str, name: str) -> None:
    request = await assert_streams(f"/{place}/{name}/", await log_in(PERMISSION))
    assert request.headers["content-type"].startswith("text/event-stream")
    if name == "vary":
        assert "X-Tenant" in request.headers["vary"]
    if name == "never-cache":
        assert "no-store" in request.headers["cache-control"]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", ["login", "permission", "test"])
async def test_a_decorator_of_djangos_redirects_who_is_not_logged_in(place: str, name: str) -> None:
    answer = await ask(f"/{place}/{name}/")
    assert answer.status == 302
    assert answer.headers["location"].startswith("/accounts/login/")


@pytest.mark.parametrize("place", PLACES)
async def test_a_decorator_of_djangos_may_forbid(place: str) -> None:
    assert (await ask(f"/{place}/forbidding/")).status == 403


@pytest.mark.parametrize("place", ["outside", "generator"])
async def test_a_decorator_of_djangos_may_refuse_a_method(place: str) -> None:
    assert (await ask(f"/{place}/get/", method="HEAD")).status == 405
    assert (await ask(f"/{place}/safe/", method="HEAD")).status == 200


@pytest.mark.parametrize("name", DECORATORS)
async def test_a_preflight_passes_a_decorator_on_the_guard(name: str) -> None:
    headers = [(b"access-control-request-method", b"GET")]
    answer = await ask(f"/guard/{name}/", method="OPTIONS", headers=headers)
    assert answer.status == 204


async def test_a_generator_that_is_exempt_takes_posts_from_other_pages() -> None:
    """Behind the whole stack, where CsrfViewMiddleware refuses them otherwise."""
    refused = await ask("/generator/login/", await log_in(), method="POST")
    assert refused.status == 403
    async with streaming(
        get_asgi_application(),
        "/generator/exempt/",
        method="POST",
        headers=[(b"host", b"testserver")],
    ) as request:
        assert (await request.next_events())[0].text == "for members"


# Where a middleware has set another user


class TokenUser:
    """Knows Django's old methods alone."""

    is_authenticated = True
    pk = 7

    def has_perms(self, permissions: Sequence[str]) -> bool:
        return set(permissions) <= {PERMISSION}


def sets_user(get_response: Callable[[HttpRequest], Any]) -> Callable[..., Any]:
    """Lets somebody act as somebody else, or as nobody, for all views that ask ``user``."""

    async def middleware(request: HttpRequest) -> Any:
        how, _, name = request.headers.get("X-As", "").partition(" ")
        if how == "user":
            request.user = await User.objects.aget(username=name)
        elif how == "lazy":
            request.user = SimpleLazyObject(lambda: User.objects.get(username=name))  # type: ignore[assignment]
        elif how == "nobody":
            request.user = AnonymousUser()
        elif how == "none":
            request.user = None  # type: ignore[assignment]
        elif how == "token":
            request.user = TokenUser()  # type: ignore[assignment]
        elif how == "both":
            # Who has come by a token acts as somebody else.
            bearer = await request.auser()

            async def auser() -> Any:
                return bearer

            setattr(request, "auser", auser)  # noqa: B010
            request.user = await User.objects.aget(username=name)
        return await get_response(request)

    return middleware


setattr(sets_user, "async_capable", True)  # noqa: B010
setattr(sets_user, "sync_capable", False)  # noqa: B010


@pytest.fixture
async def admin(settings: Settings) -> AsyncClient:
    """The browser of a user with all permissions, in a project that lets her act as others."""
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, f"{__name__}.sets_user"]
    client = AsyncClient()
    await client.aforce_login(await User.objects.acreate_superuser("admin"))
    await User.objects.acreate_user("eve")
    return client


@pytest.mark.parametrize("how", ["user eve", "lazy eve", "both eve"])
@pytest.mark.parametrize(
    ("url", "status"),
    [
        ("/members/", 200),
        ("/readers/", 403),
        ("/lucky/?lucky=eve", 200),
        ("/lucky/?lucky=admin", 403),
        ("/guarded-by-name/admin/", 403),
        ("/guarded-by-name/eve/", 200),
        ("/generated-for/", 200),
    ],
)
async def test_who_acts_as_somebody_else_gets_no_more_than_that_one(
    how: str, url: str, status: int, admin: AsyncClient
) -> None:
    response = await admin.get(url, headers={"X-As": how})
    assert response.status_code == status
    if url == "/generated-for/":
        assert isinstance(response, StreamingHttpResponse)
        chunks = [chunk async for chunk in cast("AsyncIterator[bytes]", response)]
        assert b"data: eve" in b"".join(chunks)


class OnlyOthers(LoginRequiredMixin, EventStreamView):
    """Lets who is logged in no further than that."""

    groups = ["news"]

    async def authorize(self, groups: Sequence[str]) -> None:
        raise PermissionDenied


class Undecided:
    """Says of being authenticated what is no bool."""

    pk = "anybody"

    def __init__(self, is_authenticated: object) -> None:
        self.is_authenticated = is_authenticated


@pytest.mark.parametrize(("answer", "status"), [(None, 401), (0, 401), ("", 401), (1, 403)])
async def test_who_is_not_quite_authenticated_is_nobody(answer: object, status: int) -> None:
    request = RequestFactory().get("/")
    request.user = Undecided(answer)  # type: ignore[assignment]
    response = await OnlyOthers.as_view()(request)
    assert response.status_code == status


def test_no_helper_takes_the_place_of_what_guards_a_view() -> None:
    with pytest.raises(ImproperlyConfigured, match=r"Helped\._allowed_groups"):

        class Helped(EventStreamView):
            async def _allowed_groups(self) -> list[str]:
                return ["news"]


@pytest.mark.parametrize("how", ["nobody", "none"])
@pytest.mark.parametrize("url", ["/members/", "/readers/", "/lucky/?lucky=admin"])
async def test_who_acts_as_nobody_is_nobody(how: str, url: str, admin: AsyncClient) -> None:
    assert (await admin.get(url, headers={"X-As": how})).status_code == 401


async def test_the_permissions_of_a_user_who_knows_no_async_methods_are_asked(
    admin: AsyncClient,
) -> None:
    for url, status in {"/readers/": 200, "/two-permissions/": 403}.items():
        assert (await admin.get(url, headers={"X-As": "token"})).status_code == status
