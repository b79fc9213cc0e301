"""No cache keeps an answer of the library's, and what it varies by is said all the same."""

from collections.abc import AsyncIterator, Iterator, Sequence

import pytest
from django.conf import settings as django_settings
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.urls import path
from pytest_django import Settings

from django_sse import Event, acancel
from django_sse.asgi import get_asgi_application
from django_sse.decorators import (
    event_generator,
    event_stream,
    event_stream_headers,
    no_content_when_cancelled,
)
from django_sse.groups.position import TERMINAL_MARK
from django_sse.mixins import LoginRequiredMixin, PermissionRequiredMixin, UserPassesTestMixin
from django_sse.views import EventStreamView
from tests.clients import connected
from tests.http.test_asgi import Request
from tests.users import logged_in

APP = "https://app.example.com"
EVENT_SOURCE = {"accept": "text/event-stream"}
SETTINGS = {"STORE": "memory", "MAX_GROUPS": 2, "ALLOWED_ORIGINS": [APP]}


class Requested(EventStreamView):
    """The groups that a request names."""

    async def get_groups(self) -> list[str]:
        return self.request.GET.getlist("group")

    async def authorize(self, groups: Sequence[str]) -> None:
        if groups == ["denied"]:
            raise PermissionDenied
        if groups == ["missing"]:
            raise Http404
        if groups == ["failing"]:
            raise RuntimeError


class Members(LoginRequiredMixin, Requested):
    pass


class Readers(PermissionRequiredMixin, Requested):
    permission_required = "auth.view_user"


class Nobody(UserPassesTestMixin, Requested):
    async def test_func(self) -> bool:
        return False


@event_stream("job-{name}")
async def guarded(request: HttpRequest, name: str) -> None:
    if name == "denied":
        raise PermissionDenied


@event_generator
async def generated(request: HttpRequest) -> AsyncIterator[Event]:
    yield Event("done")


async def chunks() -> AsyncIterator[bytes]:
    yield b"data: mine\n\n"


@no_content_when_cancelled("job-{name}")
@event_stream_headers
async def own(request: HttpRequest, name: str) -> HttpResponseBase:
    return StreamingHttpResponse(chunks())


def sync_chunks() -> Iterator[bytes]:
    yield b"data: mine\n\n"


@no_content_when_cancelled("job-{name}")
@event_stream_headers
def own_sync(request: HttpRequest, name: str) -> HttpResponseBase:
    return StreamingHttpResponse(sync_chunks())


urlpatterns = [
    path("requested/", Requested.as_view()),
    path("members/", Members.as_view()),
    path("readers/", Readers.as_view()),
    path("nobody/", Nobody.as_view()),
    path("guarded/<str:name>/", guarded),
    path("generated/", generated),
    path("own/<str:name>/", own),
    path("own-sync/<str:name>/", own_sync),
]

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.urls(__name__),
    pytest.mark.usefixtures("allowed", "everything_ends"),
]


@pytest.fixture
def allowed(settings: Settings) -> None:
    settings.DJANGO_SSE = SETTINGS


async def ask(url: str, *, method: str = "GET", **headers: str) -> Request:
    """Return the status and the headers of an answer to a page of another origin."""
    path_, _, query = url.partition("?")
    given = {"host": "testserver", "origin": APP, **headers}
    request = Request(
        get_asgi_application(),
        path_,
        method=method,
        query_string=query.encode(),
        headers=[(name.replace("_", "-").encode(), given[name].encode()) for name in given],
        server=("testserver", 80),
    )
    await request.start()
    await request.disconnect()
    return request


async def cookie_of_a_user() -> str:
    name = django_settings.SESSION_COOKIE_NAME
    return f"{name}={(await logged_in()).cookies[name].value}"


def assert_not_kept(answer: Request, status: int) -> None:
    assert answer.status == status
    assert "no-store" in answer.headers["cache-control"].split(", ")
    assert "Origin" in answer.headers["vary"].split(", ")


# An URL, and what it is answered.
ANSWERS = [
    ("/requested/?group=news", 200),
    ("/requested/?group=over", 204),
    ("/requested/?group=a&group=b&group=c", 400),
    ("/requested/", 403),
    ("/requested/?group=denied", 403),
    ("/requested/?group=missing", 404),
    ("/requested/?group=no+name", 404),
    ("/members/?group=news", 401),
    ("/readers/?group=news", 401),
    ("/nobody/?group=news", 401),
    ("/guarded/7/", 200),
    ("/guarded/over/", 204),
    ("/guarded/denied/", 403),
    ("/guarded/no name/", 404),
    ("/generated/", 200),
    ("/own/7/", 200),
    ("/own/over/", 204),
    ("/own/no name/", 404),
    ("/own-sync/7/", 200),
    ("/own-sync/over/", 204),
    ("/own-sync/no name/", 404),
]


@pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume synchronous iterators")
@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(("url", "status"), ANSWERS)
async def test_an_answer_is_not_kept(url: str, status: int, method: str) -> None:
    await acancel("over")
    await acancel("job-over")
    assert_not_kept(await ask(url, method=method), status)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    ("url", "last_event_id"),
    [("/generated/", TERMINAL_MARK), ("/requested/?group=news", f"any{TERMINAL_MARK}")],
)
async def test_that_a_stream_is_over_for_its_client_is_not_kept(
    url: str, last_event_id: str, method: str
) -> None:
    assert_not_kept(await ask(url, method=method, last_event_id=last_event_id), 204)


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [("GET", EVENT_SOURCE, 200), ("GET", {}, 503), ("HEAD", {}, 503)],
    ids=["softly", "503", "HEAD"],
)
@pytest.mark.parametrize("why", ["store", "limit"])
async def test_what_cannot_be_served_now_is_not_kept(
    why: str, method: str, headers: dict[str, str], status: int, settings: Settings
) -> None:
    if why == "store":
        settings.DJANGO_SSE = {**SETTINGS, "STORE": "tests.http.test_response.DownStore"}
        answer = await ask("/requested/?group=news", method=method, **headers)
    else:
        settings.DJANGO_SSE = {**SETTINGS, "MAX_STREAMS": 1}
        async with connected("news"):
            answer = await ask("/requested/?group=news", method=method, **headers)
    assert_not_kept(answer, status)


async def test_a_failure_that_an_event_source_is_spared_is_not_kept() -> None:
    assert_not_kept(await ask("/requested/?group=failing", **EVENT_SOURCE), 200)


@pytest.mark.parametrize(
    ("url", "status"),
    [
        ("/requested/?group=news", 200),
        ("/requested/?group=over", 204),
        ("/requested/?group=a&group=b&group=c", 400),
        ("/requested/?group=denied", 403),
        ("/requested/?group=missing", 404),
        ("/members/?group=news", 200),
        ("/readers/?group=news", 403),
        ("/nobody/?group=news", 403),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_what_the_login_decides_on_varies_by_the_cookie(
    url: str, status: int, method: str
) -> None:
    await acancel("over")
    answer = await ask(url, method=method, cookie=await cookie_of_a_user())
    assert_not_kept(answer, status)
    assert "Cookie" in answer.headers["vary"].split(", ")


async def test_a_refusal_of_what_the_login_decides_on_varies_by_the_cookie(
    settings: Settings,
) -> None:
    cookie = await cookie_of_a_user()
    settings.DJANGO_SSE = {**SETTINGS, "STORE": "tests.http.test_response.DownStore"}
    for headers, status in ((EVENT_SOURCE, 200), ({}, 503)):
        answer = await ask("/requested/?group=news", cookie=cookie, **headers)
        assert_not_kept(answer, status)
        assert "Cookie" in answer.headers["vary"].split(", ")
