"""Views, in this process and without the ASGI wrapper: their streams stay in their requests."""

from collections.abc import Callable, Iterable, Sequence
from time import monotonic, time
from typing import Any
from urllib.parse import urlencode

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth import mixins as auth_mixins
from django.core.exceptions import ImproperlyConfigured, PermissionDenied
from django.http import Http404, HttpResponseRedirect
from django.http.response import HttpResponseBase
from django.test import AsyncClient
from django.urls import path
from pytest_django import Settings

from django_sse import Event, acancel, aposition, apublish
from django_sse.groups.entries import Entry, GroupState
from django_sse.groups.position import format_position, parse_position
from django_sse.stores import get_store
from django_sse.stores.memory import MemoryStore
from django_sse.streaming.hub import open_streams
from django_sse.views import EventStreamView
from tests.streams import (
    News,
    Requested,
    View,
    data,
    get,
    news,
    open_stream,
    publish_numbers,
    reading,
    requested,
    respond,
    until,
)


class Job(EventStreamView):
    groups = ["job-{pk}"]


pytestmark = [pytest.mark.urls(__name__), pytest.mark.usefixtures("memory_store")]

urlpatterns = [
    path("news/", news),
    path("jobs/<int:pk>/", Job.as_view()),
    path("rooms/<str:room>/<str:user>/", EventStreamView.as_view(groups=["{room}-{user}"])),
]


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


def test_a_view_without_groups_is_refused_before_a_client_comes() -> None:
    wanted = r"no group for EventStreamView .* `groups = .*, or write `async def get_groups"
    with pytest.raises(ImproperlyConfigured, match=wanted):
        EventStreamView.as_view(groups=[])
    with pytest.raises(ImproperlyConfigured, match=wanted):
        EventStreamView.as_view()


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        ("news!", r"'news!' cannot work: .* 1 to 99 ASCII letters"),
        ("", "'' cannot work"),
        ("room/{pk}", r"'room/\{pk\}' cannot work: 'room/' is not a group name"),
        ("x" * 99 + "é-{pk}", "cannot work"),
        ("room-{pk", "is broken"),
        ("{a}{b}", "nothing between them"),
        (7, "Groups are text, not int: 7"),
        (None, "Groups are text, not NoneType"),
    ],
)
def test_a_pattern_that_can_make_no_group_is_refused_before_a_client_comes(
    pattern: Any, told: str
) -> None:
    with pytest.raises(ImproperlyConfigured, match=told):
        EventStreamView.as_view(groups=["news", pattern])


@pytest.mark.parametrize(
    "mixin",
    [
        auth_mixins.LoginRequiredMixin,
        auth_mixins.PermissionRequiredMixin,
        auth_mixins.UserPassesTestMixin,
    ],
)
def test_djangos_access_mixins_are_refused_when_the_class_is_made(mixin: type) -> None:
    inherited = type("Inherited", (mixin,), {})
    name = mixin.__name__
    for bases in ((mixin, News), (News, mixin), (inherited, EventStreamView)):
        with pytest.raises(
            ImproperlyConfigured,
            match=rf"Inbox has {name} of django.contrib.auth.mixins, .*Import {name} from django_",
        ):
            type("Inbox", bases, {})


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


async def later() -> Event:
    return Event("later")


@pytest.mark.parametrize(
    ("name", "method", "wanted"),
    [
        ("filter_event", later, "`def filter_event"),
        ("filter_event", sync_to_async(lambda self, event: event), "`def filter_event"),
        ("initial_events", later, "`async def initial_events\\(self\\)` with `yield`"),
        ("initial_events", lambda self: (yield Event("x")), "`async def initial_events"),
        ("get_groups", lambda self: ["news"], "`async def get_groups"),
        ("authorize", lambda self, groups: None, "`async def authorize\\(self, groups\\)`"),
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
    settings.DJANGO_SSE = {"STORE": "memory", "RETRY": 1000, "HISTORY_SIZE": 10}
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
    settings.DJANGO_SSE = {"STORE": "memory", "RETRY": 1000}
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


async def test_a_new_visitor_of_a_cancelled_group_is_answered_204() -> None:
    await publish_numbers("news", 1)
    await acancel("news")
    answer = await respond(news)
    assert (answer.status_code, answer.content) == (204, b"")
    assert answer["Cache-Control"] == "no-store"
    assert "Content-Type" not in answer or "event-stream" not in answer["Content-Type"]


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
