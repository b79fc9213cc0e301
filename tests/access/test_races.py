"""Nobody gets past the end of a login by coming back at that very moment, and nobody is lost."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from http.cookies import SimpleCookie
from random import Random
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.urls import path
from pytest_django import Settings

from django_sse import Event, acancel, apublish
from django_sse.asgi import get_asgi_application
from django_sse.mixins import LoginRequiredMixin
from django_sse.streaming.hub import current_hub, open_streams
from tests.http.test_asgi import Request
from tests.streams import News, until
from tests.users import logged_in, logout, rotate, user

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.urls(__name__),
    pytest.mark.usefixtures("unaided", "everything_ends"),
    # The orders of events are the library's and the stores'.
    pytest.mark.once,
]

ROUNDS = 20
RECONNECTS = 10
# About as long as all of it takes, so that some come before the act, some amid it, some after it.
RACE_SECONDS = 0.1

EVENTS, MEMBERS = "/events/", "/members/"

Act = Callable[[], Awaitable[object]]


class Members(LoginRequiredMixin, News):
    """For who is logged in."""


urlpatterns = [
    path("events/", News.as_view()),
    path("members/", Members.as_view()),
    path("logout/", logout),
    path("rotate/", rotate),
]


@pytest.fixture(params=["memory", "database"])
def unaided(request: pytest.FixtureRequest, settings: Settings) -> None:
    """What ends a stream is not that the store and the users are looked at now and then."""
    settings.DJANGO_SSE = {"STORE": request.param, "SYNC_INTERVAL": 3600}


class Tab(Request):
    """A request of a browser, through all of Django and the hand-off.

    Args:
        session: The key of the session that its cookie names.
        last_event_id: That of an EventSource that comes back.
    """

    def __init__(self, session: str, url: str, last_event_id: str = "") -> None:
        cookie = f"{django_settings.SESSION_COOKIE_NAME}={session}"
        headers = [(b"cookie", cookie.encode()), (b"accept", b"text/event-stream")]
        if last_event_id:
            headers.append((b"last-event-id", last_event_id.encode()))
        super().__init__(get_asgi_application(), url, headers=headers)
        self.events: list[Event] = []

    def _take(self, message: Any) -> list[Event]:
        events = super()._take(message)
        self.events += events
        return events

    @property
    def last_event_id(self) -> str:
        return self.decoder.last_event_id

    @property
    def data(self) -> list[str]:
        return [event.text for event in self.events if event.event is None]

    @property
    def was_closed(self) -> bool:
        return [event.event for event in self.events][-1:] == ["close"]

    @property
    def cookie_set(self) -> str | None:
        """The session's key that the browser has from now on; None: the one that it had."""
        cookies = SimpleCookie(self.headers.get("set-cookie", ""))
        name = django_settings.SESSION_COOKIE_NAME
        return cookies[name].value if name in cookies else None

    async def open(self) -> "Tab":
        """Wait for a position, or for the end."""
        await self.start()
        while not self.last_event_id and not self.ended:
            await self.read()
        return self

    async def told(self, data: str) -> bool:
        """Wait for these data, or for the end; say whether they came."""
        while data not in self.data and not self.ended:
            await self.read()
        return data in self.data

    async def act(self) -> None:
        """Let a view do something that streams nothing."""
        await self.start()
        await self.rest()
        assert self.status == 204

    async def leave(self) -> None:
        await (self.rest() if self.ended else self.disconnect())


async def new_session() -> str:
    browser = await logged_in()
    return browser.cookies[django_settings.SESSION_COOKIE_NAME].value


async def opened_and_told(session: str, url: str) -> Tab:
    """Return a stream that has got an event."""
    tab = await Tab(session, url).open()
    await apublish("news", "first")
    assert await tab.told("first")
    return tab


async def race(first: Tab, session: str, url: str, seed: int, *acts: Act) -> list[Tab]:
    """Let a client come back ten times while something is done; return what it was answered."""
    chance = Random(seed)
    tabs = [Tab(session, url, first.last_event_id) for _ in range(RECONNECTS)]

    async def at_some_time(begin: Act) -> None:
        await asyncio.sleep(chance.uniform(0, RACE_SECONDS))
        await begin()

    await asyncio.gather(*map(at_some_time, [*acts, *(tab.open for tab in tabs)]))
    # A browser that is told to delete its cookie after a login of its own has lost that.
    assert [tab.cookie_set for tab in tabs] == [None] * RECONNECTS
    return tabs


async def status_of(session: str, url: str, last_event_id: str = "") -> int:
    tab = await Tab(session, url, last_event_id).open()
    await tab.leave()
    return tab.status


async def assert_over(tabs: Iterable[Tab], *refusals: int) -> None:
    """Each of them was refused, or is told that it is over."""
    for tab in tabs:
        await tab.rest()
        assert tab.status in refusals or (tab.status == 200 and tab.was_closed), tab.status


async def test_no_stream_of_a_member_outlives_a_logout_that_it_comes_back_amid() -> None:
    for seed in range(ROUNDS):
        session = await new_session()
        first = await opened_and_told(session, MEMBERS)
        tabs = await race(first, session, MEMBERS, seed, Tab(session, "/logout/").act)
        await assert_over([first, *tabs], 204, 401)
        assert open_streams() == 0
        assert await status_of(session, MEMBERS, first.last_event_id) == 401


async def test_who_comes_back_amid_a_logout_is_stopped_or_an_anonymous_visitor() -> None:
    for seed in range(ROUNDS):
        session = await new_session()
        first = await opened_and_told(session, EVENTS)
        tabs = await race(first, session, EVENTS, seed, Tab(session, "/logout/").act)
        await assert_over([first])
        await until(lambda: all(stream.user is None for stream in current_hub().streams))
        await apublish("news", "for all")
        anonymous = [tab for tab in tabs if await tab.told("for all")]
        await assert_over([tab for tab in tabs if tab not in anonymous], 204)
        assert open_streams() == len(anonymous)
        assert await status_of(session, EVENTS, first.last_event_id) == 204
        for tab in anonymous:
            await tab.leave()


@pytest.mark.parametrize("group", [None, "news"])
async def test_no_stream_of_a_user_outlives_a_kick_that_it_comes_back_amid(
    group: str | None,
) -> None:
    ada = await user()
    for seed in range(ROUNDS):
        session = await new_session()
        first = await opened_and_told(session, EVENTS)
        tabs = await race(first, session, EVENTS, seed, lambda: acancel(group, user=ada))
        await assert_over([first, *tabs], 204)
        assert open_streams() == 0
        for sent in ("", tabs[0].last_event_id, first.last_event_id):
            assert await status_of(session, EVENTS, sent) == 204
    # Who logs in after that is back, and has missed nothing.
    await apublish("news", "missed")
    again = await Tab(await new_session(), EVENTS, first.last_event_id).open()
    assert await again.told("missed")
    await again.leave()


async def test_a_client_whose_session_gets_another_key_goes_on_and_misses_nothing() -> None:
    for seed in range(ROUNDS):
        session = await new_session()
        first = await opened_and_told(session, MEMBERS)
        publish = [partial(apublish, "news", number) for number in range(5)]
        rotating = Tab(session, "/rotate/")
        tabs = await race(first, session, MEMBERS, seed, rotating.act, *publish)
        # What comes back with the cookie of before is let in, or is nobody's any more.
        assert {tab.status for tab in tabs} <= {200, 401}
        renewed_session = rotating.cookie_set
        assert renewed_session
        renewed = await Tab(renewed_session, MEMBERS, first.last_event_id).open()
        let_in = [renewed, first, *(tab for tab in tabs if tab.status == 200)]
        await apublish("news", "last")
        for tab in let_in:
            assert await tab.told("last")
            assert sorted(tab.data[-6:]) == ["0", "1", "2", "3", "4", "last"]
            assert tab.data[-6:] == renewed.data
        # The login is the same one still, and all of it ends with it.
        await Tab(renewed_session, "/logout/").act()
        await assert_over(let_in)
        assert open_streams() == 0
