"""Owners, logins and sessions are checked again and again while their streams are open."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from threading import Event, current_thread
from typing import Any

import pytest
from django.contrib.auth.backends import BaseBackend, ModelBackend
from django.contrib.auth.models import User
from django.contrib.sessions.models import Session
from django.test import AsyncClient
from django.urls import path
from pytest_django import Settings

from django_sse import apublish
from django_sse.access import logins
from django_sse.access.logins import LoginCheck
from django_sse.access.owners import Login, Owner, user_key
from django_sse.access.session_claims import SessionClaim
from django_sse.groups.entries import GroupState, Hint
from django_sse.stores import get_store
from django_sse.stores.database import DatabaseStore
from django_sse.streaming import rechecks
from django_sse.streaming.hub import current_hub
from tests.clients import connected
from tests.failures import Panic
from tests.streams import News, goes_on, until
from tests.users import (
    FindsEveryone,
    answer,
    assert_sent_back_for_good,
    logged_in,
    logout,
    stream,
    user,
)

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.urls(__name__),
    pytest.mark.usefixtures("synced_often", "everything_ends"),
]

urlpatterns = [
    path("events/", News.as_view()),
    path("logout/", logout),
]


# Owners


@pytest.mark.usefixtures("synced_rarely")
async def test_a_flood_of_doorbells_about_an_owner_asks_the_store_only_a_few_times(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []
    astates = DatabaseStore.astates

    async def states_noted(store: DatabaseStore, groups: Sequence[str]) -> dict[str, GroupState]:
        asked.extend(groups)
        return await astates(store, groups)

    owner_key = user_key(7)
    async with connected("news", owner=Owner({owner_key: None}, owner_key)) as client:
        await apublish("news", "1")
        await client.until_events(1)
        monkeypatch.setattr(DatabaseStore, "astates", states_noted)
        for head in range(1000):
            current_hub().hear_soon([Hint(owner_key, head, cancelled=False)])
        await apublish("news", "2")
        await client.until_events(2)
        await until(lambda: owner_key in asked)
        assert asked.count(owner_key) < 10


@pytest.mark.usefixtures("synced_rarely")
async def test_a_new_stream_looks_at_no_other_stream_of_its_owner(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    owner_key = user_key(7)
    owner = Owner({owner_key: None}, owner_key)
    looked_at: list[Owner] = []
    is_ended = Owner.is_ended

    def note(owner: Owner, *args: Any) -> bool:
        looked_at.append(owner)
        return is_ended(owner, *args)

    async with AsyncExitStack() as streams:
        for _ in range(20):
            await streams.enter_async_context(connected("news", owner=owner))
        monkeypatch.setattr(Owner, "is_ended", note)
        async with connected("news", owner=Owner({owner_key: None}, owner_key)):
            assert len(looked_at) == 1


async def test_tabs_of_a_browser_keep_their_owner_once() -> None:
    one, other = await logged_in(), await logged_in("eve")
    async with stream(one), stream(one), stream(other):
        owners = {id(each.owner): each.owner for each in current_hub().streams}
        assert len(owners) == 2
        assert len({owner.user for owner in owners.values()}) == 2


# Users


@pytest.mark.parametrize("how", ["update", "delete"])
async def test_a_user_who_may_no_longer_log_in_loses_the_streams(how: str) -> None:
    """The check of all logins finds this. ``QuerySet.update`` sends no signal."""
    tab = await logged_in()
    async with stream(tab) as ended, stream(await logged_in("eve")) as other:
        users = User.objects.filter(username="ada")
        await (users.aupdate(is_active=False) if how == "update" else users.adelete())
        assert [event.event for event in await ended.rest()] == ["close"]
        await goes_on(other)
    assert (await answer(tab, ended.last_event_id)).status_code == 204


async def test_a_user_who_is_missed_once_keeps_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replica may not have the user yet."""
    missed: list[None] = []

    def miss(keys: Any) -> dict[str, User]:
        missed.append(None)
        return {} if len(missed) == 1 else found(keys)

    found = logins._users
    monkeypatch.setattr(logins, "_users", miss)
    async with stream(await logged_in()) as reader:
        await until(lambda: len(missed) > 2)
        await goes_on(reader)


async def test_a_deleted_user_cannot_keep_a_stream_by_opening_and_closing_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    browser = await logged_in()
    monkeypatch.setattr(logins, "_users", lambda keys: {})
    async with AsyncExitStack() as streams:
        ended = await streams.enter_async_context(stream(browser))
        for _ in range(40):
            if ended.ended:
                break
            # This is more often than a missing user is looked for again.
            async with stream(browser):
                await asyncio.sleep(0.1)
        assert ended.ended


async def test_sessions_are_checked_even_if_users_cannot_be_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*args: object) -> dict[str, Any]:
        raise OSError

    monkeypatch.setattr("django_sse.access.logins._users", fail)
    tab = await logged_in()
    async with stream(tab) as ended:
        await Session.objects.all().adelete()
        await assert_sent_back_for_good(ended, tab)


# Sessions


async def test_users_are_checked_even_if_sessions_cannot_be_read(
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


@pytest.mark.parametrize("heard", [True, False])
async def test_a_logout_says_why_even_if_the_missing_session_is_noticed_first(
    heard: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tab = await logged_in()
    async with stream(tab) as ended:
        if not heard:
            # Another process may check sessions before it compares itself with the store.
            monkeypatch.setattr("django_sse.doorbells.base.ring_here", lambda hints: None)
            monkeypatch.setattr(get_store(), "achanged", lambda *_: asyncio.sleep(3600))
        await tab.get("/logout/")
        assert [event.json() for event in await ended.rest()] == [{"reason": "logged out"}]


# Backends that find users themselves


class Hangs(BaseBackend):
    """Asks a directory that does not answer."""

    begun = Event()
    goes_on = Event()

    def get_user(self, user_id: Any) -> User | None:
        if not self.goes_on.is_set():
            self.begun.set()
            self.goes_on.wait(60)
        return User.objects.filter(pk=user_id).first()


class HangsForEve(FindsEveryone):
    """Asks a directory that does not answer about one user."""

    hanging = 0
    goes_on = Event()

    def get_user(self, user_id: Any) -> User | None:
        found = super().get_user(user_id)
        if found and found.username == "eve" and not self.goes_on.is_set():
            HangsForEve.hanging += 1
            self.goes_on.wait(60)
        return found


class JudgesSlowly(ModelBackend):
    """Asks a directory, which does not answer about one user, whether a user may log in."""

    hanging = 0
    goes_on = Event()

    def user_can_authenticate(self, user: Any) -> bool:
        if user.username == "eve" and not self.goes_on.is_set():
            JudgesSlowly.hanging += 1
            self.goes_on.wait(60)
        return super().user_can_authenticate(user)


@pytest.fixture
def custom_backend(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.AUTHENTICATION_BACKENDS = ["tests.users.FindsEveryone"]
    monkeypatch.setattr(FindsEveryone, "missing", set())
    monkeypatch.setattr(FindsEveryone, "failure", None)
    monkeypatch.setattr(FindsEveryone, "asked", 0)
    # ModelBackend, which Django does not ask here, would find nobody.
    monkeypatch.setattr("django_sse.access.logins._users", lambda keys: {})


@pytest.mark.usefixtures("custom_backend")
async def test_a_user_whom_only_the_backend_finds_keeps_the_stream() -> None:
    async with stream(await logged_in()) as reader:
        # The request asks once. All other questions come long after it.
        await until(lambda: FindsEveryone.asked > 3)
        await goes_on(reader)


@pytest.mark.usefixtures("custom_backend")
async def test_a_user_whom_the_backend_no_longer_finds_loses_the_stream() -> None:
    tab = await logged_in()
    async with stream(tab) as ended, stream(await logged_in("eve")) as other:
        FindsEveryone.missing.add("ada")
        # The request decides: the backend may read from a replica.
        await assert_sent_back_for_good(ended, tab)
        await goes_on(other)


@pytest.mark.usefixtures("custom_backend")
async def test_a_user_whom_the_backend_misses_for_a_moment_keeps_the_stream() -> None:
    async with stream(await logged_in()) as reader:
        FindsEveryone.missing.add("ada")
        FindsEveryone.asked = 0
        await until(lambda: FindsEveryone.asked)
        FindsEveryone.missing.clear()
        FindsEveryone.asked = 0
        await until(lambda: FindsEveryone.asked > 3)
        await goes_on(reader)


@pytest.mark.usefixtures("custom_backend", "synced_rarely")
async def test_a_custom_backend_is_asked_at_once_about_a_saved_user() -> None:
    async with stream(await logged_in()) as ended, stream(await logged_in("eve")) as other:
        await goes_on(ended)
        ada = await user()
        ada.set_unusable_password()
        await ada.asave()
        assert await ended.rest() == []
        await other.until("going on")
        await goes_on(other)


@pytest.mark.usefixtures("custom_backend")
async def test_a_changed_password_also_ends_streams_whose_user_a_custom_backend_finds() -> None:
    async with stream(await logged_in()) as ended:
        await User.objects.aupdate(password="another one")
        assert await ended.rest() == []
        assert ended.reconnection_time


@pytest.mark.usefixtures("custom_backend")
@pytest.mark.parametrize("failure", [RuntimeError("The directory is away."), Panic()], ids=repr)
async def test_a_backend_that_cannot_answer_ends_no_stream(
    failure: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    """An outage of the directory logs nobody out."""
    async with stream(await logged_in()) as reader:
        FindsEveryone.failure = failure
        FindsEveryone.asked = 0
        await until(lambda: FindsEveryone.asked > 3)
        await goes_on(reader)
        assert caplog.text.count("failed to look up a user") == 1
        FindsEveryone.failure = None
        FindsEveryone.missing.add("ada")
        assert await reader.rest() == []


async def test_other_logins_are_checked_even_if_a_backend_panics(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rechecks, "_PAUSE_FACTOR", 0)
    own = "tests.users.FindsEveryone"
    settings.AUTHENTICATION_BACKENDS = ["django.contrib.auth.backends.ModelBackend", own]
    browser = AsyncClient()
    await browser.aforce_login(await user(), backend=own)
    async with stream(browser) as going_on, stream(await logged_in("eve")) as ended:
        monkeypatch.setattr(FindsEveryone, "failure", Panic())
        monkeypatch.setattr(FindsEveryone, "asked", 0)
        await until(lambda: FindsEveryone.asked > 1)
        # This sends no signal.
        await User.objects.filter(username="eve").aupdate(is_active=False)
        assert [event.event for event in await ended.rest()] == ["close"]
        await goes_on(going_on)


async def miss_ada() -> None:
    FindsEveryone.missing.add("ada")


async def deactivate_ada() -> None:
    """Deactivate a user in a way that sends no signal."""
    await User.objects.filter(username="ada").aupdate(is_active=False)


@pytest.mark.parametrize(
    ("backend", "lose_ada"), [(HangsForEve, miss_ada), (JudgesSlowly, deactivate_ada)]
)
async def test_a_login_about_which_a_backend_hangs_delays_no_other_login(
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    backend: Any,
    lose_ada: Callable[[], Awaitable[None]],
) -> None:
    monkeypatch.setattr(FindsEveryone, "missing", set())
    settings.AUTHENTICATION_BACKENDS = [f"{__name__}.{backend.__name__}"]
    monkeypatch.setattr(logins, "_ANSWER_SECONDS", 1.0)
    monkeypatch.setattr(rechecks, "_rest", lambda: 60)
    backend.hanging = 0
    backend.goes_on.set()
    tab, eves = await logged_in(), await logged_in("eve")
    try:
        async with stream(eves) as hanging, stream(tab) as ended:
            backend.goes_on.clear()
            await until(lambda: backend.hanging)
            await lose_ada()
            eve = await user("eve")
            # Doorbells do not make another thread hang.
            eve.set_unusable_password()
            await eve.asave()
            await assert_sent_back_for_good(ended, tab)
            assert backend.hanging == 1
            await goes_on(hanging)
    finally:
        backend.goes_on.set()


async def test_a_backend_that_hangs_delays_nobody_else(settings: Settings) -> None:
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
            # Doorbells are answered, and all users and sessions are checked.
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


# Connections to the database


async def test_sessions_of_clients_that_come_back_pile_up_while_some_are_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rechecks, "_PAUSE_BETWEEN_CLAIMS", 1.0)
    asked: list[set[SessionClaim]] = []
    may_answer = Event()

    def kept_sessions(claims: Collection[SessionClaim]) -> dict[SessionClaim, Any]:
        asked.append(set(claims))
        may_answer.wait(10)
        return {claim: {} for claim in claims}

    monkeypatch.setattr(rechecks, "kept_sessions", kept_sessions)
    claims = [SessionClaim(f"session-{number}", "digest", "") for number in range(20)]
    async with connected("news"):
        hub = current_hub()

        def ask(claim: SessionClaim) -> asyncio.Task[Mapping[str, Any] | None]:
            return asyncio.create_task(hub.kept_session(claim))

        first = ask(claims[0])
        await until(lambda: asked)
        others = [ask(claims[1])]
        await asyncio.sleep(0)
        may_answer.set()
        assert await first == {}
        for claim in claims[2:]:
            others.append(ask(claim))
            await asyncio.sleep(0)
        assert await asyncio.gather(*others) == [{}] * len(others)
    assert asked == [{claims[0]}, set(claims[1:])]


async def test_each_question_has_one_connection_that_is_closed_outside_of_its_tenant(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a tenant's context has set in a connection would be lost, or be left to the next one."""
    steps: list[str] = []

    @contextmanager
    def tenant(namespace: str) -> Iterator[None]:
        steps.append("entered")
        yield
        steps.append("left")

    def check_logins(given: Collection[Login]) -> LoginCheck:
        checked = logins.check_logins(given)
        steps.append("asked")
        return checked

    def close_old_connections() -> None:
        if current_thread().name == "django-sse-logins":
            steps.append("closed")

    monkeypatch.setattr(rechecks, "namespace_context", tenant)
    monkeypatch.setattr(rechecks, "check_logins", check_logins)
    monkeypatch.setattr("django.db.close_old_connections", close_old_connections)
    async with stream(await logged_in()):
        await until(lambda: "asked" in steps and len(steps) > steps.index("asked") + 2)
    begun = steps.index("asked") - 2
    assert steps[begun : begun + 5] == ["closed", "entered", "asked", "left", "closed"]
