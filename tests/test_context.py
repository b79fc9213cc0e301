"""A view's own methods run in the context of the request, long after it, and keep nothing of it."""

import threading
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextvars import ContextVar
from typing import Any, ClassVar
from zoneinfo import ZoneInfo

import pytest
from asgiref.sync import SyncToAsync, markcoroutinefunction, sync_to_async
from channels.layers import get_channel_layer
from django.contrib.auth.models import User
from django.core.cache import caches
from django.db import connections
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.urls import path
from django.utils import timezone, translation
from django.utils.formats import number_format
from pytest_django import Settings

from django_sse import Event, apublish
from django_sse.asgi import get_asgi_application
from django_sse.concurrency.threads import request_context
from django_sse.decorators import on_message
from django_sse.streaming import permission_rechecks
from django_sse.views import EventStreamView
from tests.http.test_asgi import Request, streaming
from tests.streams import until

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.urls(__name__),
    pytest.mark.usefixtures("everything_ends", "localized"),
]

tenant: ContextVar[str] = ContextVar("tenant", default="none")

GetResponse = Callable[[HttpRequest], Awaitable[HttpResponseBase]]


class ZoneMiddleware:
    """Sets what a request is answered in: for good, and only while it is answered."""

    async_capable, sync_capable = True, False

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response
        markcoroutinefunction(self)

    async def __call__(self, request: HttpRequest) -> HttpResponseBase:
        zone = request.headers.get("Zone", "Asia/Tokyo")
        tenant.set(request.headers.get("Tenant", "acme"))
        with timezone.override(ZoneInfo(zone)):
            return await self.get_response(request)


@pytest.fixture
def localized(settings: Settings) -> None:
    settings.DJANGO_SSE = {"STORE": "memory", "RECHECK_INTERVAL": 1}
    settings.MIDDLEWARE = [
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.middleware.locale.LocaleMiddleware",
        f"{__name__}.ZoneMiddleware",
    ]
    settings.LANGUAGE_CODE, settings.TIME_ZONE = "en", "UTC"


def now() -> str:
    words = (translation.get_language(), number_format(1.5), timezone.get_current_timezone_name())
    return " ".join((*map(str, words), tenant.get()))


class Localized(EventStreamView):
    groups = ["news"]

    def filter_event(self, event: Event) -> Event:
        return Event(f"{event.text}: {now()}")

    @on_message("note.made")
    def note_made(self, message: dict[str, Any]) -> Event:
        return Event(f"handler: {now()}")


class Initial(Localized):
    async def initial_events(self) -> AsyncGenerator[Event, None]:
        yield Event("initial")


class Switching(EventStreamView):
    """Its filter sets what it likes."""

    groups = ["news"]

    def filter_event(self, event: Event) -> Event:
        before = now()
        translation.activate("fr")
        tenant.set("other")
        return Event(before)


class Asked(EventStreamView):
    groups = ["news"]
    answers: ClassVar[list[str]] = []

    async def still_allowed(self) -> bool:
        self.answers.append(now())
        self.answers.append(await sync_to_async(now)())
        await User.objects.acount()
        translation.activate("fr")
        return True


urlpatterns = [
    path("localized/", Localized.as_view()),
    path("initial/", Initial.as_view()),
    path("switching/", Switching.as_view()),
    path("asked/", Asked.as_view()),
]

GERMAN = [(b"accept-language", b"de"), (b"zone", b"Asia/Tokyo")]
SWEDISH = [(b"accept-language", b"sv"), (b"zone", b"Europe/Stockholm"), (b"tenant", b"volvo")]
IN_GERMAN = "de 1,5 Asia/Tokyo acme"
IN_SWEDISH = "sv 1,5 Europe/Stockholm volvo"


def open_stream(url: str, headers: Any) -> Any:
    return streaming(get_asgi_application(), url, headers=headers)


async def next_text(stream: Request) -> str:
    return (await stream.next_events())[0].text


async def test_filters_and_handlers_run_in_the_language_and_zone_of_the_request() -> None:
    async with (
        open_stream("/localized/", GERMAN) as german,
        open_stream("/localized/", SWEDISH) as swedish,
    ):
        for text in ("one", "two"):
            await apublish("news", text)
            assert await next_text(german) == f"{text}: {IN_GERMAN}"
            assert await next_text(swedish) == f"{text}: {IN_SWEDISH}"
        await get_channel_layer().group_send("news", {"type": "note.made"})
        assert await next_text(german) == f"handler: {IN_GERMAN}"
        assert await next_text(swedish) == f"handler: {IN_SWEDISH}"
        assert now() == "en 1.5 UTC none"


async def test_initial_events_are_filtered_in_it_too() -> None:
    async with open_stream("/initial/", GERMAN) as stream:
        while b"initial" not in stream.body:
            await stream.read()
        assert f"initial: {IN_GERMAN}".encode() in stream.body


async def test_what_a_filter_sets_reaches_no_other_stream() -> None:
    async with (
        open_stream("/switching/", GERMAN) as switching,
        open_stream("/switching/", SWEDISH) as another,
    ):
        await apublish("news", "one")
        assert await next_text(switching) == IN_GERMAN
        assert await next_text(another) == IN_SWEDISH
        assert now() == "en 1.5 UTC none"


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(permission_rechecks, "_EARLY_FRACTION", 0.9)
    Asked.answers.clear()
    return Asked.answers


async def test_still_allowed_is_asked_in_it_each_time_and_keeps_no_thread(
    answers: list[str],
) -> None:
    before = contexts_with_a_thread()
    async with open_stream("/asked/", GERMAN):
        await until(lambda: len(answers) >= 4)
        assert set(answers) == {IN_GERMAN}
        await until(lambda: contexts_with_a_thread() <= before)


def contexts_with_a_thread() -> set[object]:
    # Other tests may have left some, such as those of hanging calls.
    return set(SyncToAsync.context_to_thread_executor)


def threads_of_requests() -> int:
    return sum(thread.name.startswith("ThreadPoolExecutor") for thread in threading.enumerate())


async def test_the_context_keeps_no_thread_of_the_request() -> None:
    # The test's own thread.
    await apublish("news", "nothing")
    before, contexts = threads_of_requests(), contexts_with_a_thread()
    async with open_stream("/localized/", GERMAN) as one, open_stream("/asked/", GERMAN):
        await apublish("news", "one")
        assert await next_text(one) == f"one: {IN_GERMAN}"
        await until(lambda: threads_of_requests() <= before)
        await until(lambda: contexts_with_a_thread() <= contexts)


async def test_the_context_keeps_no_connection_of_the_request() -> None:
    cache, connection = caches["default"], connections["default"]
    kept = request_context()
    assert kept.run(lambda: caches["default"]) is not cache
    assert kept.run(lambda: connections["default"]) is not connection
    assert caches["default"] is cache
    assert connections["default"] is connection
