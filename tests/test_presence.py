"""Who is present in a group: what a project asks, and the events that say who comes and goes."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import date
from typing import Any
from uuid import UUID

import pytest
from django.core.exceptions import ImproperlyConfigured
from pytest_django import Settings

from django_sse import Event, acancel, aposition, apublish, areopen
from django_sse.conf import conf
from django_sse.exceptions import InvalidEvent, PartlyPublished
from django_sse.groups.entries import Kind
from django_sse.presence import acount, apresent, count, present
from django_sse.stores import get_store
from django_sse.streaming import presence
from django_sse.streaming.hub import current_hub
from django_sse.streaming.roster import log_of
from django_sse.testing.threads import in_thread
from django_sse.views import EventStreamView
from tests.attendants import Tab, go_on, kill, process, roster, until_there, until_without
from tests.streams import EventReader, get, news, open_stream, reading, until

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("everything_ends")]


@pytest.fixture(params=["memory", "database"], autouse=True)
def quick(request: pytest.FixtureRequest, settings: Settings) -> None:
    """Members leave soon, and processes are taken for dead soon."""
    settings.MIDDLEWARE = []
    settings.DJANGO_SSE = {"STORE": request.param, "PRESENCE_GRACE": 0.2, "PRODUCER_TTL": 1.2}


class Room(EventStreamView):
    groups = ["room"]
    presence = True

    async def get_owner(self) -> Any:
        return self.request.GET.get("user")


class NamedRoom(Room):
    async def get_member(self) -> Any:
        user = await self.get_owner()
        return None if user == "spy" else {"name": user.title()}


room = Room.as_view()
named_room = NamedRoom.as_view()


@asynccontextmanager
async def following(user: str, view: Any = room) -> AsyncIterator[EventReader]:
    async with reading(await view(get(f"/?user={user}" if user else "/"))) as reader:
        yield reader


async def users() -> list[str]:
    return [member.user for member in await apresent("room")]


async def until_present(*expected: str) -> None:
    async with asyncio.timeout(10):
        while set(await users()) != set(expected):
            await asyncio.sleep(0.01)


async def until_count(expected: int) -> None:
    async with asyncio.timeout(10):
        while await acount("room") != expected:
            await asyncio.sleep(0.01)


async def told(start: str) -> list[tuple[Any, ...]]:
    """Who came and went since a position, and how many were there then."""
    await apublish("room", "end")
    async with open_stream(news_of_room, last_event_id=start) as reader:
        events = (await reader.until("end"))[:-1]
    return [said(event) for event in events]


def said(event: Event) -> tuple[Any, ...]:
    data = json.loads(event.data)
    return event.event, data["member"], data["count"]


class NewsOfRoom(EventStreamView):
    groups = ["room"]


news_of_room = NewsOfRoom.as_view()


# Who is present


async def test_who_streams_a_group_is_present_and_a_second_tab_is_the_same_member() -> None:
    assert await apresent("room") == []
    async with following("ada"), following("ada"), following("bob"):
        await until_present("ada", "bob")
        await until_count(2)
        async with asyncio.timeout(10):
            while [member.streams for member in await apresent("room")] not in ([2, 1], [1, 2]):
                await asyncio.sleep(0.01)
    await until_present()
    assert await acount("room") == 0


async def test_present_says_since_when_and_what_the_view_tells() -> None:
    async with following("ada", named_room):
        await until_present("ada")
        [ada] = await apresent("room")
        async with following("bob", named_room):
            await until_present("ada", "bob")
            members = await apresent("room")
    assert [member.info for member in members] == [{"name": "Ada"}, {"name": "Bob"}]
    assert members[0].since == ada.since <= members[1].since
    assert abs(ada.since - (await get_store_time())) < 60


async def get_store_time() -> float:
    return await in_thread(get_store().clock.time)


async def test_streams_without_an_owner_are_counted_and_nobody_is_named() -> None:
    start = await aposition("room")
    async with following(""), following("", named_room), following("spy", named_room):
        await until_count(3)
        assert await users() == []
        async with following("ada"):
            await until_count(4)
    await until_count(0)
    assert await told(start) == [("join", "ada", 4), ("leave", "ada", 0)] or (await told(start))[
        0
    ] == ("join", "ada", 4)


async def test_synchronous_code_can_ask_too() -> None:
    async with following("ada"):
        await until_present("ada")
        assert [member.user for member in await in_thread(lambda: present("room"))] == ["ada"]
        assert await in_thread(lambda: count("room")) == 1


async def test_nothing_is_written_for_views_that_do_not_ask() -> None:
    async with open_stream(news):
        await apublish("news", "hi")
        assert not presence._attendants.get(asyncio.get_running_loop())
    state = (await get_store().astates([log_of("news")]))[log_of("news")]
    assert state.head == state.origin


# Who comes and goes


async def test_members_join_and_leave_once_however_many_tabs_they_have() -> None:
    start = await aposition("room")
    async with following("ada") as reader:
        assert said(await reader.next_event()) == ("join", "ada", 1)
        async with following("ada"):
            async with following("bob"):
                assert said(await reader.next_event()) == ("join", "bob", 2)
            assert said(await reader.next_event()) == ("leave", "bob", 1)
    await until_present()
    assert await told(start) == [
        ("join", "ada", 1),
        ("join", "bob", 2),
        ("leave", "bob", 1),
        ("leave", "ada", 0),
    ]


async def test_a_reload_is_neither_a_leave_nor_a_join(monkeypatch: pytest.MonkeyPatch) -> None:
    start = await aposition("room")
    patient, impatient = replace(conf(), PRESENCE_GRACE=60), replace(conf(), PRESENCE_GRACE=0)
    monkeypatch.setattr(presence, "conf", lambda: patient)
    for _ in range(3):
        async with following("ada"):
            await until_present("ada")
    assert [member.streams for member in await apresent("room")] == [1]
    monkeypatch.setattr(presence, "conf", lambda: impatient)
    async with following("ada"):
        pass
    await until_present()
    assert await told(start) == [("join", "ada", 1), ("leave", "ada", 0)]


async def test_a_cancelled_group_is_left_in_silence_and_spoken_of_once_it_is_reopened() -> None:
    async with following("ada") as reader:
        await until_present("ada")
        await acancel("room")
        await reader.rest()
    await until_present()
    await areopen("room")
    async with following("bob") as reader:
        assert said((await reader.until('{"member":"bob","count":1}'))[-1])[0] == "join"


# Several processes


async def test_racing_joins_and_leaves_of_one_member_in_two_processes_are_told_once() -> None:
    start = await aposition("room")
    first, second = process(get_store()), process(get_store())
    stays = Tab("bob")
    first.enter(stays)
    await until_present("bob")
    for _ in range(5):
        tabs = [Tab("ada") for _ in range(10)]
        for number, tab in enumerate(tabs):
            (first, second)[number % 2].enter(tab)
            if number % 3 == 0:
                await asyncio.sleep(0.01)
        await until_present("ada", "bob")
        for number, tab in enumerate(tabs):
            (first, second)[number % 2].leave(tab)
        await until_present("bob")
    first.leave(stays)
    await first.idle()
    await second.idle()
    assert await told(start) == [
        ("join", "bob", 1),
        *[("join", "ada", 2), ("leave", "ada", 1)] * 5,
        ("leave", "bob", 0),
    ]


async def test_a_member_who_comes_back_in_another_process_has_not_left(
    settings: Settings,
) -> None:
    settings.DJANGO_SSE = {**settings.DJANGO_SSE, "PRESENCE_GRACE": 2}
    start = await aposition("room")
    first, second = process(get_store()), process(get_store())
    tab, moved = Tab("ada"), Tab("ada")
    first.enter(tab)
    await until_present("ada")
    since = (await apresent("room"))[0].since
    first.leave(tab)
    second.enter(moved)
    await first.idle()
    [ada] = await apresent("room")
    assert (ada.streams, ada.since) == (1, since)
    second.leave(moved)
    await second.idle()
    assert await told(start) == [("join", "ada", 1), ("leave", "ada", 0)]


async def test_the_members_of_a_killed_process_leave_once_and_who_is_elsewhere_stays() -> None:
    start = await aposition("room")
    killed, *others = (process(get_store()) for _ in range(4))
    for user in ("ada", "bob", ""):
        killed.enter(Tab(user))
    tabs = [Tab("ada"), Tab("cyd"), Tab("dan")]
    for other, tab in zip(others, tabs, strict=True):
        other.enter(tab)
    await until_count(5)
    kill(killed)
    await until_present("ada", "cyd", "dan")
    # `present` leaves it out before its members have left.
    await until_without(get_store(), killed)
    for other, tab in zip(others, tabs, strict=True):
        other.leave(tab)
    for other in others:
        await other.idle()
    events = await told(start)
    assert Counter((event, member) for event, member, _ in events) == Counter(
        (event, member) for event in ("join", "leave") for member in ("ada", "bob", "cyd", "dan")
    )
    assert events[-1][-1] == 0


async def test_whoever_comes_after_a_killed_process_sees_its_members_leave() -> None:
    start = await aposition("room")
    killed, later = process(get_store()), process(get_store())
    killed.enter(Tab("ada"))
    await until_present("ada")
    kill(killed)
    tab = Tab("bob")
    later.enter(tab)
    await until_without(get_store(), killed)
    later.leave(tab)
    await later.idle()
    assert await told(start) == [
        ("join", "ada", 1),
        ("join", "bob", 2),
        ("leave", "ada", 1),
        ("leave", "bob", 0),
    ]


async def test_who_comes_back_long_after_all_processes_have_ended_joins_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    killed, later = process(get_store()), process(get_store())
    for user in ("ada", "bob", "cat"):
        killed.enter(Tab(user))
    await until_there(get_store(), "ada", "bob", "cat")
    kill(killed)
    # They come back long after PRODUCER_TTL.
    start = await aposition("room")
    clock = get_store().clock
    ahead = clock.time() + 60
    monkeypatch.setattr(clock, "time", lambda: ahead)
    tabs = [Tab("ada"), Tab("bob")]
    for tab in tabs:
        later.enter(tab)
    await until_without(get_store(), killed)
    await until_there(get_store(), "ada", "bob")
    for tab in tabs:
        later.leave(tab)
    await later.idle()
    names = [event for event, *_ in await told(start)]
    assert names == ["leave"] * 3 + ["join"] * 2 + ["leave"] * 2


async def test_a_process_that_was_taken_for_dead_says_again_who_is_there() -> None:
    start = await aposition("room")
    paused, other = process(get_store()), process(get_store())
    paused.enter(held := Tab("ada"))
    other.enter(tab := Tab("bob"))
    await until_present("ada", "bob")
    kill(paused)
    await until_without(get_store(), paused)
    go_on(paused)
    await until_present("ada", "bob")
    for attendants, left in ((paused, held), (other, tab)):
        attendants.leave(left)
        await attendants.idle()
    assert [(event, member) for event, member, _ in await told(start) if member == "ada"] == [
        ("join", "ada"),
        ("leave", "ada"),
        ("join", "ada"),
        ("leave", "ada"),
    ]


async def test_nothing_is_told_twice_though_answers_of_the_store_are_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(presence, "_PAUSE_SECONDS", 0.01)
    start = await aposition("room")
    store = get_store()
    append = store.aappend_apart
    calls = 0

    async def lose_answers(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        answer = await append(*args)
        if calls % 2:
            raise TimeoutError("The answer is lost.")
        return answer

    monkeypatch.setattr(store, "aappend_apart", lose_answers)
    first, second = process(get_store()), process(get_store())
    for _ in range(5):
        first.enter(one := Tab("ada"))
        second.enter(another := Tab("ada"))
        await until_present("ada")
        first.leave(one)
        second.leave(another)
        await until_present()
    await first.idle()
    await second.idle()
    assert await told(start) == [("join", "ada", 1), ("leave", "ada", 0)] * 5


async def test_members_stay_while_the_store_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "_PAUSE_SECONDS", 0.05)
    start = await aposition("room")
    first, second = process(get_store()), process(get_store())
    first.enter(ada := Tab("ada"))
    second.enter(bob := Tab("bob"))
    await until_present("ada", "bob")
    asked = 0

    async def fail(*args: Any) -> Any:
        nonlocal asked
        asked += 1
        raise ConnectionError("The store is away.")

    with monkeypatch.context() as away:
        away.setattr(get_store(), "aappend_apart", fail)
        # Longer than a process may be silent.
        await until(lambda: asked > 2 * 1.5 / 0.05)
        second.enter(cyd := Tab("cyd"))
    await until_present("ada", "bob", "cyd")
    for attendants, tab in ((first, ada), (second, bob), (second, cyd)):
        attendants.leave(tab)
    await first.idle()
    await second.idle()
    assert Counter(event[:2] for event in await told(start)) == Counter(
        (event, member) for event in ("join", "leave") for member in ("ada", "bob", "cyd")
    )


async def test_a_group_that_cannot_be_written_keeps_no_other_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = get_store()
    append = store.aappend_apart
    failures = [PartlyPublished(["one"], ["two"]), ConnectionError("Its server is away.")]

    async def fail_twice(entries: Any, ring: Any) -> Any:
        if failures and any(entry.kind is Kind.EXPECT for entry in entries):
            raise failures.pop(0)
        return await append(entries, ring)

    monkeypatch.setattr(store, "aappend_apart", fail_twice)
    attendants = process(store)
    tabs = [Tab("ada") for _ in range(3)]
    for number, tab in enumerate(tabs):
        tab.groups = (f"room-{number}",)
        attendants.enter(tab)
    async with asyncio.timeout(10):
        for number in range(3):
            while await acount(f"room-{number}") != 1:
                await asyncio.sleep(0.01)
    assert not failures
    for tab in tabs:
        attendants.leave(tab)
    await attendants.idle()


async def test_a_crowd_is_written_with_few_appends(monkeypatch: pytest.MonkeyPatch) -> None:
    store = get_store()
    append = store.aappend_apart
    calls = 0

    async def counted(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        return await append(*args)

    monkeypatch.setattr(store, "aappend_apart", counted)
    crowd = process(get_store())
    tabs = [Tab(f"user-{number}") for number in range(700)]
    for tab in tabs:
        crowd.enter(tab)
    await until_count(700)
    # Two for the members, and some to say that the process is alive.
    assert calls <= 2 + 30
    for tab in tabs:
        crowd.leave(tab)
    await crowd.idle()
    await until_count(0)


async def test_members_are_known_though_few_events_are_kept(settings: Settings) -> None:
    settings.DJANGO_SSE = {**settings.DJANGO_SSE, "HISTORY_SIZE": 4}
    first, second = process(get_store()), process(get_store())
    first.enter(stays := Tab("bob"))
    await until_present("bob")
    for number in range(8):
        second.enter(tab := Tab(f"user-{number}"))
        await until_present("bob", f"user-{number}")
        second.leave(tab)
        await until_present("bob")
    first.leave(stays)
    await first.idle()
    await second.idle()
    assert await acount("room") == 0


async def test_who_is_present_is_said_again_before_it_is_too_old(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(presence, "refresh_seconds", lambda: 0.3)
    start = await aposition("room")
    first = process(get_store())
    first.enter(tab := Tab("ada"))
    await until_present("ada")
    before = (await roster(get_store())).told_at or 0.0
    async with asyncio.timeout(10):
        while ((await roster(get_store())).told_at or 0.0) <= before + 0.3:
            await asyncio.sleep(0.01)
    first.leave(tab)
    await first.idle()
    assert await told(start) == [("join", "ada", 1), ("leave", "ada", 0)]


# Mistakes


def test_presence_is_refused_where_the_store_would_forget_it(settings: Settings) -> None:
    settings.DJANGO_SSE = {"HISTORY_AGE": 30}
    with pytest.raises(ImproperlyConfigured, match=r"HISTORY_AGE.* at least 60 seconds, or 0"):
        Room.as_view()
    settings.DJANGO_SSE = {"HISTORY_AGE": 0}
    Room.as_view()


def test_presence_is_true_or_false() -> None:
    with pytest.raises(ImproperlyConfigured, match=r"presence must be True or False, not 'yes'"):
        Room.as_view(presence="yes")


async def test_a_member_of_whom_nothing_can_be_told_is_an_error_at_once() -> None:
    class Broken(Room):
        async def get_member(self) -> Any:
            return object()

    with pytest.raises(InvalidEvent):
        await Broken.as_view()(get("/?user=ada"))


async def test_what_is_told_of_a_member_may_be_anything_that_json_can_express() -> None:
    class Told(Room):
        async def get_member(self) -> Any:
            return {"id": UUID(int=7), "since": date(2026, 1, 2), "seats": (1, 2), 3: "floors"}

    async with following("ada", Told.as_view()):
        await until_present("ada")
        [member] = await apresent("room")
        assert member.info == {
            "id": "00000000-0000-0000-0000-000000000007",
            "since": "2026-01-02",
            "seats": [1, 2],
            "3": "floors",
        }
        # Nothing is left to write: it is not taken for another one than is kept.
        async with asyncio.timeout(10):
            await current_hub().attendants.written()
        head = (await get_store().astates([log_of("room")]))[log_of("room")].head
        async with following("bob", Told.as_view()):
            await until_present("ada", "bob")
            state = (await get_store().astates([log_of("room")]))[log_of("room")]
            assert state.head == head + 1


async def test_a_process_that_has_many_rooms_to_write_lets_others_run_in_between(
    monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    class Many(Room):
        groups = [f"room-{number}" for number in range(3 * presence._ROOMS)]

    turns = [0]

    async def take_turns() -> None:
        while True:
            turns[0] += 1
            await asyncio.sleep(0)

    async def note(attendants: presence.Attendants, rooms: Any) -> None:
        written_in.append(turns[0])
        await write(attendants, rooms)

    settings.DJANGO_SSE = {**settings.DJANGO_SSE, "MAX_GROUPS": 1000}
    write, written_in = presence.Attendants._write, list[int]()
    monkeypatch.setattr(presence.Attendants, "_write", note)
    others = asyncio.create_task(take_turns())
    async with following("ada", Many.as_view()), asyncio.timeout(10):
        await current_hub().attendants.written()
    others.cancel()
    assert len(written_in) > 1
    assert len(set(written_in)) == len(written_in)


async def test_an_encoder_of_the_project_does_not_change_who_is_present(settings: Settings) -> None:
    settings.DJANGO_SSE = {**settings.DJANGO_SSE, "ENCODER": "tests.test_presence.shouted"}
    async with following("ada_l"):
        await until_present("ada_l")
        async with asyncio.timeout(10):
            await current_hub().attendants.written()


def shouted(data: Any) -> str:
    return json.dumps(data).upper()


def test_a_view_whose_members_need_the_request_is_not_resumed_without_it() -> None:
    class Resumed(EventStreamView):
        groups = ["room"]
        presence = True
        resume_seconds = 60

    class Named(Resumed):
        async def get_member(self) -> Any:
            return self.request.GET.get("name")

    Resumed.as_view()
    with pytest.raises(ImproperlyConfigured, match="`get_member`, which needs each request"):
        Named.as_view()
