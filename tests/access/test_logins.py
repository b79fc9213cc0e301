"""A stream ends with the login that it was opened in."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from threading import Event, current_thread
from threading import enumerate as threads
from time import time_ns
from typing import Any, ClassVar

import pytest
from asgiref.sync import sync_to_async
from django.conf import settings as django_settings
from django.contrib import auth
from django.contrib.auth.backends import BaseBackend, ModelBackend
from django.contrib.auth.middleware import AuthenticationMiddleware
from django.contrib.auth.models import AnonymousUser, Permission, User
from django.contrib.sessions.backends.cache import SessionStore as CacheSession
from django.contrib.sessions.backends.db import SessionStore as DatabaseSession
from django.contrib.sessions.backends.file import SessionStore as FileSession
from django.contrib.sessions.models import Session
from django.core.cache import caches
from django.core.cache.backends.locmem import LocMemCache
from django.core.exceptions import PermissionDenied
from django.db import connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.test import AsyncClient, RequestFactory
from django.urls import path
from django.utils import timezone
from django.utils.functional import SimpleLazyObject, cached_property
from pytest_django import Settings

from django_sse import acancel, apublish, signals
from django_sse.access import logins
from django_sse.access.logins import (
    LoginCheck,
    check_logins,
    renew_login,
    resolve_user,
    user_of,
    without_session,
)
from django_sse.access.owners import Login, user_key
from django_sse.asgi import get_asgi_application
from django_sse.decorators import event_generator
from django_sse.doorbells.base import Doorbell
from django_sse.groups.entries import Hint
from django_sse.mixins import LoginRequiredMixin
from django_sse.stores import get_store
from django_sse.streaming import rechecks
from django_sse.streaming.hub import current_hub
from django_sse.streaming.rechecks import Rechecks
from django_sse.streaming.stream import Stream
from django_sse.views import EventStreamView
from tests.failures import Panic
from tests.http.test_asgi import Request
from tests.queries import queries_about
from tests.streams import EventReader, reading, until
from tests.users import logged_in, user

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.urls(__name__),
    # In this order: what is left at the end is closed by the settings that it was opened by.
    pytest.mark.usefixtures("often", "everything_ends"),
]

NEWS = "/events/"
STAFF = "/staff/"


class News(EventStreamView):
    groups = ["news"]


def logout(request: HttpRequest) -> HttpResponse:
    auth.logout(request)
    return HttpResponse(status=204)


def rotate(request: HttpRequest) -> HttpResponse:
    """As a project does that has asked for a second factor."""
    request.session.cycle_key()
    return HttpResponse(status=204)


async def logout_async(request: HttpRequest) -> HttpResponse:
    await auth.alogout(request)
    return HttpResponse(status=204)


def change_password(request: HttpRequest) -> HttpResponse:
    assert isinstance(request.user, User)
    request.user.set_password("another one")
    request.user.save()
    auth.update_session_auth_hash(request, request.user)
    return HttpResponse(status=204)


class StaffOnly(News):
    """Asks again, now and then, whether its user is still allowed to see it."""

    asked_in: ClassVar[set[str]] = set()

    async def still_allowed(self) -> bool:
        self.asked_in.add(await sync_to_async(lambda: current_thread().name)())
        user = await self.request.auser()
        if not user.is_authenticated:
            raise PermissionDenied
        return bool(user.is_staff)


class Rooms(News):
    """Has a query for its user, whoever that is."""

    async def still_allowed(self) -> bool:
        user: Any = await self.request.auser()
        return await Permission.objects.exclude(user=user).aexists()


class Undecided(News):
    """Reads the database, and then takes its time to say."""

    asked_on: ClassVar[list[BaseDatabaseWrapper]] = []

    async def still_allowed(self) -> bool:
        await User.objects.acount()
        self.asked_on.append(await sync_to_async(lambda: connections["default"])())
        await asyncio.Event().wait()
        return True


class Members(LoginRequiredMixin, News):
    """For who is logged in."""


@event_generator
async def job(request: HttpRequest) -> AsyncIterator[str]:
    yield "done"


async def job_of_user(request: HttpRequest) -> HttpResponseBase:
    await request.auser()
    response: HttpResponseBase = await job(request)
    return response


urlpatterns = [
    path("events/", News.as_view()),
    path("job/", job_of_user),
    path("members/", Members.as_view()),
    path("rooms/", Rooms.as_view()),
    path("staff/", StaffOnly.as_view()),
    path("undecided/", Undecided.as_view()),
    path("logout/", logout),
    path("logout-async/", logout_async),
    path("rotate/", rotate),
    path("password/", change_password),
]


@pytest.fixture
def often(settings: Settings) -> None:
    """The store is compared with, and logins are checked, often."""
    settings.DJANGO_SSE = {"SYNC_INTERVAL": 0.05}


@pytest.fixture
def swept(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Awaitable[None]]:
    """Waits for a whole sweep over all logins."""
    finished: list[None] = []
    # What comes last in a sweep.
    look_for_sessions = Rechecks._look_for_sessions

    async def look_and_note(rechecks: Rechecks, streams: Collection[Stream]) -> None:
        await look_for_sessions(rechecks, streams)
        finished.append(None)

    monkeypatch.setattr(Rechecks, "_look_for_sessions", look_and_note)

    async def wait() -> None:
        # The next one to finish may have begun before.
        wanted = len(finished) + 2
        await until(lambda: len(finished) >= wanted)

    return wait


@pytest.fixture
def rarely(settings: Settings, often: None) -> None:
    """What ends a stream in time is not the sweep."""
    settings.DJANGO_SSE = {"SYNC_INTERVAL": 3600}


async def answer(client: AsyncClient, last_event_id: str = "", url: str = NEWS) -> HttpResponseBase:
    headers = {"Last-Event-ID": last_event_id} if last_event_id else {}
    return await client.get(url, headers=headers)


@asynccontextmanager
async def stream(
    client: AsyncClient, last_event_id: str = "", url: str = NEWS
) -> AsyncIterator[EventReader]:
    async with reading(await answer(client, last_event_id, url)) as reader:
        yield reader


async def goes_on(reader: EventReader) -> None:
    await apublish("news", "going on")
    assert (await reader.next_event()).data == "going on"


@pytest.mark.usefixtures("rarely")
@pytest.mark.parametrize("url", ["/logout/", "/logout-async/"])
async def test_a_logout_ends_the_streams_of_its_session_and_no_others(url: str) -> None:
    tab, phone, eve = await logged_in(), await logged_in(), await logged_in("eve")
    async with (
        stream(tab) as first,
        stream(tab) as second,
        stream(phone) as third,
        stream(eve) as fourth,
        stream(AsyncClient()) as fifth,
    ):
        await tab.get(url)
        for ended in (first, second):
            [close] = await ended.rest()
            assert (close.event, close.json()) == ("close", {"reason": "logged out"})
        await apublish("news", "going on")
        for reader in (third, fourth, fifth):
            assert (await reader.next_event()).data == "going on"
    assert (await answer(tab, first.last_event_id)).status_code == 204
    # Another page of that browser is an anonymous visitor's.
    async with stream(tab):
        pass


@pytest.mark.usefixtures("rarely")
async def test_a_logout_ends_the_streams_of_before_the_session_got_another_key() -> None:
    tab, phone = await logged_in(), await logged_in()
    async with stream(tab) as before, stream(phone) as other:
        await tab.get("/rotate/")
        async with stream(tab) as after:
            await tab.get("/logout/")
            for ended in (before, after):
                assert [event.event for event in await ended.rest()] == ["close"]
        await goes_on(other)


@pytest.mark.usefixtures("rarely")
async def test_a_logout_counts_whatever_the_clocks_say(monkeypatch: pytest.MonkeyPatch) -> None:
    tab = await logged_in()
    async with stream(tab) as reader:
        with monkeypatch.context() as behind:
            # Another host's clock, at the logout, is ten seconds behind this one's at the login.
            behind.setattr("django_sse.stores.clock.time_ns", lambda: time_ns() - 10**10)
            await tab.get("/logout/")
        assert [event.event for event in await reader.rest()] == ["close"]


@pytest.mark.usefixtures("rarely")
async def test_a_client_that_comes_back_before_the_session_is_flushed_does_not_get_in() -> None:
    tab = await logged_in()
    answers = []

    def come_back(sender: object, **kwargs: object) -> None:
        # The last receiver of the signal: Django flushes the session after it.
        with ThreadPoolExecutor(1) as another_thread:
            answers.append(another_thread.submit(asyncio.run, status()).result())

    async def status() -> int:
        request = Request(get_asgi_application(), NEWS, headers=[(b"cookie", cookie)])
        await request.start()
        # A request that is broken off may leave its connection to the database open.
        await request.rest()
        return request.status

    cookie = tab.cookies.output(attrs=[], header="", sep=";").strip().encode()
    auth.user_logged_out.connect(come_back)
    try:
        await tab.get("/logout/")
    finally:
        auth.user_logged_out.disconnect(come_back)
    assert answers == [204]


async def test_in_a_session_in_a_cookie_a_logout_ends_all_of_the_users_streams(
    settings: Settings,
) -> None:
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"
    tab, phone, eve = await logged_in(), await logged_in(), await logged_in("eve")
    async with stream(tab) as first, stream(phone) as second, stream(eve) as other:
        await tab.get("/logout/")
        for ended in (first, second):
            assert [event.event for event in await ended.rest()] == ["close"]
        await goes_on(other)


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


@pytest.mark.parametrize("how", ["update", "delete"])
async def test_a_user_who_may_not_log_in_any_more_loses_the_streams(how: str) -> None:
    """Found by the sweep: ``QuerySet`` methods such as ``update`` send no signal."""
    tab = await logged_in()
    async with stream(tab) as ended, stream(await logged_in("eve")) as other:
        users = User.objects.filter(username="ada")
        await (users.aupdate(is_active=False) if how == "update" else users.adelete())
        assert [event.event for event in await ended.rest()] == ["close"]
        await goes_on(other)
    assert (await answer(tab, ended.last_event_id)).status_code == 204


class ProxyUser(User):
    class Meta:
        proxy = True
        app_label = "auth"


@pytest.mark.usefixtures("rarely")
async def test_a_user_who_is_saved_through_a_proxy_of_the_model_is_looked_at_too() -> None:
    async with stream(await logged_in()) as ended:
        await goes_on(ended)
        ada = await ProxyUser.objects.aget(username="ada")
        ada.is_active = False
        await ada.asave()
        assert [event.event for event in await ended.rest()] == ["close"]


@pytest.mark.usefixtures("rarely")
async def test_a_user_who_is_saved_is_looked_at_at_once() -> None:
    async with stream(await logged_in()) as ended, stream(await logged_in("eve")) as other:
        # The first sweep has been.
        await goes_on(ended)
        ada = await user()
        ada.is_active = False
        await ada.asave()
        assert [event.event for event in await ended.rest()] == ["close"]
        await other.until("going on")
        await goes_on(other)


@pytest.mark.usefixtures("rarely")
async def test_a_user_can_be_saved_where_nothing_tells_of_the_commit() -> None:
    ada = await user()

    def save_with_autocommit_off() -> None:
        transaction.set_autocommit(False)
        try:
            ada.save()
            transaction.commit()
        finally:
            transaction.rollback()
            transaction.set_autocommit(True)

    await sync_to_async(save_with_autocommit_off)()


async def test_a_login_by_a_token_leaves_sessions_as_they_are() -> None:
    request = RequestFactory().get("/")
    await auth.user_logged_in.asend(sender=User, request=request, user=await user())
    # Its user is cancelled, and does not come back by the login of another one.
    client = await logged_in()
    await acancel(user=await user())
    other = await user("bob")
    request.session = await client.asession()
    await auth.user_logged_in.asend(sender=User, request=request, user=other)
    await request.session.asave()
    assert (await answer(client)).status_code == 204


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


@pytest.mark.usefixtures("rarely")
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


# Whom Django finds


class FindsEveryone(BaseBackend):
    """Finds users in a way of its own, such as in a directory."""

    missing: ClassVar[set[str]] = set()
    failure: BaseException | None = None
    asked = 0

    def get_user(self, user_id: Any) -> User | None:
        FindsEveryone.asked += 1
        if self.failure:
            raise self.failure
        user = User.objects.filter(pk=user_id).first()
        return None if user is None or user.username in self.missing else user


class Hangs(BaseBackend):
    """Asks a directory that does not answer."""

    begun = Event()
    goes_on = Event()

    def get_user(self, user_id: Any) -> User | None:
        if not self.goes_on.is_set():
            self.begun.set()
            self.goes_on.wait(60)
        return User.objects.filter(pk=user_id).first()


class SaysWhatUsersMay:
    """A backend of permissions alone, as those of django-guardian and rules are."""

    def authenticate(self, request: HttpRequest, **credentials: Any) -> None:
        return None

    def has_perm(self, user: User, permission: str, of: Any = None) -> bool:
        return False


@pytest.fixture
def own_backend(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.AUTHENTICATION_BACKENDS = [f"{__name__}.FindsEveryone"]
    monkeypatch.setattr(FindsEveryone, "missing", set())
    monkeypatch.setattr(FindsEveryone, "failure", None)
    monkeypatch.setattr(FindsEveryone, "asked", 0)
    # ModelBackend, which Django does not ask here, would find nobody.
    monkeypatch.setattr("django_sse.access.logins._users", lambda keys: {})


@pytest.mark.usefixtures("own_backend")
async def test_a_user_whom_the_backend_alone_finds_keeps_the_stream() -> None:
    async with stream(await logged_in()) as reader:
        # Once by the request, the others long after it.
        await until(lambda: FindsEveryone.asked > 3)
        await goes_on(reader)


@pytest.mark.usefixtures("own_backend")
async def test_a_user_whom_the_backend_does_not_find_any_more_loses_the_stream() -> None:
    tab = await logged_in()
    async with stream(tab) as ended, stream(await logged_in("eve")) as other:
        FindsEveryone.missing.add("ada")
        # The request decides: the backend may read from a replica.
        await assert_sent_back_for_good(ended, tab)
        await goes_on(other)


@pytest.mark.usefixtures("own_backend")
async def test_a_user_whom_the_backend_misses_for_a_moment_keeps_the_stream() -> None:
    async with stream(await logged_in()) as reader:
        FindsEveryone.missing.add("ada")
        FindsEveryone.asked = 0
        await until(lambda: FindsEveryone.asked)
        FindsEveryone.missing.clear()
        FindsEveryone.asked = 0
        await until(lambda: FindsEveryone.asked > 3)
        await goes_on(reader)


@pytest.mark.usefixtures("own_backend", "rarely")
async def test_a_backend_of_its_own_is_asked_at_once_about_a_user_who_is_saved() -> None:
    async with stream(await logged_in()) as ended, stream(await logged_in("eve")) as other:
        await goes_on(ended)
        ada = await user()
        ada.set_unusable_password()
        await ada.asave()
        assert await ended.rest() == []
        await other.until("going on")
        await goes_on(other)


@pytest.mark.usefixtures("own_backend")
async def test_after_a_changed_password_a_backend_of_its_own_counts_as_well() -> None:
    async with stream(await logged_in()) as ended:
        await User.objects.aupdate(password="another one")
        assert await ended.rest() == []
        assert ended.reconnection_time


@pytest.mark.usefixtures("own_backend")
@pytest.mark.parametrize("failure", [RuntimeError("The directory is away."), Panic()], ids=repr)
async def test_a_backend_that_cannot_say_ends_no_stream(
    failure: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    """As where the directory is away: nobody is logged out by that."""
    async with stream(await logged_in()) as reader:
        FindsEveryone.failure = failure
        FindsEveryone.asked = 0
        await until(lambda: FindsEveryone.asked > 3)
        await goes_on(reader)
        assert caplog.text.count("failed to look up a user") == 1
        FindsEveryone.failure = None
        FindsEveryone.missing.add("ada")
        assert await reader.rest() == []


async def test_a_backend_that_panics_keeps_no_other_login_from_being_judged(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rechecks, "_PAUSE_FACTOR", 0)
    own = f"{__name__}.FindsEveryone"
    settings.AUTHENTICATION_BACKENDS = ["django.contrib.auth.backends.ModelBackend", own]
    browser = AsyncClient()
    await browser.aforce_login(await user(), backend=own)
    async with stream(browser) as going_on, stream(await logged_in("eve")) as ended:
        monkeypatch.setattr(FindsEveryone, "failure", Panic())
        monkeypatch.setattr(FindsEveryone, "asked", 0)
        await until(lambda: FindsEveryone.asked > 1)
        # Without a signal.
        await User.objects.filter(username="eve").aupdate(is_active=False)
        assert [event.event for event in await ended.rest()] == ["close"]
        await goes_on(going_on)


async def test_a_backend_that_hangs_holds_up_nobody_else(settings: Settings) -> None:
    own = f"{__name__}.Hangs"
    settings.AUTHENTICATION_BACKENDS = ["django.contrib.auth.backends.ModelBackend", own]
    browser = AsyncClient()
    await browser.aforce_login(await user(), backend=own)
    Hangs.begun.clear()
    Hangs.goes_on.set()
    try:
        async with stream(browser) as hanging, stream(await logged_in("eve")) as ended:
            Hangs.goes_on.clear()
            await until(Hangs.begun.is_set)
            # Doorbells are answered, users swept, sessions looked for.
            eve = await user("eve")
            eve.is_active = False
            await eve.asave()
            assert [event.event for event in await ended.rest()] == ["close"]
            async with stream(await logged_in("bob")) as swept:
                await User.objects.filter(username="bob").aupdate(is_active=False)
                assert [event.event for event in await swept.rest()] == ["close"]
            await Session.objects.all().adelete()
            await assert_sent_back_for_good(hanging, browser)
    finally:
        Hangs.goes_on.set()


async def test_a_user_who_is_missed_once_keeps_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a replica has not got the user yet."""
    missed: list[None] = []

    def miss(keys: Any) -> dict[str, User]:
        missed.append(None)
        return {} if len(missed) == 1 else found(keys)

    found = logins._users
    monkeypatch.setattr(logins, "_users", miss)
    async with stream(await logged_in()) as reader:
        await until(lambda: len(missed) > 2)
        await goes_on(reader)


async def test_a_user_who_is_gone_puts_that_off_by_closing_no_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    browser = await logged_in()
    monkeypatch.setattr(logins, "_users", lambda keys: {})
    async with AsyncExitStack() as streams:
        ended = await streams.enter_async_context(stream(browser))
        for _ in range(40):
            if ended.ended:
                break
            # More often than a user who was missed is looked for again.
            async with stream(browser):
                await asyncio.sleep(0.1)
        assert ended.ended


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


# What is told of a user who is saved


class HashesTheEmail(User):
    """Ends its sessions also when its address changes."""

    class Meta:
        proxy = True
        app_label = "auth"

    def get_session_auth_hash(self) -> str:
        return super().get_session_auth_hash() + self.email


@pytest.fixture
def rung(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The owner keys of the users that hubs were told of."""
    owner_keys: list[str] = []
    ring = Doorbell.ring

    def note(doorbell: Doorbell, hints: Sequence[Hint]) -> None:
        owner_keys.extend(hint.group for hint in hints)
        ring(doorbell, hints)

    monkeypatch.setattr(Doorbell, "ring", note)
    return owner_keys


@pytest.mark.parametrize(
    ("changed", "fields", "tells"),
    [
        ({}, None, False),
        ({"first_name": "Ada"}, None, False),
        ({"last_login": timezone.now()}, ["last_login"], False),
        ({"email": "ada@example.com"}, ["email"], False),
        ({"is_active": False}, None, True),
        ({"is_active": False}, ["is_active"], True),
        ({"password": "!"}, None, True),
    ],
)
async def test_saving_a_user_tells_only_of_what_logins_are_judged_by(
    changed: dict[str, Any], fields: list[str] | None, tells: bool, rung: list[str]
) -> None:
    await user()
    ada = await User.objects.aget(username="ada")
    for name, value in changed.items():
        setattr(ada, name, value)
    await ada.asave(update_fields=fields)
    await ada.asave()
    assert rung == ([user_key(ada)] if tells else [])


@pytest.mark.parametrize(
    ("backends", "changed", "tells"),
    [
        # Of what it may do, which no login is checked by.
        (["django.contrib.auth.backends.ModelBackend", "SaysWhatUsersMay"], "first_name", False),
        # When it was last seen, in a field of any name.
        (["FindsEveryone"], "date_joined", False),
        (["FindsEveryone"], "first_name", True),
    ],
)
async def test_what_counts_of_a_user_is_what_the_projects_backends_may_judge_by(
    backends: list[str], changed: str, tells: bool, rung: list[str], settings: Settings
) -> None:
    settings.AUTHENTICATION_BACKENDS = [
        path if "." in path else f"{__name__}.{path}" for path in backends
    ]
    await user()
    ada = await User.objects.aget(username="ada")
    setattr(ada, changed, timezone.now() if changed == "date_joined" else "Ada")
    await ada.asave()
    assert rung == ([user_key(ada)] if tells else [])


class HashesWithoutFallback:
    """A user as Django's `get_user` takes it, too: not every one has hashes of older keys."""

    def get_session_auth_hash(self) -> str:
        return "hash"


def test_older_hashes_are_asked_for_where_they_are_needed_alone() -> None:
    assert logins._has_hash(HashesWithoutFallback(), "hash")


async def test_a_change_that_was_rolled_back_is_told_when_it_is_saved_again(
    rung: list[str],
) -> None:
    ada = await user()
    ada.is_active = False

    def save_in_vain() -> None:
        with transaction.atomic():
            ada.save()
            transaction.set_rollback(True)

    await sync_to_async(save_in_vain)()
    assert not rung
    await ada.asave()
    assert rung == [user_key(ada)]


async def test_any_field_counts_where_a_project_judges_logins_in_a_way_of_its_own(
    rung: list[str],
) -> None:
    await user()
    ada = await HashesTheEmail.objects.aget(username="ada")
    signals._note_loaded(ada)
    await ada.asave()
    assert not rung
    ada.email = "ada@example.com"
    await ada.asave()
    assert rung == [user_key(ada)]


async def test_reading_users_in_part_makes_no_query_for_the_rest() -> None:
    await user()
    with queries_about("auth_user") as queries:
        assert (await User.objects.only("username").aget()).username == "ada"
    assert len(queries) == 1


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


def session_key(client: AsyncClient) -> str:
    return client.cookies[django_settings.SESSION_COOKIE_NAME].value


async def assert_sent_back_for_good(ended: EventReader, client: AsyncClient) -> None:
    assert await ended.rest() == []
    assert ended.reconnection_time
    assert (await answer(client, ended.last_event_id)).status_code == 204


async def test_who_is_logged_out_everywhere_loses_the_streams(engine: Any) -> None:
    """As projects do it: they delete the sessions, which sends no signal."""
    tab, phone, eve = await logged_in(), await logged_in(), await logged_in("eve")
    async with stream(tab) as first, stream(phone) as second, stream(eve) as other:
        for client in (tab, phone):
            await engine(session_key(client)).adelete()
        await assert_sent_back_for_good(first, tab)
        await assert_sent_back_for_good(second, phone)
        await goes_on(other)


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


class SilentCache(LocMemCache):
    """Passes over in silence that it is away, as django-redis with IGNORE_EXCEPTIONS."""

    is_away = False

    def get(self, key: Any, default: Any = None, version: Any = None) -> Any:
        return default if self.is_away else super().get(key, default, version)

    def set(self, *args: Any, **kwargs: Any) -> None:
        if not self.is_away:
            super().set(*args, **kwargs)

    def has_key(self, key: Any, version: Any = None) -> bool:
        return not self.is_away and super().has_key(key, version)


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
    settings.CACHES = {"default": {"BACKEND": f"{__name__}.SilentCache"}}
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


async def test_a_session_in_a_cookie_is_not_looked_for(
    settings: Settings, swept: Callable[[], Awaitable[None]]
) -> None:
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"
    async with stream(await logged_in()) as reader:
        await swept()
        await goes_on(reader)


async def test_sessions_that_cannot_be_read_keep_no_user_from_being_judged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failures: list[None] = []

    def fail(*args: object) -> set[str]:
        failures.append(None)
        raise OSError

    monkeypatch.setattr("django_sse.access.logins._existing", fail)
    async with stream(await logged_in()) as ended, stream(await logged_in("eve")) as other:
        await until(lambda: len(failures) > 3)
        await goes_on(other)
        await User.objects.filter(username="ada").aupdate(is_active=False)
        [_, close] = await ended.rest()
        assert (close.event, close.json()) == ("close", {"reason": "logged out"})
    assert caplog.text.count("sessions of open streams cannot be checked") == 1


async def test_users_who_cannot_be_read_keep_no_session_from_being_looked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*args: object) -> dict[str, Any]:
        raise OSError

    monkeypatch.setattr("django_sse.access.logins._users", fail)
    tab = await logged_in()
    async with stream(tab) as ended:
        await Session.objects.all().adelete()
        await assert_sent_back_for_good(ended, tab)


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


@pytest.mark.usefixtures("rarely")
async def test_sessions_are_looked_for_with_one_query_for_all_of_them() -> None:
    async with AsyncExitStack() as streams:
        for n in range(20):
            await streams.enter_async_context(stream(await logged_in(f"user{n}")))
        logins = {stream.owner.login for stream in current_hub().streams if stream.owner.login}
        assert len(logins) == 20
        with queries_about("django_session") as queries:
            assert await sync_to_async(without_session)(logins) == set()
        assert len(queries) == 1


@pytest.mark.parametrize("heard", [True, False])
async def test_a_logout_tells_why_also_where_the_session_is_missed_first(
    heard: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tab = await logged_in()
    async with stream(tab) as ended:
        if not heard:
            # As in another process, whose next look at the store comes after that at sessions.
            monkeypatch.setattr("django_sse.doorbells.base.ring_here", lambda hints: None)
            monkeypatch.setattr(get_store(), "achanged", lambda *_: asyncio.sleep(3600))
        await tab.get("/logout/")
        assert [event.json() for event in await ended.rest()] == [{"reason": "logged out"}]


# Views that are asked again


@pytest.fixture
def asked_often(settings: Settings, often: None) -> None:
    settings.DJANGO_SSE = {"RECHECK_INTERVAL": 1, "SYNC_INTERVAL": 3600}


@pytest.mark.usefixtures("asked_often")
@pytest.mark.parametrize("how", ["permission", "session"])
async def test_a_view_ends_streams_whose_permission_is_gone(how: str) -> None:
    """With the user and the session as they are then, not as they were in the request."""
    tab, other = await logged_in(), await logged_in("eve")
    await User.objects.aupdate(is_staff=True)
    async with stream(tab, url=STAFF) as ended, stream(other, url=STAFF) as going_on:
        if how == "permission":
            await User.objects.filter(username="ada").aupdate(is_staff=False)
        else:
            await Session.objects.filter(pk=tab.cookies["sessionid"].value).adelete()
        [close] = await ended.rest()
        assert (close.event, close.json()) == ("close", {"reason": "not allowed any more"})
        await goes_on(going_on)


def logs_in(get_response: Callable[[HttpRequest], Any]) -> Callable[..., Any]:
    """Logs a user in by the request itself, as Django's RemoteUserMiddleware does."""

    async def middleware(request: HttpRequest) -> Any:
        if key := request.headers.get("X-User"):
            await auth.alogin(
                request,
                await User.objects.aget(pk=key),
                backend="django.contrib.auth.backends.ModelBackend",
            )
        return await get_response(request)

    return middleware


setattr(logs_in, "async_capable", True)  # noqa: B010
setattr(logs_in, "sync_capable", False)  # noqa: B010


@pytest.mark.parametrize("how", ["not staff", "logged out"])
async def test_a_view_sees_what_has_become_of_a_user_who_was_logged_in_by_the_request(
    how: str, settings: Settings
) -> None:
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, f"{__name__}.logs_in"]
    settings.DJANGO_SSE = {"RECHECK_INTERVAL": 1, "END_WITH_LOGIN": False}
    ada = await user()
    await User.objects.filter(pk=ada.pk).aupdate(is_staff=True)
    async with reading(await AsyncClient().get(STAFF, headers={"X-User": str(ada.pk)})) as ended:
        await goes_on(ended)
        if how == "not staff":
            await User.objects.aupdate(is_staff=False)
        else:
            await Session.objects.all().adelete()
        assert [event.event for event in await ended.rest()] == ["close"]


def sync_middleware(get_response: Callable[[HttpRequest], Any]) -> Callable[..., Any]:
    return lambda request: get_response(request)


setattr(sync_middleware, "async_capable", False)  # noqa: B010


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


@pytest.mark.usefixtures("asked_often")
async def test_a_view_below_a_sync_middleware_can_be_asked(settings: Settings) -> None:
    """It has a thread of its own then: that of its request has ended."""
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, f"{__name__}.sync_middleware"]
    StaffOnly.asked_in.clear()
    ada = await User.objects.acreate(username="ada", is_staff=True)
    async with stream(await logged_in(), url=STAFF) as ended:
        await until(lambda: StaffOnly.asked_in)
        await goes_on(ended)
        await User.objects.filter(pk=ada.pk).aupdate(is_staff=False)
        [close] = await ended.rest()
        assert close.json() == {"reason": "not allowed any more"}


@pytest.mark.usefixtures("asked_often")
async def test_asking_views_leaves_no_thread_and_no_connection() -> None:
    StaffOnly.asked_in.clear()
    await User.objects.acreate(username="ada", is_staff=True)
    async with stream(await logged_in(), url=STAFF):
        await until(lambda: StaffOnly.asked_in)
        # Of the thread pool of a round, which has ended.
        await until(lambda: StaffOnly.asked_in.isdisjoint({thread.name for thread in threads()}))


@pytest.mark.usefixtures("asked_often")
async def test_a_view_that_is_asked_while_the_last_stream_ends_leaves_no_connection() -> None:
    Undecided.asked_on.clear()
    async with stream(AsyncClient(), url="/undecided/"):
        await until(lambda: Undecided.asked_on)
        [used] = Undecided.asked_on
        assert used.connection is not None
    await until(lambda: used.connection is None)


@pytest.mark.usefixtures("asked_often")
async def test_a_query_for_the_user_of_a_session_that_is_gone_is_a_no() -> None:
    """A query for an anonymous user raises, just when it matters."""
    tab, other = await logged_in(), await logged_in("eve")
    async with stream(tab, url="/rooms/") as ended, stream(other, url="/rooms/") as going_on:
        await tab.get("/rotate/")
        [close] = await ended.rest()
        assert (close.event, close.json()) == ("close", {"reason": "not allowed any more"})
        await goes_on(going_on)
