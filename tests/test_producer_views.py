"""Views that produce to their group: who starts the work, who gets it, and who may stop it."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from typing import Any, ClassVar

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.core.exceptions import ImproperlyConfigured, PermissionDenied
from django.core.files.uploadedfile import SimpleUploadedFile
from django.http import HttpRequest
from django.test import AsyncRequestFactory
from pytest_django import Settings

from django_sse import Event, acancel, producing
from django_sse.decorators import event_producer
from django_sse.exceptions import AlreadyProducing, Close
from django_sse.producing import start_for
from django_sse.stores import get_store
from django_sse.streaming.hub import current_hub, open_streams
from django_sse.streaming.limits import Occupancy
from django_sse.views import EventProducerView, EventStreamView
from tests.groups.test_namespaces import OF_THREAD, thread_entered
from tests.streams import get, open_stream, reading, respond, until

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("everything_ends", "runs_end"),
]


class Runs:
    """The runs of the generators of a test."""

    begun = closed = 0
    go_on: ClassVar[asyncio.Event]


@pytest.fixture
async def runs_end() -> AsyncIterator[None]:
    Runs.begun = Runs.closed = 0
    Runs.go_on = asyncio.Event()
    yield
    await acancel("answer-7")
    await until(lambda: Runs.begun == Runs.closed)


async def work(text: str) -> AsyncIterator[Any]:
    """Say each word, and wait before the last one."""
    Runs.begun += 1
    try:
        *words, last = text.split()
        for word in words:
            yield word
        await Runs.go_on.wait()
        yield last
    finally:
        Runs.closed += 1


class Answer(EventProducerView):
    groups = ("answer-{pk}",)
    stoppable = True
    allowed = True
    owner: Any = None

    async def get_owner(self) -> Any:
        return self.owner

    async def authorize(self, groups: Sequence[str]) -> None:
        if not self.allowed:
            raise PermissionDenied

    def events(self) -> AsyncIterator[Any]:
        return work(self.request.POST.get("text", "") or "one two three")


answer = Answer.as_view()


def data_of(events: list[Event]) -> list[Any]:
    return [event.data for event in events if event.event != "close"]


def reason_in(events: list[Event]) -> Any:
    return events[-1].json()["reason"]


def occupancy() -> Occupancy:
    return current_hub().occupancy


async def test_the_first_client_starts_it_and_all_get_all_of_it() -> None:
    async with open_stream(answer, pk=7) as first:
        assert (await first.next_event()).data == "one"
    # It goes on without its client, who comes back to where he was.
    position = first.last_event_id
    async with (
        open_stream(answer, pk=7, last_event_id=position) as back,
        open_stream(answer, pk=7) as other,
    ):
        Runs.go_on.set()
        assert data_of(await back.rest())[-1] == "three"
        assert data_of(await other.rest()) == ["one", "two", "three"]
    async with open_stream(answer, pk=7) as late:
        events = await late.rest()
    assert (data_of(events), reason_in(events)) == (["one", "two", "three"], "complete")
    again = await answer(get(headers={"Last-Event-ID": late.last_event_id}), pk=7)
    assert again.status_code == 204
    assert Runs.begun == 1


async def test_a_post_starts_it_and_says_where_it_goes_on() -> None:
    request = AsyncRequestFactory().post("/answers/7/?of=today", {"text": "yes no"})
    response = await answer(request, pk=7)
    assert response["Content-Location"] == "/answers/7/?of=today"
    async with reading(response) as stream:
        assert (await stream.next_event()).data == "yes"
    Runs.go_on.set()
    async with open_stream(answer, pk=7, last_event_id=stream.last_event_id) as back:
        assert data_of(await back.rest()) == ["no"]
    assert Runs.begun == 1


async def test_many_that_come_at_once_start_it_once() -> None:
    responses = await asyncio.gather(
        *(answer(AsyncRequestFactory().post("/", {"text": "yes no"}), pk=7) for _ in range(50))
    )
    Runs.go_on.set()

    async def texts(response: Any) -> list[Any]:
        async with reading(response) as stream:
            return data_of(await stream.rest())

    assert await asyncio.gather(*map(texts, responses)) == [["yes", "no"]] * 50
    assert Runs.begun == 1


async def test_a_question_for_the_headers_starts_nothing() -> None:
    response = await answer(get(method="HEAD"), pk=7)
    assert response.status_code == 200
    assert (await get_store().astates(["answer-7"]))["answer-7"].producer == 0


async def test_who_is_refused_starts_nothing(settings: Settings) -> None:
    assert (await Answer.as_view(allowed=False)(get(), pk=7)).status_code == 403
    settings.DJANGO_SSE = {"MAX_STREAMS_PER_USER": 1}
    of_user = Answer.as_view(owner="anna")
    async with open_stream(of_user, pk=8):
        # Otherwise each refused request would start another one.
        assert (await of_user(get(headers={"Accept": "*/*"}), pk=7)).status_code == 503
    request = AsyncRequestFactory().post("/", {"file": SimpleUploadedFile("a", b"a")})
    assert (await answer(request, pk=7)).status_code == 415
    assert (await get_store().astates(["answer-7"]))["answer-7"].producer == 0
    await acancel("answer-8")
    await until(lambda: Runs.closed == 1)
    assert Runs.begun == 1


async def test_many_that_come_at_once_start_no_more_than_a_limit_allows(settings: Settings) -> None:
    settings.DJANGO_SSE = {"MAX_STREAMS_PER_USER": 2}
    of_user = Answer.as_view(owner="anna")
    accept = {"Accept": "*/*"}
    responses = await asyncio.gather(
        *(of_user(get(headers=accept), pk=number) for number in range(20))
    )
    let_in = [number for number, answer in enumerate(responses) if answer.status_code == 200]
    assert len(let_in) == 2
    async with reading(responses[let_in[0]]), reading(responses[let_in[1]]):
        await until(lambda: Runs.begun == 2)
        assert (await of_user(get(headers=accept), pk=20)).status_code == 503
    for number in let_in:
        await acancel(f"answer-{number}")
    await until(lambda: Runs.closed == 2)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_what_is_over_takes_no_place(settings: Settings, method: str) -> None:
    settings.DJANGO_SSE = {"MAX_OPEN_GROUPS": 3, "MAX_STREAMS_PER_GROUP": 2}
    Runs.go_on.set()
    accept = {"Accept": "*/*"}
    for number in range(5):
        async with open_stream(answer, pk=number) as stream:
            await stream.rest()
        again = await answer(get(method=method, headers=accept), pk=number)
        assert again.status_code == 200
        if method == "GET":
            async with reading(again) as stream:
                await stream.rest()
    async with open_stream(EventStreamView.as_view(groups=["news"])):
        assert occupancy().groups == {"news": 1}


async def test_a_view_that_fails_takes_no_place(settings: Settings) -> None:
    settings.DJANGO_SSE = {"MAX_STREAMS": 1}

    class Failing(Answer):
        @property
        def heartbeat(self) -> float:  # type: ignore[override]
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        await Failing.as_view()(get(), pk=7)
    assert occupancy().streams == 0


async def test_a_slow_store_starts_no_more_than_a_limit_allows(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.DJANGO_SSE = {"MAX_STREAMS_PER_USER": 2}
    of_user = Answer.as_view(owner="anna")
    store, goes_on, arrived = get_store(), asyncio.Event(), 0
    append = store.aappend_apart

    async def slowly(entries: Any, ring: Any) -> Any:
        nonlocal arrived
        arrived += 1
        await goes_on.wait()
        return await append(entries, ring)

    monkeypatch.setattr(store, "aappend_apart", slowly)
    accept = {"Accept": "*/*"}
    starting: list[Any] = []
    for number in range(4):
        request = asyncio.ensure_future(of_user(get(headers=accept), pk=number))
        await until(lambda: request.done() or arrived > len(starting))  # noqa: B023
        starting.append(request)
        # A stream of somebody else comes and goes meanwhile, and its hub with it.
        async with open_stream(EventStreamView.as_view(groups=["news"])):
            pass
    goes_on.set()
    responses = await asyncio.gather(*starting)
    assert [response.status_code for response in responses] == [200, 200, 503, 503]
    for number, response in enumerate(responses[:2]):
        await acancel(f"answer-{number}")
        async with reading(response) as stream:
            await stream.rest()


async def test_a_user_who_is_cancelled_right_before_it_begins_starts_nothing_that_lasts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def kicked(*args: Any, **options: Any) -> None:
        # The view has let the user in.
        await acancel(user="anna")
        await start_for(*args, **options)

    monkeypatch.setattr("django_sse.views.start_for", kicked)
    response = await Answer.as_view(owner="anna")(get(headers={"Accept": "*/*"}), pk=7)
    async with reading(response) as stream:
        await stream.rest()
    await until(lambda: Runs.begun == Runs.closed)
    async with open_stream(answer, pk=7) as late:
        assert reason_in(await late.rest()) == "stopped"


async def test_what_would_run_in_another_tenant_is_not_started(settings: Settings) -> None:
    settings.DJANGO_SSE = {"NAMESPACE": OF_THREAD["NAMESPACE"]}

    def of_north() -> None:
        with thread_entered("north"):
            async_to_sync(answer)(get(), pk=7)

    with pytest.raises(ImproperlyConfigured, match="NAMESPACE_CONTEXT"):
        await sync_to_async(of_north)()
    assert Runs.begun == 0


async def test_who_makes_slow_calls_keeps_no_other_stranger_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("django_sse.concurrency.threads._SLOW_SECONDS", 0.01)
    goes_on = threading.Event()

    class Calling(EventProducerView):
        groups = ("answer-{pk}",)

        async def events(self) -> AsyncIterator[Any]:
            yield "begun"
            if self.kwargs["pk"] > 0:
                await sync_to_async(goes_on.wait)(20)
            yield await sync_to_async(str)("called")

    view = Calling.as_view()

    def request(address: str) -> HttpRequest:
        asked = get()
        asked.META["REMOTE_ADDR"] = address
        return asked

    for number in range(1, 12):
        async with reading(await view(request("10.0.0.1"), pk=number)) as stream:
            await stream.until("begun")
    async with reading(await view(request("10.0.0.2"), pk=0)) as other:
        assert data_of(await other.rest()) == ["begun", "called"]
    goes_on.set()
    for number in range(1, 12):
        async with reading(await view(request("10.0.0.1"), pk=number)) as stream:
            await stream.rest()


async def test_what_was_cancelled_is_not_started() -> None:
    await acancel("answer-7")
    async with open_stream(answer, pk=7) as stream:
        assert data_of(await stream.rest()) == []
    assert not Runs.begun


async def test_a_store_that_is_away_starts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*args: Any) -> Any:
        raise OSError("away")

    monkeypatch.setattr(get_store(), "aappend_apart", fail)
    monkeypatch.setattr(producing, "_GIVING_BACK_LOOKS", 0)
    assert (await answer(get(headers={"Accept": "*/*"}), pk=7)).status_code == 503
    assert not Runs.begun
    assert open_streams() == 0


# Stopping


async def stop(view: Any) -> int:
    status: int = (await view(get(method="DELETE"), pk=7)).status_code
    return status


async def test_a_client_stops_it() -> None:
    async with open_stream(answer, pk=7) as stream:
        await stream.until("two")
        assert await stop(answer) == 204
        assert reason_in(await stream.rest()) == "stopped"
    await until(lambda: Runs.closed)


@pytest.mark.parametrize("options", [{"allowed": False}, {"owner": "anna"}])
async def test_who_may_not_stream_it_does_not_stop_it(options: dict[str, Any]) -> None:
    async with open_stream(answer, pk=7) as stream:
        await stream.until("two")
        await acancel("answer-7", user="anna")
        await stop(Answer.as_view(**options))
        assert not (await get_store().astates(["answer-7"]))["answer-7"].cancelled


async def test_a_view_says_whether_it_can_be_stopped() -> None:
    async with open_stream(answer, pk=7) as stream:
        await stream.until("two")
        refused = await Answer.as_view(stoppable=False)(get(method="DELETE"), pk=7)
        assert (refused.status_code, refused["Allow"]) == (405, "GET, HEAD, POST, OPTIONS")
        allowed = await answer(get(method="OPTIONS"), pk=7)
        assert allowed["Allow"] == "GET, HEAD, POST, DELETE, OPTIONS"


async def test_a_stop_says_so_if_the_store_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_stream(answer, pk=7) as stream:
        await stream.until("two")
        with monkeypatch.context() as patch:
            patch.setattr(get_store(), "append", _fail)
            assert await stop(answer) == 503


def _fail(*args: Any) -> Any:
    raise OSError("away")


# As a function


@event_producer("answer-{pk}", retry=1000)
async def counting(request: HttpRequest, pk: int) -> AsyncIterator[Any]:
    """Count to three."""
    for number in range(1, 4):
        yield number
    raise Close("counted")


async def test_a_function_produces() -> None:
    async with open_stream(counting, pk=7) as stream:
        events = await stream.rest()
    assert (data_of(events), reason_in(events)) == (["1", "2", "3"], "counted")
    assert stream.reconnection_time == 1000
    assert counting.__doc__ == "Count to three."


# What is refused


def test_a_view_without_events_is_refused() -> None:
    class Nothing(EventProducerView):
        groups = ("answer",)

    with pytest.raises(ImproperlyConfigured, match="Nothing has nothing to stream"):
        Nothing.as_view()


async def test_a_view_of_many_groups_is_refused() -> None:
    with pytest.raises(ImproperlyConfigured, match="produces to one group, not to 2"):
        await respond(Answer.as_view(groups=["answer-7", "answer-8"]))


def test_what_is_no_generator_is_refused() -> None:
    with pytest.raises(TypeError, match="Name the group"):
        event_producer(work)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="@event_producer goes on an async generator"):
        event_producer("answer")(lambda request: None)  # type: ignore[arg-type, return-value]
    with pytest.raises(ImproperlyConfigured, match="stoppable must be True or False"):
        Answer.as_view(stoppable=1)


async def test_its_clients_come_back_to_start_what_was_handed_over(settings: Settings) -> None:
    settings.DJANGO_SSE = {"SYNC_INTERVAL": 0.05}
    job = Answer.as_view(restartable=True)
    async with open_stream(job, pk=7) as stream:
        assert (await stream.next_event()).data == "one"
        await producing.wind_down()
        events = await stream.rest()
    # Without a `close`: there is more to come.
    assert data_of(events) == ["two"]
    assert all(event.event != "close" for event in events)
    assert Runs.begun == Runs.closed == 1
    async with open_stream(job, pk=7, last_event_id=stream.last_event_id) as back:
        Runs.go_on.set()
        events = await back.rest()
    assert (data_of(events), reason_in(events)) == (["one", "two", "three"], "complete")
    assert Runs.begun == 2


async def test_who_comes_right_after_it_was_handed_over_is_sent_back_too(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.DJANGO_SSE = {"SYNC_INTERVAL": 0.05}
    job = Answer.as_view(restartable=True)
    async with open_stream(job, pk=7) as stream:
        await stream.next_event()
        await producing.wind_down()
        await stream.rest()

    async def too_early(*args: Any, **options: Any) -> None:
        # As the view saw it, it still had its producer.
        raise AlreadyProducing("answer-7")

    with monkeypatch.context() as patch:
        patch.setattr("django_sse.views.start_for", too_early)
        async with open_stream(job, pk=7) as early:
            assert all(event.event != "close" for event in await early.rest())
    Runs.go_on.set()
    async with open_stream(job, pk=7, last_event_id=early.last_event_id) as back:
        assert reason_in(await back.rest()) == "complete"


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"restartable": 1}, "restartable must be True or False"),
        ({"stop_when_unread": 0}, "stop_when_unread must be a finite number of seconds above 0"),
    ],
)
def test_a_wrong_option_is_refused(option: dict[str, Any], words: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=words):
        Answer.as_view(**option)


async def test_a_view_stops_what_nobody_reads(settings: Settings) -> None:
    settings.DJANGO_SSE = {"PRODUCER_TTL": 1, "SYNC_INTERVAL": 0.05}
    async with open_stream(Answer.as_view(stop_when_unread=0.1), pk=7) as stream:
        await stream.next_event()
    await until(lambda: Runs.closed)
    async with open_stream(answer, pk=7) as late:
        assert reason_in(await late.rest()) == "unread"
