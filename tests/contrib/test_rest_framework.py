"""Streams behind Django REST framework: whom it lets in, and for how long."""

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import AnonymousUser, User
from django.core.cache import cache
from django.core.exceptions import ImproperlyConfigured, PermissionDenied
from django.db import OperationalError
from django.http import Http404
from django.test import AsyncClient
from django.urls import include, path
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.validation import validate_schema
from jwt import ExpiredSignatureError
from pytest_django import Settings
from rest_framework.authentication import (
    BaseAuthentication,
    SessionAuthentication,
    TokenAuthentication,
)
from rest_framework.authtoken.models import Token
from rest_framework.exceptions import APIException, NotFound
from rest_framework.permissions import BasePermission, IsAuthenticated
from rest_framework.test import APIClient
from rest_framework.throttling import UserRateThrottle
from rest_framework.versioning import AcceptHeaderVersioning, URLPathVersioning
from rest_framework_simplejwt.authentication import JWTAuthentication
from rest_framework_simplejwt.tokens import AccessToken

from django_sse import Event, acancel, apublish
from django_sse.contrib.rest_framework import EventStreamAPIView
from django_sse.mixins import LoginRequiredMixin
from django_sse.streaming import permission_rechecks
from django_sse.testing import streams as kit
from tests.streams import EventReader, goes_on, open_stream, reading, until

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.urls(__name__),
    pytest.mark.usefixtures("often", "everything_ends"),
]

STREAM = "text/event-stream"


@pytest.fixture
def often(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.DJANGO_SSE = {"STORE": "memory", "RECHECK_INTERVAL": 1, "RETRY": 1000}
    monkeypatch.setattr(permission_rechecks, "_RETRY_SECONDS", 0.05)
    cache.clear()
    Asked.answers, Mapped.users = [], []


class Tokens(EventStreamAPIView):
    """Headlines of the day."""

    groups = ["news"]
    authentication_classes = [TokenAuthentication]
    permission_classes = [IsAuthenticated]


class Sessions(Tokens):
    authentication_classes = [SessionAuthentication]
    stoppable = True


class Tickets(Tokens):
    authentication_classes = [JWTAuthentication]


class TokensOrSessions(Tokens):
    authentication_classes = [TokenAuthentication, SessionAuthentication]


class TokenOrNobody(TokenAuthentication):  # type: ignore[misc]
    """It leaves it to others to say who comes with a token that is none any more."""

    def authenticate_credentials(self, key: str) -> Any:
        found = Token.objects.filter(key=key).first()
        return (found.user, found) if found else None


class Fading(Tokens):
    authentication_classes = [TokenOrNobody, SessionAuthentication]


class OncePerHour(UserRateThrottle):  # type: ignore[misc]
    rate = "1/hour"


class Throttled(Tokens):
    throttle_classes = [OncePerHour]


class Versioned(Tokens):
    class versioning_class(AcceptHeaderVersioning):  # type: ignore[misc]  # noqa: N801
        allowed_versions = ["2"]

    async def initial_events(self) -> AsyncIterator[Event]:
        version: Any = self.request
        yield Event(version.version)


class InPath(Tokens):
    class versioning_class(URLPathVersioning):  # type: ignore[misc]  # noqa: N801
        allowed_versions = ["v1"]


class Says(BasePermission):  # type: ignore[misc]
    """Says what a test wants it to."""

    def has_permission(self, request: Any, view: Any) -> bool:
        assert view.request is request
        answer = Asked.answers.pop(0) if Asked.answers else True
        if isinstance(answer, BaseException):
            raise answer
        return bool(answer)


class Asked(Tokens):
    permission_classes = [IsAuthenticated, Says]
    answers: ClassVar[list[Any]] = []


class Maps(BaseAuthentication):  # type: ignore[misc]
    """Takes whoever comes for the user that a test wants."""

    def authenticate(self, request: Any) -> Any:
        return Mapped.users.pop(0) if len(Mapped.users) > 1 else Mapped.users[0], "credentials"


class Mapped(EventStreamAPIView):
    groups = ["news"]
    authentication_classes = [Maps]
    users: ClassVar[list[Any]] = []


class IsOwn(BasePermission):  # type: ignore[misc]
    message = "Not yours."

    def has_object_permission(self, request: Any, view: Any, obj: Any) -> bool:
        return bool(request.user.username == obj)


class OfObject(Tokens):
    permission_classes = [IsAuthenticated, IsOwn]

    async def authorize(self, groups: Sequence[str]) -> None:
        await sync_to_async(self.check_object_permissions)(self.request, self.kwargs["name"])

    async def still_allowed(self) -> bool:
        await self.authorize([])
        return True


class Open(EventStreamAPIView):
    groups = ["news"]


class Refusing(Open):
    async def authorize(self, groups: Sequence[str]) -> None:
        raise {"django": PermissionDenied, "missing": Http404, "found": NotFound}[
            self.kwargs["how"]
        ]("No.")


class Seen(Tokens):
    """Says whom it sees."""

    async def get_groups(self) -> list[str]:
        user, request = await self.request.auser(), self.request
        return [f"of-{user.pk}-{request.user.pk}-{request.auth.user_id}"]  # type: ignore[attr-defined]


@dataclass
class Author:
    name: str


@dataclass
class Headline:
    title: str
    author: Author


class Typed(Open):
    """Headlines, as they come."""

    event_types = {"headline": Headline, "message": str}


urlpatterns = [
    path("tokens/", Tokens.as_view()),
    path("sessions/", Sessions.as_view()),
    path("tickets/", Tickets.as_view()),
    path("either/", TokensOrSessions.as_view()),
    path("fading/", Fading.as_view()),
    path("throttled/", Throttled.as_view()),
    path("versioned/", Versioned.as_view()),
    path("<str:version>/in-path/", InPath.as_view()),
    path("asked/", Asked.as_view()),
    path("mapped/", Mapped.as_view()),
    path("objects/<str:name>/", OfObject.as_view()),
    path("open/", Open.as_view()),
    path("refusing/<str:how>/", Refusing.as_view()),
    path("seen/", Seen.as_view()),
    path("typed/", Typed.as_view()),
    path("login/", include("rest_framework.urls")),
]


async def user(name: str = "ada") -> User:
    return await User.objects.acreate_user(name)


async def token(of: User | None = None) -> dict[str, str]:
    """Return the headers of a client that has a token."""
    made = await Token.objects.acreate(user=of or await user())
    return {"Authorization": f"Token {made.key}", "Accept": STREAM}


async def ask(url: str, headers: dict[str, str] | None = None, **options: Any) -> Any:
    method = options.pop("method", "get")
    return await getattr(AsyncClient(**options), method)(url, headers=headers)


@asynccontextmanager
async def streaming(url: str, headers: dict[str, str]) -> AsyncIterator[EventReader]:
    response = await ask(url, headers)
    assert response.status_code == 200
    assert response["Content-Type"] == "text/event-stream; charset=utf-8"
    async with reading(response) as stream:
        yield stream


# Who is let in


async def test_a_token_opens_the_stream() -> None:
    async with streaming("/tokens/", await token()) as stream:
        await goes_on(stream)


async def test_a_jwt_opens_the_stream() -> None:
    ticket = await sync_to_async(AccessToken.for_user)(await user())
    async with streaming("/tickets/", {"Authorization": f"Bearer {ticket}"}) as stream:
        await goes_on(stream)
    refused = await ask("/tickets/", {"Authorization": f"Bearer {ticket}x"})
    assert refused.status_code == 401
    assert refused.json()["code"] == "token_not_valid"


async def test_a_session_opens_the_stream(async_client: AsyncClient) -> None:
    assert (await ask("/sessions/")).status_code == 403
    await async_client.aforce_login(await user())
    async with reading(await async_client.get("/sessions/")) as stream:
        await goes_on(stream)


@pytest.mark.parametrize("accept", [STREAM, "*/*", "application/json", ""])
async def test_a_stranger_is_refused_as_by_any_endpoint(accept: str) -> None:
    refused = await ask("/tokens/", {"Accept": accept} if accept else {})
    assert refused.status_code == 401
    assert refused["WWW-Authenticate"] == "Token"
    assert refused["Cache-Control"] == "no-store"
    assert refused["Content-Type"] == "application/json"
    assert refused.json() == {"detail": "Authentication credentials were not provided."}


async def test_a_stranger_with_a_browser_is_refused_by_a_page() -> None:
    refused = await ask("/tokens/", {"Accept": "text/html"})
    assert refused.status_code == 401
    assert refused["Content-Type"].startswith("text/html")
    assert "not provided" in refused.content.decode()
    assert "event-stream.js" not in refused.content.decode()


async def test_a_wrong_token_is_refused_although_there_is_a_session(
    async_client: AsyncClient,
) -> None:
    await async_client.aforce_login(await user())
    refused = await async_client.get("/either/", headers={"Authorization": "Token wrong"})
    assert refused.status_code == 401


async def test_a_session_does_not_count_where_only_tokens_do(async_client: AsyncClient) -> None:
    await async_client.aforce_login(await user())
    assert (await async_client.get("/tokens/")).status_code == 401


async def test_the_view_sees_the_user_of_the_token_and_not_the_session(
    async_client: AsyncClient,
) -> None:
    await async_client.aforce_login(await user("grace"))
    ada = await user()
    response = await async_client.get("/seen/", headers=await token(ada))
    async with reading(response) as stream:
        await apublish(f"of-{ada.pk}-{ada.pk}-{ada.pk}", "for ada")
        assert (await stream.next_event()).data == "for ada"
        await acancel(user=ada, reason="kicked")
        [close] = await stream.rest()
        assert close.json() == {"reason": "kicked"}


async def test_the_view_sees_the_user_without_any_middleware(settings: Settings) -> None:
    settings.MIDDLEWARE = []
    ada = await user()
    async with streaming("/seen/", await token(ada)) as stream:
        await apublish(f"of-{ada.pk}-{ada.pk}-{ada.pk}", "for ada")
        assert (await stream.next_event()).data == "for ada"


async def test_head_is_asked_as_well() -> None:
    assert (await ask("/tokens/", method="head")).status_code == 401
    answer = await ask("/tokens/", await token(), method="head")
    assert (answer.status_code, answer.streaming) == (200, True)
    assert answer["Content-Type"].startswith(STREAM)


async def test_who_is_throttled_is_told_when_to_come_back() -> None:
    headers = {**await token(), "Accept": "*/*"}
    async with streaming("/throttled/", headers):
        refused = await ask("/throttled/", headers)
    assert refused.status_code == 429
    assert 3500 < int(refused["Retry-After"]) <= 3600
    assert "throttled" in refused.json()["detail"]


async def test_an_event_source_that_is_throttled_comes_back_later(settings: Settings) -> None:
    headers = await token()
    async with streaming("/throttled/", headers):
        refused = await ask("/throttled/", headers)
        assert (refused.status_code, refused["Refused-Status"]) == (200, "429")
        async with reading(refused) as ended:
            assert await ended.rest() == []
            assert ended.reconnection_time is not None
            assert ended.reconnection_time > 3_500_000
        settings.DJANGO_SSE = {**settings.DJANGO_SSE, "REFUSE_SOFTLY": False}
        assert (await ask("/throttled/", headers)).status_code == 429


async def test_the_version_is_asked_for() -> None:
    headers = await token()
    async with streaming("/versioned/", {**headers, "Accept": f"{STREAM}; version=2"}) as stream:
        assert (await stream.next_event()).data == "2"
    refused = await ask("/versioned/", {**headers, "Accept": f"{STREAM}; version=3"})
    assert (refused.status_code, refused.json()["detail"]) == (
        406,
        'Invalid version in "Accept" header.',
    )
    async with streaming("/v1/in-path/", headers):
        pass
    assert (await ask("/v2/in-path/", headers)).status_code == 404


@pytest.mark.parametrize(
    ("url", "accept"),
    [
        ("/tokens/", "application/json"),
        ("/tokens/", "image/png"),
        ("/tokens/?format=json", STREAM),
    ],
)
async def test_what_a_stream_cannot_be_is_not_acceptable(url: str, accept: str) -> None:
    refused = await ask(url, {**await token(), "Accept": accept})
    assert refused.status_code == 406
    assert "Accept" in refused.json()["detail"]


async def test_other_methods_are_refused_and_described() -> None:
    headers = {**await token(), "Accept": "application/json"}
    refused = await ask("/tokens/", headers, method="post")
    assert (refused.status_code, refused["Allow"]) == (405, "GET, HEAD, OPTIONS")
    described = await ask("/tokens/", headers, method="options")
    assert described.json()["description"] == "Headlines of the day."
    assert (await ask("/tokens/", method="options")).status_code == 401


async def test_a_session_needs_the_csrf_token_to_stop_a_stream(settings: Settings) -> None:
    client = AsyncClient(enforce_csrf_checks=True)
    await client.aforce_login(await user())
    async with reading(await client.get("/sessions/")) as stream:
        refused = await client.delete("/sessions/")
        assert refused.status_code == 403
        assert "CSRF" in refused.json()["detail"]
        await goes_on(stream)
        client.cookies[settings.CSRF_COOKIE_NAME] = "a" * 32
        answer = await client.delete("/sessions/", headers={"X-CSRFToken": "a" * 32})
        assert answer.status_code == 204
        [close] = await stream.rest()
        assert close.json() == {"reason": "stopped"}


@pytest.mark.parametrize(
    ("how", "status", "detail"),
    [("django", 403, "No."), ("missing", 404, "No."), ("found", 404, "No.")],
)
async def test_what_the_view_raises_is_rendered(how: str, status: int, detail: str) -> None:
    refused = await ask(f"/refusing/{how}/", {"Accept": STREAM})
    assert (refused.status_code, refused.json()) == (status, {"detail": detail})


async def test_permissions_for_an_object_are_asked_in_authorize() -> None:
    headers = await token()
    async with streaming("/objects/ada/", headers) as stream:
        await goes_on(stream)
    refused = await ask("/objects/grace/", headers)
    assert (refused.status_code, refused.json()) == (403, {"detail": "Not yours."})


async def test_a_preflight_gets_no_further() -> None:
    answer = await AsyncClient().options(
        "/tokens/", headers={"Access-Control-Request-Method": "GET", "Origin": "https://a.example"}
    )
    assert (answer.status_code, answer.content) == (204, b"")


# While the stream is open


async def come_back(stream: EventReader, headers: dict[str, str]) -> Any:
    """The stream ends without a last word; return what the client gets that comes back."""
    assert await stream.rest() == []
    # The one of the beginning, and one of its own time.
    assert stream.text.count("retry:") == 2
    return {**headers, "Last-Event-ID": stream.last_event_id}


async def test_a_revoked_token_ends_its_stream() -> None:
    headers = await token()
    async with streaming("/tokens/", headers) as stream:
        await Token.objects.all().adelete()
        back = await come_back(stream, headers)
    assert (await ask("/tokens/", back)).status_code == 401


async def test_who_has_a_new_token_by_then_goes_on() -> None:
    ada = await user()
    headers = await token(ada)
    async with streaming("/tokens/", headers) as stream:
        await Token.objects.all().adelete()
        back = await come_back(stream, headers)
    await apublish("news", "missed")
    async with streaming("/tokens/", {**back, **await token(ada)}) as stream:
        assert (await stream.next_event()).data == "missed"


async def test_a_user_who_is_deactivated_is_out() -> None:
    headers = await token()
    async with streaming("/tokens/", headers) as stream:
        await User.objects.aupdate(is_active=False)
        await come_back(stream, headers)


async def test_a_jwt_that_has_expired_ends_its_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    ticket = await sync_to_async(AccessToken.for_user)(await user())
    headers = {"Authorization": f"Bearer {ticket}", "Accept": STREAM}
    async with streaming("/tickets/", headers) as stream:
        monkeypatch.setattr("jwt.api_jwt.PyJWT._validate_exp", expired)
        back = await come_back(stream, headers)
        assert (await ask("/tickets/", back)).status_code == 401


def expired(*args: Any, **kwargs: Any) -> None:
    raise ExpiredSignatureError


async def test_a_logout_ends_its_stream(async_client: AsyncClient) -> None:
    await async_client.aforce_login(await user())
    async with reading(await async_client.get("/sessions/")) as stream:
        await async_client.alogout()
        await stream.rest()
    assert (await async_client.get("/sessions/")).status_code == 403


async def test_a_permission_that_was_taken_away_ends_its_stream_for_good() -> None:
    async with streaming("/asked/", await token()) as stream:
        Asked.answers = [False]
        [close] = await stream.rest()
    assert close.json() == {"reason": "not allowed any more"}


async def test_an_object_that_is_not_theirs_any_more_ends_their_stream() -> None:
    async with streaming("/objects/ada/", await token()) as stream:
        await User.objects.aupdate(username="other")
        [close] = await stream.rest()
    assert close.json() == {"reason": "not allowed any more"}


class Unavailable(APIException):  # type: ignore[misc]
    status_code = 503


@pytest.mark.parametrize("failure", [OperationalError("away"), Unavailable()], ids=type)
async def test_a_failure_is_no_answer(failure: Exception) -> None:
    async with streaming("/asked/", await token()) as stream:
        Asked.answers = [failure]
        await until(lambda: not Asked.answers)
        await goes_on(stream)
        Asked.answers = [failure, failure]
        assert await stream.rest() == []


@pytest.mark.parametrize("error", [Http404(), NotFound(), ValueError()], ids=type)
async def test_everything_else_that_is_raised_is_a_no(error: Exception) -> None:
    async with streaming("/asked/", await token()) as stream:
        Asked.answers = [error]
        [close] = await stream.rest()
    assert close.event == "close"


async def test_the_yes_of_another_user_is_a_no() -> None:
    ada, grace = await user(), await user("grace")
    Mapped.users = [ada]
    async with streaming("/mapped/", {}) as stream:
        await goes_on(stream)
        Mapped.users = [grace]
        assert await stream.rest() == []
    Mapped.users = [AnonymousUser(), ada]
    async with streaming("/mapped/", {}) as stream:
        assert await stream.rest() == []


async def test_who_was_let_in_by_a_token_is_not_taken_for_who_has_a_session(
    async_client: AsyncClient,
) -> None:
    headers = await token()
    async with streaming("/fading/", headers) as stream:
        # Nobody is logged in. Only the token was ever somebody's.
        await Token.objects.all().adelete()
        await come_back(stream, headers)
    assert (await ask("/fading/", headers)).status_code == 401


async def test_throttles_and_versions_are_not_asked_again() -> None:
    asked = []

    class Counted(OncePerHour):
        def allow_request(self, request: Any, view: Any) -> bool:
            asked.append(request)
            return True

    headers = await token()
    view = Asked.as_view(throttle_classes=[Counted])
    async with open_stream(view, headers=headers) as stream:
        Asked.answers = [True, True]
        await until(lambda: not Asked.answers)
        await goes_on(stream)
    assert len(asked) == 1


# In tests


@pytest.fixture
def members_only(settings: Settings) -> None:
    settings.ROOT_URLCONF = MembersOnly


class MembersOnly:
    urlpatterns = [path("tokens/", Tokens.as_view())]


@pytest.mark.usefixtures("members_only")
async def test_the_credentials_of_the_frameworks_test_client_are_used() -> None:
    client = APIClient()
    async with kit.open_stream(client, "/tokens/") as stream:
        assert stream.status == 401
    client.credentials(HTTP_AUTHORIZATION=(await token())["Authorization"])
    async with kit.open_stream(client, "/tokens/") as stream:
        await apublish("news", "hi")
        assert (await stream.next()).data == "hi"
        await stream.nothing()


@pytest.mark.usefixtures("members_only")
async def test_whom_the_frameworks_test_client_logs_in_by_force_has_the_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers: list[bool] = []
    ask_view = permission_rechecks._answer_of

    async def noted(question: Any) -> bool:
        answers.append(await ask_view(question))
        return answers[-1]

    monkeypatch.setattr(permission_rechecks, "_answer_of", noted)
    ada = await User.objects.acreate(username="ada")
    client = APIClient()
    client.force_authenticate(ada)
    async with kit.open_stream(client, "/tokens/") as stream:
        await apublish("news", "hi", exclude=ada)
        await stream.nothing()
        await until(lambda: answers)
        assert answers[0] is True
        await acancel(user=ada)
        await stream.closed()
    await sync_to_async(client.force_authenticate)()
    async with kit.open_stream(client, "/tokens/") as stream:
        assert stream.status == 401


# Views that cannot be


def test_a_mixin_that_does_not_see_the_user_is_refused() -> None:
    class Guarded(LoginRequiredMixin, Open):
        pass

    with pytest.raises(ImproperlyConfigured, match="permission_classes"):
        Guarded.as_view()


def test_a_stream_is_not_resumed_without_being_asked() -> None:
    with pytest.raises(ImproperlyConfigured, match="resume_seconds"):
        Open.as_view(resume_seconds=60)


# The page and the schema


async def test_a_browser_gets_a_page_that_shows_the_events() -> None:
    page = await ask("/open/", {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
    html = page.content.decode()
    assert page.status_code == 200
    assert page["Content-Type"] == "text/html; charset=utf-8"
    assert '<script type="module" src="/static/django_sse/event-stream.js"></script>' in html
    assert 'id="event-stream"' in html
    assert 'url.searchParams.delete("format")' in html
    assert "new ShownStream" in (await ask("/open/?format=api")).content.decode()


async def test_a_page_for_strangers_is_no_stream_of_theirs() -> None:
    page = await ask("/tokens/", {**await token(), "Accept": "text/html"})
    assert page.status_code == 200
    assert "new ShownStream" in page.content.decode()
    assert (await ask("/tokens/", {"Accept": "text/html"})).status_code == 401


def schema() -> Any:
    made = SchemaGenerator().get_schema(request=None, public=True)  # type: ignore[no-untyped-call]
    validate_schema(made)  # type: ignore[no-untyped-call]
    return json.loads(json.dumps(made))


def test_the_schema_has_the_streams_and_the_types_of_their_events() -> None:
    made = schema()
    operation = made["paths"]["/typed/"]["get"]
    assert operation["description"] == "Headlines, as they come."
    assert [each["name"] for each in operation["parameters"]] == ["Last-Event-ID"]
    assert operation["responses"]["200"]["content"] == {
        STREAM: {"schema": {"$ref": "#/components/schemas/TypedEvents"}}
    }
    components = made["components"]["schemas"]
    headline, message = components["TypedEvents"]["oneOf"]
    [event] = headline["properties"]["event"]["allOf"]
    assert event == {"type": "string", "enum": ["headline"]}
    assert headline["properties"]["data"] == {"$ref": "#/components/schemas/Headline"}
    assert message["properties"]["data"] == {"type": "string"}
    assert components["Headline"]["properties"]["author"] == {"$ref": "#/components/schemas/Author"}
    assert components["Author"]["properties"]["name"]["type"] == "string"


def test_the_schema_of_a_stream_without_types_is_text() -> None:
    made = schema()
    operation = made["paths"]["/tokens/"]["get"]
    assert operation["responses"]["200"]["content"] == {STREAM: {"schema": {"type": "string"}}}
    assert operation["security"] == [{"tokenAuth": []}]
    assert "delete" in made["paths"]["/sessions/"]
    assert "delete" not in made["paths"]["/tokens/"]
