"""Django's signals: what logins, logouts and saved users do to open streams."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from time import time_ns
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.contrib import auth
from django.contrib.auth.models import User
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient, RequestFactory
from django.urls import path
from django.utils import timezone
from pytest_django import Settings

from django_sse import acancel, apublish, receivers
from django_sse.access.owners import user_key
from django_sse.asgi import get_asgi_application
from django_sse.doorbells.base import Doorbell
from django_sse.groups.entries import Hint
from tests.http.test_asgi import Request
from tests.queries import queries_about
from tests.streams import News, goes_on
from tests.users import NEWS, answer, logged_in, logout, rotate, stream, user

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.urls(__name__),
    pytest.mark.usefixtures("synced_often", "everything_ends"),
]


async def logout_async(request: HttpRequest) -> HttpResponse:
    await auth.alogout(request)
    return HttpResponse(status=204)


urlpatterns = [
    path("events/", News.as_view()),
    path("logout/", logout),
    path("logout-async/", logout_async),
    path("rotate/", rotate),
]


# Logins


async def test_a_login_by_a_token_leaves_sessions_as_they_are() -> None:
    request = RequestFactory().get("/")
    await auth.user_logged_in.asend(sender=User, request=request, user=await user())
    # The session's user is cancelled, and another user's login must not undo this.
    client = await logged_in()
    await acancel(user=await user())
    other = await user("bob")
    request.session = await client.asession()
    await auth.user_logged_in.asend(sender=User, request=request, user=other)
    await request.session.asave()
    assert (await answer(client)).status_code == 204


# Logouts


@pytest.mark.usefixtures("synced_rarely")
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
    # A new page in that browser belongs to an anonymous visitor.
    async with stream(tab):
        pass


@pytest.mark.usefixtures("synced_rarely")
async def test_a_logout_ends_streams_from_before_the_session_got_a_new_key() -> None:
    tab, phone = await logged_in(), await logged_in()
    async with stream(tab) as before, stream(phone) as other:
        await tab.get("/rotate/")
        async with stream(tab) as after:
            await tab.get("/logout/")
            for ended in (before, after):
                assert [event.event for event in await ended.rest()] == ["close"]
        await goes_on(other)


@pytest.mark.usefixtures("synced_rarely")
async def test_a_logout_ends_streams_even_if_the_clocks_of_hosts_differ(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tab = await logged_in()
    async with stream(tab) as reader:
        with monkeypatch.context() as behind:
            # The logout is on another host, whose clock is ten seconds behind this one's.
            behind.setattr("django_sse.stores.clock.time_ns", lambda: time_ns() - 10**10)
            await tab.get("/logout/")
        assert [event.event for event in await reader.rest()] == ["close"]


@pytest.mark.usefixtures("synced_rarely")
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


async def test_a_logout_from_a_session_in_a_cookie_ends_all_streams_of_its_user(
    settings: Settings,
) -> None:
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"
    tab, phone, eve = await logged_in(), await logged_in(), await logged_in("eve")
    async with stream(tab) as first, stream(phone) as second, stream(eve) as other:
        await tab.get("/logout/")
        for ended in (first, second):
            assert [event.event for event in await ended.rest()] == ["close"]
        await goes_on(other)


# Users who are saved


class SaysWhatUsersMay:
    """A backend that only says what users may do, like those of django-guardian and rules."""

    def authenticate(self, request: HttpRequest, **credentials: Any) -> None:
        return None

    def has_perm(self, user: User, permission: str, of: Any = None) -> bool:
        return False


class ProxyUser(User):
    class Meta:
        proxy = True
        app_label = "auth"


class HashesTheEmail(User):
    """A user whose sessions also end when the address changes."""

    class Meta:
        proxy = True
        app_label = "auth"

    def get_session_auth_hash(self) -> str:
        return super().get_session_auth_hash() + self.email


@pytest.fixture
def rung(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collects the owner keys that hubs are told of."""
    owner_keys: list[str] = []
    ring = Doorbell.ring

    def note(doorbell: Doorbell, hints: Sequence[Hint]) -> None:
        owner_keys.extend(hint.group for hint in hints)
        ring(doorbell, hints)

    monkeypatch.setattr(Doorbell, "ring", note)
    return owner_keys


@pytest.mark.usefixtures("synced_rarely")
async def test_the_logins_of_a_saved_user_are_checked_at_once() -> None:
    async with stream(await logged_in()) as ended, stream(await logged_in("eve")) as other:
        # The first check of all logins is over.
        await goes_on(ended)
        ada = await user()
        ada.is_active = False
        await ada.asave()
        assert [event.event for event in await ended.rest()] == ["close"]
        await other.until("going on")
        await goes_on(other)


@pytest.mark.usefixtures("synced_rarely")
async def test_the_logins_of_a_user_saved_through_a_proxy_model_are_checked_at_once() -> None:
    async with stream(await logged_in()) as ended:
        await goes_on(ended)
        ada = await ProxyUser.objects.aget(username="ada")
        ada.is_active = False
        await ada.asave()
        assert [event.event for event in await ended.rest()] == ["close"]


@pytest.mark.usefixtures("synced_rarely")
async def test_a_user_can_be_saved_where_django_does_not_report_the_commit() -> None:
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
async def test_saving_a_user_tells_hubs_only_of_values_that_logins_depend_on(
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
        # The second backend only says what users may do. No login depends on that.
        (["django.contrib.auth.backends.ModelBackend", "SaysWhatUsersMay"], "first_name", False),
        # A date or time may say when the user was last active.
        (["tests.users.FindsEveryone"], "date_joined", False),
        (["tests.users.FindsEveryone"], "first_name", True),
    ],
)
async def test_logins_depend_on_the_values_that_the_projects_backends_may_use(
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


async def test_hubs_are_told_of_a_change_that_was_rolled_back_when_it_is_saved_again(
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


async def test_logins_depend_on_any_field_if_the_user_model_has_a_custom_session_hash(
    rung: list[str],
) -> None:
    await user()
    ada = await HashesTheEmail.objects.aget(username="ada")
    receivers._note_loaded(ada)
    await ada.asave()
    assert not rung
    ada.email = "ada@example.com"
    await ada.asave()
    assert rung == [user_key(ada)]


async def test_reading_some_fields_of_users_does_not_query_the_others() -> None:
    await user()
    with queries_about("auth_user") as queries:
        assert (await User.objects.only("username").aget()).username == "ada"
    assert len(queries) == 1
