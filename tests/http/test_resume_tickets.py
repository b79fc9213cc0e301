"""Resume tickets: clients that come back past Django, and those that may not."""

import asyncio
import re
from base64 import urlsafe_b64decode
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from http.cookies import SimpleCookie
from time import time
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from asgiref.sync import sync_to_async
from asgiref.testing import ApplicationCommunicator
from django.conf import settings as django_settings
from django.contrib import auth
from django.contrib.auth.models import User
from django.contrib.sessions.backends.db import SessionStore as DatabaseSession
from django.contrib.sessions.middleware import SessionMiddleware
from django.contrib.sessions.models import Session
from django.core.asgi import get_asgi_application as get_django_application
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.test import AsyncClient
from django.urls import path
from django.utils import timezone
from django.utils.deprecation import MiddlewareMixin
from django.views.decorators.cache import never_cache
from pytest_django import Settings

from django_sse import Event, acancel, apublish, areopen
from django_sse.access.session_claims import session_store
from django_sse.asgi import get_asgi_application
from django_sse.decorators import event_stream, on_message
from django_sse.event import Decoder
from django_sse.mixins import LoginRequiredMixin, PermissionRequiredMixin, UserPassesTestMixin
from django_sse.stores import get_store
from django_sse.streaming.hub import open_streams
from django_sse.views import EventStreamView
from tests.queries import queries_about
from tests.streams import data, until
from tests.tenancy import NAMESPACE, tenant
from tests.users import FindsEveryone, logged_in, user

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.urls(__name__),
    pytest.mark.usefixtures("counted", "everything_ends"),
]

TIMEOUT = 10
COOKIE = re.compile(r"sse_resume_\w+")


class News(EventStreamView):
    groups = ["news"]
    resume_seconds = 600


class Members(LoginRequiredMixin, News):
    """For who is logged in."""


class Own(LoginRequiredMixin, EventStreamView):
    """A group for each user, and one that the session chooses."""

    resume_seconds = 600

    async def get_groups(self) -> list[str]:
        user = await self.request.auser()
        return [f"user-{user.pk}", await self.request.session.aget("team", "no-team")]


class Board(News):
    async def initial_events(self) -> AsyncIterator[Event]:
        yield Event("the state")


class Rooms(EventStreamView):
    groups = ["room-{pk}"]
    resume_seconds = 600


def set_team(request: HttpRequest) -> HttpResponse:
    request.session["team"] = request.GET["team"]
    return HttpResponse(status=204)


def logout(request: HttpRequest) -> HttpResponse:
    auth.logout(request)
    return HttpResponse(status=204)


urlpatterns = [
    path("news/", News.as_view()),
    path("news/more/", News.as_view()),
    path("members/", Members.as_view()),
    path("own/", Own.as_view()),
    path("board/", Board.as_view()),
    path("rooms/<str:pk>/", Rooms.as_view()),
    path("many/", News.as_view(groups=[f"{n:02}-{'x' * 60}" for n in range(30)])),
    path("any/<str:name>/", News.as_view()),
    path("plain/", News.as_view(resume_seconds=0)),
    path("wrapped/", never_cache(News.as_view())),
    path("team/", set_team),
    path("logout/", logout),
]

replaced_urls = [path("news/", Members.as_view())]


class Counting(MiddlewareMixin):
    """Counts the requests that enter Django."""

    requests: ClassVar[list[str]] = []

    def process_request(self, request: HttpRequest) -> None:
        self.requests.append(request.path)


class Strict(MiddlewareMixin):
    """Lets nobody in, after the view."""

    def process_response(self, request: HttpRequest, response: HttpResponseBase) -> Any:
        response.status_code = 403
        return response


class ActsAs(MiddlewareMixin):
    """Decides by itself who the user is."""

    def process_request(self, request: HttpRequest) -> None:
        request.user = User.objects.get(username="ada")


@pytest.fixture
def counted(settings: Settings) -> None:
    settings.MIDDLEWARE = [f"{__name__}.Counting", *settings.MIDDLEWARE]
    Counting.requests.clear()


class Browser:
    """Keeps cookies as a browser does, and reads streams through the ASGI application."""

    def __init__(self, client: AsyncClient | None = None, application: Any = None) -> None:
        self.application = application or get_asgi_application()
        # The path that each cookie is sent to, and its value.
        self.cookies: dict[str, tuple[str, str]] = {}
        self.last_event_id = ""
        self.attributes: dict[str, Any] = {}
        self.headers: list[tuple[bytes, bytes]] = [(b"host", b"localhost")]
        self.scheme = "http"
        self.method = "GET"
        if client:
            name = django_settings.SESSION_COOKIE_NAME
            self.cookies[name] = ("/", client.cookies[name].value)

    @property
    def session_key(self) -> str:
        return self.cookies[django_settings.SESSION_COOKIE_NAME][1]

    @property
    def tickets(self) -> dict[str, str]:
        return {name: value for name, (_, value) in self.cookies.items() if COOKIE.match(name)}

    def scope(self, url: str, **scope: Any) -> dict[str, Any]:
        """Return a request, as a server presents it."""
        target, _, query = url.partition("?")
        sent = [
            f"{name}={value}"
            for name, (prefix, value) in self.cookies.items()
            if target.startswith(prefix)
        ]
        headers = [*self.headers, (b"cookie", "; ".join(sent).encode())]
        if self.last_event_id:
            headers.append((b"last-event-id", self.last_event_id.encode()))
        return {
            "type": "http",
            "http_version": "1.1",
            "method": self.method,
            "scheme": self.scheme,
            "path": target,
            "query_string": query.encode(),
            "headers": headers,
            # A port of 0 is of no connection, so that nobody looks for its socket.
            "client": ("127.0.0.1", 0),
            **scope,
        }

    @asynccontextmanager
    async def open(self, url: str, **scope: Any) -> AsyncIterator["Stream"]:
        stream = Stream(self, self.application, self.scope(url, **scope))
        await stream.start()
        try:
            yield stream
        finally:
            await stream.leave()

    async def visit(self, url: str, **scope: Any) -> "Stream":
        """Open a stream until it has its position, or read the answer."""
        async with self.open(url, **scope) as stream:
            if stream.is_stream:
                await stream.opened()
        return stream


class Stream:
    def __init__(self, browser: Browser, application: Any, scope: dict[str, Any]) -> None:
        communicator: type[Any] = ApplicationCommunicator
        self.browser = browser
        self.communicator = communicator(application, scope)
        self.decoder = Decoder()
        self.events: list[Event] = []
        self.status = 0
        self.headers: dict[str, str] = {}
        self.set_cookies: list[str] = []
        self.ended = False
        self.entered_django = False

    @property
    def is_stream(self) -> bool:
        return self.status == 200 and "text/event-stream" in self.headers["content-type"]

    async def start(self) -> None:
        before = len(Counting.requests)
        await self.communicator.send_input({"type": "http.request"})
        message = await self.communicator.receive_output(TIMEOUT)
        self.entered_django = len(Counting.requests) > before
        self.status = message["status"]
        for name, value in message["headers"]:
            if name.lower() == b"set-cookie":
                self.set_cookies.append(value.decode())
            else:
                self.headers[name.decode().lower()] = value.decode()
        for line in self.set_cookies:
            for name, morsel in SimpleCookie(line).items():
                self.browser.cookies[name] = (morsel["path"], morsel.value)
                self.browser.attributes[name] = morsel
        if self.method == "HEAD":
            self.ended = True

    @property
    def method(self) -> str:
        return self.browser.method

    async def opened(self) -> "Stream":
        while not self.decoder.last_event_id and not self.ended:
            await self._read()
        return self

    async def until(self, text: str) -> list[Event]:
        while not any(event.text == text for event in self.events):
            assert not self.ended
            await self._read()
        return self.events

    async def rest(self) -> list[Event]:
        while not self.ended:
            await self._read()
        return self.events

    async def _read(self) -> None:
        message = await self.communicator.receive_output(TIMEOUT)
        self.ended = not message.get("more_body", False)
        self.events += self.decoder.feed(message.get("body", b""))
        self.browser.last_event_id = self.decoder.last_event_id or self.browser.last_event_id

    async def leave(self) -> None:
        if not self.ended:
            await self.communicator.send_input({"type": "http.disconnect"})
        await self.communicator.wait(TIMEOUT)


async def let_in(url: str = "/members/", name: str = "ada") -> Browser:
    """Return a browser that Django has let in, and that has left since."""
    browser = Browser(await logged_in(name))
    stream = await browser.visit(url)
    assert stream.is_stream
    assert stream.entered_django
    assert browser.tickets
    return browser


async def assert_resumed(browser: Browser, url: str = "/members/", **scope: Any) -> Stream:
    stream = await browser.visit(url, **scope)
    assert stream.is_stream
    assert not stream.entered_django
    return stream


async def assert_asks_django(browser: Browser, url: str = "/members/", **scope: Any) -> Stream:
    stream = await browser.visit(url, **scope)
    assert stream.entered_django
    return stream


# What a client gets


@pytest.mark.parametrize("url", ["/members/", "/own/", "/board/", "/news/", "/news/?a=1&b=2"])
async def test_a_client_that_comes_back_does_not_enter_django(url: str) -> None:
    browser = await let_in(url)
    for _ in range(3):
        await assert_resumed(browser, url)


async def test_a_resumed_stream_gets_what_it_missed_and_what_comes() -> None:
    browser = await let_in()
    await apublish("news", "missed")
    async with browser.open("/members/") as stream:
        assert not stream.entered_django
        await stream.until("missed")
        await apublish("news", "new")
        assert data(await stream.until("new")) == ["missed", "new"]
        assert open_streams() == 1
    assert open_streams() == 0


async def test_the_query_may_carry_the_position() -> None:
    browser = await let_in("/news/?tab=1")
    await apublish("news", "missed")
    position, browser.last_event_id = browser.last_event_id, ""
    async with browser.open(f"/news/?lastEventId={position}&tab=1") as stream:
        assert not stream.entered_django
        await stream.until("missed")


async def test_the_headers_are_those_that_django_sends() -> None:
    browser = Browser(await logged_in())
    first = await browser.visit("/members/")
    again = await assert_resumed(browser)
    names = {"content-type", "cache-control", "x-accel-buffering", "connection", "vary"}
    assert {name: again.headers[name] for name in names} == {
        name: first.headers[name] for name in names
    }
    assert "content-encoding" not in again.headers
    assert again.headers["vary"] == "Cookie"
    # A ticket is not renewed by itself.
    assert not again.set_cookies


async def test_a_resumed_stream_is_compressed_like_any_other(settings: Settings) -> None:
    settings.DJANGO_SSE = {"COMPRESS": True}
    browser = await let_in()
    browser.headers.append((b"accept-encoding", b"gzip"))
    async with browser.open("/members/") as resumed, browser.open("/plain/") as other:
        assert not resumed.entered_django
        assert resumed.headers["content-encoding"] == other.headers["content-encoding"] == "gzip"
        assert resumed.headers["vary"] == other.headers["vary"] == "Accept-Encoding"


async def test_the_state_is_not_sent_again_to_a_client_that_knows_it() -> None:
    browser = await let_in("/board/")
    assert (await assert_resumed(browser, "/board/")).events == []


@pytest.mark.parametrize(("url", "events"), [("/news/", ["reset"]), ("/board/", ["reset", None])])
async def test_a_client_that_has_lost_events_is_for_django(
    settings: Settings, url: str, events: list[str | None]
) -> None:
    settings.DJANGO_SSE = {"HISTORY_SIZE": 1}
    browser = await let_in(url)
    for number in range(5):
        await apublish("news", number)
    await sync_to_async(get_store().trim)()
    stream = await assert_asks_django(browser, url)
    assert [event.event for event in stream.events] == events


async def test_a_new_page_asks_django() -> None:
    browser = await let_in()
    browser.last_event_id = ""
    await assert_asks_django(browser)


@pytest.mark.parametrize("position", ["made up", "a.b~c", "AAAAAAAAAAA.1~AAAAAAAAAAA"])
async def test_a_position_that_is_none_of_ours_is_for_django(position: str) -> None:
    browser = await let_in()
    browser.last_event_id = position
    await assert_asks_django(browser)


async def test_visitors_who_are_not_logged_in_resume_as_well() -> None:
    browser = Browser()
    await browser.visit("/news/")
    await assert_resumed(browser, "/news/")


# The cookie


async def test_the_cookie_is_for_the_streams_path_alone_and_not_for_scripts(
    settings: Settings,
) -> None:
    settings.SESSION_COOKIE_SECURE = True
    settings.SESSION_COOKIE_SAMESITE = "Strict"
    browser = Browser()
    [line] = (await browser.visit("/rooms/7/")).set_cookies
    [morsel] = SimpleCookie(line).values()
    assert COOKIE.fullmatch(morsel.key)
    assert morsel["path"] == "/rooms/7/"
    assert morsel["max-age"] == "600"
    assert morsel["httponly"]
    assert morsel["secure"]
    assert morsel["samesite"] == "Strict"
    assert not morsel["domain"]


async def test_two_streams_of_a_page_have_a_cookie_each() -> None:
    browser = Browser()
    tabs = {}
    for url in ("/news/", "/news/more/", "/rooms/7/"):
        browser.last_event_id = ""
        await browser.visit(url)
        tabs[url] = browser.last_event_id
    assert len(browser.tickets) == 3
    for url, position in tabs.items():
        browser.last_event_id = position
        await assert_resumed(browser, url)


async def test_nobody_can_read_the_names_of_the_groups_in_a_ticket() -> None:
    browser = await let_in("/rooms/secret-name/")
    [ticket] = browser.tickets.values()
    masked = urlsafe_b64decode(ticket.partition(":")[0])
    assert b"secret" not in masked
    assert b"room" not in masked


@pytest.mark.parametrize("url", ["/plain/", "/wrapped/"])
async def test_there_is_no_ticket_unless_the_url_leads_to_a_view_that_has_it(url: str) -> None:
    browser = Browser()
    await browser.visit(url)
    assert browser.tickets == {}


async def test_there_is_no_ticket_for_a_head() -> None:
    browser = Browser()
    browser.method = "HEAD"
    await browser.visit("/news/")
    assert browser.tickets == {}


async def test_a_head_never_resumes() -> None:
    browser = await let_in()
    browser.method = "HEAD"
    assert (await assert_asks_django(browser)).status == 200


async def test_there_is_no_ticket_without_the_wrapper() -> None:
    browser = Browser(application=get_django_application())
    async with browser.open("/news/") as stream:
        await stream.opened()
        assert browser.tickets == {}


async def test_there_is_no_ticket_if_a_middleware_refuses_the_client(settings: Settings) -> None:
    settings.MIDDLEWARE = [f"{__name__}.Strict", *settings.MIDDLEWARE]
    browser = Browser()
    assert (await browser.visit("/news/")).status == 403
    assert browser.tickets == {}


class RefusesByStream(MiddlewareMixin):
    """Lets nobody in, after the view, in a way that an EventSource understands."""

    def process_response(self, request: HttpRequest, response: HttpResponseBase) -> Any:
        async def chunks() -> AsyncIterator[bytes]:
            yield b"event: close\ndata: pay first\n\n"

        return StreamingHttpResponse(chunks(), content_type="text/event-stream")


async def test_there_is_no_ticket_if_a_middleware_refuses_the_client_by_a_stream(
    settings: Settings,
) -> None:
    settings.MIDDLEWARE = [f"{__name__}.RefusesByStream", *settings.MIDDLEWARE]
    browser = Browser()
    async with browser.open("/news/") as stream:
        assert [event.data for event in await stream.rest()] == ["pay first"]
    assert browser.tickets == {}


class Redacts(MiddlewareMixin):
    """Hides a part of each stream."""

    def process_response(self, request: HttpRequest, response: Any) -> Any:
        if response.streaming:
            response.streaming_content = self._redacted(response.streaming_content)
        return response

    async def _redacted(self, chunks: Any) -> AsyncIterator[bytes]:
        async for chunk in chunks:
            yield chunk.replace(b"secret", b"******")


class RedactsContent(Redacts):
    """The same, in a response of its own."""

    def process_response(self, request: HttpRequest, response: Any) -> Any:
        if not response.streaming:
            return response
        content = self._redacted(response.streaming_content)
        return StreamingHttpResponse(content, headers=response.headers)


class RedactsResponse(Redacts):
    """The same, for what the response says that it has."""

    def process_response(self, request: HttpRequest, response: Any) -> Any:
        if not response.streaming:
            return response
        return StreamingHttpResponse(self._redacted(response), headers=response.headers)


@pytest.mark.parametrize("middleware", ["Redacts", "RedactsContent", "RedactsResponse"])
async def test_there_is_no_ticket_for_a_stream_that_a_middleware_changes(
    middleware: str, settings: Settings
) -> None:
    settings.MIDDLEWARE = [f"{__name__}.{middleware}", *settings.MIDDLEWARE]
    browser = Browser()
    async with browser.open("/news/") as stream:
        await stream.opened()
        assert browser.tickets == {}


async def test_there_is_no_ticket_for_who_is_kept_out_of_one_of_the_groups() -> None:
    browser = Browser(await logged_in())
    await acancel("no-team", user=await user())
    assert (await browser.visit("/own/")).is_stream
    assert browser.tickets == {}


async def test_there_is_no_ticket_if_a_middleware_decides_who_the_user_is(
    settings: Settings,
) -> None:
    await user()
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, f"{__name__}.ActsAs"]
    browser = Browser()
    assert (await browser.visit("/members/")).is_stream
    assert browser.tickets == {}


async def test_there_is_no_ticket_for_other_credentials_than_a_cookie() -> None:
    browser = Browser()
    browser.headers.append((b"authorization", b"Bearer abc"))
    await browser.visit("/news/")
    assert browser.tickets == {}


@pytest.mark.parametrize("engine", ["file", "signed_cookies"])
async def test_there_is_no_ticket_if_sessions_cannot_be_checked_together(
    settings: Settings, engine: str
) -> None:
    settings.SESSION_ENGINE = f"django.contrib.sessions.backends.{engine}"
    browser = Browser(await logged_in())
    assert (await browser.visit("/members/")).is_stream
    assert browser.tickets == {}


@pytest.mark.parametrize(
    "backend",
    [
        f"{FindsEveryone.__module__}.FindsEveryone",
        "django.contrib.auth.backends.RemoteUserBackend",
        "django.contrib.auth.backends.AllowAllUsersModelBackend",
    ],
)
async def test_there_is_no_ticket_if_a_backend_finds_its_users_elsewhere(
    settings: Settings, backend: str
) -> None:
    settings.AUTHENTICATION_BACKENDS = [backend]
    browser = Browser(await logged_in())
    assert (await browser.visit("/members/")).is_stream
    assert browser.tickets == {}


async def test_there_is_no_ticket_if_streams_outlive_their_logins(settings: Settings) -> None:
    settings.DJANGO_SSE = {"END_WITH_LOGIN": False}
    browser = Browser(await logged_in())
    assert (await browser.visit("/members/")).is_stream
    assert browser.tickets == {}


@pytest.mark.parametrize("engine", ["db", "cache", "cached_db"])
async def test_sessions_in_the_database_and_the_cache_are_checked(
    settings: Settings, engine: str
) -> None:
    settings.SESSION_ENGINE = f"django.contrib.sessions.backends.{engine}"
    browser = await let_in()
    await assert_resumed(browser)
    store = session_store()(browser.session_key)
    await sync_to_async(store.delete)()
    assert (await assert_asks_django(browser)).status == 401


async def test_a_session_that_only_the_cache_has_lost_is_found_in_the_database(
    settings: Settings,
) -> None:
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.cached_db"
    browser = await let_in()
    store = session_store()(browser.session_key)
    await sync_to_async(store._cache.delete)(store.cache_key)
    await assert_resumed(browser)


class IdleSessions(DatabaseSession):
    """May take a session for over that is in the database."""

    def _get_session(self, no_load: bool = False) -> Any:
        return super()._get_session(no_load)  # type: ignore[misc]

    _session = property(_get_session)


SessionStore = IdleSessions


class BoundSessions(SessionMiddleware):
    """May refuse a session, for example from another address."""


async def test_there_is_no_ticket_if_the_session_engine_is_a_projects_own(
    settings: Settings,
) -> None:
    settings.SESSION_ENGINE = __name__
    browser = Browser(await logged_in())
    assert (await browser.visit("/members/")).is_stream
    assert browser.tickets == {}


async def test_there_is_no_ticket_if_the_middleware_of_sessions_is_a_projects_own(
    settings: Settings,
) -> None:
    djangos = "django.contrib.sessions.middleware.SessionMiddleware"
    settings.MIDDLEWARE = [
        f"{__name__}.BoundSessions" if name == djangos else name for name in settings.MIDDLEWARE
    ]
    browser = Browser(await logged_in())
    assert (await browser.visit("/members/")).is_stream
    assert browser.tickets == {}


async def test_there_is_no_ticket_if_users_say_themselves_whether_they_are_logged_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(User, "is_authenticated", property(lambda user: True))
    browser = Browser(await logged_in())
    assert (await browser.visit("/members/")).is_stream
    assert browser.tickets == {}


async def test_there_is_no_ticket_for_names_that_would_fill_the_headers() -> None:
    browser = Browser()
    await browser.visit("/many/")
    assert browser.tickets == {}


async def test_a_host_that_is_not_allowed_gets_its_stream_without_a_ticket(
    settings: Settings,
) -> None:
    # Without CommonMiddleware, Django does not look at the host.
    settings.MIDDLEWARE = [f"{__name__}.Counting"]
    browser = Browser()
    browser.headers = [(b"host", b"evil.example")]
    assert (await browser.visit("/news/")).is_stream
    assert browser.tickets == {}


async def test_a_session_that_only_a_cache_can_keep_gets_its_stream_without_a_ticket(
    settings: Settings,
) -> None:
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.cache"
    browser = Browser(await logged_in())
    session = session_store()(browser.session_key)
    await session.aset("since", timezone.now())
    await session.asave()
    assert (await browser.visit("/members/")).is_stream
    assert browser.tickets == {}


async def test_a_session_that_only_a_cache_can_keep_harms_nobody_else(settings: Settings) -> None:
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.cache"
    browser, eve = await let_in(), await let_in(name="eve")
    session = session_store()(eve.session_key)
    await session.aset("since", timezone.now())
    await session.asave()
    Counting.requests.clear()
    streams = await asyncio.gather(browser.visit("/members/"), eve.visit("/members/"))
    assert all(stream.is_stream for stream in streams)
    # That of the other one alone.
    assert len(Counting.requests) == 1


async def test_a_client_that_does_not_take_the_headers_leaves_no_stream(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "django_sse")
    settings.DJANGO_SSE = {"STORE": "memory", "SEND_TIMEOUT": 0.1}
    browser = await let_in("/news/")
    left = asyncio.Event()

    async def receive() -> Any:
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        await left.wait()

    serving = asyncio.create_task(browser.application(browser.scope("/news/"), receive, send))
    await until(lambda: "did not read its stream" in caplog.text)
    left.set()
    async with asyncio.timeout(TIMEOUT):
        await serving
    assert open_streams() == 0


async def test_a_path_that_is_not_text_gets_its_stream_without_a_ticket() -> None:
    browser = Browser()
    assert (await browser.visit("/any/\udcff/")).is_stream
    assert browser.tickets == {}


# What a ticket is bound to


@pytest.mark.parametrize("left", ["", "device=another"])
async def test_a_ticket_is_worth_nothing_without_the_other_cookies_of_its_client(
    left: str,
) -> None:
    browser = Browser()
    browser.cookies["device"] = ("/", "known")
    await browser.visit("/news/")
    await assert_resumed(browser, "/news/")
    del browser.cookies["device"]
    if left:
        browser.cookies["device"] = ("/", left.partition("=")[2])
    await assert_asks_django(browser, "/news/")


async def test_a_ticket_is_void_once_there_is_another_middleware(settings: Settings) -> None:
    browser = await let_in()
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, f"{__name__}.Strict"]
    # Django has read its own list already, as one process does for all of its life.
    browser.application = get_asgi_application()
    assert (await assert_asks_django(browser)).status == 403


async def test_a_ticket_that_came_over_tls_goes_over_tls_alone() -> None:
    browser = Browser()
    browser.scheme = "https"
    await browser.visit("/news/")
    [name] = browser.tickets
    assert browser.attributes[name]["secure"]


async def test_a_ticket_is_for_its_own_path() -> None:
    browser = await let_in("/rooms/7/")
    [(name, value)] = browser.tickets.items()
    browser.cookies[name] = ("/", value)
    request = await browser.visit("/rooms/8/")
    assert request.entered_django
    # Not under the name that the other path has, either.
    other = next(found for found in browser.tickets if found != name)
    browser.cookies[other] = ("/", value)
    await assert_asks_django(browser, "/rooms/8/")


async def test_a_ticket_is_for_its_own_query() -> None:
    browser = await let_in("/news/?a=1")
    [(name, ticket)] = browser.tickets.items()
    for other in ("/news/?a=2", "/news/", "/news/?a=1&b=2", "/news/?a=1&last%45ventId=2"):
        browser.cookies[name] = ("/", ticket)
        await assert_asks_django(browser, other)
    browser.cookies[name] = ("/", ticket)
    await assert_resumed(browser, "/news/?a=1")


async def test_a_ticket_is_for_its_own_host_and_scheme() -> None:
    browser = await let_in()
    browser.headers = [(b"host", b"127.0.0.1")]
    await assert_asks_django(browser)
    browser = await let_in()
    browser.scheme = "https"
    await assert_asks_django(browser)


async def test_a_host_that_is_not_allowed_is_for_django() -> None:
    browser = await let_in()
    browser.headers = [(b"host", b"evil.example")]
    assert (await assert_asks_django(browser)).status == 400


async def test_a_ticket_is_worth_nothing_without_its_session() -> None:
    browser = await let_in()
    thief = Browser()
    thief.last_event_id = browser.last_event_id
    thief.cookies = {name: ("/", ticket) for name, ticket in browser.tickets.items()}
    assert (await assert_asks_django(thief)).status == 401


async def test_a_ticket_is_worth_nothing_with_the_session_of_another_user() -> None:
    browser, other = await let_in(), Browser(await logged_in("bob"))
    other.last_event_id = browser.last_event_id
    other.cookies |= {name: ("/", ticket) for name, ticket in browser.tickets.items()}
    await assert_asks_django(other)


async def test_a_ticket_is_worth_nothing_with_another_session_of_its_user() -> None:
    browser, other = await let_in(), Browser(await logged_in())
    other.last_event_id = browser.last_event_id
    other.cookies |= {name: ("/", ticket) for name, ticket in browser.tickets.items()}
    await assert_asks_django(other)


async def test_a_visitor_who_has_logged_in_meanwhile_asks_django() -> None:
    browser = Browser()
    await browser.visit("/news/")
    name = django_settings.SESSION_COOKIE_NAME
    browser.cookies[name] = ("/", (await logged_in()).cookies[name].value)
    await assert_asks_django(browser, "/news/")


@pytest.mark.parametrize("position", [0, 10, 40, -1])
async def test_a_ticket_that_was_tampered_with_is_void(position: int) -> None:
    browser = await let_in()
    [(name, ticket)] = browser.tickets.items()
    changed = list(ticket)
    changed[position] = "A" if changed[position] != "A" else "B"
    browser.cookies[name] = ("/", "".join(changed))
    await assert_asks_django(browser)


@pytest.mark.parametrize("ticket", ["", "x", ":", "a:b", "\xff", "A" * 5000, "é:é"])
async def test_no_ticket_is_an_error(ticket: str) -> None:
    browser = await let_in()
    [name] = browser.tickets
    browser.cookies[name] = ("/", ticket)
    assert (await assert_asks_django(browser)).is_stream


async def test_a_ticket_of_another_secret_key_is_void(settings: Settings) -> None:
    browser = await let_in("/news/")
    settings.SECRET_KEY = "another one"
    browser.last_event_id = ""
    await browser.visit("/plain/")
    await assert_asks_django(browser, "/news/")


async def test_a_ticket_of_a_key_that_is_being_replaced_is_valid(settings: Settings) -> None:
    browser = Browser()
    await browser.visit("/news/")
    settings.SECRET_KEY_FALLBACKS = [settings.SECRET_KEY]
    settings.SECRET_KEY = "a new one"
    await assert_resumed(browser, "/news/")
    settings.SECRET_KEY_FALLBACKS = []
    await assert_asks_django(browser, "/news/")


async def test_a_login_of_a_key_that_is_being_replaced_is_valid(settings: Settings) -> None:
    browser = await let_in()
    settings.SECRET_KEY_FALLBACKS = [settings.SECRET_KEY]
    settings.SECRET_KEY = "a new one"
    await assert_resumed(browser)
    settings.SECRET_KEY_FALLBACKS = []
    assert (await assert_asks_django(browser)).status == 401


def at(monkeypatch: pytest.MonkeyPatch, now: float) -> None:
    """Set the time by which tickets are judged."""
    monkeypatch.setattr("django_sse.http.resume_tickets.time", SimpleNamespace(time=lambda: now))


async def test_a_ticket_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    browser = await let_in()
    now = time()
    at(monkeypatch, now + 598)
    await assert_resumed(browser)
    at(monkeypatch, now + 601)
    await assert_asks_django(browser)


async def test_a_ticket_does_not_live_longer_than_the_store_remembers_a_cancel(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser = await let_in()
    settings.DJANGO_SSE = {"CANCEL_TTL": 60}
    now = time()
    at(monkeypatch, now + 61)
    await assert_asks_django(browser)


async def test_a_ticket_does_not_live_longer_because_the_time_was_raised(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.DJANGO_SSE = {"CANCEL_TTL": 60}
    browser = await let_in()
    settings.DJANGO_SSE = {}
    now = time()
    at(monkeypatch, now + 30)
    await assert_resumed(browser)
    at(monkeypatch, now + 90)
    await assert_asks_django(browser)


async def test_a_ticket_is_void_once_its_url_has_a_stricter_view(settings: Settings) -> None:
    browser = Browser()
    await browser.visit("/news/")
    settings.ROOT_URLCONF = type("urls", (), {"urlpatterns": replaced_urls})
    assert (await assert_asks_django(browser, "/news/")).status == 401


async def test_a_ticket_is_void_once_its_url_is_gone(settings: Settings) -> None:
    browser = Browser()
    await browser.visit("/news/")
    settings.ROOT_URLCONF = type("urls", (), {"urlpatterns": []})
    assert (await assert_asks_django(browser, "/news/")).status == 404


# What beats it


async def log_out(browser: Browser) -> None:
    client = AsyncClient()
    client.cookies[django_settings.SESSION_COOKIE_NAME] = browser.session_key
    await client.get("/logout/")


async def flush_session(browser: Browser) -> None:
    await Session.objects.filter(session_key=browser.session_key).adelete()


async def expire_session(browser: Browser) -> None:
    sessions = Session.objects.filter(session_key=browser.session_key)
    await sessions.aupdate(expire_date=timezone.now())


async def change_session(browser: Browser) -> None:
    client = AsyncClient()
    client.cookies[django_settings.SESSION_COOKIE_NAME] = browser.session_key
    await client.get("/team/?team=another")


async def cycle_session(browser: Browser) -> None:
    await session_store()(browser.session_key).acycle_key()


async def change_password(browser: Browser) -> None:
    await User.objects.filter(username="ada").aupdate(password="another")


async def deactivate(browser: Browser) -> None:
    await User.objects.filter(username="ada").aupdate(is_active=False)


async def delete_user(browser: Browser) -> None:
    await User.objects.filter(username="ada").adelete()


@pytest.mark.parametrize(
    ("ending", "status"),
    [
        (log_out, 401),
        (flush_session, 401),
        (expire_session, 401),
        (cycle_session, 401),
        (change_password, 401),
        (deactivate, 401),
        (delete_user, 401),
    ],
)
async def test_the_end_of_a_login_beats_a_ticket(
    ending: Callable[[Browser], Any], status: int
) -> None:
    browser = await let_in()
    await ending(browser)
    assert (await assert_asks_django(browser)).status == status


async def test_a_changed_session_is_for_django_to_judge() -> None:
    browser = await let_in("/own/")
    await change_session(browser)
    await apublish("another", "for the other team")
    async with browser.open("/own/") as stream:
        assert stream.entered_django
        await stream.opened()
        await apublish("another", "new")
        await stream.until("new")
    # The new ticket is for the new groups.
    async with browser.open("/own/") as stream:
        assert not stream.entered_django
        await apublish("another", "newer")
        await stream.until("newer")


async def test_a_kick_beats_a_ticket() -> None:
    browser = await let_in()
    await acancel(user=await user(), reason="kicked")
    assert (await assert_asks_django(browser)).status == 204


async def test_a_kick_from_one_of_the_groups_beats_a_ticket() -> None:
    ada = await user()
    browser = await let_in("/own/")
    await acancel("no-team", user=ada)
    async with browser.open("/own/") as stream:
        assert stream.entered_django
        await apublish("no-team", "not for her")
        await apublish(f"user-{ada.pk}", "for her")
        assert data(await stream.until("for her")) == ["for her"]


async def test_a_cancelled_group_beats_a_ticket_until_it_is_reopened() -> None:
    browser = await let_in()
    await acancel("news")
    async with browser.open("/members/") as stream:
        assert [event.event for event in await stream.rest()] == ["close"]
    assert (await assert_asks_django(browser)).status == 204
    await areopen("news")
    await assert_resumed(browser)


async def test_a_kick_ends_a_resumed_stream() -> None:
    browser = await let_in()
    async with browser.open("/members/") as stream:
        assert not stream.entered_django
        await stream.opened()
        await acancel(user=await user(), reason="kicked")
        assert [event.event for event in await stream.rest()] == ["close"]


@pytest.mark.usefixtures("synced_often")
async def test_a_deactivated_user_loses_a_resumed_stream() -> None:
    browser = await let_in()
    async with browser.open("/members/") as stream:
        assert not stream.entered_django
        await stream.opened()
        await deactivate(browser)
        assert [event.event for event in await stream.rest()] == ["close"]


async def test_who_is_logged_in_is_asked_again_while_a_resumed_stream_is_open(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.DJANGO_SSE = {"RECHECK_INTERVAL": 1}
    browser = await let_in()
    async with browser.open("/members/") as stream:
        assert not stream.entered_django
        await stream.opened()
        # Only the pages see this: the row of the user says otherwise.
        monkeypatch.setattr(User, "is_authenticated", property(lambda user: False))
        assert [event.event for event in await stream.rest()] == ["close"]


async def test_a_limit_holds_for_resumed_streams(settings: Settings) -> None:
    settings.DJANGO_SSE = {"MAX_STREAMS_PER_USER": 1, "MAX_STREAMS_PER_ADDRESS": 2}
    browser = await let_in()
    async with browser.open("/members/") as stream:
        assert not stream.entered_django
        await stream.opened()
        assert (await assert_asks_django(browser)).status == 503


async def test_django_answers_if_the_store_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    browser = await let_in()

    async def fail(*args: Any) -> None:
        raise OSError("The store is away.")

    monkeypatch.setattr(get_store(), "astates", fail)
    assert (await assert_asks_django(browser)).status == 503


async def test_django_answers_if_the_sessions_cannot_be_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    browser = await let_in()

    def fail(*args: Any) -> None:
        raise OSError("The database is away.")

    monkeypatch.setattr("django_sse.access.session_claims._data", fail)
    assert (await assert_asks_django(browser)).is_stream
    monkeypatch.undo()
    await assert_resumed(browser)


# Other origins


async def test_a_page_of_another_origin_reads_a_resumed_stream(settings: Settings) -> None:
    origin = "https://app.example.com"
    settings.DJANGO_SSE = {"ALLOWED_ORIGINS": [origin], "ALLOW_CREDENTIALS": True}
    browser = Browser(await logged_in())
    browser.headers += [(b"origin", origin.encode()), (b"sec-fetch-site", b"same-site")]
    first = await browser.visit("/members/")
    again = await assert_resumed(browser)
    for name in ("access-control-allow-origin", "access-control-allow-credentials", "vary"):
        assert again.headers[name] == first.headers[name]
    assert again.headers["access-control-allow-origin"] == origin
    settings.DJANGO_SSE = {}
    assert (await assert_asks_django(browser)).status == 403


async def test_a_page_of_another_origin_that_sends_no_cookies_gets_no_ticket(
    settings: Settings,
) -> None:
    settings.DJANGO_SSE = {"ALLOWED_ORIGINS": ["https://app.example.com"]}
    browser = Browser()
    browser.headers += [(b"origin", b"https://app.example.com")]
    assert (await browser.visit("/news/")).is_stream
    assert browser.tickets == {}


async def test_a_ticket_is_for_the_pages_of_its_own_origin(settings: Settings) -> None:
    origins = ["https://a.example.com", "https://b.example.com"]
    settings.DJANGO_SSE = {"ALLOWED_ORIGINS": origins, "ALLOW_CREDENTIALS": True}
    browser = Browser(await logged_in())
    host = browser.headers[0]
    browser.headers = [host, (b"origin", origins[0].encode())]
    await browser.visit("/members/")
    browser.headers = [host, (b"origin", origins[1].encode())]
    await assert_asks_django(browser)


# Places


async def test_a_prefix_of_the_path_is_kept_apart() -> None:
    browser = Browser()
    await browser.visit("/site/news/", root_path="/site")
    await assert_resumed(browser, "/site/news/", root_path="/site")
    assert browser.attributes[next(iter(browser.tickets))]["path"] == "/site/news/"


class OfHost(MiddlewareMixin):
    """Makes the first label of the host the tenant."""

    def process_request(self, request: HttpRequest) -> None:
        tenant.set(request.get_host().partition(".")[0])


async def test_tenants_have_tickets_of_their_own(settings: Settings) -> None:
    settings.DJANGO_SSE = NAMESPACE
    settings.MIDDLEWARE = [f"{__name__}.OfHost", *settings.MIDDLEWARE]
    browser = Browser()
    browser.headers = [(b"host", b"one.localhost")]
    await browser.visit("/news/")
    tenant.set("one")
    await apublish("news", "of one")
    tenant.set("two")
    await apublish("news", "of two")
    async with browser.open("/news/") as stream:
        assert not stream.entered_django
        assert data(await stream.until("of one")) == ["of one"]
    browser.headers = [(b"host", b"two.localhost")]
    await assert_asks_django(browser, "/news/")


# How many queries


@pytest.mark.parametrize("clients", [20, 100])
async def test_clients_that_come_back_together_are_checked_together(clients: int) -> None:
    browsers = [await let_in(name=f"user-{number}") for number in range(clients)]
    async with Browser(await logged_in()).open("/members/") as kept:
        await kept.opened()
        with queries_about("") as queries:
            streams = await asyncio.gather(*(assert_resumed(browser) for browser in browsers))
    assert len(streams) == clients
    # Those about logins, and a few of the store's: the number does not follow that of the clients.
    logins = [sql for sql in queries if "auth_user" in sql or "django_session" in sql]
    assert len(logins) <= 20
    assert len(queries) <= 60


# Wrong use


class WithTest(UserPassesTestMixin, News):
    async def test_func(self) -> bool:
        return True


class WithPermission(PermissionRequiredMixin, News):
    permission_required = "auth.view_user"


class WithGuard(News):
    async def authorize(self, groups: Sequence[str]) -> None:
        """Let everybody in."""


class WithFilter(News):
    def filter_event(self, event: Event) -> Event:
        return event


class WithOwner(News):
    async def get_owner(self) -> None:
        return None


class WithAnswer(News):
    async def still_allowed(self) -> bool:
        return True


class WithDispatch(News):
    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        return super().dispatch(request, *args, **kwargs)


class WithGet(News):
    async def get(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        return await super().get(request, *args, **kwargs)


class WithHandler(News):
    @on_message("card.moved")
    def moved(self, message: dict[str, Any]) -> Event:
        return Event("moved")


class WithProperty(News):
    @property
    def retry(self) -> int:  # type: ignore[override]
        return 1000


@pytest.mark.parametrize(
    ("view", "what"),
    [
        (WithTest, "UserPassesTestMixin"),
        (WithPermission, "PermissionRequiredMixin"),
        (WithGuard, "authorize"),
        (WithFilter, "filter_event"),
        (WithOwner, "get_owner"),
        (WithAnswer, "still_allowed"),
        (WithDispatch, "dispatch"),
        (WithGet, "get"),
        (WithHandler, "handlers of Channels messages"),
        (WithProperty, "property `retry`"),
    ],
)
def test_a_view_that_needs_its_requests_is_refused(view: type[EventStreamView], what: str) -> None:
    with pytest.raises(
        ImproperlyConfigured, match=rf"{view.__name__} has `resume_seconds`.*{what}"
    ):
        view.as_view()
    view.as_view(resume_seconds=0)


def test_a_guard_is_refused() -> None:
    async def guard(request: HttpRequest) -> None:
        """Let everybody in."""

    with pytest.raises(ImproperlyConfigured, match="authorize"):
        event_stream("news", resume_seconds=60)(guard)


def test_a_ticket_may_not_outlive_what_the_store_remembers(settings: Settings) -> None:
    with pytest.raises(ImproperlyConfigured, match=r"CANCEL_TTL.*3600"):
        News.as_view(resume_seconds=3601)
    settings.DJANGO_SSE = {"CANCEL_TTL": 7200}
    News.as_view(resume_seconds=3601)


@pytest.mark.parametrize("value", [-1, "60", None, float("inf"), True])
def test_the_time_is_a_number_of_seconds(value: Any) -> None:
    with pytest.raises(ImproperlyConfigured, match="resume_seconds must be a finite number"):
        News.as_view(resume_seconds=value)
