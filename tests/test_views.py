"""Views, in this process and without the ASGI wrapper: their streams stay in their requests."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from time import monotonic, time
from typing import Any
from urllib.parse import urlencode

import pytest
from asgiref.sync import sync_to_async
from channels.layers import get_channel_layer
from django.core.exceptions import ImproperlyConfigured, PermissionDenied
from django.db import DEFAULT_DB_ALIAS, connections
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.http.response import HttpResponseBase
from django.test import AsyncClient, Client, RequestFactory
from django.urls import path
from pytest_django import Settings

from django_sse import Event, acancel, aposition, apublish, areopen
from django_sse.event import NO_DATA
from django_sse.exceptions import InvalidEvent
from django_sse.groups.entries import Entry, GroupState
from django_sse.groups.position import format_position, parse_position
from django_sse.stores import get_store
from django_sse.stores.memory import MemoryStore
from django_sse.streaming.hub import open_streams
from django_sse.views import EventStreamView
from tests.streams import View, get, open_stream, reading, until


class News(EventStreamView):
    groups = ["news"]


class Job(EventStreamView):
    groups = ["job-{pk}"]


class Requested(EventStreamView):
    """The groups that a request names."""

    async def get_groups(self) -> list[str]:
        return self.request.GET.getlist("group")


async def plain(request: HttpRequest) -> HttpResponse:
    return HttpResponse()


news = News.as_view()
requested = Requested.as_view()

pytestmark = [pytest.mark.urls(__name__), pytest.mark.usefixtures("memory_store")]

urlpatterns = [
    path("news/", news),
    path("jobs/<int:pk>/", Job.as_view()),
    path("rooms/<str:room>/<str:user>/", EventStreamView.as_view(groups=["{room}-{user}"])),
    path("plain/", plain),
]


async def publish_numbers(group: str, *numbers: int) -> list[str]:
    """Publish an event for each number and return their ids."""
    return [(await apublish(group, number)).id or "" for number in numbers]


def data(events: Iterable[Event]) -> list[str]:
    return [event.data for event in events]


async def respond(view: Any, url: str = "/", **options: Any) -> HttpResponse:
    """Return an answer that is no stream."""
    kwargs = options.pop("kwargs", {})
    answer = await view(get(url, **options), **kwargs)
    assert isinstance(answer, HttpResponse)
    return answer


# Groups


async def test_a_view_streams_its_groups() -> None:
    async with open_stream(EventStreamView.as_view(groups=["news", "jobs"])) as stream:
        await apublish("other", "not for this stream")
        first = await apublish("news", {"title": "hi"}, event="headline")
        event = await stream.next_event()
        assert (event.text, event.event) == ('{"title":"hi"}', "headline")
        assert parse_position(stream.last_event_id, ["news", "jobs"]) == {
            "news": first.number,
            "jobs": 0,
        }
        await apublish("jobs", "done")
        assert (await stream.next_event()).data == "done"
        assert open_streams() == 1


async def test_the_id_of_an_event_is_the_one_that_publish_returned() -> None:
    async with open_stream(news) as stream:
        published = await apublish("news", "hi")
        assert (await stream.next_event()).id == published.id


async def test_groups_take_the_arguments_of_the_url() -> None:
    async with open_stream(Job.as_view(), pk=7) as stream:
        await apublish("job-8", "other")
        await apublish("job-7", "mine")
        assert (await stream.next_event()).data == "mine"


async def test_groups_come_from_the_url_through_djangos_routing() -> None:
    async with reading(await AsyncClient().get("/jobs/7/")) as stream:
        await apublish("job-7", "mine")
        assert (await stream.next_event()).data == "mine"


async def test_a_view_may_choose_its_groups_for_each_request() -> None:
    async with open_stream(requested, "/?group=a&group=b&group=a") as stream:
        await publish_numbers("a", 1)
        await publish_numbers("b", 2)
        assert sorted(data([await stream.next_event(), await stream.next_event()])) == ["1", "2"]


async def test_a_view_without_groups_says_what_it_needs() -> None:
    with pytest.raises(ImproperlyConfigured, match="EventStreamView needs `groups`, or `async def"):
        await EventStreamView.as_view()(get())


async def test_arguments_that_could_mean_two_groups_are_not_found() -> None:
    client = AsyncClient()
    async with reading(await client.get("/rooms/1/2/")) as stream:
        await apublish("1-2", "hi")
        assert (await stream.next_event()).data == "hi"
    for url in ("/rooms/1-2/3/", "/rooms/1/2-3/"):
        assert (await client.get(url)).status_code == 404


@pytest.mark.parametrize("name", ["", "no name", "a/b", "%C3%A9", "x" * 100, "%00", "a%0D%0Ab"])
async def test_a_bad_group_name_is_not_found(name: str) -> None:
    answer = await respond(requested, f"/?group=news&group={name}")
    assert answer.status_code == 404
    assert answer["Cache-Control"] == "no-store"


async def test_a_view_may_say_itself_that_there_is_no_such_group() -> None:
    class Missing(EventStreamView):
        async def get_groups(self) -> list[str]:
            raise Http404

    answer = await respond(Missing.as_view())
    assert answer.status_code == 404
    assert answer["Cache-Control"] == "no-store"


async def test_too_many_groups_are_refused(settings: Settings) -> None:
    settings.DJANGO_SSE = {"STORE": "memory", "MAX_GROUPS": 2}
    answer = await respond(requested, "/?group=a&group=b&group=c")
    assert answer.status_code == 400
    assert answer["Cache-Control"] == "no-store"
    assert answer.content == b"A stream has at most 2 groups, not 3."
    # The same group twice is one group.
    async with open_stream(requested, "/?group=a&group=b&group=b"):
        assert open_streams() == 1


async def test_no_groups_are_refused() -> None:
    assert (await respond(requested)).status_code == 403


async def test_a_text_in_the_place_of_a_list_of_groups_is_an_error() -> None:
    class Text(Requested):
        async def get_groups(self) -> Any:
            return "news"

    class AllowsText(Requested):
        async def authorize(self, groups: Sequence[str]) -> Any:
            return "news"

    # It would be the groups n, e, w and s.
    with pytest.raises(ImproperlyConfigured, match=r"give \['news'\]"):
        EventStreamView.as_view(groups="news")
    for view in (Text.as_view(), AllowsText.as_view()):
        with pytest.raises(ImproperlyConfigured, match=r"give \['news'\]"):
            await view(get("/?group=news"))


# Authorization


class Guarded(Requested):
    """A view that answers what the request asks it to."""

    async def authorize(self, groups: Sequence[str]) -> HttpResponseBase | Iterable[str] | None:
        match self.request.GET.get("answer"):
            case "some":
                return [group for group in groups if group.startswith("open-")]
            case "none":
                return []
            case "response":
                return HttpResponseRedirect("/login/")
            case "denied":
                raise PermissionDenied
            case "missing":
                raise Http404
        return None


guarded = Guarded.as_view()


async def test_authorize_may_allow_all_groups() -> None:
    async with open_stream(guarded, "/?group=a&group=b") as stream:
        await publish_numbers("a", 1)
        assert (await stream.next_event()).data == "1"
        await publish_numbers("b", 2)
        assert (await stream.next_event()).data == "2"


async def test_authorize_may_allow_some_of_the_groups() -> None:
    async with open_stream(guarded, "/?group=secret&group=open-a&answer=some") as stream:
        await apublish("secret", "secret")
        await apublish("open-a", "open")
        assert (await stream.next_event()).data == "open"
        # A position of the group that is not allowed would tell that there is something new.
        assert stream.last_event_id == await aposition("open-a")


async def test_authorize_may_answer_itself() -> None:
    answer = await respond(guarded, "/?group=a&answer=response")
    assert (answer.status_code, answer["Location"]) == (302, "/login/")


@pytest.mark.parametrize(("answer", "status"), [("denied", 403), ("none", 403), ("missing", 404)])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_authorize_may_refuse(answer: str, status: int, method: str) -> None:
    refusal = await respond(guarded, f"/?group=a&answer={answer}", method=method)
    assert refusal.status_code == status
    assert refusal["Cache-Control"] == "no-store"
    assert not refusal.streaming


async def test_authorize_is_asked_before_the_client_learns_that_a_group_is_cancelled() -> None:
    await acancel("a")
    assert (await respond(guarded, "/?group=a&answer=denied")).status_code == 403
    assert (await respond(guarded, "/?group=a")).status_code == 204


async def test_authorize_is_given_the_names_of_the_groups_once_each() -> None:
    asked: list[Sequence[str]] = []

    class Asking(Requested):
        async def authorize(self, groups: Sequence[str]) -> None:
            asked.append(groups)

    async with open_stream(Asking.as_view(), "/?group=a&group=b&group=a"):
        assert asked == [["a", "b"]]


# Connecting


async def test_the_first_bytes_are_a_retry_and_a_position() -> None:
    [last] = await publish_numbers("news", 1)
    async with open_stream(news) as stream:
        assert stream.text == f"retry: 3000\n\nid: {last}\n\n"
        assert stream.last_event_id == last == await aposition("news")


async def test_a_client_that_comes_back_is_sent_what_it_missed() -> None:
    async with open_stream(news) as stream:
        await publish_numbers("news", 1)
        last = (await stream.next_event()).id
    await publish_numbers("news", 2, 3, 4)
    async with open_stream(news, last_event_id=last) as stream:
        await publish_numbers("news", 5)
        assert data(await stream.until("5")) == ["2", "3", "4", "5"]


async def test_a_client_that_left_before_its_first_event_is_sent_what_it_missed() -> None:
    async with open_stream(news) as stream:
        position = stream.last_event_id
    await publish_numbers("news", 1)
    async with open_stream(news, last_event_id=position) as stream:
        assert (await stream.next_event()).data == "1"


async def test_a_stream_can_be_started_from_where_a_page_was_rendered() -> None:
    position = await aposition("news")
    await publish_numbers("news", 1, 2)
    async with open_stream(news, f"/?lastEventId={position}") as stream:
        assert data(await stream.until("2")) == ["1", "2"]


async def test_the_header_counts_before_the_query_and_camel_case_before_snake_case() -> None:
    after_1, after_2, after_3 = await publish_numbers("news", 1, 2, 3)
    await publish_numbers("news", 4)
    url = f"/?lastEventId={after_2}&last_event_id={after_3}"
    for path_, header, expected in [
        (url, after_1, ["2", "3", "4"]),
        (url, None, ["3", "4"]),
        (url, "", ["3", "4"]),
        (f"/?last_event_id={after_3}", None, ["4"]),
        (f"/?last_event_id={after_3}&lastEventId=", None, ["4"]),
    ]:
        async with open_stream(news, path_, last_event_id=header) as stream:
            assert data(await stream.until("4")) == expected


@pytest.mark.parametrize("sent", ["7", "é~\xff", "x" * 20_000, "~" * 1000, "a.b.c"])
async def test_an_id_that_is_none_of_ours_is_a_new_clients(sent: str) -> None:
    await publish_numbers("news", 1)
    async with open_stream(news, last_event_id=sent) as stream:
        await publish_numbers("news", 2)
        assert (await stream.next_event()).data == "2"
        assert "reset" not in stream.text


async def test_the_position_of_another_group_is_a_new_clients() -> None:
    await publish_numbers("news", 1)
    async with open_stream(news, last_event_id=await aposition("jobs")) as stream:
        await publish_numbers("news", 2)
        assert (await stream.next_event()).data == "2"


async def test_a_client_whose_events_are_not_kept_any_more_is_told(settings: Settings) -> None:
    settings.DJANGO_SSE = {"STORE": "memory", "HISTORY_SIZE": 2}
    first, *_, last = await publish_numbers("news", 1, 2, 3, 4)
    async with open_stream(news, last_event_id=first) as stream:
        assert await stream.next_event() == Event("{}", event="reset")
        await until(lambda: stream.last_event_id == last)
        await publish_numbers("news", 5)
        assert (await stream.next_event()).data == "5"


async def seen_by_who_comes_back(view: View, last_event_id: str, until: str) -> list[str]:
    async with open_stream(view, last_event_id=last_event_id) as stream:
        return [event.event or event.text for event in await stream.until(until)]


async def test_a_view_bounds_how_many_events_are_replayed() -> None:
    view = News.as_view(replay_events=2)
    ids = await publish_numbers("news", *range(5))
    assert await seen_by_who_comes_back(view, ids[2], "4") == ["3", "4"]
    assert await seen_by_who_comes_back(News.as_view(), ids[0], "4") == ["1", "2", "3", "4"]
    async with open_stream(view, last_event_id=ids[1]) as stream:
        assert await stream.next_event() == Event("{}", event="reset")
        await publish_numbers("news", 5)
        assert (await stream.next_event()).data == "5"


async def test_who_was_there_before_the_first_event_is_bounded_too() -> None:
    start = await aposition("news")
    await publish_numbers("news", 1, 2, 3)
    assert await seen_by_who_comes_back(News.as_view(replay_events=3), start, "3") == list("123")
    async with open_stream(News.as_view(replay_events=2), last_event_id=start) as stream:
        assert await stream.next_event() == Event("{}", event="reset")


async def test_a_view_bounds_how_old_events_are_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    view = News.as_view(replay_age=60)
    ids = await publish_numbers("news", 1, 2)
    assert await seen_by_who_comes_back(view, ids[0], "2") == ["2"]
    later = time() + 61
    monkeypatch.setattr("django_sse.stores.clock.time", lambda: later)
    async with open_stream(view, last_event_id=ids[0]) as stream:
        assert await stream.next_event() == Event("{}", event="reset")
    # Who has missed nothing comes back however late.
    async with open_stream(view, last_event_id=ids[1]) as stream:
        await publish_numbers("news", 3)
        assert (await stream.next_event()).data == "3"


async def test_what_is_too_old_is_not_replayed_out_of_memory_either(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.DJANGO_SSE = {"STORE": "memory", "RETRY": 1, "HISTORY_SIZE": 10}
    view = News.as_view(replay_age=60)
    ids = await publish_numbers("news", 1)
    # While somebody has the group open, the hub knows what the store has dropped.
    async with open_stream(news) as other:
        await publish_numbers("news", *range(2, 7))
        later = time() + 61
        now = monotonic() + 61
        monkeypatch.setattr("django_sse.stores.clock.time", lambda: later)
        monkeypatch.setattr("django_sse.stores.memory.time", lambda: later)
        monkeypatch.setattr("django_sse.stores.memory.monotonic", lambda: now)
        await publish_numbers("news", *range(7, 20))
        await other.until("19")
        async with open_stream(view, last_event_id=ids[0]) as stream:
            assert await stream.next_event() == Event("{}", event="reset")


async def test_a_new_visitor_gets_no_history_that_is_too_old_out_of_memory(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.DJANGO_SSE = {"STORE": "memory", "HISTORY_AGE": 60}
    view = News.as_view(history=50)
    await publish_numbers("news", 1)
    async with open_stream(view) as first:
        assert (await first.next_event()).data == "1"
        now = monotonic() + 61
        monkeypatch.setattr("django_sse.stores.memory.monotonic", lambda: now)
        await publish_numbers("news", 2)
        async with open_stream(view) as later:
            assert (await later.next_event()).data == "2"


async def test_who_joins_a_group_reads_nothing_of_before_by_an_id_that_was_made_up() -> None:
    ids = await publish_numbers("news", 1, 2, 3)
    entry, signature = ids[2].split("~")
    made_up = entry[:-1] + chr(ord(entry[-1]) - 1)
    for sent in (made_up, f"{made_up}~{signature}", f"{entry.split('.')[0]}.0~{signature}"):
        async with open_stream(news, last_event_id=sent) as stream:
            await publish_numbers("news", 4)
            assert [e.event or e.text for e in await stream.until("4")] == ["reset", "4"]


async def test_a_client_from_the_future_is_told(settings: Settings) -> None:
    # As after a store that was lost with its newest events.
    [last] = await publish_numbers("news", 1)
    settings.DJANGO_SSE = {"STORE": "memory", "RETRY": 1}
    async with open_stream(news, last_event_id=last) as stream:
        assert await stream.next_event() == Event("{}", event="reset")


async def test_a_position_of_a_former_run_is_told(settings: Settings) -> None:
    # As where a store has gone back: what comes gets numbers that no client has seen.
    *_, last = await publish_numbers("news", 1, 2)
    [head] = parse_position(last, ["news"]).values()
    await get_store().anew_run("news", head + 5)
    async with open_stream(news, last_event_id=last) as stream:
        assert await stream.next_event() == Event("{}", event="reset")
        await publish_numbers("news", 3)
        assert (await stream.next_event()).data == "3"


def of_others(length: int) -> dict[str, int]:
    """A position of other groups, about as long as that."""
    return {f"other-{number}": number for number in range(length // 20)}


@pytest.mark.parametrize(
    ("forge", "told"),
    [
        (lambda head: format_position({"news": head + 1}), ["reset"]),
        (lambda head: format_position({"news": 2**56}), ["reset"]),
        (lambda head: format_position({"news": head - 1}).replace(".", ".-"), []),
        (lambda head: format_position({"news": head - 1})[::-1], []),
        (lambda head: format_position({"news": head - 1})[:-1] + "\0", ["reset"]),
        (lambda head: format_position(of_others(16 * 1024)), []),
        (lambda head: format_position(of_others(2**20)), []),
        (lambda head: format_position({**of_others(2**20), "news": head - 1}), []),
        (lambda head: format_position({"news": head - 1}) * 2**16, []),
        (lambda head: "~" * 2**20, []),
    ],
    ids=[
        *("above the head", "far above it", "negative", "reversed", "cut", "others", "long others"),
        *("long others and its own", "its own again and again", "nothing"),
    ],
)
@pytest.mark.parametrize("where", ["header", "query"])
async def test_a_position_that_nobody_was_given_yields_nothing_and_costs_little(
    where: str,
    forge: Callable[[int], str],
    told: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    *_, last = await publish_numbers("news", 1, 2, 3)
    [head] = parse_position(last, ["news"]).values()
    sent = forge(head)
    asked: list[str] = []
    astates, aread = MemoryStore.astates, MemoryStore.aread

    async def states_noted(store: MemoryStore, groups: Sequence[str]) -> dict[str, GroupState]:
        asked.extend(groups)
        return await astates(store, groups)

    async def read_noted(store: MemoryStore, group: str, after: int, limit: int) -> list[Entry]:
        asked.append(group)
        return await aread(store, group, after, limit)

    monkeypatch.setattr(MemoryStore, "astates", states_noted)
    monkeypatch.setattr(MemoryStore, "aread", read_noted)
    path_ = f"/?{urlencode({'lastEventId': sent})}" if where == "query" else "/"
    async with open_stream(
        news, path_, last_event_id=sent if where == "header" else None
    ) as stream:
        await publish_numbers("news", 4)
        events = await stream.until("4")
    assert [event.event for event in events[:-1]] == told
    assert set(asked) == {"news"}
    assert len(asked) < 10


@pytest.mark.django_db(transaction=True)
async def test_the_database_store_serves_views_as_well(settings: Settings) -> None:
    settings.DJANGO_SSE = {"STORE": "database"}
    async with open_stream(news) as stream:
        await publish_numbers("news", 1)
        last = (await stream.next_event()).id
    await publish_numbers("news", 2, 3, 4)
    async with open_stream(news, last_event_id=last) as stream:
        assert data(await stream.until("4")) == ["2", "3", "4"]
        await acancel("news", reason="over")
        assert data(await stream.rest()) == ['{"reason":"over"}']
    assert (await respond(news)).status_code == 204


# Cancelled groups


async def test_an_open_stream_of_a_cancelled_group_gets_what_is_left_then_close_and_ends() -> None:
    async with open_stream(news) as stream:
        await publish_numbers("news", 1, 2)
        await acancel("news", reason="over")
        *events, close = await stream.rest()
        assert data(events) == ["1", "2"]
        assert (close.event, close.json()) == ("close", {"reason": "over"})
        last = stream.last_event_id
    assert (await respond(news, headers={"Last-Event-ID": last})).status_code == 204


async def test_a_new_visitor_of_a_cancelled_group_is_answered_204() -> None:
    await publish_numbers("news", 1)
    await acancel("news")
    answer = await respond(news)
    assert (answer.status_code, answer.content) == (204, b"")
    assert answer["Cache-Control"] == "no-store"
    assert "Content-Type" not in answer or "event-stream" not in answer["Content-Type"]


async def test_a_client_that_is_behind_a_cancel_gets_the_rest_then_close_and_ends() -> None:
    [first, _] = await publish_numbers("news", 1, 2)
    await acancel("news", reason="over")
    async with open_stream(news, last_event_id=first) as stream:
        missed, close = await stream.rest()
        assert (missed.data, close.event) == ("2", "close")


async def test_a_group_that_was_reopened_streams_again() -> None:
    [first, _] = await publish_numbers("news", 1, 2)
    await acancel("news")
    await areopen("news")
    # The close of before is skipped.
    async with open_stream(news, last_event_id=first) as stream:
        await publish_numbers("news", 3)
        assert data(await stream.until("3")) == ["2", "3"]
        assert "close" not in stream.text


async def test_one_of_several_groups_falls_silent_and_the_last_one_ends_the_stream() -> None:
    async with open_stream(requested, "/?group=a&group=b") as stream:
        await acancel("a")
        await publish_numbers("b", 1)
        assert (await stream.next_event()).data == "1"
        await acancel("b", reason="over")
        [close] = await stream.rest()
        assert (close.event, close.json()) == ("close", {"reason": "over"})
        last = stream.last_event_id
    url = "/?group=a&group=b"
    assert (await respond(requested, url, headers={"Last-Event-ID": last})).status_code == 204
    assert (await respond(requested, "/?group=a")).status_code == 204


# History


async def test_a_new_client_is_sent_the_newest_events_of_each_group() -> None:
    await publish_numbers("news", 1, 2, 3)
    await publish_numbers("jobs", 11)
    view = EventStreamView.as_view(groups=["news", "jobs"], history=2)
    async with open_stream(view) as stream:
        await apublish("news", "now")
        await apublish("jobs", "too")
        events = data([await stream.next_event() for _ in range(5)])
        assert [number for number in events if number in ("1", "2", "3")] == ["2", "3"]
        assert {"11", "now", "too"} < set(events)


async def test_a_client_with_a_position_is_sent_what_it_missed_and_no_history() -> None:
    _, second, _ = await publish_numbers("news", 1, 2, 3)
    async with open_stream(News.as_view(history=3), last_event_id=second) as stream:
        assert (await stream.next_event()).data == "3"


async def test_a_new_visitor_of_a_cancelled_group_is_shown_its_history_and_the_end() -> None:
    await publish_numbers("news", 1, 2, 3)
    await acancel("news")
    async with open_stream(News.as_view(history=2)) as stream:
        second, third, close = await stream.rest()
        assert (second.data, third.data, close.event) == ("2", "3", "close")
        last = stream.last_event_id
    answer = await respond(News.as_view(history=2), headers={"Last-Event-ID": last})
    assert answer.status_code == 204


# The state as of now


class Scores(EventStreamView):
    groups = ["scores"]

    async def initial_events(self) -> AsyncGenerator[Event, None]:
        yield Event({"home": 1}, event="score")
        yield Event({"away": 2}, event="score")


scores = Scores.as_view()


async def test_a_new_client_is_sent_the_state_without_ids_and_then_a_position() -> None:
    [last] = await publish_numbers("scores", 1)
    async with open_stream(scores) as stream:
        await until(lambda: stream.last_event_id)
        assert stream.text == (
            "retry: 3000\n\n"
            'event: score\ndata: {"home":1}\n\n'
            'event: score\ndata: {"away":2}\n\n'
            f"id: {last}\n\n"
        )


async def test_what_is_published_while_the_state_is_read_comes_after_it() -> None:
    class Slow(EventStreamView):
        groups = ["scores"]

        async def initial_events(self) -> AsyncGenerator[Event, None]:
            await apublish("scores", "meanwhile")
            yield Event("state")

    async with open_stream(Slow.as_view()) as stream:
        assert data(await stream.until("meanwhile")) == ["state", "meanwhile"]


async def test_a_client_with_a_position_knows_the_state() -> None:
    [first, _] = await publish_numbers("scores", 1, 2)
    async with open_stream(scores, last_event_id=first) as stream:
        assert (await stream.next_event()).data == "2"
        assert "score" not in stream.text


async def test_a_client_that_lost_events_is_told_and_sent_the_state(settings: Settings) -> None:
    settings.DJANGO_SSE = {"STORE": "memory", "HISTORY_SIZE": 1}
    first, *_, last = await publish_numbers("scores", 1, 2, 3)
    async with open_stream(scores, last_event_id=first) as stream:
        await until(lambda: stream.last_event_id)
        # No id before the state is complete: who leaves before is told again.
        assert stream.text == (
            "retry: 3000\n\n"
            "event: reset\ndata: {}\n\n"
            'event: score\ndata: {"home":1}\n\n'
            'event: score\ndata: {"away":2}\n\n'
            f"id: {last}\n\n"
        )


async def test_a_client_that_does_not_know_one_of_the_groups_is_sent_the_state() -> None:
    view = Scores.as_view(groups=["scores", "news"])
    position = await aposition("scores")
    async with open_stream(view, last_event_id=position) as stream:
        assert data([await stream.next_event()]) == ['{"home":1}']
    async with open_stream(view, last_event_id=await aposition("scores", "news")) as stream:
        await publish_numbers("news", 1)
        assert data([await stream.next_event()]) == ["1"]


async def test_the_state_may_be_nothing() -> None:
    class Empty(EventStreamView):
        groups = ["news"]

        async def initial_events(self) -> AsyncGenerator[Event, None]:
            return
            yield

    async with open_stream(Empty.as_view()) as stream:
        await until(lambda: stream.last_event_id)
        await publish_numbers("news", 1)
        assert (await stream.next_event()).data == "1"


@pytest.mark.parametrize(
    "event", [Event("state", id="7"), Event("state", event="close"), Event("x" * 300_000)]
)
async def test_an_event_of_the_state_obeys_the_rules_of_publish(event: Event) -> None:
    class Wrong(EventStreamView):
        groups = ["news"]

        async def initial_events(self) -> AsyncGenerator[Event, None]:
            yield event

    async with open_stream(Wrong.as_view()) as stream:
        with pytest.raises(ValueError, match=r"must not bring an id|not a name|MAX_EVENT_BYTES"):
            await stream.rest()
        assert stream.last_event_id == ""


async def test_a_state_that_is_no_event_says_what_it_has_to_be() -> None:
    class Wrong(EventStreamView):
        groups = ["news"]

        async def initial_events(self) -> AsyncGenerator[Any, None]:
            yield "state"

    async with open_stream(Wrong.as_view()) as stream:
        with pytest.raises(InvalidEvent, match="initial_events has to yield an Event, not str"):
            await stream.rest()


async def test_a_state_that_cannot_be_read_ends_the_stream_without_a_position() -> None:
    class Failing(EventStreamView):
        groups = ["news"]

        async def initial_events(self) -> AsyncGenerator[Event, None]:
            yield Event("first")
            raise RuntimeError("The state is gone.")

    async with open_stream(Failing.as_view()) as stream:
        with pytest.raises(RuntimeError, match="The state is gone"):
            await stream.rest()
        # It comes back, and is sent all of the state.
        assert stream.last_event_id == ""
        assert "gone" not in stream.text


def test_history_beside_initial_events_is_refused_before_a_client_comes() -> None:
    class Both(Scores):
        history = 5

    with pytest.raises(ImproperlyConfigured, match="both `history` and `initial_events`"):
        Both.as_view()
    with pytest.raises(ImproperlyConfigured, match="both `history` and `initial_events`"):
        Scores.as_view(history=5)
    Both.as_view(history=0)


# Filtering


class Filtered(EventStreamView):
    """Hides some events, changes others, and fails with one."""

    groups = ["news"]

    def filter_event(self, event: Event) -> Event | None:
        match event.text:
            case "hidden":
                return None
            case "secret":
                return Event("public", event="notice")
            case "broken":
                raise RuntimeError("The filter is broken.")
        return event


filtered = Filtered.as_view()


async def test_a_filter_hides_and_replaces_events() -> None:
    async with open_stream(filtered) as stream, open_stream(news) as unfiltered:
        for text in ("first", "hidden", "secret"):
            await apublish("news", text, event="message-type")
        last = (await apublish("news", "last")).id
        first, notice, end = await stream.until("last")
        assert (first.data, first.event) == ("first", "message-type")
        assert (notice.data, notice.event) == ("public", "notice")
        assert end.id == last
        assert data(await unfiltered.until("last")) == ["first", "hidden", "secret", "last"]


async def test_a_filter_sees_what_is_replayed() -> None:
    position = await aposition("news")
    for text in ("first", "hidden", "last"):
        await apublish("news", text)
    async with open_stream(filtered, last_event_id=position) as stream:
        assert data(await stream.until("last")) == ["first", "last"]


class WithoutComments(EventStreamView):
    """Shows who may not see all of an event only what it is about."""

    groups = ["news"]

    def filter_event(self, event: Event) -> Event | None:
        if event.comment is None and event.retry is None:
            return event
        return None if event.data is NO_DATA else Event(event.data, event=event.event)


@pytest.mark.parametrize("live", [True, False], ids=["live", "replayed"])
async def test_a_filter_sees_comments_and_retry_and_what_it_does_not_return_is_not_sent(
    live: bool,
) -> None:
    async def publish() -> None:
        await apublish("news", Event(comment="secret\nof two lines"))
        await apublish("news", Event("shown", event="message-type", comment="secret", retry=86_400))
        await apublish("news", Event(retry=86_400))
        await apublish("news", "last")

    position = await aposition("news")
    if not live:
        await publish()
    view = WithoutComments.as_view(retry=1)
    async with open_stream(view, last_event_id=position) as stream:
        if live:
            await publish()
        shown, _ = await stream.until("last")
        assert (shown.text, shown.event) == ("shown", "message-type")
        assert "secret" not in stream.text
        assert stream.reconnection_time == 1000


async def test_a_filter_does_not_see_the_close() -> None:
    async with open_stream(filtered) as stream:
        await acancel("news", reason="broken")
        [close] = await stream.rest()
        assert close.event == "close"


def errors_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the texts of what was logged as an error."""
    return [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]


async def test_an_event_that_a_filter_cannot_read_is_hidden_and_logged_once_with_its_id(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with open_stream(filtered) as stream, open_stream(filtered) as another:
        start = stream.last_event_id
        await apublish("news", "first")
        broken = (await apublish("news", "broken")).id
        await apublish("news", "last")
        assert data(await stream.until("last")) == ["first", "last"]
        assert data(await another.until("last")) == ["first", "last"]
    # Nor does it end who comes back for it.
    async with open_stream(filtered, last_event_id=start) as stream:
        assert data(await stream.until("last")) == ["first", "last"]
    [error] = errors_of(caplog)
    assert error.startswith("Filtered: filter_event failed")
    assert f"event {broken} of group 'news'" in error
    assert "The filter is broken." in caplog.text


async def test_each_event_that_a_filter_cannot_read_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with open_stream(filtered) as stream:
        ids = [(await apublish("news", "broken")).id for _ in range(3)]
        await apublish("news", "last")
        await stream.until("last")
    for published, error in zip(ids, errors_of(caplog), strict=True):
        assert f"event {published} of" in error


async def test_the_position_moves_past_an_event_that_a_filter_cannot_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("django_sse.streaming.hub._TICK_SECONDS", 0.01)
    async with open_stream(Filtered.as_view(heartbeat=0.01)) as stream:
        broken = (await apublish("news", "broken")).id
        await until(lambda: stream.last_event_id == broken)


@pytest.mark.parametrize("shown", [Event("x", id="7"), Event("x", event="close")])
async def test_what_a_filter_returns_obeys_the_rules_of_publish(
    shown: Event, caplog: pytest.LogCaptureFixture
) -> None:
    class Wrong(EventStreamView):
        groups = ["news"]

        def filter_event(self, event: Event) -> Event | None:
            return shown if event.text == "hi" else event

    async with open_stream(Wrong.as_view()) as stream:
        await apublish("news", "hi")
        await apublish("news", "last")
        assert data(await stream.until("last")) == ["last"]
    assert "filter_event failed" in caplog.text


async def later() -> Event:
    return Event("later")


@pytest.mark.parametrize(
    ("result", "told"),
    [
        (lambda: "text", "return an Event or None, not str"),
        (lambda: {"data": "x"}, "return an Event or None, not dict"),
        (lambda: ("x", "y"), "return an Event or None, not tuple"),
        (lambda: [Event("x")], "return an Event or None, not list"),
        (lambda: True, "return an Event or None, not bool"),
        (lambda: "", "return an Event or None, not str"),
        (later, "not `async def`"),
    ],
    ids=["str", "dict", "tuple", "list", "bool", "empty", "coroutine"],
)
@pytest.mark.parametrize("what", ["filter_event", "message handler"])
async def test_what_is_no_event_is_an_error_that_says_so_and_no_loop(
    what: str, result: Any, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Wrong(EventStreamView):
        groups = ["news"]

        def filter_event(self, event: Event) -> Any:
            return event if event.text == "last" else result()

        def news_update(self, message: dict[str, Any]) -> Any:
            return result()

    async with open_stream(Wrong.as_view()) as stream:
        for _ in range(3):
            if what == "filter_event":
                await apublish("news", "hi")
            else:
                await group_send("news.update")
        await group_send("sse.event", data="last")
        assert data(await stream.until("last")) == ["last"]
    [error] = errors_of(caplog)
    assert what in error
    assert "Wrong:" in error
    assert told in caplog.text


async def test_a_failure_that_is_no_exception_is_one_all_the_same(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Panic(BaseException):
        """As pyo3 has it."""

    class Panicking(EventStreamView):
        groups = ["news"]

        def filter_event(self, event: Event) -> Event:
            if event.text == "panic":
                raise Panic
            if event.text == "endless":
                return self.filter_event(event)
            if event.text == "cancelled":
                raise asyncio.CancelledError
            return event

    async with open_stream(Panicking.as_view()) as stream:
        start = stream.last_event_id
        for text in ("panic", "endless", "cancelled", "last"):
            await apublish("news", text)
        assert data(await stream.until("last")) == ["last"]
    async with open_stream(Panicking.as_view(), last_event_id=start) as stream:
        assert data(await stream.until("last")) == ["last"]
    assert len(errors_of(caplog)) == 3


@pytest.mark.parametrize(
    ("name", "method", "wanted"),
    [
        ("filter_event", later, "`def filter_event"),
        ("filter_event", sync_to_async(lambda self, event: event), "`def filter_event"),
        ("initial_events", later, "`async def initial_events\\(self\\)` with `yield`"),
        ("initial_events", lambda self: (yield Event("x")), "`async def initial_events"),
        ("get_groups", lambda self: ["news"], "`async def get_groups"),
        ("get_owner", lambda self: None, "`async def get_owner"),
        ("still_allowed", lambda self: True, "`async def still_allowed"),
    ],
)
def test_a_method_that_can_only_fail_is_refused_before_a_client_comes(
    name: str, method: Any, wanted: str
) -> None:
    view: Any = type("Wrong", (News,), {name: method})
    with pytest.raises(ImproperlyConfigured, match=f"Wrong.{name} has to be {wanted}"):
        view.as_view()
    with pytest.raises(ImproperlyConfigured, match=f"News.{name} has to be {wanted}"):
        News.as_view(**{name: method})


async def test_a_filter_may_be_given_in_the_urls() -> None:
    view = News.as_view(filter_event=lambda event: None if event.text == "hidden" else event)
    async with open_stream(view) as stream:
        for text in ("hidden", "last"):
            await apublish("news", text)
        assert data(await stream.until("last")) == ["last"]


@pytest.mark.parametrize("answer", [True, False])
async def test_authorize_that_answers_yes_or_no_is_told_what_to_answer(answer: bool) -> None:
    class Guarded(News):
        async def authorize(self, groups: Sequence[str]) -> Any:
            return answer

    with pytest.raises(ImproperlyConfigured, match=r"Guarded.authorize .* raise PermissionDenied"):
        await Guarded.as_view()(get())


async def test_groups_that_are_none_are_told() -> None:
    class Without(EventStreamView):
        async def get_groups(self) -> Any:
            return None

    with pytest.raises(ImproperlyConfigured, match="a list of names, not NoneType"):
        await Without.as_view()(get())


async def test_a_position_that_moved_unseen_is_told_with_the_next_heartbeat(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("django_sse.streaming.hub._TICK_SECONDS", 0.01)
    async with open_stream(Filtered.as_view(heartbeat=0.01)) as stream:
        hidden = (await apublish("news", "hidden")).id
        await until(lambda: stream.last_event_id == hidden)
        await until(lambda: stream.text.endswith(":\n\n"))
        assert stream.text.count(f"id: {hidden}\n\n") == 1


# Plain Channels messages


class Handling(EventStreamView):
    """Streams the messages of a group that feeds WebSockets as well."""

    groups = ["news"]

    def news_update(self, message: dict[str, Any]) -> Event | None:
        if message["text"] == "quiet":
            return None
        if message["text"] == "broken":
            raise RuntimeError("The handler is broken.")
        return Event(message["text"], event="update")


handling = Handling.as_view()


async def group_send(message_type: str, **fields: Any) -> None:
    await get_channel_layer().group_send("news", {"type": message_type, **fields})


async def test_a_plain_message_is_streamed_without_an_id_and_is_not_replayed() -> None:
    async with open_stream(news) as stream:
        position = stream.last_event_id
        await group_send("sse.event", data={"title": "hi"}, event="headline")
        event = await stream.next_event()
        assert (event.text, event.event) == ('{"title":"hi"}', "headline")
        assert stream.text.endswith('\n\nevent: headline\ndata: {"title":"hi"}\n\n')
        assert stream.last_event_id == position
    async with open_stream(news, last_event_id=position) as stream:
        await apublish("news", "next")
        assert (await stream.next_event()).data == "next"


async def test_a_plain_message_reaches_every_stream_of_its_group_and_no_other() -> None:
    async with (
        open_stream(news) as one,
        open_stream(handling) as two,
        open_stream(requested, "/?group=jobs") as other,
    ):
        await group_send("sse.event", data="hi")
        assert (await one.next_event()).data == "hi"
        assert (await two.next_event()).data == "hi"
        await apublish("jobs", "mine")
        assert (await other.next_event()).data == "mine"


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"data": "x", "id": "7"},
        {"data": "x", "event": "close"},
        {"data": "x", "event": "a\nb"},
        {"data": b"bytes"},
        {"data": "x" * 300_000},
        {"data": "x", "unknown": 1},
    ],
)
async def test_a_plain_message_obeys_the_rules_of_publish(
    fields: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    async with open_stream(news) as stream:
        await group_send("sse.event", **fields)
        await group_send("sse.event", data="next")
        assert (await stream.next_event()).data == "next"
    assert "sse.event" in caplog.text
    assert "'news' was refused" in caplog.text


async def test_a_view_handles_messages_as_a_consumer_does() -> None:
    async with open_stream(handling) as stream, open_stream(news) as without_handler:
        await group_send("news.update", text="first")
        await group_send("news.update", text="quiet")
        await group_send("news.other", text="not for a view")
        await group_send("news.update", text="last")
        events = await stream.until("last")
        assert [(event.data, event.event) for event in events] == [
            ("first", "update"),
            ("last", "update"),
        ]
        await apublish("news", "next")
        assert (await without_handler.next_event()).data == "next"


async def test_plain_messages_and_handled_ones_keep_their_order() -> None:
    async with open_stream(handling) as stream:
        for number in range(0, 10, 2):
            await group_send("sse.event", data=str(number))
            await group_send("news.update", text=str(number + 1))
        assert data(await stream.until("9")) == [str(number) for number in range(10)]


async def test_a_handler_may_take_its_message_apart() -> None:
    class Popping(EventStreamView):
        groups = ["news"]

        def news_update(self, message: dict[str, Any]) -> Event | None:
            return Event(message.pop("text") + message["card"].pop("title"))

    view = Popping.as_view()
    async with open_stream(view) as one, open_stream(view) as two:
        await group_send("news.update", text="for ", card={"title": "both"})
        assert (await one.next_event()).data == "for both"
        assert (await two.next_event()).data == "for both"


async def test_what_a_handler_adds_for_one_user_reaches_no_other_one() -> None:
    class Cards(EventStreamView):
        groups = ["news"]

        def card_moved(self, message: dict[str, Any]) -> Event:
            message["card"]["shown to"].append(self.request.GET["user"])
            return Event(message["card"])

    view = Cards.as_view()
    async with open_stream(view, "/?user=ada") as ada, open_stream(view, "/?user=eve") as eve:
        await group_send("card.moved", card={"shown to": []})
        assert (await ada.next_event()).json() == {"shown to": ["ada"]}
        assert (await eve.next_event()).json() == {"shown to": ["eve"]}


@pytest.mark.parametrize("message_type", ["get", "as_view", "authorize", "filter.event", "_secret"])
async def test_a_message_reaches_only_what_the_view_has_added_as_a_handler(
    message_type: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Own(EventStreamView):
        groups = ["news"]

        def news_update(self, message: dict[str, Any]) -> Event | None:
            return Event("update")

        def _secret(self, message: dict[str, Any]) -> Event | None:
            raise AssertionError

    async with open_stream(Own.as_view()) as stream:
        # What was said of the stream itself.
        caplog.clear()
        await group_send(message_type)
        await group_send("news.update")
        assert (await stream.next_event()).data == "update"
    # A stream that stays in its request, as this one does, says so.
    logged = [record.getMessage() for record in caplog.records]
    assert not [text for text in logged if "stays in its request" not in text]


async def test_a_message_that_a_handler_cannot_read_is_hidden_and_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with open_stream(handling) as stream, open_stream(handling) as other:
        await group_send("news.update", text="broken")
        await group_send("news.update", text="next")
        assert data(await stream.until("next")) == ["next"]
        assert data(await other.until("next")) == ["next"]
    [error] = errors_of(caplog)
    assert error.startswith("Handling: a message handler failed")
    assert "'news.update' to group 'news'" in error
    assert "The handler is broken." in caplog.text


async def test_plain_messages_can_be_turned_off() -> None:
    layer = get_channel_layer()
    async with open_stream(News.as_view(channel_messages=False)) as stream:
        # No channel is opened for the group.
        assert "news" not in layer.groups
        await group_send("sse.event", data="plain")
        await apublish("news", "published")
        assert (await stream.next_event()).data == "published"


async def test_plain_messages_are_off_also_beside_a_stream_that_has_them() -> None:
    quiet = Handling.as_view(channel_messages=False)
    async with open_stream(quiet) as stream, open_stream(handling) as other:
        await group_send("sse.event", data="plain")
        await group_send("news.update", text="update")
        await other.until("update")
        await apublish("news", "published")
        assert (await stream.next_event()).data == "published"


async def test_streams_need_no_channel_layer(settings: Settings) -> None:
    settings.CHANNEL_LAYERS = {}
    async with open_stream(news) as stream:
        await apublish("news", "hi")
        assert (await stream.next_event()).data == "hi"


# HTTP


async def test_head_is_answered_with_the_headers_alone() -> None:
    answer = await news(get(method="HEAD"))
    assert (answer.status_code, [chunk async for chunk in answer]) == (200, [])
    async with open_stream(news) as stream:
        assert answer.headers == stream.response.headers


async def test_head_has_what_a_view_adds_to_the_answer_to_get() -> None:
    class Marked(EventStreamView):
        groups = ["news"]

        async def get(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
            response = await super().get(request, *args, **kwargs)
            response["X-Stream"] = "1"
            response.set_cookie("seen", "1")
            return response

    view = Marked.as_view()
    answer = await view(get(method="HEAD"))
    assert (answer["X-Stream"], answer.cookies["seen"].value) == ("1", "1")
    assert [chunk async for chunk in answer] == []
    async with open_stream(view) as stream:
        assert answer.headers == stream.response.headers
        assert answer.cookies == stream.response.cookies


async def test_head_is_given_no_length_by_a_middleware(settings: Settings) -> None:
    settings.MIDDLEWARE = [
        "django.middleware.http.ConditionalGetMiddleware",
        "django.middleware.gzip.GZipMiddleware",
        "django.middleware.common.CommonMiddleware",
    ]
    settings.ROOT_URLCONF = __name__
    head, answer = await AsyncClient().head("/jobs/7/"), await AsyncClient().get("/jobs/7/")
    assert head.headers == answer.headers
    assert not {"content-length", "etag"} & {name.lower() for name in head.headers}
    answer.close()


async def test_head_is_answered_204_where_the_stream_is_over() -> None:
    await acancel("news")
    assert (await respond(news, method="HEAD")).status_code == 204


async def test_options_lists_the_methods() -> None:
    answer = await respond(news, method="OPTIONS")
    assert answer.status_code == 200
    assert set(answer["Allow"].split(", ")) == {"GET", "HEAD", "OPTIONS"}


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "TRACE", "PROPFIND"])
async def test_other_methods_are_not_allowed(method: str) -> None:
    answer = await respond(news, method=method)
    assert answer.status_code == 405
    assert set(answer["Allow"].split(", ")) == {"GET", "HEAD", "OPTIONS"}


@pytest.mark.parametrize(
    ("http_version", "connection"), [("1.1", "keep-alive"), ("1.0", None), ("2", None), ("3", None)]
)
async def test_the_headers_keep_caches_and_proxies_away(
    http_version: str, connection: str | None
) -> None:
    async with reading(await news(get(http_version=http_version))) as stream:
        headers = stream.response.headers
        assert stream.response.status_code == 200
        assert headers["Content-Type"] == "text/event-stream; charset=utf-8"
        assert headers["Cache-Control"] == "no-cache, no-store, private, no-transform"
        assert headers["X-Accel-Buffering"] == "no"
        assert headers["Content-Encoding"] == "identity"
        # HTTP/2 forbids it.
        assert headers.get("Connection") == connection


async def test_middleware_does_not_compress_a_stream(settings: Settings) -> None:
    settings.MIDDLEWARE = ["django.middleware.gzip.GZipMiddleware"]
    answer = await AsyncClient().get("/news/", headers={"Accept-Encoding": "gzip"})
    assert answer["Content-Encoding"] == "identity"
    async with reading(answer) as stream:
        assert stream.text.startswith("retry: ")
        await apublish("news", "x" * 1000)
        assert (await stream.next_event()).data == "x" * 1000


@pytest.mark.parametrize(
    ("retry", "milliseconds"), [(None, 3000), (0, 0), (0.25, 250), (60, 60_000)]
)
async def test_a_view_says_when_browsers_reconnect(retry: float | None, milliseconds: int) -> None:
    async with open_stream(News.as_view(retry=retry)) as stream:
        assert stream.reconnection_time == milliseconds


async def test_the_setting_says_when_browsers_reconnect(settings: Settings) -> None:
    settings.DJANGO_SSE = {"STORE": "memory", "RETRY": 7}
    async with open_stream(news) as stream:
        assert stream.reconnection_time == 7000


@pytest.mark.parametrize("heartbeat", [0, None])
async def test_a_heartbeat_of_0_and_a_setting_of_none_are_never(
    heartbeat: float | None, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("django_sse.streaming.hub._TICK_SECONDS", 0.01)
    settings.DJANGO_SSE = {"STORE": "memory", "HEARTBEAT": 0.01 if heartbeat == 0 else None}
    async with (
        open_stream(News.as_view(heartbeat=heartbeat)) as silent,
        open_stream(News.as_view(heartbeat=0.01)) as beating,
    ):
        await until(lambda: beating.text.count("\n\n:\n\n:\n\n:\n\n"))
        assert "\n:" not in silent.text


async def test_heartbeats_come_as_the_setting_says_and_only_in_silence(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("django_sse.streaming.hub._TICK_SECONDS", 0.01)
    settings.DJANGO_SSE = {"STORE": "memory", "HEARTBEAT": 0.01}
    async with open_stream(news) as stream, open_stream(News.as_view(heartbeat=3600)) as patient:
        await until(lambda: stream.text.endswith("\n\n:\n\n:\n\n"))
        await apublish("news", "hi")
        assert (await stream.next_event()).data == "hi"
        assert (await patient.next_event()).data == "hi"
        assert "\n:" not in patient.text


async def test_a_stream_that_is_too_old_sends_its_client_back(settings: Settings) -> None:
    settings.DJANGO_SSE = {"STORE": "memory", "MAX_AGE": 1, "RETRY": 1}
    times = set()
    for _ in range(3):
        async with open_stream(news) as stream:
            await publish_numbers("news", 1)
            assert data(await stream.rest()) == ["1"]
            times.add(stream.reconnection_time or 0)
    assert len(times) > 1
    assert all(1000 <= milliseconds <= 2000 for milliseconds in times)
    await publish_numbers("news", 2)
    async with open_stream(news, last_event_id=stream.last_event_id) as stream:
        assert (await stream.next_event()).data == "2"
        # Each connect says how long to wait after a loss that nobody has planned.
        assert stream.reconnection_time == 1000


def test_wsgi_is_refused_at_once_with_what_to_do() -> None:
    with pytest.raises(ImproperlyConfigured, match=r"over WSGI\. Serve the project over ASGI"):
        Client().get("/news/")


async def test_a_wsgi_request_is_refused_with_what_to_do() -> None:
    with pytest.raises(ImproperlyConfigured, match=r"django_sse\.asgi\.get_asgi_application"):
        await news(RequestFactory().get("/"))


async def test_a_project_with_atomic_requests_can_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(connections.settings[DEFAULT_DB_ALIAS], "ATOMIC_REQUESTS", True)
    client = AsyncClient()
    with pytest.raises(RuntimeError, match="ATOMIC_REQUESTS with async views"):
        await client.get("/plain/")
    async with reading(await client.get("/news/")) as stream:
        await apublish("news", "hi")
        assert (await stream.next_event()).data == "hi"


async def test_a_database_that_was_added_since_has_atomic_requests_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    added = {**connections.settings[DEFAULT_DB_ALIAS], "ATOMIC_REQUESTS": True}
    monkeypatch.setitem(connections.settings, "tenant_1", added)
    with pytest.raises(RuntimeError, match="ATOMIC_REQUESTS with async views"):
        await AsyncClient().get("/plain/")
    async with reading(await AsyncClient().get("/news/")) as stream:
        await apublish("news", "hi")
        assert (await stream.next_event()).data == "hi"


# A store that is down


class DownStore(MemoryStore):
    """A store that answers some questions before it is down."""

    answers = 0

    async def astates(self, groups: Sequence[str]) -> dict[str, GroupState]:
        if self.answers == 0:
            raise ConnectionError("The store is down.")
        self.answers -= 1
        return await super().astates(groups)


@pytest.mark.parametrize("answers", [0, 1])
async def test_a_store_that_is_down_sends_clients_back_at_different_times(
    answers: int,
    settings: Settings,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("django_sse.logs.SELDOM_SECONDS", 0)
    # While the request is answered, and when the hub follows the group.
    times = set()
    for _ in range(5):
        settings.DJANGO_SSE = {
            "STORE": f"{__name__}.{'DownStore' if answers == 0 else 'SoonDownStore'}",
            "RETRY": 10,
        }
        async with open_stream(news, headers={"Accept": "text/event-stream"}) as stream:
            assert await stream.rest() == []
            # Not a 5xx: a browser would never come back.
            assert stream.response.status_code == 200
            assert stream.response["Content-Type"] == "text/event-stream; charset=utf-8"
            assert stream.text == f"retry: {stream.reconnection_time}\n\n"
            times.add(stream.reconnection_time)
    assert all(time is not None and 10_000 <= time <= 20_000 for time in times)
    assert len(times) > 1
    assert "Clients are refused and told to come back: store away" in caplog.text
    assert "The store is down." in caplog.text


class SoonDownStore(DownStore):
    """A store that is down from the second question on."""

    answers = 1


# Without the ASGI wrapper


async def test_a_stream_that_stays_in_its_request_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for _ in range(2):
        async with open_stream(news) as stream:
            await apublish("news", "hi")
            await stream.next_event()
    [record] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "wrap the project's ASGI application" in record.message


async def test_a_client_that_leaves_takes_its_stream_with_it() -> None:
    async with open_stream(news) as leaving, open_stream(news) as staying:
        assert open_streams() == 2
        await leaving.close()
        assert open_streams() == 1
        await apublish("news", "hi")
        assert (await staying.next_event()).data == "hi"


async def test_a_client_that_leaves_while_the_state_is_read_takes_its_stream_with_it() -> None:
    reads = asyncio.Event()
    closed = asyncio.Event()

    class Endless(EventStreamView):
        groups = ["news"]

        async def initial_events(self) -> AsyncGenerator[Event, None]:
            try:
                yield Event("first")
                reads.set()
                await asyncio.Event().wait()
            finally:
                closed.set()

    async with open_stream(Endless.as_view()) as stream:
        await reads.wait()
        assert open_streams() == 1
        await stream.close()
        assert open_streams() == 0
        assert closed.is_set()
