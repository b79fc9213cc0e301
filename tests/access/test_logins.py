"""A stream ends with the login that it was opened in."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from threading import Event as ThreadEvent
from typing import Any, ClassVar

import pytest
from asgiref.sync import sync_to_async
from django.conf import settings as django_settings
from django.contrib import auth
from django.contrib.auth.backends import ModelBackend
from django.contrib.auth.middleware import AuthenticationMiddleware
from django.contrib.auth.models import AnonymousUser, User
from django.contrib.sessions.backends.cache import SessionStore as CacheSession
from django.contrib.sessions.backends.cached_db import SessionStore as CachedDatabaseSession
from django.contrib.sessions.backends.db import SessionStore as DatabaseSession
from django.contrib.sessions.backends.file import SessionStore as FileSession
from django.contrib.sessions.models import Session
from django.core.cache import caches
from django.core.cache.backends.locmem import LocMemCache
from django.core.exceptions import PermissionDenied
from django.db import DataError
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.test import AsyncClient, RequestFactory
from django.urls import path
from django.utils import timezone
from django.utils.functional import SimpleLazyObject, cached_property
from django.views import View
from pytest_django import Settings

from django_sse import Event, acancel, apublish
from django_sse.access import logins
from django_sse.access.logins import (
    LoginCheck,
    check_logins,
    renew_login,
    resolve_user,
    user_of,
    without_session,
)
from django_sse.access.owners import Login
from django_sse.decorators import EventStreamRequest, event_generator
from django_sse.mixins import LoginRequiredMixin
from django_sse.streaming import rechecks
from django_sse.streaming.hub import current_hub
from django_sse.streaming.rechecks import Rechecks
from django_sse.streaming.stream import Stream
from tests.failures import DownCache, Panic, SilentCache
from tests.queries import queries_about
from tests.streams import News, goes_on, reading, until
from tests.users import (
    answer,
    assert_sent_back_for_good,
    logged_in,
    logout,
    rotate,
    session_key,
    stream,
    user,
)

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.urls(__name__),
    pytest.mark.usefixtures("synced_often", "everything_ends"),
]


def change_password(request: HttpRequest) -> HttpResponse:
    assert isinstance(request.user, User)
    request.user.set_password("another one")
    request.user.save()
    auth.update_session_auth_hash(request, request.user)
    return HttpResponse(status=204)


class Members(LoginRequiredMixin, News):
    """For who is logged in."""


class Unowned(Members):
    async def get_owner(self) -> None:
        return None


class OfUser(News):
    async def authorize(self, groups: Sequence[str]) -> None:
        if not (await self.request.auser()).is_authenticated:
            raise PermissionDenied


class Page(LoginRequiredMixin, View):
    """A page of the project's own."""

    async def get(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse()


@event_generator
async def job(request: HttpRequest) -> AsyncIterator[str]:
    yield "done"


@event_generator
async def waiting(request: EventStreamRequest) -> AsyncIterator[Event]:
    yield Event("begun", id=request.last_event_id or request.GET.get("id"))
    await asyncio.Event().wait()


async def job_of_user(request: HttpRequest) -> HttpResponseBase:
    await request.auser()
    response: HttpResponseBase = await job(request)
    return response


urlpatterns = [
    path("events/", News.as_view()),
    path("job/", job_of_user),
    path("waiting/", waiting),
    path("members/", Members.as_view()),
    path("page/", Page.as_view()),
    path("of-user/", OfUser.as_view()),
    path("unowned/", Unowned.as_view()),
    path("logout/", logout),
    path("rotate/", rotate),
    path("password/", change_password),
]


@pytest.fixture
def swept(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Awaitable[None]]:
    """Waits for a whole sweep over all logins."""
    finished: list[None] = []
    # What comes last in a sweep.
    look_for_sessions = Rechecks._look_for_sessions

    async def look_and_note(rechecks: Rechecks, logins: Mapping[Login, Collection[Stream]]) -> None:
        await look_for_sessions(rechecks, logins)
        finished.append(None)

    monkeypatch.setattr(Rechecks, "_look_for_sessions", look_and_note)
    # Otherwise a slow sweep, such as the first one, delays the next one for long.
    monkeypatch.setattr(rechecks, "_PAUSE_FACTOR", 0)

    async def wait() -> None:
        # The next one to finish may have begun before.
        wanted = len(finished) + 2
        await until(lambda: len(finished) >= wanted)

    return wait


async def test_a_stream_may_outlive_its_login(
    settings: Settings, swept: Callable[[], Awaitable[None]]
) -> None:
    settings.DJANGO_SSE = {"END_WITH_LOGIN": False, "SYNC_INTERVAL": 0.05}
    tab = await logged_in()
    async with stream(tab) as reader:
        await tab.get("/logout/")
        await User.objects.filter(username="ada").aupdate(is_active=False, password="!")
        await swept()
        await goes_on(reader)


async def test_a_backend_may_let_users_in_who_are_not_active(
    settings: Settings, swept: Callable[[], Awaitable[None]]
) -> None:
    settings.AUTHENTICATION_BACKENDS = ["django.contrib.auth.backends.AllowAllUsersModelBackend"]
    async with stream(await logged_in()) as reader:
        await User.objects.aupdate(is_active=False)
        await swept()
        await goes_on(reader)


async def test_after_a_changed_password_only_the_session_that_changed_it_comes_back() -> None:
    tab, phone = await logged_in(), await logged_in()
    async with stream(tab) as own, stream(phone) as other:
        await tab.get("/password/")
        for ended in (own, other):
            assert await ended.rest() == []
            assert ended.reconnection_time
    await apublish("news", "missed")
    assert (await answer(phone, other.last_event_id)).status_code == 204
    async with stream(tab, own.last_event_id) as again:
        assert (await again.next_event()).data == "missed"


@pytest.mark.parametrize("last_event_id", ["5", ""])
async def test_after_a_changed_password_a_generator_goes_on_in_the_session_that_changed_it(
    last_event_id: str,
) -> None:
    url = f"/waiting/?id={last_event_id}" if last_event_id else "/waiting/"
    tab, phone = await logged_in(), await logged_in()
    async with stream(tab, url=url) as own, stream(phone, url=url) as other:
        for each in (own, other):
            assert (await each.next_event()).data == "begun"
        await tab.get("/password/")
        for ended in (own, other):
            assert await ended.rest() == []
            assert ended.reconnection_time
    assert (await answer(phone, other.last_event_id, url)).status_code == 204
    async with stream(tab, own.last_event_id, url) as again:
        assert (await again.next_event()).id == (last_event_id or None)


async def test_a_logout_ends_a_generator_for_good() -> None:
    tab = await logged_in()
    async with stream(tab, url="/waiting/") as ended:
        assert (await ended.next_event()).data == "begun"
        await tab.get("/logout/")
        [close] = await ended.rest()
        assert close.json() == {"reason": "logged out"}
    assert (await answer(tab, ended.last_event_id, "/waiting/")).status_code == 204


async def test_a_password_changed_by_update_is_found_as_well() -> None:
    async with stream(await logged_in()) as ended:
        await User.objects.aupdate(password="!another")
        assert await ended.rest() == []


async def test_a_rotated_secret_key_ends_no_stream(
    settings: Settings, swept: Callable[[], Awaitable[None]]
) -> None:
    async with stream(await logged_in()) as reader:
        settings.SECRET_KEY_FALLBACKS = [settings.SECRET_KEY]
        settings.SECRET_KEY = "another one"
        await swept()
        await goes_on(reader)


async def test_a_key_that_no_user_can_have_spoils_the_sweep_for_nobody_else() -> None:
    """As a session has it from before the users got keys of another kind."""
    ada = await user()
    backend = "django.contrib.auth.backends.ModelBackend"
    valid = Login(str(ada.pk), backend, ada.get_session_auth_hash())
    of_before = Login("not a number", backend, "")
    assert await sync_to_async(check_logins)([of_before, valid]) == LoginCheck(absent={of_before})


@pytest.mark.usefixtures("synced_rarely")
async def test_an_answer_to_the_cookie_of_before_takes_no_login_away() -> None:
    tab = await logged_in()
    late = AsyncClient()
    name = django_settings.SESSION_COOKIE_NAME
    late.cookies[name] = tab.cookies[name].value
    # As a login does: the late one's session is gone, and the browser has another cookie.
    await tab.get("/rotate/")
    streamed, generated = await answer(late), await answer(late, url="/job/")
    async with reading(streamed), reading(generated):
        refused = await answer(late, url="/members/")
    responses = (streamed, generated, refused)
    assert [response.status_code for response in responses] == [200, 200, 401]
    for response in responses:
        assert name not in response.cookies


async def test_logins_are_judged_with_one_query_for_all_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with AsyncExitStack() as streams:
        for n in range(20):
            await streams.enter_async_context(stream(await logged_in(f"user{n}")))
        rounds: list[int] = []

        def judge_and_count(logins: Collection[Login]) -> LoginCheck:
            with queries_about("auth_user") as queries:
                checked = check_logins(logins)
            rounds.append(len(queries))
            return checked

        monkeypatch.setattr("django_sse.streaming.rechecks.check_logins", judge_and_count)
        await until(lambda: rounds)
        assert set(rounds) == {1}


@pytest.mark.parametrize("asked", ["check_logins", "without_session"])
async def test_nobody_loses_a_stream_where_there_are_more_than_one_query_names(
    monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    monkeypatch.setattr(logins, "_BATCH", 2)
    monkeypatch.setattr(rechecks, "_AGAIN_SECONDS", 0.05)
    # Otherwise one slow round would put off the next for longer than the test waits.
    monkeypatch.setattr(rechecks, "_PAUSE_FACTOR", 0)
    rounds: list[None] = []
    question = getattr(rechecks, asked)

    def count(logins: Collection[Login]) -> Any:
        rounds.append(None)
        return question(logins)

    monkeypatch.setattr(rechecks, asked, count)
    async with AsyncExitStack() as streams:
        readers = [
            await streams.enter_async_context(stream(await logged_in(f"user{n}"))) for n in range(5)
        ]
        rounds.clear()
        await until(lambda: len(rounds) > 5)
        await apublish("news", "going on")
        for reader in readers:
            assert (await reader.next_event()).data == "going on"


class HashesWithoutFallback:
    """A user as Django's `get_user` takes it, too: not every one has hashes of older keys."""

    def get_session_auth_hash(self) -> str:
        return "hash"


def test_older_hashes_are_asked_for_where_they_are_needed_alone() -> None:
    assert logins._has_hash(HashesWithoutFallback(), "hash")


# Whom Django finds


class ReadsElsewhere:
    def db_for_read(self, model: Any, **hints: Any) -> str | None:
        return "replica" if model is User else None


async def test_users_are_read_where_they_are_written(settings: Settings) -> None:
    ada = await user()
    login = Login(
        str(ada.pk), "django.contrib.auth.backends.ModelBackend", ada.get_session_auth_hash()
    )
    settings.DATABASE_ROUTERS = [f"{__name__}.ReadsElsewhere"]
    assert await sync_to_async(check_logins)([login]) == LoginCheck()


async def test_a_backend_that_is_not_asked_any_more_lets_nobody_in(settings: Settings) -> None:
    async with stream(await logged_in()) as ended:
        settings.AUTHENTICATION_BACKENDS = []
        assert [event.event for event in await ended.rest()] == ["close"]


# Sessions that are gone


class EngineOfAProject(FileSession):
    """Finds its sessions in a way of its own."""

    def load(self) -> Any:
        return super().load()


class PrefixedSession(CacheSession):
    """Has keys that are not those of Django's engine."""

    @property
    def cache_key(self) -> str:
        return f"mine.{super().cache_key}"

    async def acache_key(self) -> str:
        return f"mine.{await super().acache_key()}"

    def exists(self, session_key: str) -> bool:
        return f"mine.{self.cache_key_prefix}{session_key}" in caches["default"]

    async def adelete(self, session_key: str | None = None) -> None:
        key = session_key or self.session_key
        await caches["default"].adelete(f"mine.{self.cache_key_prefix}{key}")


ENGINES = {
    "db": "django.contrib.sessions.backends.db",
    "cached_db": "django.contrib.sessions.backends.cached_db",
    "cache": "django.contrib.sessions.backends.cache",
    "file": "django.contrib.sessions.backends.file",
}


@pytest.fixture(params=list(ENGINES))
def engine(
    request: pytest.FixtureRequest,
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Any:
    monkeypatch.setattr(FileSession, "_storage_path", str(tmp_path), raising=False)
    settings.SESSION_ENGINE = ENGINES[request.param]
    return import_module(ENGINES[request.param]).SessionStore


async def test_who_is_logged_out_everywhere_loses_the_streams(engine: Any) -> None:
    """As projects do it: they delete the sessions, which sends no signal."""
    tab, phone, eve = await logged_in(), await logged_in(), await logged_in("eve")
    async with stream(tab) as first, stream(phone) as second, stream(eve) as other:
        for client in (tab, phone):
            await engine(session_key(client)).adelete()
        await assert_sent_back_for_good(first, tab)
        await assert_sent_back_for_good(second, phone)
        await goes_on(other)


class ConnectedCache(LocMemCache):
    """Each thread has a connection from its first question to its close, as across a network."""

    asked = 0
    connected: ClassVar[set[int]] = set()

    def get_many(self, *args: Any, **options: Any) -> dict[str, Any]:
        self.connected.add(threading.get_ident())
        type(self).asked += 1
        return super().get_many(*args, **options)

    def close(self, **options: Any) -> None:
        self.connected.discard(threading.get_ident())


async def test_a_check_of_sessions_leaves_no_connection_to_their_cache(settings: Settings) -> None:
    settings.CACHES = {"default": {"BACKEND": f"{__name__}.ConnectedCache"}}
    settings.SESSION_ENGINE = ENGINES["cache"]
    async with stream(await logged_in()):
        await until(lambda: ConnectedCache.asked)
    await until(lambda: not ConnectedCache.connected)


async def test_sessions_that_are_deleted_by_a_query_lose_their_streams() -> None:
    tab, eve = await logged_in(), await logged_in("eve")
    async with stream(tab) as ended, stream(eve) as other:
        await Session.objects.filter(pk=session_key(tab)).adelete()
        await assert_sent_back_for_good(ended, tab)
        await goes_on(other)


async def test_a_session_that_has_expired_loses_its_streams() -> None:
    tab = await logged_in()
    async with stream(tab) as ended, stream(await logged_in("eve")) as other:
        expired = timezone.now() - timedelta(seconds=1)
        await Session.objects.filter(pk=session_key(tab)).aupdate(expire_date=expired)
        await assert_sent_back_for_good(ended, tab)
        await goes_on(other)


async def test_a_session_that_got_another_key_goes_on_where_it_was(engine: Any) -> None:
    tab = await logged_in()
    async with stream(tab) as before:
        await tab.get("/rotate/")
        assert await before.rest() == []
        assert before.reconnection_time
    await apublish("news", "missed")
    async with stream(tab, before.last_event_id) as after:
        assert (await after.next_event()).data == "missed"


async def test_a_login_of_another_user_leaves_the_stream_of_before_to_nobody() -> None:
    tab = await logged_in()
    async with stream(tab) as before:
        await tab.aforce_login(await user("eve"))
        assert await before.rest() == []
    await acancel(user=await user())
    async with stream(tab, before.last_event_id) as after:
        await goes_on(after)


async def test_a_session_whose_row_is_gone_holds_where_it_holds_for_django(
    settings: Settings, swept: Callable[[], Awaitable[None]]
) -> None:
    settings.SESSION_ENGINE = ENGINES["cached_db"]
    tab = await logged_in()
    async with stream(tab) as reader:
        await Session.objects.all().adelete()
        await swept()
        await goes_on(reader)
        caches["default"].clear()
        await assert_sent_back_for_good(reader, tab)


@pytest.mark.parametrize("store", [EngineOfAProject, PrefixedSession])
async def test_an_engine_of_the_projects_own_is_asked_about_each_session(
    store: Any,
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    swept: Callable[[], Awaitable[None]],
) -> None:
    monkeypatch.setattr(FileSession, "_storage_path", str(tmp_path), raising=False)
    monkeypatch.setattr(f"{__name__}.SessionStore", store, raising=False)
    settings.SESSION_ENGINE = __name__
    tab, eve = await logged_in(), await logged_in("eve")
    async with stream(tab) as ended, stream(eve) as other:
        await swept()
        await goes_on(ended)
        await store(session_key(tab)).adelete()
        assert await ended.rest() == []
        await other.until("going on")
        await goes_on(other)


class SlowEngine(FileSession):
    """Takes its time to say whether a session exists."""

    def load(self) -> Any:
        return super().load()

    def exists(self, session_key: str) -> bool:
        ThreadEvent().wait(0.2)
        return super().exists(session_key)


async def test_an_engine_that_is_too_slow_for_all_sessions_is_asked_about_some_in_turn(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FileSession, "_storage_path", str(tmp_path), raising=False)
    monkeypatch.setattr(f"{__name__}.SessionStore", SlowEngine, raising=False)
    monkeypatch.setattr("django_sse.access.logins._ENGINE_SECONDS", 0.5)
    # To ask about all takes longer.
    monkeypatch.setattr("django_sse.stores.timed_thread.READ_SECONDS", 1)
    monkeypatch.setattr(rechecks, "_PAUSE_FACTOR", 0)
    settings.SESSION_ENGINE = __name__
    async with AsyncExitStack() as stack:
        for number in range(5):
            await stack.enter_async_context(stream(await logged_in(f"user-{number}")))
        tab = await logged_in()
        ended = await stack.enter_async_context(stream(tab))
        await SlowEngine(session_key(tab)).adelete()
        assert await ended.rest() == []


@pytest.mark.parametrize("store", [CacheSession, PrefixedSession])
async def test_a_cache_that_is_away_in_silence_ends_no_stream(
    store: Any,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    swept: Callable[[], Awaitable[None]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(rechecks, "_PAUSE_FACTOR", 0)
    monkeypatch.setattr(f"{__name__}.SessionStore", store, raising=False)
    settings.SESSION_ENGINE = __name__
    settings.CACHES = {"default": {"BACKEND": "tests.failures.SilentCache"}}
    tab = await logged_in()
    async with stream(tab) as reader:
        await swept()
        with monkeypatch.context() as patch:
            patch.setattr(SilentCache, "is_away", True)
            await until(lambda: "sessions of open streams cannot be checked" in caplog.text)
        await swept()
        await goes_on(reader)
        await store(session_key(tab)).adelete()
        await assert_sent_back_for_good(reader, tab)


class Refuses(DatabaseSession):
    """Lets nobody in whose session was idle for too long, or was revoked."""

    is_revoked = False

    def load(self) -> Any:
        data = super().load()
        if not Refuses.is_revoked:
            return data
        self._session_key = None
        return {}


class RefusesRow(DatabaseSession):
    def _get_session_from_db(self) -> Any:
        if not Refuses.is_revoked:
            return super()._get_session_from_db()  # type: ignore[misc]
        self._session_key = None
        return None


class RefusesCachedInDatabase(Refuses, CachedDatabaseSession):
    pass


class RefusesCached(Refuses, CacheSession):
    pass


class RefusesFile(Refuses, FileSession):
    pass


def verifies_user(get_response: Callable[[HttpRequest], Any]) -> Callable[..., Any]:
    """Adds to the user, as that of django-otp."""

    def middleware(request: HttpRequest) -> Any:
        found: Any = request.user

        def verified() -> Any:
            found.is_verified = lambda: True
            return found

        request.user = SimpleLazyObject(verified)  # type: ignore[assignment]
        return get_response(request)

    return middleware


@pytest.mark.parametrize("is_wrapped", [False, True])
@pytest.mark.parametrize(
    "store", [Refuses, RefusesRow, RefusesCachedInDatabase, RefusesCached, RefusesFile]
)
async def test_a_session_that_the_projects_engine_refuses_is_nobodys(
    store: Any,
    is_wrapped: bool,
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(FileSession, "_storage_path", str(tmp_path), raising=False)
    monkeypatch.setattr(f"{__name__}.SessionStore", store, raising=False)
    monkeypatch.setattr(Refuses, "is_revoked", False)
    settings.SESSION_ENGINE = __name__
    settings.DJANGO_SSE = {**settings.DJANGO_SSE, "RECHECK_INTERVAL": 1}
    if is_wrapped:
        settings.MIDDLEWARE = [*settings.MIDDLEWARE, f"{__name__}.verifies_user"]
    tab = await logged_in()
    async with stream(tab, url="/members/") as refused:
        await goes_on(refused)
        Refuses.is_revoked = True
        for url in ("/members/", "/page/", "/of-user/"):
            assert (await answer(tab, url=url)).status_code in (401, 403)
        assert [event.event for event in await refused.rest()] == ["close"]


async def suspend(tab: AsyncClient) -> None:
    await User.objects.aupdate(last_name="suspended")


async def leave_only_the_cart(tab: AsyncClient) -> None:
    session = DatabaseSession(session_key(tab))
    for key in (auth.SESSION_KEY, auth.BACKEND_SESSION_KEY, auth.HASH_SESSION_KEY):
        await session.apop(key)
    await session.aset("cart", "a book")
    await session.asave()


@pytest.mark.parametrize("leave", [suspend, leave_only_the_cart])
async def test_whoever_is_logged_out_for_the_pages_loses_the_streams(
    leave: Callable[[AsyncClient], Awaitable[None]],
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings.DJANGO_SSE = {**settings.DJANGO_SSE, "RECHECK_INTERVAL": 1}
    is_in = property(lambda user: user.last_name != "suspended")
    monkeypatch.setattr(User, "is_authenticated", is_in, raising=False)
    tab = await logged_in()
    async with stream(tab, url="/members/") as ended:
        await goes_on(ended)
        await leave(tab)
        assert (await answer(tab, url="/page/")).status_code == 401
        assert [event.event for event in await ended.rest()] == ["close"]


@pytest.mark.usefixtures("synced_rarely")
async def test_a_session_that_got_another_key_goes_on_where_its_view_asks_first(
    settings: Settings,
) -> None:
    settings.DJANGO_SSE = {**settings.DJANGO_SSE, "RECHECK_INTERVAL": 1}
    tab = await logged_in()
    async with stream(tab, url="/members/") as before:
        await goes_on(before)
        await tab.get("/rotate/")
        assert await before.rest() == []
        assert before.reconnection_time
    async with stream(tab, before.last_event_id, url="/members/") as after:
        await goes_on(after)


@pytest.mark.parametrize("cache", [SilentCache, DownCache])
async def test_sessions_are_in_the_database_alone_while_the_cache_before_it_is_away(
    cache: Any,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    swept: Callable[[], Awaitable[None]],
) -> None:
    settings.SESSION_ENGINE = ENGINES["cached_db"]
    settings.CACHES = {"default": {"BACKEND": f"tests.failures.{cache.__name__}"}}
    tab, eve = await logged_in(), await logged_in("eve")
    async with stream(tab) as ended, stream(eve) as other:
        monkeypatch.setattr(cache, "is_away", True)
        await swept()
        await goes_on(other)
        await Session.objects.filter(pk=session_key(tab)).adelete()
        await ended.until("going on")
        assert await ended.rest() == []
        assert ended.reconnection_time
        await goes_on(other)
        monkeypatch.setattr(cache, "is_away", False)


async def test_a_login_that_nobody_watches_is_asked_about_again(settings: Settings) -> None:
    """A view whose streams have no owner has no login to watch."""
    settings.DJANGO_SSE = {**settings.DJANGO_SSE, "RECHECK_INTERVAL": 1}
    async with stream(await logged_in(), url="/unowned/") as ended:
        await goes_on(ended)
        await User.objects.aupdate(is_active=False)
        assert [event.event for event in await ended.rest()] == ["close"]


@pytest.mark.parametrize("url", ["/members/", "/events/", "/page/"])
async def test_a_client_whose_session_cannot_be_read_comes_back_later(
    url: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not taken for somebody who has logged out, which would stop its EventSource."""
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.cache"
    settings.CACHES = {"default": {"BACKEND": "tests.failures.SilentCache"}}
    tab = await logged_in()
    with monkeypatch.context() as patch:
        patch.setattr(SilentCache, "is_away", True)
        refused = await answer(tab, url=url)
        assert refused.status_code == 503
        assert refused["Retry-After"]
    assert (await answer(tab, url=url)).status_code == 200
    await CacheSession(session_key(tab)).adelete()
    assert (await answer(tab, url="/members/")).status_code == 401


class RefusesKeys(DatabaseSession):
    """Is in a database that refuses some keys, as PostgreSQL does with a NUL."""

    failure: Exception = ValueError("A string literal cannot contain NUL (0x00) characters.")

    def load(self) -> Any:
        raise self.failure


class RefusesKeysOutright(RefusesKeys):
    failure = DataError("PostgreSQL text fields cannot contain NUL (0x00) bytes.")


@pytest.mark.parametrize("is_wrapped", [False, True])
@pytest.mark.parametrize("store", [CacheSession, RefusesKeys, RefusesKeysOutright])
async def test_a_session_key_that_is_refused_is_nobodys(
    store: Any, is_wrapped: bool, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{__name__}.SessionStore", store, raising=False)
    settings.SESSION_ENGINE = __name__
    settings.CACHES = {"default": {"BACKEND": "tests.failures.StrictCache"}}
    if is_wrapped:
        settings.MIDDLEWARE = [*settings.MIDDLEWARE, f"{__name__}.verifies_user"]
    tab = AsyncClient()
    tab.cookies[settings.SESSION_COOKIE_NAME] = "made up, " * 40
    assert (await answer(tab, url="/members/")).status_code == 401
    assert (await answer(tab, url="/of-user/")).status_code == 403
    async with stream(tab) as reader:
        await goes_on(reader)


async def test_a_session_in_a_cookie_is_not_looked_for(
    settings: Settings, swept: Callable[[], Awaitable[None]]
) -> None:
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"
    async with stream(await logged_in()) as reader:
        await swept()
        await goes_on(reader)


@pytest.mark.parametrize("failure", [ZeroDivisionError(), Panic(), asyncio.CancelledError()])
async def test_a_login_that_cannot_be_judged_harms_nobody_elses(
    failure: BaseException, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def judge_user(backend: object, user: User) -> bool:
        if user.username == "bob":
            raise failure
        return user.is_active

    async with (
        stream(await logged_in()) as ended,
        stream(await logged_in("bob")) as broken,
        stream(await logged_in("eve")) as other,
    ):
        monkeypatch.setattr(ModelBackend, "user_can_authenticate", judge_user)
        assert await broken.rest() == []
        await User.objects.filter(username="ada").aupdate(is_active=False)
        assert [event.event for event in await ended.rest()] == ["close"]
        await goes_on(other)
    assert caplog.text.count("A login cannot be checked") == 1


@pytest.mark.usefixtures("synced_rarely")
async def test_sessions_are_looked_for_with_one_query_for_all_of_them() -> None:
    async with AsyncExitStack() as streams:
        for n in range(20):
            await streams.enter_async_context(stream(await logged_in(f"user{n}")))
        logins = {stream.owner.login for stream in current_hub().streams if stream.owner.login}
        assert len(logins) == 20
        with queries_about("django_session") as queries:
            assert await sync_to_async(without_session)(logins) == set()
        assert len(queries) == 1


# Requests that read their users again


class Member(User):
    class Meta:
        proxy = True
        app_label = "auth"

    @cached_property
    def is_manager(self) -> bool:
        return self.is_staff


@pytest.mark.parametrize("is_kept", [True, False], ids=["found once", "set at once"])
async def test_what_was_worked_out_of_a_users_row_is_not_taken_for_what_it_is_now(
    is_kept: bool,
) -> None:
    await User.objects.acreate(username="ada", is_staff=True)
    ada = await Member.objects.aget(username="ada")
    assert ada.is_manager
    request = RequestFactory().get("/")
    request.session = CacheSession()

    async def auser() -> Any:
        return ada

    setattr(request, "auser", auser)  # noqa: B010
    request.user = SimpleLazyObject(lambda: ada) if is_kept else ada  # type: ignore[assignment]
    await User.objects.aupdate(is_staff=False)
    renew_login(request)
    user: Any = request.user
    assert not await sync_to_async(lambda: user.is_staff)()
    assert not await sync_to_async(lambda: user.is_manager)()


def request_in(session_key: str | None) -> HttpRequest:
    """Return a request in a session, as Django's middleware hands it on."""
    request = RequestFactory().get("/")
    request.session = DatabaseSession(session_key)
    AuthenticationMiddleware(lambda _: HttpResponse()).process_request(request)
    return request


class Gate:
    """Lets the user of a session through as long as it is open, as one that asks for a second
    factor: a lazy user round Django's own."""

    def __init__(self, sets_auser: bool) -> None:
        self.is_open = True
        self._sets_auser = sets_auser

    def __call__(self, request: HttpRequest) -> None:
        user, auser = request.user, request.auser
        request.user = SimpleLazyObject(lambda: self._pass(user))  # type: ignore[assignment]
        if self._sets_auser:

            async def passed() -> Any:
                return self._pass(await auser())

            setattr(request, "auser", passed)  # noqa: B010

    def _pass(self, user: Any) -> Any:
        return user if self.is_open else AnonymousUser()


@pytest.mark.parametrize("sets_auser", [False, True], ids=["user", "user and auser"])
async def test_whether_a_middleware_lets_a_user_through_is_found_out_at_each_question(
    sets_auser: bool,
) -> None:
    tab, gate = await logged_in(), Gate(sets_auser)
    request = request_in(tab.cookies["sessionid"].value)
    gate(request)
    await resolve_user(request)
    for is_open in (True, True, False, False, True):
        gate.is_open = is_open
        renew_login(request)
        assert (await user_of(request)).is_authenticated is is_open
    await Session.objects.all().adelete()
    for _ in range(2):
        renew_login(request)
        assert not (await user_of(request)).is_authenticated


@pytest.mark.parametrize("is_lazy", [True, False], ids=["lazy", "set at once"])
async def test_a_user_is_read_no_more_often_the_longer_a_stream_is_open(is_lazy: bool) -> None:
    """Whom a middleware has set, in no session, as it does by a token."""
    request, ada = request_in(None), await user()
    found = SimpleLazyObject(lambda: User.objects.get(pk=ada.pk))
    request.user = found if is_lazy else ada  # type: ignore[assignment]
    await resolve_user(request)
    asked = []
    for _ in range(5):
        renew_login(request)
        with queries_about("auth_user") as queries:
            assert (await request.auser()).pk == ada.pk
        asked.append(len(queries))
    assert asked == [asked[0]] * 5
