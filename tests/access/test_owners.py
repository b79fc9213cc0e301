"""Whose a stream is: ended by user, by session, left out of events that its owner has caused."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from enum import Enum
from typing import Any, ClassVar
from uuid import UUID, uuid4

import pytest
from asgiref.sync import sync_to_async
from django.conf import settings as django_settings
from django.contrib.auth.models import AnonymousUser, Group, User
from django.contrib.sessions.backends.base import SessionBase
from django.contrib.sessions.backends.db import SessionStore
from django.contrib.sessions.backends.signed_cookies import SessionStore as CookieSession
from django.db import models, transaction
from django.http import HttpRequest, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.test import AsyncClient, RequestFactory, override_settings
from django.urls import path
from django.utils.functional import SimpleLazyObject
from pytest_django import Settings

from django_sse import (
    Event,
    acancel,
    apublish,
    apublish_many,
    areopen,
    cancel,
    publish,
    reopen,
)
from django_sse.access.logins import current_user
from django_sse.access.owners import BEGAN_SESSION_KEY, is_nobody, loaded, owner_key_of, user_key
from django_sse.exceptions import InvalidEvent, InvalidGroup
from django_sse.groups.names import validate_group
from django_sse.mixins import LoginRequiredMixin
from django_sse.receivers import _note_login
from django_sse.stores import get_store
from django_sse.streaming.hub import current_hub
from django_sse.streaming.jitter import jittered_retry
from django_sse.testing.threads import in_thread
from django_sse.views import EventStreamView
from tests import redis
from tests.live.servers import unavailable
from tests.queries import queries_about
from tests.streams import EventReader, reading, until
from tests.users import logged_in, user

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.urls(__name__),
    pytest.mark.usefixtures("everything_ends"),
]


class Groups(EventStreamView):
    async def get_groups(self) -> list[str]:
        return self.request.GET.getlist("group")


class Filtered(Groups):
    def filter_event(self, event: Event) -> Event:
        return event


class Endless(EventStreamView):
    groups = ["news"]

    async def initial_events(self) -> AsyncGenerator[Event, None]:
        while True:
            yield Event("state")
            await asyncio.sleep(0.01)


class Held(Groups):
    """Its first state goes on once that is let go."""

    goes_on: ClassVar[asyncio.Event]

    async def initial_events(self) -> AsyncGenerator[Event, None]:
        yield Event("first")
        await self.goes_on.wait()
        yield Event("later")


class OfToken(Groups):
    """Whose stream it is says something else than the session."""

    async def get_owner(self) -> str | None:
        return self.request.GET.get("token")


class Guarded(LoginRequiredMixin, Groups):
    """For whoever is authenticated, by whatever means."""


class StillAuthenticated(Guarded):
    asked = 0
    seen: ClassVar[list[str]] = []

    async def still_allowed(self) -> bool:
        StillAuthenticated.asked += 1
        user: Any = await self.request.auser()
        self.seen.append(str(getattr(user, "pk", None) or user.id))
        return bool(user.is_authenticated)


class Scoped(Guarded):
    """Asks what a token lets its user do."""

    asked = 0

    async def still_allowed(self) -> bool:
        user: Any = await self.request.auser()
        Scoped.asked += 1
        return user.is_active and "news" in user.scopes


class OfAGuard(Groups):
    """Authenticates by itself who may open it."""

    async def authorize(self, groups: Sequence[str]) -> None:
        setattr(self.request, "user", TokenUser(7))  # noqa: B010


class OfWhoever(Groups):
    """Is of the user that synchronous views see."""

    async def get_owner(self) -> Any:
        return self.request.user


class TokenUser:
    """A user of whom nothing is known but what a token says."""

    is_authenticated = True
    is_anonymous = False

    def __init__(self, pk: Any) -> None:
        self.pk = pk


class TokenUserWithId:
    is_authenticated = True

    def __init__(self, pk: Any) -> None:
        self.id = pk


class Keyless:
    is_authenticated = True


class ApiClient(models.Model):
    """Who is authenticated, and no user of the project."""

    is_authenticated = True

    class Meta:
        app_label = "tests"
        managed = False

    def __str__(self) -> str:
        return str(self.pk)


class Order(models.Model):
    class Meta:
        app_label = "tests"
        managed = False

    def __str__(self) -> str:
        return str(self.pk)


def users_of_tokens(get_response: Callable[[HttpRequest], Any]) -> Callable[..., Any]:
    """Authenticates by a header, as projects do that have no sessions there."""

    async def middleware(request: HttpRequest) -> Any:
        how, _, key = request.headers.get("Authorization", "").partition(" ")
        if how == "auser":

            async def auser() -> Any:
                return TokenUser(int(key))

            setattr(request, "auser", auser)  # noqa: B010  (it is django-stubs' attribute)
        elif how == "user":
            request.user = TokenUserWithId(key)  # type: ignore[assignment]
        elif how == "lazy":
            request.user = SimpleLazyObject(lambda: User.objects.get(pk=key))  # type: ignore[assignment]
        elif how == "scoped":
            ada: Any = await User.objects.aget(pk=key)
            ada.scopes = ["news"]
            request.user = ada
        elif how == "client":
            request.user = ApiClient(pk=key)  # type: ignore[assignment]
        elif how == "keyless":
            request.user = Keyless()  # type: ignore[assignment]
        elif how == "dict":
            request.user = {"id": key}  # type: ignore[assignment]
        return await get_response(request)

    return middleware


setattr(users_of_tokens, "async_capable", True)  # noqa: B010
setattr(users_of_tokens, "sync_capable", False)  # noqa: B010


urlpatterns = [
    path("events/", Groups.as_view()),
    path("endless/", Endless.as_view()),
    path("held/", Held.as_view()),
    path("filtered/", Filtered.as_view()),
    path("guarded/", Guarded.as_view()),
    path("still/", StillAuthenticated.as_view()),
    path("scoped/", Scoped.as_view()),
    path("lazy/", OfWhoever.as_view()),
    path("of-a-guard/", OfAGuard.as_view()),
    path("token/", OfToken.as_view()),
]


async def get(client: AsyncClient, url: str, last_event_id: str = "") -> HttpResponseBase:
    headers = {"Last-Event-ID": last_event_id} if last_event_id else {}
    return await client.get(url, headers=headers)


@asynccontextmanager
async def stream(
    client: AsyncClient, url: str = "/events/?group=news", last_event_id: str = ""
) -> AsyncIterator[EventReader]:
    async with reading(await get(client, url, last_event_id)) as reader:
        yield reader


class Bearer(AsyncClient):
    """A client without cookies, that authenticates each request."""

    def __init__(self, how: str, key: Any) -> None:
        super().__init__()
        self.authorization = {"Authorization": f"{how} {key}"}

    def generic(self, *args: Any, headers: Any = None, **kwargs: Any) -> Any:
        return super().generic(*args, headers=self.authorization | (headers or {}), **kwargs)


@pytest.fixture
def tokens(settings: Settings) -> None:
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, f"{__name__}.users_of_tokens"]


def session_of(client: AsyncClient) -> SessionBase:
    return SessionStore(client.cookies[django_settings.SESSION_COOKIE_NAME].value)


# Marks


async def test_a_mark_is_the_same_for_a_user_and_its_primary_key() -> None:
    ada = await user()
    assert user_key(ada) == user_key(ada.pk) == user_key(str(ada.pk)) == owner_key_of(ada)
    assert user_key(UUID(int=7)) == user_key(str(UUID(int=7)))


class Number(int, Enum):
    SEVEN = 7


class Name(str, Enum):  # noqa: UP042  (its str() is its name)
    SEVEN = "7"


@pytest.mark.parametrize(
    "form",
    ["07", " 7", "+7", Number.SEVEN, Name.SEVEN, User(pk="7"), TokenUser("07")],
    ids=["zero", "space", "sign", "int", "str", "user", "token"],
)
def test_a_mark_is_the_same_for_each_form_of_a_key(form: Any) -> None:
    assert user_key(form) == user_key(7)
    assert user_key(form, "news") == user_key(7, "news")


class Employee(User):
    """A user, with a primary key of its own."""

    badge = models.CharField(max_length=9, primary_key=True)
    user = models.OneToOneField(User, models.CASCADE, parent_link=True)

    class Meta:
        app_label = "tests"
        managed = False


def test_a_user_of_a_model_that_inherits_is_the_user() -> None:
    assert user_key(Employee(badge="e9", id=7, user_id=7)) == user_key(7)


def test_the_key_of_who_is_no_user_has_one_form_too() -> None:
    assert user_key(ApiClient(pk="07")) == user_key(ApiClient(pk=7))


class UuidUser(models.Model):
    id = models.UUIDField(primary_key=True, default=uuid4)

    class Meta:
        app_label = "tests"
        managed = False

    def __str__(self) -> str:
        return str(self.id)


def test_a_uuid_has_many_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    ada = UuidUser()
    # Also where such a key is one of other means.
    assert user_key(ada.id) == user_key(ada.id.hex) == user_key(str(ada.id).upper())
    monkeypatch.setattr("django_sse.access.owners.get_user_model", lambda: UuidUser)
    forms = [ada.id, str(ada.id), ada.id.hex, str(ada.id).upper(), f"{{{ada.id}}}", ada.id.urn]
    assert {user_key(form) for form in forms} == {user_key(ada)}
    assert user_key("of other means") != user_key(ada)


async def test_marks_are_different_by_user_group_and_session() -> None:
    ada = await user()
    session = session_of(await logged_in())
    owner_keys = {
        user_key(ada),
        user_key(ada.pk + 1),
        user_key(ada, "news"),
        user_key(ada, "sport"),
        owner_key_of(session),
    }
    assert len(owner_keys) == 5
    assert not any(str(session.session_key) in owner_key for owner_key in owner_keys)


STRANGE = [
    "7",
    "in group chat 7",
    "chat 7",
    "group chat",
    '7", "chat',
    '["7"]',
    "7\\",
    "7\0",
    "\0",
    "\N{GRINNING FACE}",
    # The same character in UTF-16, as text that no encoding has.
    "\ud83d\ude00",
    "\ud800",
    "7_",
    "",
]


def test_no_two_names_have_the_same_mark() -> None:
    groups = ["chat", "7", "in", "group"]
    owner_keys = [user_key(name) for name in STRANGE]
    owner_keys += [user_key(name, group) for name in STRANGE for group in groups]
    session = SessionStore("chat-7-chat-7")
    owner_keys += [owner_key_of(session), user_key(f"session {session.session_key}")]
    assert len(set(owner_keys)) == len(owner_keys)


def test_an_instance_of_another_model_is_not_the_user_of_its_key() -> None:
    assert user_key(ApiClient(pk=7)) == user_key(ApiClient(pk=7))
    others = {user_key(7), user_key(ApiClient(pk=8)), user_key("tests.apiclient 7")}
    assert user_key(ApiClient(pk=7)) not in others
    with pytest.raises(ValueError, match="save it first"):
        user_key(ApiClient())


@pytest.mark.parametrize("kind", [TokenUser, TokenUserWithId])
def test_a_user_of_a_token_is_the_user_of_its_key(kind: Callable[[Any], Any]) -> None:
    assert user_key(kind(7)) == user_key(kind("7")) == user_key(7)
    with pytest.raises(ValueError, match="neither pk nor id"):
        user_key(kind(None))


def test_a_project_without_users_has_owners(settings: Settings) -> None:
    settings.AUTH_USER_MODEL = "nowhere.User"
    assert user_key(ApiClient(pk=7)) != user_key(TokenUser(7))
    with pytest.raises(TypeError):
        user_key(Order(pk=7))


async def test_no_group_can_have_the_name_of_a_mark() -> None:
    with pytest.raises(InvalidGroup):
        validate_group(user_key(await user()))


@pytest.mark.parametrize("nobody", [None, AnonymousUser(), SessionStore(), CookieSession()])
def test_who_can_have_no_stream_has_no_mark(nobody: Any) -> None:
    assert owner_key_of(nobody) == ""


@pytest.mark.parametrize("wrong", [object(), ["ada"], 1.5, b"ada", Group(pk=1), Order(pk=1)])
def test_what_is_no_owner_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match="user or its primary key"):
        cancel(user=wrong)
    with pytest.raises(TypeError, match="user or its primary key"):
        owner_key_of(wrong)


def test_who_has_no_streams_cannot_be_cancelled() -> None:
    with pytest.raises(ValueError, match="AnonymousUser cannot own streams"):
        cancel(user=AnonymousUser())
    # A query that has found nobody does not cancel the group for everybody.
    with pytest.raises(ValueError, match="None cannot own streams"):
        cancel("news", user=None)
    with pytest.raises(ValueError, match="save it first"):
        cancel(user=User(username="new"))
    with pytest.raises(TypeError, match=r"group, or .* user"):
        cancel()
    with pytest.raises(InvalidGroup):
        cancel("no group", user=7)
    with pytest.raises(InvalidEvent, match="reason"):
        cancel(user=7, reason=7)  # type: ignore[arg-type]


# Cancelling a user


@pytest.fixture(params=["memory", "database"])
def store(request: pytest.FixtureRequest, settings: Settings) -> None:
    settings.DJANGO_SSE = {"STORE": request.param}


@pytest.mark.usefixtures("store")
async def test_all_streams_of_a_user_end_and_nobody_elses() -> None:
    ada, phone, eve = await logged_in(), await logged_in(), await logged_in("eve")
    async with (
        stream(ada) as first,
        stream(phone, "/events/?group=news&group=sport") as second,
        stream(eve) as others,
        stream(AsyncClient()) as anonymous,
    ):
        await apublish("news", "before")
        for ended in (first, second):
            assert (await ended.next_event()).data == "before"
        await acancel(user=await user(), reason="kicked")
        for ended in (first, second):
            [close] = await ended.rest()
            assert (close.event, close.json()) == ("close", {"reason": "kicked"})
        await apublish("news", "after")
        for going_on in (others, anonymous):
            assert [event.data for event in await going_on.until("after")] == ["before", "after"]


@pytest.mark.usefixtures("store")
async def test_another_secret_key_lets_nobody_back_in() -> None:
    browser = await logged_in()
    await acancel(user=await user())
    rotated = {"SECRET_KEY": "new", "SECRET_KEY_FALLBACKS": [django_settings.SECRET_KEY]}
    with override_settings(**rotated):
        assert (await get(browser, "/events/?group=news")).status_code == 204


@pytest.mark.usefixtures("store")
async def test_a_user_who_was_cancelled_is_answered_204_until_logging_in_again() -> None:
    browser = await logged_in()
    async with stream(browser) as ended:
        await acancel(user=(await user()).pk)
        await ended.rest()
    assert (await get(browser, "/events/?group=news", ended.last_event_id)).status_code == 204
    assert (await get(browser, "/events/?group=news")).status_code == 204
    # Logged out meanwhile: its id still says that it was ended.
    assert (await get(AsyncClient(), "/events/?group=news", ended.last_event_id)).status_code == 204
    await browser.aforce_login(await user())
    await apublish("news", "missed")
    async with stream(browser, last_event_id=ended.last_event_id) as again:
        assert (await again.next_event()).data == "missed"


async def test_whoever_a_guard_has_authenticated_owns_the_stream() -> None:
    async with stream(AsyncClient(), "/of-a-guard/?group=news") as ended:
        await acancel(user=7)
        assert [event.event for event in await ended.rest()] == ["close"]
    assert (await get(AsyncClient(), "/of-a-guard/?group=news")).status_code == 204


@pytest.fixture
def store_of_all_hosts(settings: Settings) -> Iterator[None]:
    if not redis.binary():
        unavailable("redis-server is not installed")
    with redis.serve() as server:
        options = {"url": server.url}
        settings.DJANGO_SSE = {"STORE": {"BACKEND": "redis", "OPTIONS": options}}
        yield


async def test_a_login_of_which_nobody_knows_the_time_is_ended_by_a_kick(
    store_of_all_hosts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> float:
        raise OSError("The store is away.")

    with monkeypatch.context() as away:
        away.setattr(get_store().clock, "_ask", fail)
        browser = await logged_in()
    assert await session_of(browser).aget(BEGAN_SESSION_KEY) is None
    async with stream(browser) as ended:
        await acancel(user=await user())
        assert [event.event for event in await ended.rest()] == ["close"]
    assert (await get(browser, "/events/?group=news")).status_code == 204


@pytest.mark.parametrize("hours", [1, -1])
async def test_a_kick_counts_whatever_the_clocks_of_hosts_say(
    store_of_all_hosts: None, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    with monkeypatch.context() as another_host:
        # Its clock, at the login, is set otherwise than everybody else's.
        seconds = hours * 3600
        another_host.setattr("django_sse.stores.clock.time", lambda: time.time() + seconds)
        browser = await logged_in()
    async with stream(browser) as ended:
        await acancel(user=await user())
        assert [event.event for event in await ended.rest()] == ["close"]
    assert (await get(browser, "/events/?group=news")).status_code == 204
    await browser.aforce_login(await user())
    async with stream(browser):
        pass


@pytest.mark.parametrize("group", [None, "news"])
@pytest.mark.parametrize("let_in", [areopen, sync_to_async(reopen)], ids=["async", "sync"])
async def test_a_user_who_was_cancelled_is_let_in_again(group: str | None, let_in: Any) -> None:
    tab = await logged_in()
    await acancel(group, user=await user())
    assert (await get(tab, "/events/?group=news")).status_code == 204
    await let_in(group, user=str((await user()).pk))
    async with stream(tab) as reader:
        await apublish("news", "in again")
        assert (await reader.next_event()).data == "in again"
        # It can be done again.
        await acancel(group, user=await user())
        assert [event.event for event in await reader.rest()] == ["close"]
    assert (await get(tab, "/events/?group=news")).status_code == 204


async def test_letting_a_user_in_undoes_the_cancel_of_the_same_arguments_alone() -> None:
    tab, ada = await logged_in(), await user()
    await acancel("news", user=ada)
    await acancel(user=ada)
    await areopen("news", user=ada)
    assert (await get(tab, "/events/?group=news")).status_code == 204
    await areopen(user=ada)
    async with stream(tab):
        pass


async def test_who_was_never_cancelled_is_not_by_being_let_in() -> None:
    async with stream(await logged_in()) as reader:
        await areopen(user=await user())
        await areopen("news", user=await user())
        await apublish("news", "goes on")
        assert (await reader.next_event()).data == "goes on"


async def test_a_user_is_refused_for_cancel_ttl() -> None:
    browser = await logged_in()
    await acancel(user=await user())
    assert (await get(browser, "/events/?group=news")).status_code == 204
    await get_store().aclose()
    with override_settings(DJANGO_SSE={"CANCEL_TTL": 1}):
        async with asyncio.timeout(10):
            while (await get(browser, "/events/?group=news")).status_code == 204:
                await asyncio.sleep(0.05)
        await get_store().aclose()


@pytest.mark.usefixtures("store")
async def test_a_second_cancel_ends_the_session_that_began_after_the_first() -> None:
    browser = await logged_in()
    await acancel(user=await user(), reason="first")
    await browser.aforce_login(await user())
    async with stream(browser) as ended:
        await acancel(user=await user(), reason="second")
        assert [event.json() for event in await ended.rest()] == [{"reason": "second"}]
    assert (await get(browser, "/events/?group=news")).status_code == 204


@pytest.mark.usefixtures("store")
async def test_a_user_is_cancelled_in_one_group() -> None:
    browser = await logged_in()
    async with stream(browser) as news, stream(browser, "/events/?group=sport") as sport:
        await acancel("news", user=await user())
        assert [event.event for event in await news.rest()] == ["close"]
        await apublish("sport", "goes on")
        assert (await sport.next_event()).data == "goes on"
    assert (await get(browser, "/events/?group=news")).status_code == 204


@pytest.mark.usefixtures("store")
async def test_a_stream_of_several_groups_comes_back_without_the_one_it_was_cancelled_in() -> None:
    browser, both = await logged_in(), "/events/?group=news&group=sport"
    async with stream(browser, both) as ended:
        await acancel("news", user=await user())
        assert await ended.rest() == []
        assert ended.reconnection_time
    await apublish("news", "hidden")
    await apublish("sport", "shown")
    async with stream(browser, both, last_event_id=ended.last_event_id) as again:
        assert (await again.next_event()).data == "shown"
        await acancel("sport", user=await user())
        assert [event.event for event in await again.rest()] == ["close"]
    assert (await get(browser, both)).status_code == 204


async def test_a_transaction_cancels_a_user_with_its_commit() -> None:
    browser = await logged_in()
    ada = await user()

    def roll_back() -> None:
        with transaction.atomic():
            cancel(user=ada)
            transaction.set_rollback(True)

    def commit() -> None:
        with transaction.atomic():
            cancel(user=ada)

    async with stream(browser) as ended:
        await sync_to_async(roll_back)()
        await apublish("news", "goes on")
        assert (await ended.next_event()).data == "goes on"
        await sync_to_async(commit)()
        assert [event.event for event in await ended.rest()] == ["close"]


async def test_what_is_ended_unheard_is_found_by_the_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where another process cancels, and its doorbell is lost."""
    monkeypatch.setattr("django_sse.doorbells.base.ring_here", lambda hints: None)
    with override_settings(DJANGO_SSE={"SYNC_INTERVAL": 0.1}):
        async with stream(await logged_in()) as ended:
            await acancel(user=await user())
            assert [event.event for event in await ended.rest()] == ["close"]


async def test_a_user_who_is_cancelled_while_the_stream_opens_does_not_get_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Between the view's look at the store and the stream's place in the hub."""
    browser, ada = await logged_in(), await user()
    response = await get(browser, "/events/?group=news")
    monkeypatch.setattr("django_sse.doorbells.base.ring_here", lambda hints: None)
    await acancel(user=ada)
    async with reading(response) as ended:
        assert [event.event for event in await ended.rest()] == ["close"]


async def test_who_is_cancelled_amid_the_initial_events_gets_no_more_of_them() -> None:
    async with stream(await logged_in(), "/endless/") as reader:
        await reader.next_event()
        await acancel(user=await user(), reason="gone")
        close = (await reader.rest())[-1]
        assert (close.event, close.json()) == ("close", {"reason": "gone"})


async def kick_from_one_group() -> None:
    await acancel("news", user=await user())


async def kick_after_a_dismissal() -> None:
    [open_] = current_hub().streams
    open_.end("max age", jittered_retry)
    await acancel(user=await user(), reason="gone")


async def change_login() -> None:
    [open_] = current_hub().streams
    open_.end("login changed", lambda: open_.for_good(jittered_retry()))


@pytest.mark.parametrize("act", [kick_from_one_group, kick_after_a_dismissal, change_login])
async def test_whoever_is_shut_out_amid_the_initial_events_gets_no_more_of_them(
    act: Callable[[], Awaitable[None]],
) -> None:
    Held.goes_on = asyncio.Event()
    browser = await logged_in()
    async with stream(browser, "/held/?group=news&group=jobs") as reader:
        await reader.next_event()
        [open_] = current_hub().streams
        await act()
        await until(lambda: open_.is_barred)
        Held.goes_on.set()
        rest = await reader.rest()
        assert [event.event for event in rest] == (
            ["close"] if act is kick_after_a_dismissal else []
        )
        # Who may come back is shown all of it.
        assert reader.last_event_id in ("", "~end")
    if act is change_login:
        async with stream(browser, "/held/?group=news&group=jobs", reader.last_event_id) as again:
            assert [(await again.next_event()).data for _ in range(2)] == ["first", "later"]


async def test_a_client_that_is_far_behind_is_ended_before_it_has_all_of_it() -> None:
    published = await apublish_many(("news", str(n)) for n in range(700))
    position = published[0].id
    assert position
    await apublish("news", "last")
    browser = await logged_in()
    response = await get(browser, "/events/?group=news", position)
    assert isinstance(response, StreamingHttpResponse)
    chunks = aiter(response)
    await anext(chunks)
    await acancel(user=await user())
    received = b"".join([chunk async for chunk in chunks])
    assert b"event: close" in received
    assert b"data: last\n" not in received


async def test_the_owner_is_what_the_view_says() -> None:
    browser = await logged_in()
    async with stream(browser, "/token/?group=news&token=t7") as ended:
        await acancel(user=await user())
        await apublish("news", "goes on")
        assert (await ended.next_event()).data == "goes on"
        await acancel(user="t7")
        assert [event.event for event in await ended.rest()] == ["close"]
    assert (await get(AsyncClient(), "/token/?group=news&token=t7")).status_code == 204
    async with stream(AsyncClient(), "/token/?group=news&token=t8"):
        pass


@pytest.mark.parametrize("name", STRANGE[1:-1])
async def test_cancelling_by_a_strange_name_hits_nobody_else(name: str) -> None:
    async with stream(AsyncClient(), "/token/?group=chat&token=7") as other:
        await acancel(user=name)
        await acancel("group", user=name)
        await apublish("chat", "left out?", exclude=name)
        assert (await other.next_event()).data == "left out?"
        assert not other.ended
    async with stream(AsyncClient(), "/token/?group=chat&token=7"):
        pass


# Users without a session

TOKENS = ["auser", "user", "lazy"]


@pytest.mark.usefixtures("tokens", "store")
@pytest.mark.parametrize("how", TOKENS)
async def test_a_user_without_a_session_is_cancelled(how: str) -> None:
    ada, eve = await user(), await user("eve")
    token = Bearer(how, ada.pk)
    async with stream(token) as ended, stream(Bearer(how, eve.pk)) as other:
        await acancel(user=ada, reason="kicked")
        assert [event.json() for event in await ended.rest()] == [{"reason": "kicked"}]
        await apublish("news", "goes on")
        assert (await other.next_event()).data == "goes on"
    assert (await get(token, "/events/?group=news")).status_code == 204


@pytest.mark.usefixtures("tokens")
@pytest.mark.parametrize("how", TOKENS)
async def test_a_user_without_a_session_is_left_out(how: str) -> None:
    ada = await user()
    async with stream(Bearer(how, ada.pk)) as own, stream(Bearer("auser", ada.pk + 1)) as other:
        await apublish("news", "own", exclude=ada)
        await apublish("news", "own", exclude=TokenUser(ada.pk))
        await apublish("news", "last", exclude=Keyless())
        assert [event.data for event in await own.until("last")] == ["last"]
        assert [event.data for event in await other.until("last")] == ["own", "own", "last"]


@pytest.mark.usefixtures("tokens")
@pytest.mark.parametrize("how", TOKENS)
async def test_the_streams_of_a_user_without_a_session_are_counted(how: str) -> None:
    ada = await user()
    with override_settings(DJANGO_SSE={"MAX_STREAMS_PER_USER": 1}):
        async with stream(Bearer(how, ada.pk)):
            assert (await get(Bearer(how, ada.pk), "/events/?group=news")).status_code == 503
            # By whatever means the same user comes.
            assert (await get(await logged_in(), "/events/?group=news")).status_code == 503
            async with stream(Bearer(how, (await user("eve")).pk)):
                pass
        await get_store().aclose()


@pytest.mark.usefixtures("tokens")
async def test_who_is_no_user_of_the_project_is_told_from_the_user_of_the_same_key() -> None:
    ada = await user()
    async with stream(Bearer("client", ada.pk)) as client, stream(await logged_in()) as browser:
        await acancel(user=ada)
        assert [event.event for event in await browser.rest()] == ["close"]
        await apublish("news", "goes on", exclude=ada)
        assert (await client.next_event()).data == "goes on"
        await acancel(user=ApiClient(pk=ada.pk))
        assert [event.event for event in await client.rest()] == ["close"]


@pytest.mark.usefixtures("tokens")
@pytest.mark.parametrize("how", ["keyless", "dict"])
async def test_whom_nothing_tells_from_others_is_nobody_and_the_log_says_so_once(
    how: str, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        async with stream(Bearer(how, 7)) as reader:
            await apublish("news", "hello")
            assert (await reader.next_event()).data == "hello"
    assert caplog.text.count("override `get_owner`") == 1


@pytest.mark.usefixtures("tokens")
async def test_a_user_without_a_session_stays_who_it_is_where_a_view_is_asked_again() -> None:
    ada = await user()
    with override_settings(DJANGO_SSE={"RECHECK_INTERVAL": 1}):
        StillAuthenticated.asked = 0
        async with stream(Bearer("auser", ada.pk), "/still/?group=news") as reader:
            await until(lambda: StillAuthenticated.asked >= 2)
            await apublish("news", "goes on")
            assert (await reader.next_event()).data == "goes on"
        await get_store().aclose()


@pytest.mark.usefixtures("tokens", "store")
async def test_who_is_kicked_by_token_does_not_come_in_by_a_guard() -> None:
    ada = await user()
    token = Bearer("auser", ada.pk)
    async with stream(token, "/guarded/?group=news") as ended:
        await acancel("news", user=TokenUser(ada.pk))
        assert [event.event for event in await ended.rest()] == ["close"]
    assert (await get(token, "/guarded/?group=news", ended.last_event_id)).status_code == 204


async def test_a_visitor_without_a_session_costs_no_query_for_a_user() -> None:
    with queries_about("auth_user") as users, queries_about("django_session") as sessions:
        async with stream(AsyncClient()):
            pass
    assert (users, sessions) == ([], [])


async def test_a_login_of_who_is_no_user_leaves_a_session_as_it_is() -> None:
    request = RequestFactory().get("/")
    request.session = await (await logged_in()).asession()
    began = await request.session.aget(BEGAN_SESSION_KEY)
    for other in (Keyless(), TokenUser(0), Order(pk=1), ApiClient(pk=(await user()).pk)):
        # Django's own receiver knows nobody but the project's users.
        _note_login(request, other)
    assert request.session[BEGAN_SESSION_KEY] == began


async def test_a_hub_forgets_the_owners_of_streams_that_have_ended() -> None:
    async with stream(await logged_in()):
        hub = current_hub()
        assert hub._rechecks.owned
    assert not hub._rechecks.owned


async def test_a_visitor_without_a_session_costs_no_look_at_owners() -> None:
    async with stream(AsyncClient()):
        assert not current_hub()._rechecks.owned


async def lazy_user(name: str = "ada") -> Any:
    """Return a user as ``request.user`` is, who was not looked up yet."""
    key = (await user(name)).pk
    return SimpleLazyObject(lambda: User.objects.get(pk=key))


async def test_a_lazy_user_is_looked_up_wherever_async_code_names_one() -> None:
    tab, other = await logged_in(), await logged_in("eve")
    async with stream(tab, "/lazy/?group=news") as own, stream(other) as going_on:
        await apublish("news", "own", exclude=await lazy_user())
        await apublish_many([("news", "own")], exclude=await lazy_user())
        await apublish("news", "last")
        assert [event.data for event in await own.until("last")] == ["last"]
        await acancel(user=await lazy_user())
        assert [event.event for event in await own.rest()] == ["close"]
        assert [event.data for event in await going_on.until("last")] == ["own", "own", "last"]
    await areopen(user=await lazy_user())
    async with stream(tab, "/lazy/?group=news"):
        pass


@pytest.mark.usefixtures("tokens")
@pytest.mark.parametrize("how", ["user", "lazy"])
async def test_who_acts_as_somebody_else_has_the_streams_of_that_one(how: str) -> None:
    admin, ada = await logged_in("admin"), await user()
    acting = {"Authorization": f"{how} {ada.pk}"}
    with override_settings(DJANGO_SSE={"RECHECK_INTERVAL": 1}):
        StillAuthenticated.seen.clear()
        response = await admin.get("/still/?group=news", headers=acting)
        async with reading(response) as ended:
            # Asked again, long after the request, it is that one, too.
            await until(lambda: len(StillAuthenticated.seen) >= 2)
            assert set(StillAuthenticated.seen) == {str(ada.pk)}
            await acancel(user=await user("admin"))
            await apublish("news", "goes on")
            assert (await ended.next_event()).data == "goes on"
            await acancel(user=ada)
            assert [event.event for event in await ended.rest()] == ["close"]
        await get_store().aclose()


@pytest.mark.usefixtures("tokens")
async def test_a_view_that_is_asked_again_sees_a_tokens_user_as_it_is_then() -> None:
    """With what the middleware has set on it, and what has become of it in the database."""
    ada = await user()
    with override_settings(DJANGO_SSE={"RECHECK_INTERVAL": 1}):
        async with stream(Bearer("scoped", ada.pk), "/scoped/?group=news") as ended:
            await until(lambda: Scoped.asked >= 2)
            await apublish("news", "goes on")
            assert (await ended.next_event()).data == "goes on"
            await User.objects.aupdate(is_active=False)
            assert [event.event for event in await ended.rest()] == ["close"]
        await get_store().aclose()


# Leaving out who has caused an event


@pytest.mark.parametrize("url", ["/events/?group=news", "/filtered/?group=news"])
@pytest.mark.usefixtures("store")
async def test_a_users_own_streams_are_left_out_live_and_in_replay(url: str) -> None:
    ada, eve = await logged_in(), await logged_in("eve")
    async with stream(ada, url) as own, stream(eve, url) as others:
        await apublish("news", "a")
        await apublish("news", "b", exclude=await user())
        await apublish_many([("news", "c"), ("news", "d")], exclude=(await user()).pk)
        await apublish("news", "e")
        assert [event.data for event in await own.until("e")] == ["a", "e"]
        assert [event.data for event in await others.until("e")] == ["a", "b", "c", "d", "e"]


async def test_a_session_is_left_out_and_not_its_users_other_ones() -> None:
    desktop, phone = await logged_in(), await logged_in()
    async with stream(desktop) as own, stream(phone) as other:
        await apublish("news", "a", exclude=session_of(desktop))
        await apublish("news", "b")
        assert [event.data for event in await own.until("b")] == ["b"]
        assert [event.data for event in await other.until("b")] == ["a", "b"]


async def test_who_is_left_out_is_left_out_of_what_is_replayed() -> None:
    ada = await user()
    first = await apublish("news", "first")
    assert first.id
    await apublish("news", "own", exclude=ada)
    await apublish("news", "last")
    for expected, browser in [
        (["last"], await logged_in()),
        (["own", "last"], await logged_in("eve")),
        (["own", "last"], AsyncClient()),
    ]:
        # From the store first, and then from the hub's memory.
        async with stream(browser, last_event_id=first.id) as by_store:
            assert [event.data for event in await by_store.until("last")] == expected
            async with stream(browser, last_event_id=first.id) as by_tail:
                assert [event.data for event in await by_tail.until("last")] == expected


async def test_a_client_that_was_left_out_has_the_position_all_the_same() -> None:
    with override_settings(DJANGO_SSE={"HEARTBEAT": 0.1}):
        async with stream(await logged_in()) as own:
            published = await apublish("news", "own", exclude=await user())
            async with asyncio.timeout(10):
                while own.last_event_id != published.id:
                    await asyncio.sleep(0.02)


async def test_a_session_in_a_cookie_stands_for_its_user() -> None:
    session = CookieSession()
    session["_auth_user_id"] = "7"
    assert owner_key_of(session) == user_key(7)


async def test_an_event_published_in_a_transaction_leaves_out_as_well() -> None:
    ada = await user()

    def publish_in_transaction() -> None:
        with transaction.atomic():
            publish("news", "own", exclude=ada)
        publish("news", "last")

    async with stream(await logged_in()) as own:
        await in_thread(publish_in_transaction)
        assert [event.data for event in await own.until("last")] == ["last"]
    assert [e.exclude for e in await get_store().aread("news", 0, 9)] == [user_key(ada), ""]


async def test_a_login_of_another_user_lets_no_cancelled_owner_back_in() -> None:
    await acancel(user="token-7")
    eve = await logged_in("eve")
    # Her session began later, but it is not the session of the token's owner.
    assert (await get(eve, "/token/?group=news&token=token-7")).status_code == 204


async def test_a_lazy_user_of_a_class_that_says_who_is_logged_in_is_asked_itself() -> None:
    """Such as of a project that waits for the second factor."""

    class Unverified(SimpleLazyObject):  # type: ignore[type-arg]
        is_authenticated = False

    waiting = Unverified(lambda: User(pk=1))
    assert is_nobody(await loaded(waiting))
    assert not is_nobody(await loaded(SimpleLazyObject(lambda: User(pk=1))))
    assert await loaded(SimpleLazyObject(lambda: None)) is None


async def test_a_lazy_user_who_cannot_be_found_is_an_error_and_not_nobody() -> None:
    def find() -> User:
        raise AttributeError("There is no tenant.")

    request = RequestFactory().get("/")
    request.user = SimpleLazyObject(find)  # type: ignore[assignment]
    with pytest.raises(AttributeError, match="There is no tenant"):
        await current_user(request)
