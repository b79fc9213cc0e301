"""Streams that a test opens: what is expected of them, and what a failure says."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
from asgiref.sync import markcoroutinefunction, sync_to_async
from channels.layers import get_channel_layer
from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.test import AsyncClient, Client
from django.urls import path
from pytest_django import Settings

from django_sse import Event, acancel, apublish, areopen
from django_sse.decorators import event_generator, event_stream, event_stream_headers
from django_sse.exceptions import Close
from django_sse.presence import acount, apresent
from django_sse.stores import get_store
from django_sse.streaming.hub import open_streams
from django_sse.testing import open_stream
from django_sse.views import EventStreamView
from tests.urls import urlpatterns as of_project

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("everything_ends", "settings_of_kit"),
]

NEWS = "/events/news/"
# Seconds in which nothing comes that would come.
SOON = 1.5

left: list[str] = []


@event_generator
async def steps(request: HttpRequest) -> AsyncIterator[Event]:
    try:
        for step in range(1, 3):
            yield Event({"step": step}, event="step")
        if "fails" in request.GET:
            raise ValueError("step 3 is missing")
        if "closes" in request.GET:
            raise Close("quota")
        await asyncio.Event().wait()
    finally:
        left.append("steps")


@event_generator
async def late(request: HttpRequest) -> AsyncIterator[Event]:
    await asyncio.sleep(0.1)
    yield Event("late")


async def unanswered(request: HttpRequest) -> HttpResponse:
    await asyncio.Event().wait()
    raise AssertionError


async def unauthorized(request: HttpRequest) -> HttpResponse:
    return HttpResponse("Log in first.", status=401)


@event_stream("news")
async def forbidden(request: HttpRequest) -> None:
    raise PermissionDenied


@event_stream("news")
async def broken(request: HttpRequest) -> None:
    raise ZeroDivisionError


@event_stream("news")
async def echoing(request: HttpRequest) -> None:
    """Let everybody in."""
    await apublish("seen", dict(request.headers))


@event_stream_headers
async def stubborn(request: HttpRequest) -> StreamingHttpResponse:
    async def chunks() -> AsyncIterator[str]:
        while not may_end.is_set():
            yield ":\n\n"
            with suppress(asyncio.CancelledError):
                await may_end.wait()

    return StreamingHttpResponse(chunks())


class Room(EventStreamView):
    groups = ["room"]
    presence = True

    async def get_owner(self) -> Any:
        return self.request.GET["user"]


class Failing(EventStreamView):
    groups = ["news"]

    async def initial_events(self) -> AsyncIterator[Event]:
        yield Event("first")
        raise ZeroDivisionError


may_end = asyncio.Event()

urlpatterns = [
    *of_project,
    path("stubborn/", stubborn),
    path("failing/", Failing.as_view()),
    path("room/", Room.as_view()),
    path("steps/", steps),
    path("late/", late),
    path("unanswered/", unanswered),
    path("401/", unauthorized),
    path("403/", forbidden),
    path("broken/", broken),
    path("echoing/", echoing),
]


@pytest.fixture
def settings_of_kit(settings: Settings) -> None:
    settings.ROOT_URLCONF = __name__
    settings.DJANGO_SSE = {"STORE": "memory"}


def opened(path: str = NEWS, **options: Any) -> Any:
    return open_stream(AsyncClient(), path, **options)


async def failure_of(expectation: Awaitable[Any]) -> str:
    with pytest.raises(AssertionError) as raised:
        await expectation
    return str(raised.value)


# What comes


async def test_the_next_event_has_its_type_its_data_and_its_id() -> None:
    async with opened() as stream:
        published = await apublish("news", {"title": "hi"}, event="headline")
        event = await stream.next("headline")
        assert (event.event, event.data, event.id) == ("headline", '{"title":"hi"}', published.id)
        assert event.json() == {"title": "hi"}
        assert stream.last_event_id == published.id


async def test_an_event_without_a_type_is_a_message() -> None:
    async with opened() as stream:
        await apublish("news", "hi")
        assert (await stream.next("message")).data == "hi"


async def test_an_event_of_another_type_fails_and_shows_what_came() -> None:
    async with opened() as stream:
        await apublish("news", "one")
        await apublish("news", {"title": "hi"}, event="headline")
        await apublish("news", "two\nlines", event="more")
        await stream.next()
        said = await failure_of(stream.next("alert"))
    assert said == (
        "An event of type 'alert' was expected, but 'headline' came.\n\n"
        "GET /events/news/ has sent:\n"
        "    message: one\n"
        '  > headline: {"title":"hi"}\n'
        "  > more: two\n"
        "        lines\n"
        "  (> has not been read with next())"
    )


async def test_an_event_that_does_not_come_fails_in_time() -> None:
    async with opened(timeout=SOON) as stream:
        said = await failure_of(stream.next("headline"))
    assert said == (
        "An event of type 'headline' did not come within 1.5 seconds.\n\n"
        "GET /events/news/ has sent:\n    no event"
    )


async def test_an_event_after_the_end_fails_at_once() -> None:
    async with opened("/steps/?closes") as stream:
        await stream.next("step")
        await stream.next("step")
        await stream.closed("quota")
        said = await failure_of(stream.next())
    assert said.startswith("An event did not come: the stream has ended.")
    assert said.endswith('    close: {"reason":"quota"}\n  The stream has ended.')


async def test_long_data_are_cut_off_in_a_failure() -> None:
    async with opened() as stream:
        await apublish("news", "x" * 1000)
        said = await failure_of(stream.next("headline"))
    assert "x" * 500 + "… (1000 characters)" in said
    assert "x" * 501 not in said


# Nothing


async def test_nothing_comes_where_nothing_was_published() -> None:
    async with opened() as stream:
        await apublish("sport", "other")
        await stream.nothing()
        await apublish("news", "hi")
        await stream.next()
        await stream.nothing()


async def test_nothing_fails_if_something_was_published() -> None:
    async with opened() as stream:
        await apublish("news", "hi", event="headline")
        said = await failure_of(stream.nothing())
    assert said.startswith("No event was expected, but 'headline' came.\n\n")
    assert "  > headline: hi\n" in said


async def test_nothing_fails_if_a_thread_has_published() -> None:
    from django_sse import publish

    async with opened() as stream:
        await asyncio.to_thread(publish, "news", "hi")
        assert "'message' came" in await failure_of(stream.nothing())


async def test_nothing_fails_for_a_cancel() -> None:
    async with opened() as stream:
        await acancel("news")
        assert "'close' came" in await failure_of(stream.nothing())


async def test_nothing_fails_if_the_streams_of_the_user_are_cancelled() -> None:
    client = AsyncClient()
    user = await User.objects.acreate(username="ada")
    await client.aforce_login(user)
    async with open_stream(client, NEWS) as stream:
        await stream.nothing()
        await acancel(user=user)
        assert "'close' came" in await failure_of(stream.nothing())


async def test_nothing_fails_if_the_doorbell_of_such_a_cancel_was_lost(
    monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    settings.DJANGO_SSE = {"STORE": "memory", "SYNC_INTERVAL": 3600}
    client = AsyncClient()
    user = await User.objects.acreate(username="ada")
    await client.aforce_login(user)
    async with open_stream(client, NEWS) as stream:
        await stream.nothing()
        with monkeypatch.context() as patched:
            patched.setattr("django_sse.streaming.hub.Hub.hear_soon", lambda *args: None)
            await acancel(user=user)
            assert "'close' came" in await failure_of(stream.nothing())


async def test_nothing_fails_for_a_message_of_the_channel_layer() -> None:
    layer: Any = get_channel_layer()
    async with opened() as stream:
        await layer.group_send("news", {"type": "sse.event", "data": "hi"})
        assert "'message' came" in await failure_of(stream.nothing())


async def test_what_the_user_does_not_get_is_nothing() -> None:
    client = AsyncClient()
    user = await User.objects.acreate(username="ada")
    await client.aforce_login(user)
    async with open_stream(client, NEWS) as stream:
        await apublish("news", "hi", exclude=user)
        await stream.nothing()


async def test_nobody_knows_when_a_generator_sends_something() -> None:
    async with opened("/late/") as stream:
        with pytest.raises(TypeError, match=r"nothing\(seconds=0.2\)"):
            await stream.nothing()
        assert "'message' came" in await failure_of(stream.nothing(seconds=10))
    async with opened("/steps/") as stream:
        await stream.next()
        await stream.next()
        await stream.nothing(seconds=0.1)


async def test_nothing_fails_if_the_stream_does_not_get_what_was_published(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with opened(timeout=SOON) as stream:
        with monkeypatch.context() as patched:
            patched.setattr("django_sse.streaming.hub.Hub.hear_soon", lambda *args: None)
            patched.setattr("django_sse.streaming.hub.Hub.compare_soon", lambda *args: None)
            await apublish("news", "hi")
            said = await failure_of(stream.nothing())
    assert said.startswith("The stream did not get all that was published within 1.5 seconds.")


# Coming back


async def test_a_client_that_comes_back_gets_what_it_has_missed() -> None:
    async with opened() as stream:
        await apublish("news", "one")
        await stream.next()
    await apublish("news", "two")
    async with opened(last_event_id=stream.last_event_id) as again:
        assert (await again.next()).data == "two"


async def test_a_stream_can_be_reconnected() -> None:
    async with opened() as stream:
        await apublish("news", "one")
        await stream.next()
        await stream.reconnect()
        assert open_streams() == 1
        await apublish("news", "two")
        assert (await stream.next()).data == "two"
        await stream.nothing()
        assert [event.data for event in stream.events] == ["one", "two"]


async def test_a_new_stream_begins_after_an_id() -> None:
    one = await apublish("news", "one")
    await apublish("news", "two")
    async with opened(last_event_id=one.id) as stream:
        assert stream.last_event_id == one.id
        assert (await stream.next()).data == "two"


async def test_a_client_is_told_to_start_over(settings: Settings) -> None:
    settings.DJANGO_SSE = {"STORE": "memory", "HISTORY_SIZE": 1}
    first = await apublish("news", "one")
    await apublish("news", "two")
    await apublish("news", "three")
    async with opened(last_event_id=first.id) as stream:
        await stream.next("reset")


# Who is present


# Nobody waits until it is over.
LONG_GRACE = {"STORE": "memory", "PRESENCE_GRACE": 1000}


async def test_a_member_has_joined_and_left_with_the_block(settings: Settings) -> None:
    settings.DJANGO_SSE = LONG_GRACE
    async with opened("/room/?user=ada") as ada:
        assert (await ada.next("join")).json() == {"member": "ada", "count": 1}
        await ada.nothing()
        async with opened("/room/?user=bob"), opened("/room/?user=bob"):
            assert await acount("room") == 2
            assert (await ada.next("join")).json() == {"member": "bob", "count": 2}
        assert [member.user for member in await apresent("room")] == ["ada"]
        assert (await ada.next("leave")).json() == {"member": "bob", "count": 1}
        await ada.nothing()
    assert await apresent("room") == []


async def test_a_member_who_reconnects_neither_leaves_nor_joins(settings: Settings) -> None:
    settings.DJANGO_SSE = LONG_GRACE
    async with opened("/room/?user=ada") as ada, opened("/room/?user=bob") as bob:
        assert [(await ada.next("join")).json()["member"] for _ in range(2)] == ["ada", "bob"]
        await bob.next("join")
        await ada.reconnect()
        await bob.nothing()
        await ada.nothing()
        assert await acount("room") == 2


async def test_a_lone_member_who_reconnects_neither_leaves_nor_joins(settings: Settings) -> None:
    settings.DJANGO_SSE = LONG_GRACE
    async with opened("/room/?user=ada") as ada:
        await ada.next("join")
        tasks = len(asyncio.all_tasks())
        for _ in range(3):
            await ada.reconnect()
            await ada.nothing()
        # What closes a hub does not wait for those who follow.
        async with asyncio.timeout(10):
            while len(asyncio.all_tasks()) > tasks:
                await asyncio.sleep(0.01)
    assert await apresent("room") == []


async def test_a_member_whose_stream_the_server_has_ended_leaves_with_the_block(
    settings: Settings,
) -> None:
    settings.DJANGO_SSE = LONG_GRACE
    async with opened("/room/?user=ada") as ada, opened("/room/?user=bob") as bob:
        await acancel("room")
        for stream in (ada, bob):
            while (await stream.next()).event != "close":
                pass
            await stream.ended()
        assert (await bob.reconnect()).status == 204
        assert await acount("room") == 2
    assert await apresent("room") == []


async def test_a_store_that_does_not_take_who_is_present_fails_in_time(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.DJANGO_SSE = {**LONG_GRACE, "PRESENCE_GRACE": 0.1}
    said = "The event store did not take who is present within 1.5 seconds."

    async def fail(*args: Any) -> Any:
        raise ConnectionError

    with monkeypatch.context() as patched, pytest.raises(AssertionError, match=said):
        async with opened("/room/?user=ada", timeout=SOON):
            patched.setattr(get_store(), "aappend_apart", fail)
    async with asyncio.timeout(10):
        while await apresent("room"):
            await asyncio.sleep(0.01)


# The end


async def test_a_cancel_closes_with_its_reason() -> None:
    async with opened() as stream:
        assert stream.closed_with is None
        await acancel("news", reason="done")
        event = await stream.closed("done")
        assert event.json() == {"reason": "done"}
        assert stream.closed_with == "done"
        await stream.reconnect()
        assert stream.status == 204


async def test_another_reason_fails() -> None:
    async with opened() as stream:
        await acancel("news", reason="done")
        said = await failure_of(stream.closed("quota"))
    assert said.startswith("The stream was closed with 'done', not with 'quota'.\n\n")


async def test_a_stream_that_goes_on_is_not_closed() -> None:
    async with opened(timeout=SOON) as stream:
        assert "did not come" in await failure_of(stream.closed())
        assert "did not end within 1.5 seconds" in await failure_of(stream.ended())
        await apublish("news", "hi")
        assert "end of the stream was expected, but 'message'" in await failure_of(stream.ended())


async def test_a_stream_ends_whose_client_may_come_back() -> None:
    client = AsyncClient()
    user = await User.objects.acreate(username="ada")
    await client.aforce_login(user)
    async with open_stream(client, NEWS, timeout=10) as stream:
        user.set_password("new")
        await user.asave()
        await stream.ended()
        assert stream.closed_with is None
        assert stream.retry


async def test_a_generator_that_fails_closes_its_stream() -> None:
    async with opened("/steps/?fails") as stream:
        await stream.next()
        await stream.next()
        await stream.closed("failed")


async def test_what_a_view_raises_later_is_the_cause_of_a_failure() -> None:
    async with opened("/failing/") as stream:
        await stream.next()
        with pytest.raises(AssertionError, match="the stream has ended") as raised:
            await stream.next()
    assert isinstance(raised.value.__cause__, ZeroDivisionError)


# Refusals


@pytest.mark.parametrize(("url", "status"), [("/401/", 401), ("/403/", 403), ("/nowhere/", 404)])
async def test_a_refusal_is_visible(url: str, status: int) -> None:
    async with opened(url) as stream:
        assert stream.status == status


async def test_a_cancelled_group_is_answered_204() -> None:
    await acancel("news")
    async with opened() as stream:
        assert stream.status == 204
    await areopen("news")
    async with opened() as stream:
        assert stream.status == 200


async def test_a_refusal_for_now_has_the_status_that_the_client_sees(settings: Settings) -> None:
    settings.DJANGO_SSE = {"STORE": "memory", "MAX_STREAMS": 1}
    async with opened() as first, opened() as refused:
        assert (refused.status, refused.refused_status) == (200, 503)
        assert refused.retry
        assert (first.status, first.refused_status) == (200, None)
        for expectation in (refused.next, refused.nothing, refused.closed, refused.ended):
            assert await failure_of(expectation()) == (
                "GET /events/news/ was refused for now, with a 200 that stands for 503 and has the "
                f"client come back. It said:\nretry: {refused.retry}"
            )
        async with opened(headers={"Accept": "*/*"}) as program:
            assert (program.status, program.refused_status) == (503, None)
    settings.DJANGO_SSE = {"STORE": "memory", "MAX_STREAMS": 1, "REFUSE_SOFTLY": False}
    async with opened(), opened() as refused:
        assert (refused.status, refused.refused_status) == (503, None)


async def test_a_refusal_for_now_is_noticed_though_its_status_is_200(settings: Settings) -> None:
    settings.DJANGO_SSE = {"STORE": "memory", "MAX_STREAMS": 1}
    with pytest.raises(AssertionError, match="refused for now, with a 200 that stands for 503"):
        async with opened(), opened() as refused:
            assert refused.status == 200


def closed_for_repair(get_response: Any) -> Any:
    async def middleware(request: HttpRequest) -> HttpResponse:
        return HttpResponse("Back soon.", status=503)

    markcoroutinefunction(middleware)
    return middleware


closed_for_repair.async_capable = True  # type: ignore[attr-defined]


async def test_what_others_refuse_an_event_source_has_the_status_that_it_sees(
    settings: Settings,
) -> None:
    settings.MIDDLEWARE = [f"{__name__}.closed_for_repair"]
    async with opened() as stream:
        assert (stream.status, stream.refused_status) == (200, 503)
        assert "It said:\nBack soon." in await failure_of(stream.next())
    async with opened("/page-with-policy/") as page:
        assert (page.status, page.refused_status) == (503, None)


async def test_an_expectation_of_a_refused_stream_says_why() -> None:
    async with opened("/401/") as stream:
        for expectation in (stream.next, stream.nothing, stream.closed, stream.ended):
            assert await failure_of(expectation()) == (
                "GET /401/ was answered 401 (text/html; charset=utf-8), not with an event "
                "stream. It said:\nLog in first."
            )


async def test_a_refusal_that_nobody_looks_at_fails() -> None:
    with pytest.raises(AssertionError, match="GET /403/ was answered 403"):
        async with opened("/403/"):
            pass


async def test_an_answer_that_is_no_stream_is_refused() -> None:
    async with opened("/page-with-policy/?policy=") as stream:
        assert "was answered 200 (text/html" in await failure_of(stream.next())


async def test_what_a_view_raises_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        async with opened("/broken/"):
            pass


async def test_a_view_that_does_not_answer_fails_in_time() -> None:
    with pytest.raises(AssertionError, match="/unanswered/ was not answered within"):
        async with opened("/unanswered/", timeout=SOON):
            pass


# The request


async def test_the_request_has_the_headers_of_an_event_source_and_of_the_test() -> None:
    headers = {"X-Of-Test": "test"}
    async with opened("/events/seen/") as seen, opened("/echoing/", headers=headers):
        headers = (await seen.next()).json()
    assert headers["X-Of-Test"] == "test"
    assert headers["Accept"] == "text/event-stream"


async def test_the_response_can_be_looked_at() -> None:
    async with opened() as stream:
        assert stream.response.headers["X-Accel-Buffering"] == "no"


# Leaving


async def test_nothing_of_a_stream_is_left() -> None:
    before = asyncio.all_tasks()
    async with opened(), opened("/events/sport/"):
        assert open_streams() == 2
    assert open_streams() == 0
    assert asyncio.all_tasks() == before


async def test_leaving_ends_the_generator() -> None:
    left.clear()
    async with opened("/steps/") as stream:
        await stream.next()
    assert left == ["steps"]
    assert open_streams() == 0


async def test_a_view_that_goes_on_without_its_client_fails() -> None:
    may_end.clear()
    with pytest.raises(AssertionError, match=r"view goes on 1\.5 seconds after its client"):
        async with opened("/stubborn/", timeout=SOON) as stream:
            await stream.nothing(seconds=0.1)
    may_end.set()


async def test_a_stream_may_answer_a_post() -> None:
    async with opened("/steps/", method="post", data={"prompt": "hi"}) as stream:
        await stream.next("step")


async def test_a_client_that_is_not_async_does_as_well() -> None:
    async with open_stream(Client(), NEWS) as stream:
        await apublish("news", "hi")
        await stream.next()


async def test_nothing_is_left_after_a_failure() -> None:
    with pytest.raises(RuntimeError):
        async with opened():
            raise RuntimeError
    assert open_streams() == 0


async def test_a_stream_is_handed_off_as_by_a_server(caplog: pytest.LogCaptureFixture) -> None:
    async with opened() as stream:
        await stream.nothing()
    assert "stays in its request" not in caplog.text


def rewriting(get_response: Callable[[HttpRequest], Awaitable[Any]]) -> Any:
    async def middleware(request: HttpRequest) -> Any:
        response = await get_response(request)
        if isinstance(response, StreamingHttpResponse):
            chunks: Any = response.streaming_content
            response.streaming_content = (chunk async for chunk in chunks)
        return response

    markcoroutinefunction(middleware)
    return middleware


rewriting.async_capable = True  # type: ignore[attr-defined]


async def test_a_stream_that_stays_in_its_request_works(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    settings.MIDDLEWARE = [f"{__name__}.rewriting"]
    async with opened() as stream:
        await stream.nothing()
        await apublish("news", "hi")
        assert (await stream.next()).data == "hi"
        await stream.nothing()
    assert open_streams() == 0
    assert "a middleware has replaced" in caplog.text


async def test_a_stream_of_the_projects_own_view_works() -> None:
    async with opened("/by-hand/") as stream:
        with pytest.raises(TypeError):
            await stream.nothing()
        await stream.nothing(seconds=0.1)


# Where it works


async def test_the_database_store_works(settings: Settings) -> None:
    settings.DJANGO_SSE = {}
    async with opened() as stream:
        await stream.nothing()
        await apublish("news", "hi")
        await stream.next()
        await sync_to_async(_publish_in_transaction)()
        assert (await stream.next()).data == "later"
        await stream.nothing()
        await stream.reconnect()
        await apublish("news", "more")
        assert "'message' came" in await failure_of(stream.nothing())


def _publish_in_transaction() -> None:
    from django.db import transaction

    from django_sse import publish

    with transaction.atomic():
        publish("news", "later")


async def test_an_async_test_must_not_block() -> None:
    with pytest.raises(RuntimeError, match="`async with open_stream"), suppress(StopIteration):
        opened().__enter__()
