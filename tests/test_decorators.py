"""Function views, in this process and without the ASGI wrapper."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from decimal import Decimal
from typing import Any, cast

import pytest
from asgiref.sync import iscoroutinefunction, sync_to_async
from django.contrib.admin.views.decorators import staff_member_required
from django.contrib.auth import mixins
from django.contrib.auth.decorators import (
    login_not_required,
    login_required,
    permission_required,
    user_passes_test,
)
from django.contrib.auth.models import AnonymousUser, User
from django.core.exceptions import ImproperlyConfigured, PermissionDenied
from django.core.handlers.base import BaseHandler
from django.db import DEFAULT_DB_ALIAS, connections, transaction
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.test import AsyncClient, Client, RequestFactory
from django.urls import path
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET
from pytest_django import Settings

from django_sse import Event, acancel, aposition, apublish, areopen
from django_sse.decorators import (
    EventStreamRequest,
    event_generator,
    event_stream,
    event_stream_headers,
    no_content_when_cancelled,
)
from django_sse.exceptions import Close
from django_sse.groups.position import TERMINAL_MARK
from django_sse.mixins import LoginRequiredMixin, PermissionRequiredMixin, UserPassesTestMixin
from django_sse.views import EventGeneratorView, EventStreamView
from tests.streams import get, open_stream, reading, until


@event_stream("job-{pk}")
async def job(request: HttpRequest, pk: int) -> Any:
    """Guards a job's stream."""
    match request.GET.get("answer"):
        case "denied":
            raise PermissionDenied
        case "response":
            return HttpResponseRedirect("/login/")
        case "none":
            return []
    return None


@event_generator
async def progress(request: HttpRequest, steps: int = 2) -> AsyncIterator[Event]:
    """Counts."""
    for step in range(1, steps + 1):
        yield Event({"step": step}, event="progress")


@event_generator
async def failing(request: HttpRequest) -> AsyncIterator[Event]:
    yield Event("first")
    raise RuntimeError("a secret of the server")


async def chunks() -> AsyncIterator[bytes]:
    yield Event("mine").encode()


@event_stream_headers
async def own(request: HttpRequest) -> HttpResponseBase:
    """Streams itself."""
    return StreamingHttpResponse(chunks())


@event_stream_headers
def own_sync(request: HttpRequest) -> HttpResponseBase:
    """Streams itself, from synchronous code."""
    return StreamingHttpResponse([Event("mine").encode()])


@no_content_when_cancelled("job-{pk}")
async def own_job(request: HttpRequest, pk: int) -> HttpResponseBase:
    return StreamingHttpResponse(chunks())


@no_content_when_cancelled("job-{pk}")
def own_job_sync(request: HttpRequest, pk: int) -> HttpResponseBase:
    return StreamingHttpResponse([Event("mine").encode()])


pytestmark = [pytest.mark.urls(__name__), pytest.mark.usefixtures("memory_store")]

urlpatterns = [
    path("jobs/<int:pk>/", job),
    path("progress/<int:steps>/", progress),
    path("own/<str:pk>/", own_job),
    path("own-sync/<str:pk>/", own_job_sync),
]


class Tap:
    """A generator view whose events a test lets through, and whose end it sees."""

    def __init__(self) -> None:
        self.items: asyncio.Queue[Any] = asyncio.Queue()
        self.requests: list[EventStreamRequest] = []
        self.closed = False
        self.view = event_generator(self.generate)

    async def generate(self, request: EventStreamRequest) -> AsyncGenerator[Any, None]:
        self.requests.append(request)
        task = asyncio.current_task()
        try:
            while (item := await self.items.get()) is not None:
                yield item
        finally:
            # What it holds, for example a timeout, can only be released in the task that took it.
            for _ in range(10):
                await asyncio.sleep(0)
            self.closed = asyncio.current_task() is task


# Groups


async def test_a_guard_lets_the_stream_of_a_group_begin() -> None:
    async with open_stream(job, pk=7) as stream:
        await apublish("job-8", "other")
        await apublish("job-7", "mine")
        assert (await stream.next_event()).data == "mine"


async def test_a_guard_is_routed_to_as_any_view() -> None:
    async with reading(await AsyncClient().get("/jobs/7/")) as stream:
        await apublish("job-7", "mine")
        assert (await stream.next_event()).data == "mine"


@pytest.mark.parametrize(("answer", "status"), [("denied", 403), ("response", 302), ("none", 403)])
async def test_a_guard_may_refuse(answer: str, status: int) -> None:
    refusal = await job(get(f"/?answer={answer}"), pk=7)
    assert refusal.status_code == status


async def test_a_guard_may_allow_some_of_the_groups() -> None:
    @event_stream("open-{pk}", "secret-{pk}")
    async def view(request: HttpRequest, pk: int) -> list[str]:
        return [f"open-{pk}"]

    async with open_stream(view, pk=7) as stream:
        await apublish("secret-7", "secret")
        await apublish("open-7", "open")
        assert (await stream.next_event()).data == "open"


async def test_a_guard_names_several_groups() -> None:
    @event_stream("news", "job-{pk}")
    async def view(request: HttpRequest, pk: int) -> None: ...

    async with open_stream(view, pk=7) as stream:
        await apublish("news", "one")
        assert (await stream.next_event()).data == "one"
        await apublish("job-7", "two")
        assert (await stream.next_event()).data == "two"


async def test_a_group_name_that_is_none_is_not_found() -> None:
    assert (await job(get(), pk="a/b")).status_code == 404


async def test_a_cancelled_group_is_answered_204() -> None:
    await acancel("job-7")
    assert (await job(get(), pk=7)).status_code == 204


async def test_options_are_those_of_the_class_based_view() -> None:
    @event_stream("news", history=1, retry=500, heartbeat=0, channel_messages=False)
    async def view(request: HttpRequest) -> None: ...

    await apublish("news", "past")
    async with open_stream(view) as stream:
        assert stream.reconnection_time == 500
        assert (await stream.next_event()).data == "past"


def test_an_unknown_option_is_refused() -> None:
    async def guard(request: HttpRequest) -> None: ...

    with pytest.raises(TypeError, match="invalid keyword 'histroy'"):
        event_stream("news", histroy=1)(guard)


def test_an_option_that_cannot_be_is_told_of_the_guard() -> None:
    with pytest.raises(ImproperlyConfigured, match=r"^coroutine\.retry must be"):
        event_stream("news", retry=3)(coroutine)


async def test_the_methods_are_those_of_the_class_based_view() -> None:
    assert (await job(get(method="POST"), pk=7)).status_code == 405
    assert set((await job(get(method="OPTIONS"), pk=7))["Allow"].split(", ")) == {
        "GET",
        "HEAD",
        "OPTIONS",
    }
    assert (await job(get(method="HEAD"), pk=7))["Content-Type"].startswith("text/event-stream")


@pytest.mark.parametrize("view", [job, progress])
def test_a_view_keeps_its_name_and_its_docstring(view: Any) -> None:
    assert view.__name__ in ("job", "progress")
    assert view.__doc__ in ("Guards a job's stream.", "Counts.")
    assert view.__module__ == __name__


async def test_other_decorators_go_round_it() -> None:
    async with open_stream(require_GET(job), pk=7) as stream:
        await apublish("job-7", "mine")
        assert (await stream.next_event()).data == "mine"


def sync_view(request: HttpRequest) -> None: ...


def sync_generator(request: HttpRequest) -> Iterator[Event]:
    yield Event("x")


async def coroutine(request: HttpRequest) -> None: ...


async def async_generator(request: HttpRequest) -> AsyncIterator[Event]:
    yield Event("x")


@pytest.mark.parametrize("view", [sync_view, sync_generator, async_generator])
def test_a_guard_that_is_no_coroutine_function_is_refused(view: Any) -> None:
    with pytest.raises(TypeError) as refused:
        event_stream("job-{pk}", "news")(view)
    message = str(refused.value)
    assert message.startswith(
        "@event_stream('job-{pk}', 'news') goes on an `async def` without `yield`"
    )
    assert view.__name__ in message
    assert "For an async generator, use @event_generator." in message


@pytest.mark.parametrize(
    "patterns", [[], [async_generator], [coroutine], [None], [["news"]], ["news", 7]]
)
def test_a_stream_of_no_group_is_told_of_generators(patterns: list[Any]) -> None:
    with pytest.raises(TypeError, match=r"Name a group: .* use @event_generator"):
        event_stream(*patterns)


@pytest.mark.parametrize("view", [sync_view, sync_generator, coroutine, "news", ["news"], None])
def test_what_is_no_async_generator_is_told_of_streams_of_groups(view: Any) -> None:
    with pytest.raises(TypeError, match="@event_generator goes on an async generator") as refused:
        event_generator(view)
    assert 'use @event_stream("job-{pk}")' in str(refused.value)


# Generators


async def test_what_a_generator_yields_is_the_stream() -> None:
    @event_generator
    async def view(request: HttpRequest) -> AsyncIterator[Any]:
        yield Event({"done": 1}, event="progress")
        yield "text"
        yield {"price": Decimal("1.50")}
        yield Event("with an id", id="7")
        yield Event(comment="nothing for the page")

    async with open_stream(view) as stream:
        first, text, json, with_id, close = await stream.rest()
        assert (first.text, first.event) == ('{"done":1}', "progress")
        assert text.data == "text"
        assert json.data == '{"price":"1.50"}'
        assert with_id.id == "7"
        assert close.event == "close"
        assert ": nothing for the page\n\n" in stream.text


async def test_a_generator_view_has_the_headers_and_the_retry_of_a_stream() -> None:
    async with open_stream(progress) as stream:
        assert stream.text.startswith("retry: 3000\n\n")
        assert stream.response["Content-Type"] == "text/event-stream; charset=utf-8"
        assert stream.response["Cache-Control"] == "no-cache, no-store, private, no-transform"
        assert stream.response["X-Accel-Buffering"] == "no"
        assert stream.response["Connection"] == "keep-alive"
    async with reading(await progress(get(http_version="2"))) as stream:
        assert "Connection" not in stream.response


async def test_a_generator_takes_the_arguments_of_the_url() -> None:
    async with reading(await AsyncClient().get("/progress/3/")) as stream:
        events = await stream.rest()
        assert [event.data for event in events[:-1]] == ['{"step":1}', '{"step":2}', '{"step":3}']


async def test_a_generator_that_returns_stops_its_client_for_good() -> None:
    async with open_stream(progress) as stream:
        *_, close = await stream.rest()
        assert (close.event, close.json()) == ("close", {"reason": "complete"})
        last = stream.last_event_id
    answer = await progress(get(headers={"Last-Event-ID": last}))
    assert (answer.status_code, answer["Cache-Control"]) == (204, "no-store")
    answer = await progress(get(f"/?lastEventId={last}"))
    assert answer.status_code == 204


async def test_a_generator_that_yields_nothing_stops_its_client_as_well() -> None:
    async with open_stream(progress, steps=0) as stream:
        [close] = await stream.rest()
        assert close.event == "close"


async def test_a_generator_that_fails_ends_its_stream_for_good_and_tells_its_client_nothing_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with open_stream(failing) as stream:
        first, close = await stream.rest()
        assert first == Event("first")
        assert (close.event, close.json()) == ("close", {"reason": "failed"})
        last = stream.last_event_id
    assert "A generator view failed" in caplog.text
    assert "a secret of the server" in caplog.text
    answer = await failing(get(headers={"Last-Event-ID": last}))
    assert answer.status_code == 204


async def test_a_generator_that_may_run_again_lets_its_client_come_back_after_a_failure() -> None:
    @event_generator(retry_on_error=True)
    async def view(request: HttpRequest) -> AsyncIterator[Event]:
        yield Event("first", id="1")
        raise RuntimeError("a secret of the server")

    async with open_stream(view) as stream:
        assert await stream.rest() == [Event("first", id="1")]
        assert stream.last_event_id == "1"
        assert 3000 <= (stream.reconnection_time or 0) <= 6000


async def test_a_generator_may_say_why_it_ends() -> None:
    @event_generator
    async def view(request: HttpRequest) -> AsyncIterator[Event]:
        yield Event("first")
        raise Close("quota")

    async with open_stream(view) as stream:
        _, close = await stream.rest()
        assert (close.event, close.json()) == ("close", {"reason": "quota"})
        last = stream.last_event_id
    assert (await view(get(headers={"Last-Event-ID": last}))).status_code == 204


def test_options_of_a_generator_are_those_of_the_class_based_view() -> None:
    with pytest.raises(TypeError, match="invalid keyword 'histroy'"):
        event_generator(histroy=1)(async_generator)
    with pytest.raises(ImproperlyConfigured, match=r"^async_generator\.retry must be"):
        event_generator(retry=3)(async_generator)
    with pytest.raises(ImproperlyConfigured, match=r"^async_generator\.retry_on_error must be"):
        event_generator(retry_on_error="yes")(async_generator)


async def test_a_generator_has_a_retry_and_a_heartbeat_of_its_own(settings: Settings) -> None:
    settings.DJANGO_SSE = {"STORE": "memory", "HEARTBEAT": 0}

    @event_generator(retry=500, heartbeat=0.01)
    async def view(request: HttpRequest) -> AsyncIterator[Event]:
        await asyncio.Event().wait()
        yield Event("never")

    async with open_stream(view) as stream:
        assert stream.reconnection_time == 500
        await until(lambda: stream.text.endswith("\n\n:\n\n"))


@pytest.mark.parametrize(
    "item",
    [b"bytes", Event({1, 2}), Event("x", event="close"), Event("x", event="error")],
)
async def test_a_generator_that_yields_what_is_no_event_is_a_generator_that_fails(
    item: Any, caplog: pytest.LogCaptureFixture
) -> None:
    tap = Tap()
    tap.items.put_nowait(item)
    async with open_stream(tap.view) as stream:
        [close] = await stream.rest()
        assert close.json() == {"reason": "failed"}
        assert tap.closed
    assert "A generator view failed" in caplog.text


async def test_events_go_out_one_by_one() -> None:
    tap = Tap()
    async with open_stream(tap.view) as stream:
        for number in range(3):
            tap.items.put_nowait(number)
            assert (await stream.next_event()).data == str(number)
        tap.items.put_nowait(None)
        assert [event.event for event in await stream.rest()] == ["close"]


async def test_a_generator_does_not_run_ahead_of_its_client() -> None:
    made = []

    @event_generator
    async def view(request: HttpRequest) -> AsyncIterator[int]:
        for number in range(3):
            made.append(number)
            yield number

    sent = aiter(await view(get()))
    assert await anext(sent) == b"retry: 3000\n\n"
    for number in range(3):
        assert await anext(sent) == b"data: %d\n\n" % number
        for _ in range(10):
            await asyncio.sleep(0)
        assert made == list(range(number + 1))
    assert len([chunk async for chunk in sent]) == 1


async def test_a_generator_that_is_silent_is_kept_alive(settings: Settings) -> None:
    settings.DJANGO_SSE = {"STORE": "memory", "HEARTBEAT": 0.01}
    tap = Tap()
    async with open_stream(tap.view) as stream:
        await until(lambda: stream.text.endswith("\n\n:\n\n:\n\n"))
        tap.items.put_nowait("after the silence")
        assert (await stream.next_event()).data == "after the silence"
        await until(lambda: stream.text.endswith("data: after the silence\n\n:\n\n"))


async def test_a_generator_may_be_silent_for_ever(settings: Settings) -> None:
    settings.DJANGO_SSE = {"STORE": "memory", "HEARTBEAT": 0}
    tap = Tap()
    async with open_stream(tap.view) as stream:
        # Longer than the heartbeat of a stream beside it takes.
        settings.DJANGO_SSE = {"STORE": "memory", "HEARTBEAT": 0.01}
        async with open_stream(Tap().view) as beating:
            await until(lambda: beating.text.endswith("\n\n:\n\n:\n\n"))
        assert "\n:" not in stream.text


async def test_a_client_that_leaves_closes_the_generator() -> None:
    tap = Tap()
    async with open_stream(tap.view) as stream:
        tap.items.put_nowait("hi")
        await stream.next_event()
        assert not tap.closed
        await stream.close()
        await until(lambda: tap.closed)


async def test_a_client_that_leaves_before_the_first_event_closes_the_generator() -> None:
    tap = Tap()
    async with open_stream(tap.view) as stream:
        await until(lambda: tap.requests)
        await stream.close()
        await until(lambda: tap.closed)


@pytest.mark.parametrize(
    ("url", "header", "expected"),
    [
        ("/", None, ""),
        ("/", "7", "7"),
        ("/?lastEventId=8", None, "8"),
        ("/?last_event_id=9", None, "9"),
        ("/?lastEventId=8&last_event_id=9", None, "8"),
        ("/?lastEventId=8&last_event_id=9", "7", "7"),
        # Browsers send UTF-8, and Django reads headers as latin-1.
        ("/", "grün".encode().decode("latin-1"), "grün"),
        ("/?lastEventId=gr%C3%BCn", None, "grün"),
        ("/", "gr\xfcn", "gr\ufffdn"),
    ],
)
async def test_a_generator_knows_the_last_event_that_its_client_has_got(
    url: str, header: str | None, expected: str
) -> None:
    tap = Tap()
    async with open_stream(tap.view, url, last_event_id=header):
        await until(lambda: tap.requests)
        assert tap.requests[0].last_event_id == expected


async def test_head_is_answered_without_running_the_generator() -> None:
    tap = Tap()
    answer = await tap.view(get(method="HEAD"))
    assert (answer.status_code, [chunk async for chunk in answer]) == (200, [])
    assert answer["Content-Type"] == "text/event-stream; charset=utf-8"
    assert tap.requests == []


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "TRACE", "PROPFIND"])
async def test_no_other_method_runs_the_generator(method: str) -> None:
    tap = Tap()
    answer = await tap.view(get(method=method))
    assert answer.status_code == 405
    assert answer["Allow"] == "GET, HEAD, POST, OPTIONS"
    assert answer["Cache-Control"] == "no-store"
    assert tap.requests == []


async def test_head_is_answered_204_where_the_generator_has_returned() -> None:
    answer = await progress(get(method="HEAD", headers={"Last-Event-ID": TERMINAL_MARK}))
    assert answer.status_code == 204


async def test_a_generator_may_stream_the_answer_to_a_post() -> None:
    async with reading(await progress(get(method="POST"))) as stream:
        assert len(await stream.rest()) == 3


async def test_a_generator_is_refused_over_wsgi_with_what_to_do() -> None:
    with pytest.raises(ImproperlyConfigured, match=r"over WSGI\. Serve the project over ASGI"):
        await progress(RequestFactory().get("/"))


@pytest.mark.parametrize("url", ["/progress/3/", "/jobs/7/"])
def test_wsgi_is_refused_at_once(url: str) -> None:
    with pytest.raises(ImproperlyConfigured, match="over WSGI"):
        Client().get(url)


@pytest.mark.parametrize("url", ["/progress/3/", "/jobs/7/"])
async def test_a_project_with_atomic_requests_can_stream(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(connections.settings[DEFAULT_DB_ALIAS], "ATOMIC_REQUESTS", True)
    async with reading(await AsyncClient().get(url)) as stream:
        assert stream.text.startswith("retry: ")


@event_stream("news")
@transaction.non_atomic_requests
async def exempt_from_one(request: HttpRequest) -> None: ...


@pytest.mark.parametrize(
    "view", [job, progress, own, own_job, exempt_from_one, never_cache(job), never_cache(own)]
)
def test_no_view_is_put_into_a_transaction_of_a_database_that_was_added_since(
    view: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    added = {**connections.settings[DEFAULT_DB_ALIAS], "ATOMIC_REQUESTS": True}
    monkeypatch.setitem(connections.settings, "tenant_1", added)
    assert BaseHandler().make_view_atomic(view) is view
    # A view of one's own that can be in one still is.
    assert BaseHandler().make_view_atomic(own_job_sync) is not own_job_sync


# Views of one's own


def assert_headers_of_a_stream(response: HttpResponseBase, connection: str | None) -> None:
    assert response["Content-Type"] == "text/event-stream; charset=utf-8"
    assert response["Cache-Control"] == "no-cache, no-store, private, no-transform"
    assert response["X-Accel-Buffering"] == "no"
    assert response["Content-Encoding"] == "identity"
    assert response.headers.get("Connection") == connection


async def test_an_async_view_of_ones_own_is_given_the_headers() -> None:
    async with reading(await own(get())) as stream:
        assert_headers_of_a_stream(stream.response, "keep-alive")
        assert await stream.rest() == [Event("mine")]
    assert_headers_of_a_stream(await own(get(http_version="2")), None)


def test_a_sync_view_of_ones_own_is_given_the_headers() -> None:
    # Over WSGI the server decides on the connection.
    assert_headers_of_a_stream(own_sync(RequestFactory().get("/")), None)
    assert_headers_of_a_stream(own_sync(get()), "keep-alive")


async def test_head_of_a_view_of_ones_own_is_answered_with_the_headers_alone() -> None:
    answer = await event_stream_headers(own)(get(method="HEAD"))
    assert [chunk async for chunk in cast("AsyncIterator[bytes]", answer)] == []
    assert_headers_of_a_stream(answer, "keep-alive")
    sync_answer: Any = event_stream_headers(own_sync)(get(method="HEAD"))
    assert list(sync_answer) == []


async def test_an_answer_that_does_not_stream_keeps_its_headers() -> None:
    @event_stream_headers
    async def refusing(request: HttpRequest) -> HttpResponse:
        return HttpResponse("no", status=403)

    answer = await refusing(get())
    assert dict(answer.headers) == {"Content-Type": "text/html; charset=utf-8"}


def test_decorated_views_keep_their_names_and_stay_sync_or_async() -> None:
    guarded = no_content_when_cancelled("news")
    for view, is_async in [(own, True), (own_sync, False)]:
        for decorated in (view, guarded(view)):
            assert decorated.__name__ == view.__name__
            assert (decorated.__doc__ or "").startswith("Streams itself")
            assert iscoroutinefunction(decorated) is is_async


async def test_an_async_view_of_ones_own_answers_204_once_its_group_is_cancelled() -> None:
    view = own_job
    async with open_stream(view, pk=7) as stream:
        assert await stream.rest() == [Event("mine")]
    await acancel("job-7")
    answer = await view(get(), pk=7)
    assert (answer.status_code, answer["Cache-Control"]) == (204, "no-store")
    async with open_stream(view, pk=8) as stream:
        assert await stream.rest() == [Event("mine")]
    await areopen("job-7")
    async with open_stream(view, pk=7) as stream:
        assert await stream.rest() == [Event("mine")]


async def test_a_sync_view_of_ones_own_answers_204_once_its_group_is_cancelled() -> None:
    view = own_job_sync
    assert view(get(), pk=7).status_code == 200
    await acancel("job-7")
    answer = view(get(), pk=7)
    assert (answer.status_code, answer["Cache-Control"]) == (204, "no-store")
    assert view(get(), pk=8).status_code == 200


async def test_a_view_of_several_groups_answers_204_once_all_of_them_are_cancelled() -> None:
    view = no_content_when_cancelled("news", "jobs")(own)
    await acancel("news")
    assert (await view(get())).status_code == 200
    await acancel("jobs")
    assert (await view(get())).status_code == 204


def test_a_view_of_ones_own_that_names_no_group_is_refused() -> None:
    with pytest.raises(TypeError, match=r'Name a group: @no_content_when_cancelled\("job-{pk}"\)'):
        no_content_when_cancelled()


def methods(**attributes: Any) -> dict[str, Any]:
    async def handler(self: Any, request: HttpRequest) -> HttpResponse:
        return HttpResponse("mine")

    return {"get": handler, **attributes}


def with_view(*bases: type[Any], **attributes: Any) -> Any:
    """Return a class-based view."""
    made: Any = type("Guarded", bases, methods(**attributes))
    return made.as_view()


def with_stream(**attributes: Any) -> Any:
    made: Any = type("Guarded", (EventStreamView,), {"groups": ["news"], **attributes})
    return made.as_view()


async def own_events(self: Any) -> AsyncIterator[Event]:
    yield Event("mine")


def with_generator(**attributes: Any) -> Any:
    made: Any = type("Guarded", (EventGeneratorView,), {"events": own_events, **attributes})
    return made.as_view()


async def always(self: Any) -> bool:
    return True


async def guards(self: Any, groups: list[str]) -> None:
    """Let everybody in."""


ASYNC_GUARDED: dict[str, Any] = {
    "login_required": login_required(own),
    "login_required-elsewhere": login_required(own, login_url="/enter/"),
    "login_required-further-in": never_cache(event_stream_headers(login_required(own))),
    "permission_required": permission_required("auth.view_user", raise_exception=True)(own),
    "user_passes_test": user_passes_test(lambda user: user.is_active)(own),
    "staff_member_required": staff_member_required(own),
    "on-a-class": with_view(View, dispatch=method_decorator(login_required)(View.dispatch)),
    "mixin": with_view(LoginRequiredMixin, View),
    "mixin-of-permissions": with_view(PermissionRequiredMixin, View, permission_required="a.b"),
    "mixin-of-a-test": with_view(UserPassesTestMixin, View, test_func=always),
    "mixin-of-a-stream": with_view(LoginRequiredMixin, EventStreamView, groups=["news"]),
    "mixin-of-djangos": with_view(mixins.LoginRequiredMixin, View),
    "on-a-method": with_view(View, get=method_decorator(login_required)(methods()["get"])),
    "on-a-stream": with_stream(dispatch=method_decorator(login_required)(View.dispatch)),
    "get": with_stream(**methods()),
    "get_groups": with_stream(get_groups=always),
    "dispatch": with_stream(dispatch=lambda self, request: None),
    "setup": with_stream(setup=lambda self, request: None),
    "authorize": with_stream(authorize=guards),
    "guard": job,
    "mixin-of-a-generator": with_view(LoginRequiredMixin, EventGeneratorView, events=own_events),
    "dispatch-of-a-generator": with_generator(dispatch=lambda self, request: None),
}


@pytest.mark.parametrize("pattern", ["no name", "room-{pk", job])
def test_a_204_for_what_can_be_no_group_is_refused(pattern: Any) -> None:
    with pytest.raises(ImproperlyConfigured):
        no_content_when_cancelled(pattern)


@pytest.mark.parametrize("name", ASYNC_GUARDED)
def test_a_guard_below_the_204_is_refused_and_told_where_to_go(name: str) -> None:
    """Whoever is not let in would be told what is cancelled."""
    with pytest.raises(TypeError) as refused:
        no_content_when_cancelled("news", "job-{pk}")(ASYNC_GUARDED[name])
    message = str(refused.value)
    assert message.startswith("@no_content_when_cancelled('news', 'job-{pk}') would show what is")
    assert "Put what guards the view above it" in message


def test_a_sync_guard_below_the_204_is_refused_as_well() -> None:
    with pytest.raises(TypeError, match="Put what guards the view above it"):
        no_content_when_cancelled("news")(login_required(own_sync))


async def test_a_guard_above_the_204_tells_nobody_what_is_cancelled() -> None:
    view = login_required(no_content_when_cancelled("news")(own))
    await acancel("news")
    request = get()
    request.auser = sync_to_async(AnonymousUser)
    assert (await view(request)).status_code == 302
    request.auser = sync_to_async(lambda: User(username="someone"))
    assert (await view(request)).status_code == 204


@pytest.mark.parametrize(
    "view",
    [
        own,
        own_sync,
        progress,
        login_not_required(own),
        never_cache(own),
        with_view(View),
        EventStreamView.as_view(groups=["news"]),
    ],
)
def test_what_has_no_guard_may_answer_204(view: Any) -> None:
    assert no_content_when_cancelled("news")(view)


@pytest.mark.parametrize("url", ["/own/no name/", "/own-sync/no name/"])
async def test_a_group_of_a_view_of_ones_own_that_is_none_is_not_found(url: str) -> None:
    assert (await AsyncClient().get(url)).status_code == 404


async def test_the_decorators_of_ones_own_view_go_together() -> None:
    view = event_stream_headers(no_content_when_cancelled("news")(own))
    async with open_stream(view) as stream:
        assert_headers_of_a_stream(stream.response, "keep-alive")
    await acancel("news")
    answer = await view(get())
    assert answer.status_code == 204
    assert answer["Cache-Control"] == "no-store"


async def test_a_group_stream_and_a_position_go_together() -> None:
    position = await aposition("job-7")
    await apublish("job-7", "missed")
    async with open_stream(job, f"/?lastEventId={position}", pk=7) as stream:
        assert (await stream.next_event()).data == "missed"
