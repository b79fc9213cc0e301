"""Pages of other origins, in this process: who may ask a view, and who may read its answers."""

from collections.abc import AsyncIterator, Mapping, Sequence
from io import BytesIO
from typing import Any, cast

import pytest
from django.core.exceptions import PermissionDenied
from django.core.handlers.asgi import ASGIRequest
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.test import AsyncClient
from django.urls import path
from pytest_django import Settings

from django_sse import Event, acancel
from django_sse.decorators import (
    event_generator,
    event_stream,
    event_stream_headers,
    no_content_when_cancelled,
)
from django_sse.groups.position import TERMINAL_MARK
from django_sse.http.cors import cors_headers
from django_sse.streaming.hub import open_streams
from django_sse.views import EventStreamView
from tests.streams import View, get, open_stream, reading

APP = "https://app.example.com"
PREFLIGHT = {"Origin": APP, "Access-Control-Request-Method": "GET"}
# Names that look like the allowed one, or like that of the request itself.
OTHERS = [
    "http://app.example.com",
    "https://app.example.com:8443",
    "https://app.example.com.evil.example",
    "https://evil.app.example.com",
    "https://evilapp.example.com",
    "https://app.example.co",
    "https://evil.example/https://app.example.com",
    "https://app.example.com/",
    "https://app.example.com@evil.example",
    "https://app.example.com, https://evil.example",
    "https://evil.example,https://app.example.com",
    "http://testserver:8000",
    "http://testserver.evil.example",
    "http://eviltestserver",
    "http://evil@testserver",
    "http://testserver/",
    "http://testserver:",
    "http://testserver,http://evil.example",
    "chrome-extension://testserver",
    "//testserver",
    "testserver",
    "null",
    "NULL",
    "*",
    "",
    "http://[",
    "://",
    "\xff",
    "http://testserver:99999",
]
SITES = ["cross-site", "same-site", "", "Same-Origin", "same-origin, cross-site", "anything"]

ran: list[str] = []
"""What of the project has run: the views, and what they ask."""


class Requested(EventStreamView):
    """The groups that a request names, and what it wants to be answered."""

    async def get_groups(self) -> list[str]:
        return self.request.GET.getlist("group")

    async def get_owner(self) -> str | None:
        ran.append("owner")
        token = self.request.GET.get("token")
        if token == "forged":
            raise PermissionDenied
        return token

    async def authorize(self, groups: Sequence[str]) -> HttpResponseBase | None:
        if groups == ["denied"]:
            raise PermissionDenied
        if groups == ["unauthorized"]:
            return HttpResponse(status=401)
        return None


@event_stream("job-{pk}")
async def job(request: HttpRequest, pk: str = "7") -> None:
    ran.append("guard")


@event_generator
async def progress(request: HttpRequest) -> AsyncIterator[Event]:
    ran.append("generator")
    yield Event("done")


async def chunks() -> AsyncIterator[bytes]:
    yield Event("mine").encode()


@event_stream_headers
async def own(request: HttpRequest) -> HttpResponseBase:
    ran.append("own")
    return StreamingHttpResponse(chunks())


@event_stream_headers
def own_sync(request: HttpRequest) -> HttpResponseBase:
    ran.append("own")
    return StreamingHttpResponse([Event("mine").encode()])


@no_content_when_cancelled("job-{pk}")
async def own_job(request: HttpRequest, pk: str = "7") -> HttpResponseBase:
    ran.append("own")
    return HttpResponse("mine")


@no_content_when_cancelled("job-{pk}")
def own_job_sync(request: HttpRequest, pk: str = "7") -> HttpResponseBase:
    ran.append("own")
    return HttpResponse("mine")


requested = Requested.as_view()

pytestmark = [pytest.mark.urls(__name__), pytest.mark.usefixtures("memory_store", "allowed")]

urlpatterns = [
    path("requested/", requested),
    path("job/", job, {"pk": "7"}),
    path("progress/", progress),
    path("own/", own),
    path("own-sync/", own_sync),
    path("own-job/", own_job, {"pk": "7"}),
    path("own-job-sync/", own_job_sync, {"pk": "7"}),
]


@pytest.fixture
def allowed(memory_store: None, settings: Settings) -> None:
    settings.DJANGO_SSE = {"STORE": "memory", "ALLOWED_ORIGINS": [APP, "http://localhost:3000"]}
    ran.clear()


async def answer(url: str, *, method: str = "GET", **headers: str) -> HttpResponseBase:
    """Return what a page of an origin is answered, with all that Django puts round a view."""
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return await AsyncClient().generic(method, url, headers={"Origin": APP, **given})


def assert_readable(response: HttpResponseBase, origin: str = APP) -> None:
    assert response["Access-Control-Allow-Origin"] == origin
    assert "Access-Control-Allow-Credentials" not in response
    assert "Origin" in response["Vary"].split(", ")


def assert_unreadable(response: HttpResponseBase) -> None:
    assert not [name for name in response.headers if name.startswith("Access-Control-")]


URLS = [
    "/requested/?group=a",
    "/job/",
    "/progress/",
    "/own/",
    "/own-sync/",
    "/own-job/",
    "/own-job-sync/",
]


# What is allowed to whom


@pytest.mark.parametrize("url", URLS)
async def test_a_page_of_an_allowed_origin_may_read_every_kind_of_view(url: str) -> None:
    response = await answer(url)
    assert response.status_code == 200
    assert_readable(response)
    response.close()


@pytest.mark.parametrize("url", URLS)
async def test_a_page_of_the_same_origin_needs_nothing_and_caches_are_told(url: str) -> None:
    response = await AsyncClient().get(url)
    assert_unreadable(response)
    assert response["Vary"] == "Origin"
    response.close()


@pytest.mark.parametrize("url", URLS)
async def test_there_are_no_headers_by_default(url: str, settings: Settings) -> None:
    settings.DJANGO_SSE = {"STORE": "memory"}
    response = await answer(url, Origin="http://testserver")
    assert response.status_code == 200
    assert_unreadable(response)
    assert "Vary" not in response
    response.close()


@pytest.mark.parametrize("origin", ["null", "https://any.example", APP])
@pytest.mark.parametrize("site", [None, *SITES])
@pytest.mark.parametrize("url", URLS)
async def test_pages_of_every_origin_may_be_allowed(
    url: str, site: str | None, origin: str, settings: Settings
) -> None:
    settings.DJANGO_SSE = {"STORE": "memory", "ALLOWED_ORIGINS": ["*"]}
    response = await answer(url, Origin=origin, **sent_from(site))
    assert response.status_code == 200
    assert response["Access-Control-Allow-Origin"] == "*"
    # The same for all.
    assert "Vary" not in response
    response.close()


@pytest.mark.parametrize("url", URLS)
async def test_cookies_may_be_allowed(url: str, settings: Settings) -> None:
    settings.DJANGO_SSE = {
        "STORE": "memory",
        "ALLOWED_ORIGINS": [APP],
        "ALLOW_CREDENTIALS": True,
    }
    response = await answer(url)
    assert response["Access-Control-Allow-Origin"] == APP
    assert response["Access-Control-Allow-Credentials"] == "true"
    response.close()


def test_origins_are_compared_as_host_names_are() -> None:
    assert cors_headers("HTTP://LocalHost:3000") == {
        "Access-Control-Allow-Origin": "HTTP://LocalHost:3000"
    }


async def test_a_header_of_a_middleware_or_a_view_of_the_projects_own_is_not_repeated() -> None:
    @event_stream("news")
    async def view(request: HttpRequest) -> HttpResponse:
        return HttpResponse(headers={"Access-Control-Allow-Origin": "*", "Vary": "Cookie"})

    response = await view(get(headers={"Origin": APP}))
    assert_readable(response)
    assert response["Vary"] == "Cookie, Origin"


# Who may ask at all


def sent_from(site: str | None) -> dict[str, str]:
    return {} if site is None else {"Sec-Fetch-Site": site}


def assert_foreign(response: HttpResponseBase) -> None:
    assert response.status_code == 403
    assert response["Cache-Control"] == "no-store"
    assert response["Vary"] == "Origin, Sec-Fetch-Site"
    assert_unreadable(response)
    assert not response.streaming
    assert not ran


async def asked(url: str, headers: Sequence[tuple[str, str]]) -> HttpResponseBase:
    """Return what is answered to headers of which there may be several of one name."""
    scope = cast("ASGIRequest", get(url)).scope
    sent = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    request = ASGIRequest({**scope, "headers": sent}, BytesIO())
    return cast("HttpResponseBase", await requested(request))


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS"])
@pytest.mark.parametrize("keys", [{}, {"ALLOWED_ORIGINS": [APP], "ALLOW_CREDENTIALS": True}])
@pytest.mark.parametrize("url", URLS)
async def test_a_page_that_is_not_allowed_is_refused_before_anything_runs(
    url: str, keys: dict[str, Any], method: str, settings: Settings
) -> None:
    settings.DJANGO_SSE = {"STORE": "memory", **keys}
    assert_foreign(await answer(url, method=method, Origin="https://evil.example"))
    # As a form of such a page posts, or a form with `Referrer-Policy: no-referrer`.
    for origin in ("https://evil.example", "null"):
        headers = {"Sec-Fetch-Site": "cross-site", "Origin": origin}
        assert_foreign(await answer(url, method=method, **headers))


@pytest.mark.parametrize("origin", OTHERS)
async def test_an_origin_that_is_like_one_that_is_allowed_is_refused(origin: str) -> None:
    assert_foreign(await asked("/?group=a", [("host", "testserver"), ("origin", origin)]))
    for site in SITES:
        headers = [("host", "testserver"), ("origin", origin), ("sec-fetch-site", site)]
        assert_foreign(await asked("/?group=a", headers))


@pytest.mark.parametrize("origins", [(APP, "https://evil.example"), (APP, APP)])
async def test_of_two_origins_none_is_allowed(origins: Sequence[str]) -> None:
    headers = [("host", "testserver"), *(("origin", origin) for origin in origins)]
    assert_foreign(await asked("/?group=a", headers))


@pytest.mark.parametrize("origins", [[], [APP], ["*"]])
@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("url", URLS)
async def test_what_a_page_may_send_but_not_read_is_refused(
    url: str, site: str, origins: list[str], settings: Settings
) -> None:
    """As for an image, or by fetch with ``no-cors``: with cookies, and without an ``Origin``."""
    settings.DJANGO_SSE = {"STORE": "memory", "ALLOWED_ORIGINS": origins}
    assert_foreign(await AsyncClient().get(url, headers={"Sec-Fetch-Site": site}))


async def test_a_foreign_page_takes_up_nothing_of_its_users(settings: Settings) -> None:
    settings.DJANGO_SSE = {"STORE": "memory", "MAX_STREAMS_PER_USER": 1}
    url = "/?group=a&token=ada"
    for _ in range(3):
        assert_foreign(await requested(get(url, headers={"Sec-Fetch-Site": "cross-site"})))
    async with open_stream(requested, url, headers={"Sec-Fetch-Site": "same-origin"}) as stream:
        assert stream.response.status_code == 200
        assert open_streams() == 1
        # And is not told how many there are.
        ran.clear()
        assert_foreign(await requested(get(url, headers={"Sec-Fetch-Site": "cross-site"})))


@pytest.mark.parametrize("origin", [None, "http://testserver", "https://evil.example"])
@pytest.mark.parametrize("site", ["same-origin", "none"])
@pytest.mark.parametrize("url", URLS)
async def test_what_the_browser_says_of_the_site_goes_before_the_origin(
    url: str, site: str, origin: str | None
) -> None:
    headers = {"Sec-Fetch-Site": site, **({"Origin": origin} if origin else {})}
    response = await AsyncClient().get(url, headers=headers)
    assert response.status_code == 200
    assert_unreadable(response)
    response.close()


@pytest.mark.parametrize("site", [None, "same-site", "cross-site"])
@pytest.mark.parametrize("origin", [APP, APP.upper(), "http://localhost:3000"])
async def test_an_allowed_origin_may_ask_from_wherever_it_is(site: str | None, origin: str) -> None:
    response = await answer("/requested/?group=a", Origin=origin, **sent_from(site))
    assert response.status_code == 200
    assert_readable(response, origin)
    response.close()


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("testserver", "http://testserver"),
        ("testserver", "HTTP://TestServer"),
        ("TestServer", "http://testserver"),
        ("testserver", "http://testserver:80"),
        ("testserver:80", "http://testserver"),
        # The proxy ends TLS.
        ("testserver", "https://testserver"),
        ("testserver", "https://testserver:443"),
        ("testserver:443", "https://testserver"),
        ("testserver:80", "https://testserver"),
        ("testserver:8000", "http://testserver:8000"),
        ("testserver:8443", "https://testserver:8443"),
        ("127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("[::1]:8000", "http://[::1]:8000"),
        ("[::1]", "http://[::1]"),
    ],
)
async def test_a_page_of_the_same_host_and_port_may_ask(
    host: str, origin: str, settings: Settings
) -> None:
    settings.ALLOWED_HOSTS = ["*"]
    settings.DJANGO_SSE = {"STORE": "memory"}
    response = await asked("/?group=a", [("host", host), ("origin", origin)])
    assert response.status_code == 200
    response.close()


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("testserver:8000", "http://testserver"),
        ("testserver:8000", "http://testserver:8001"),
        ("testserver", "http://testserver:8000"),
        ("testserver:8080", "http://testserver:80"),
        ("[::1]:8000", "http://[::2]:8000"),
        ("[::1]:8000", "http://[::1]"),
    ],
)
async def test_a_page_of_another_host_or_port_may_not(
    host: str, origin: str, settings: Settings
) -> None:
    settings.ALLOWED_HOSTS = ["*"]
    settings.DJANGO_SSE = {"STORE": "memory"}
    assert_foreign(await asked("/?group=a", [("host", host), ("origin", origin)]))


@pytest.mark.parametrize("host", ["evil.example", "a b", "\xff", ""])
async def test_a_host_that_is_none_of_the_projects_has_no_pages(
    host: str, settings: Settings
) -> None:
    settings.ALLOWED_HOSTS = ["testserver"]
    origin = f"http://{host}"
    assert_foreign(await asked("/?group=a", [("host", host), ("origin", origin)]))
    response = await asked("/?group=a", [("host", host), ("origin", APP)])
    assert_readable(response)
    response.close()


@pytest.mark.parametrize("url", URLS)
async def test_what_is_no_browser_needs_neither_header(url: str, settings: Settings) -> None:
    settings.DJANGO_SSE = {"STORE": "memory"}
    response = await AsyncClient().get(url)
    assert response.status_code == 200
    response.close()


# What else a view answers


@pytest.mark.parametrize(
    ("url", "status"),
    [
        ("/requested/?group=a&group=" + "&group=".join(map(str, range(50))), 400),
        ("/requested/?group=unauthorized", 401),
        ("/requested/", 403),
        ("/requested/?group=denied", 403),
        ("/requested/?group=mine&token=forged", 403),
        ("/requested/?group=no name", 404),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_page_may_read_why_it_is_refused(url: str, status: int, method: str) -> None:
    response = await answer(url, method=method)
    assert response.status_code == status
    assert_readable(response)


async def test_an_owner_that_is_refused_is_refused_like_a_group() -> None:
    response = await answer("/requested/?group=mine&token=forged")
    assert response.status_code == 403
    assert response["Cache-Control"] == "no-store"


@pytest.mark.parametrize("view", [job, own_job, own_job_sync])
async def test_a_page_may_read_that_there_is_no_such_group(view: View) -> None:
    request = get(headers={"Origin": APP})
    response = view(request, pk="a b") if view is own_job_sync else await view(request, pk="a b")
    assert response.status_code == 404
    assert response["Cache-Control"] == "no-store"
    assert_readable(response)


@pytest.mark.parametrize("method", ["POST", "DELETE"])
@pytest.mark.parametrize("url", ["/requested/", "/job/"])
async def test_a_page_may_read_that_its_method_is_not_allowed(url: str, method: str) -> None:
    response = await answer(url, method=method)
    assert response.status_code == 405
    assert_readable(response)


@pytest.mark.parametrize("url", ["/requested/?group=a", "/job/", "/progress/"])
async def test_head_has_the_headers_of_get(url: str) -> None:
    response = await answer(url, method="HEAD")
    assert response.status_code == 200
    assert_readable(response)


@pytest.mark.parametrize("url", ["/requested/?group=job-7", "/job/", "/own-job/", "/own-job-sync/"])
async def test_a_page_may_read_that_its_stream_is_over(url: str) -> None:
    await acancel("job-7")
    response = await answer(url)
    assert response.status_code == 204
    assert_readable(response)


async def test_a_page_may_read_that_a_generator_is_over() -> None:
    response = await answer("/progress/", Last_Event_ID=TERMINAL_MARK)
    assert response.status_code == 204
    assert_readable(response)


async def test_a_page_may_read_that_the_store_is_away(settings: Settings) -> None:
    settings.DJANGO_SSE = {"STORE": "tests.http.test_response.DownStore", "ALLOWED_ORIGINS": [APP]}
    response = await answer("/requested/?group=a", Accept="text/event-stream")
    assert_readable(response)
    async with reading(response) as stream:
        assert stream.reconnection_time
    response = await answer("/requested/?group=a")
    assert response.status_code == 503
    assert_readable(response)


# Preflights


def asked_of(headers: Mapping[str, str]) -> set[str]:
    return {name.strip().lower() for name in headers["Access-Control-Allow-Headers"].split(",")}


@pytest.mark.parametrize("url", [*URLS, "/requested/?group=denied", "/requested/?group=no name"])
async def test_a_preflight_is_answered_without_asking_the_view(url: str) -> None:
    response = await answer(
        url,
        method="OPTIONS",
        Access_Control_Request_Method="GET",
        Access_Control_Request_Headers="cache-control,last-event-id",
        Sec_Fetch_Site="cross-site",
    )
    assert response.status_code == 204
    assert not ran
    assert_preflight(response)


def assert_preflight(response: HttpResponseBase) -> None:
    assert_allows_methods(response)
    assert {"cache-control", "last-event-id"} <= asked_of(response.headers)
    assert int(response["Access-Control-Max-Age"]) > 0
    assert response["Access-Control-Allow-Origin"] == APP
    assert response["Vary"] == "Origin"


def assert_allows_methods(response: HttpResponseBase) -> None:
    assert {"GET", "HEAD", "POST", "DELETE"} == set(
        response["Access-Control-Allow-Methods"].split(", ")
    )


@pytest.mark.parametrize("site", [None, "cross-site"])
@pytest.mark.parametrize("origin", OTHERS)
async def test_a_preflight_from_another_origin_allows_nothing(
    origin: str, site: str | None
) -> None:
    headers = {**PREFLIGHT, "Origin": origin, **sent_from(site)}
    response = await requested(get("/?group=a", method="OPTIONS", headers=headers))
    assert response.status_code == 204
    assert_unreadable(response)
    assert response["Vary"] == "Origin"


async def test_a_preflight_with_credentials_is_answered_so(settings: Settings) -> None:
    settings.DJANGO_SSE = {"ALLOWED_ORIGINS": [APP], "ALLOW_CREDENTIALS": True}
    response = await requested(get(method="OPTIONS", headers=PREFLIGHT))
    assert response["Access-Control-Allow-Credentials"] == "true"


async def test_a_preflight_from_a_server_without_cors_is_any_options_request(
    settings: Settings,
) -> None:
    settings.DJANGO_SSE = {"STORE": "memory"}
    response = await requested(get(method="OPTIONS", headers=PREFLIGHT))
    assert response.status_code == 200
    assert_unreadable(response)
    # A view of one's own may answer it itself.
    assert own_sync(get(method="OPTIONS", headers=PREFLIGHT)).status_code == 200


@pytest.mark.parametrize(
    ("view", "methods"),
    [(requested, {"GET", "HEAD", "OPTIONS"}), (progress, {"GET", "HEAD", "POST", "OPTIONS"})],
)
async def test_options_that_is_no_preflight_still_lists_the_methods(
    view: Any, methods: set[str]
) -> None:
    response = await view(get(method="OPTIONS", headers={"Origin": APP}))
    assert response.status_code == 200
    assert set(response["Allow"].split(", ")) == methods
    assert_readable(response)
    assert not isinstance(response, StreamingHttpResponse)
