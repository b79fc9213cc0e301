"""Streams in one process: what is published reaches each of them, once and in order."""

import asyncio
import gc
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from channels.layers import InMemoryChannelLayer, get_channel_layer
from django.test import override_settings

from django_sse import (
    Event,
    acancel,
    aposition,
    apublish,
    apublish_many,
    cancel,
    publish,
)
from django_sse.access.owners import Owner, user_key
from django_sse.doorbells.layer import doorbell_group
from django_sse.groups.entries import Entry, GroupState, Hint, Kind, NewEntry, closing_wire
from django_sse.groups.position import parse_position
from django_sse.groups.producer_tokens import HANDED_OVER
from django_sse.stores import get_store
from django_sse.stores.database import DatabaseStore
from django_sse.stores.memory import MemoryStore
from django_sse.streaming import hub
from django_sse.streaming.fan_out import STREAMS_A_TURN
from django_sse.streaming.hub import current_hub, open_streams
from django_sse.streaming.stream import Stream
from django_sse.streaming.subscription import Subscription
from django_sse.testing.threads import in_thread
from django_sse.views import EventStreamView
from tests.clients import AsyncClients, Client, connected
from tests.layers import layer
from tests.queries import queries_for_events
from tests.streams import get, reading, until

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("everything_ends")]

BURST = 1000
STREAMS = 100
REOPEN = NewEntry("news", b"", Kind.REOPEN)


class FlakyLayer(InMemoryChannelLayer):  # type: ignore[misc]
    """Drops every second message. Being a subclass, it is taken for one that crosses processes."""

    sent = itertools.count()

    async def group_send(self, group: str, message: dict[str, Any]) -> None:
        if next(self.sent) % 2:
            await super().group_send(group, message)


class SmallLayer(InMemoryChannelLayer):  # type: ignore[misc]
    """Holds one message a channel, and silently drops what comes on top."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "capacity": 1})


@pytest.mark.parametrize(
    ("channel_layers", "directly"),
    [
        pytest.param(layer("channels.layers.InMemoryChannelLayer"), True, id="directly"),
        pytest.param(
            layer("tests.streaming.test_hub.SmallLayer"), False, id="layer of one message"
        ),
        pytest.param(
            layer("tests.streaming.test_hub.FlakyLayer"), False, id="layer that drops every second"
        ),
        pytest.param({}, False, id="store alone"),
    ],
)
async def test_a_burst_arrives_complete_and_in_order_at_every_stream(
    channel_layers: dict[str, Any], directly: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not directly:
        monkeypatch.setattr("django_sse.doorbells.base.ring_here", lambda hints: None)

    def burst() -> None:
        for n in range(BURST):
            publish("news", str(n))

    conf = {"SYNC_INTERVAL": 0.1}
    with override_settings(CHANNEL_LAYERS=channel_layers, DJANGO_SSE=conf):
        async with AsyncClients(STREAMS, "news") as clients:
            await in_thread(burst)
            for client in clients:
                assert await client.until_events(BURST) == [str(n) for n in range(BURST)]
            assert len({client.decoder.last_event_id for client in clients}) == 1


async def test_clients_that_join_and_leave_during_a_burst_miss_nothing() -> None:
    """A client that is cut off again and again, resuming by its last id."""
    seen: list[str] = []

    def burst() -> None:
        for n in range(300):
            publish("news", str(n))

    start = await aposition("news")
    async with connected("news") as steady:
        publishing = asyncio.create_task(in_thread(burst))
        last_id = start
        while len(seen) < 300:
            async with connected("news", after=last_id) as client:
                await client.until_events(1)
            seen += client.data
            last_id = client.decoder.last_event_id
        await publishing
        assert seen == [str(n) for n in range(300)]
        assert await steady.until_events(300) == seen


async def test_what_another_process_wrote_is_found_in_the_store(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with connected("news") as client:
        await apublish("news", "known")
        await client.until_events(1)
        monkeypatch.setattr("django_sse.doorbells.base.ring_here", lambda hints: None)
        await apublish("news", "found")
        assert await client.until_events(2) == ["known", "found"]


async def test_memberships_are_renewed() -> None:
    """The in-memory layer evicts a channel for one expired message; the sweep enters it again."""
    channel_layer = get_channel_layer()
    assert channel_layer is not None
    async with connected("news") as client:
        hub = current_hub()
        layer_channel = hub._subscriptions["news"].layer_channel
        assert layer_channel
        channel_layer.groups.clear()
        layer_channel._groups["news"] = float("-inf")
        await hub.renew_memberships()
        await channel_layer.group_send("news", {"type": "sse.event", "data": "heard"})
        assert await client.until_events(1) == ["heard"]


async def test_the_last_stream_out_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    channel_layer = get_channel_layer()
    assert channel_layer is not None
    closed = asyncio.Event()
    aclose = DatabaseStore.aclose

    async def close(store: DatabaseStore) -> None:
        await aclose(store)
        closed.set()

    monkeypatch.setattr(DatabaseStore, "aclose", close)
    tasks = asyncio.all_tasks()
    async with AsyncClients(3, "a", "b"):
        await apublish("a", "x")
        assert not closed.is_set()
    await asyncio.wait_for(closed.wait(), 10)
    async with asyncio.timeout(10):
        while asyncio.all_tasks() - tasks or channel_layer.groups:
            await asyncio.sleep(0.01)


async def test_a_hub_whose_last_stream_ends_at_a_tick_does_not_tick_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Stream, "tick", lambda self, *_: self.end("over"))
    monkeypatch.setattr("django_sse.streaming.hub._TICK_SECONDS", 0.01)
    hub = current_hub()
    async with connected("news") as client:
        assert await client.stream.ended == "over"
    assert hub._ticking
    assert hub._ticking.cancelled()


async def test_a_stream_is_looked_at_only_when_it_may_have_something_due(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks = Counter[Stream]()
    whole = Stream.tick

    def tick(self: Stream, *args: float) -> float:
        looks[self] += 1
        return whole(self, *args)

    monkeypatch.setattr(Stream, "tick", tick)
    monkeypatch.setattr("django_sse.streaming.hub._TICK_SECONDS", 0.01)
    async with connected("news", heartbeat=3600) as silent, connected("news") as other:
        async with connected("news", heartbeat=0.01) as beating:
            await beating.until(lambda: beating.chunks.count(b":\n\n") >= 10)
        # Once as it begins.
        assert looks[silent.stream] <= 1
        assert looks[other.stream] <= 1


async def test_other_tasks_run_while_many_streams_have_something_due(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks: list[Stream] = []
    most = 0

    async def count_between_turns() -> None:
        nonlocal most
        while True:
            most = max(most, len(looks))
            looks.clear()
            await asyncio.sleep(0)

    def tick(self: Stream, now: float, send_timeout: float) -> float:
        looks.append(self)
        seen.add(self)
        return now

    seen: set[Stream] = set()
    monkeypatch.setattr("django_sse.streaming.hub._TICK_SECONDS", 0.05)
    monkeypatch.setattr(Stream, "tick", tick)
    async with AsyncClients(3 * STREAMS_A_TURN, "news"):
        looks.clear()
        seen.clear()
        counting = asyncio.create_task(count_between_turns())
        await until(lambda: len(seen) == 3 * STREAMS_A_TURN)
        counting.cancel()
    # A tick may come in the middle of what another one has left.
    assert 0 < most <= 2 * STREAMS_A_TURN


async def test_publishing_from_a_thread_wakes_the_loop_of_the_stream() -> None:
    async with connected("news") as client:
        await in_thread(lambda: publish("news", "from a thread"))
        assert await client.until_events(1) == ["from a thread"]
        await in_thread(lambda: cancel("news"))
        assert await client.stream.ended == "cancelled"


class HangingLayer(InMemoryChannelLayer):  # type: ignore[misc]
    """Never answers, as a half-open connection would not."""

    async def group_add(self, group: str, channel: str) -> None:
        await asyncio.Event().wait()

    async def group_discard(self, group: str, channel: str) -> None:
        await asyncio.Event().wait()

    async def group_send(self, group: str, message: dict[str, Any]) -> None:
        await asyncio.Event().wait()


async def test_a_layer_that_hangs_holds_nothing_up_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("django_sse.doorbells.layer_channel.LAYER_SECONDS", 0.2)
    monkeypatch.setattr("django_sse.doorbells.layer.LAYER_SECONDS", 0.2)
    monkeypatch.setattr("django_sse.doorbells.base.ring_here", lambda hints: None)
    with override_settings(
        CHANNEL_LAYERS=layer("tests.streaming.test_hub.HangingLayer"),
        DJANGO_SSE={"SYNC_INTERVAL": 0.1},
    ):
        async with connected("news") as client:
            await apublish("news", "by the store")
            assert await client.until_events(1) == ["by the store"]


async def test_a_store_that_failed_once_serves_those_who_come_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    position = parse_position(await aposition("news"), ["news"])

    async def fail(store: DatabaseStore, groups: Sequence[str]) -> dict[str, GroupState]:
        raise OSError("The store is down.")

    monkeypatch.setattr(DatabaseStore, "astates", fail)
    unlucky = Stream(current_hub(), position)
    with pytest.raises(OSError, match="down"):
        await unlucky.open()
    monkeypatch.undo()
    # The first one has not gone yet: its client still takes the `retry` that sends it back.
    async with connected("news") as client:
        await apublish("news", "served")
        assert await client.until_events(1) == ["served"]
    unlucky.end("sent back")


@override_settings(DJANGO_SSE={"SYNC_INTERVAL": 3600})
async def test_what_a_sync_costs_does_not_grow_with_the_groups_that_are_followed() -> None:
    streams = [
        Stream(current_hub(), {f"group{number}": 0}, wants_messages=False)
        for number in range(10_000)
    ]
    with queries_for_events() as queries:
        await asyncio.gather(*(stream.open() for stream in streams))
    # Those that come together are read together.
    assert len(queries) <= 30
    hub = current_hub()
    cursor = await hub._compare_with_store(None)
    with queries_for_events() as queries:
        cursor = await hub._compare_with_store(cursor)
        await in_thread(lambda: publish("elsewhere", "not followed"))
        await hub._compare_with_store(cursor)
    assert len([query for query in queries if not query.startswith("INSERT")]) <= 20, queries
    for stream in streams:
        stream.end("test is over")


async def test_a_stream_that_was_made_for_a_hub_that_has_ended_is_counted_by_the_next_one() -> None:
    async with connected("news") as last:
        waiting = Stream(current_hub(), {"news": 0})
        last.stream.end("left")
        async with connected("news"):
            await waiting.open()
            assert open_streams() == 2
            waiting.end("test is over")
            assert open_streams() == 1


async def test_newcomers_of_one_moment_are_not_sent_the_past() -> None:
    await apublish_many(("news", str(n)) for n in range(3))
    view = EventStreamView.as_view(groups=["news"])
    responses = await asyncio.gather(*(view(get()) for _ in range(3)))
    async with AsyncExitStack() as stack:
        readers = [await stack.enter_async_context(reading(response)) for response in responses]
        for reader in readers:
            await reader.opened()
        await apublish("news", "new")
        for reader in readers:
            assert (await reader.next_event()).data == "new"


@pytest.fixture
def slow_store(monkeypatch: pytest.MonkeyPatch) -> tuple[asyncio.Event, asyncio.Event]:
    """Events that say when the store is asked for states, and let it answer. At first it may."""
    asked, answers = asyncio.Event(), asyncio.Event()
    answers.set()
    astates = DatabaseStore.astates

    async def wait(store: DatabaseStore, groups: Sequence[str]) -> dict[str, GroupState]:
        asked.set()
        await answers.wait()
        return await astates(store, groups)

    monkeypatch.setattr(DatabaseStore, "astates", wait)
    return asked, answers


async def test_who_comes_while_a_group_is_opened_is_not_sent_the_past(
    slow_store: tuple[asyncio.Event, asyncio.Event],
) -> None:
    await apublish_many(("news", str(n)) for n in range(3))
    asked, answers = slow_store
    start = parse_position(await aposition("news"), ["news"])
    asked.clear()
    answers.clear()
    first = Stream(current_hub(), start)
    opening = asyncio.create_task(first.open())
    await asked.wait()
    answering = asyncio.create_task(EventStreamView.as_view(groups=["news"])(get()))
    # Memory does not know yet where the group stands, so the view asks the store, too.
    await until(lambda: current_hub()._reader._states._next)
    answers.set()
    await opening
    async with reading(await answering) as second:
        await second.opened()
        await apublish("news", "new")
        assert (await second.next_event()).data == "new"
    first.end("test is over")


async def test_who_leaves_while_a_group_is_opened_takes_it_from_nobody(
    slow_store: tuple[asyncio.Event, asyncio.Event],
) -> None:
    await apublish("news", "before")
    asked, answers = slow_store
    start = parse_position(await aposition("news"), ["news"])
    asked.clear()
    answers.clear()
    leaves, stays = Stream(current_hub(), start), Stream(current_hub(), start)
    client = Client(stays)
    leaving = asyncio.create_task(leaves.open())
    staying = asyncio.create_task(stays.open())
    await asked.wait()
    leaving.cancel()
    await asyncio.wait([leaving])
    leaves.end("disconnected")
    answers.set()
    await staying
    stays.serve(client.send)
    await apublish("news", "after")
    assert await client.until_events(1) == ["after"]
    stays.end("test is over")


@pytest.mark.parametrize("count", [1, 5])
async def test_a_sweep_finds_what_nothing_else_has_told(
    monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """Of every group and owner, also where there are more than it asks for at a time."""

    async def tell_nothing(
        store: DatabaseStore, cursor: Any, groups: Any
    ) -> tuple[list[Hint], None]:
        return [], None

    monkeypatch.setattr("django_sse.streaming.hub._SWEEP_GROUPS", 2)
    monkeypatch.setattr("django_sse.streaming.hub._SWEEP_SECONDS", 0.05)
    monkeypatch.setattr("django_sse.doorbells.base.ring_here", lambda hints: None)
    monkeypatch.setattr(DatabaseStore, "achanged", tell_nothing)
    with override_settings(DJANGO_SSE={"SYNC_INTERVAL": 0.05}):
        async with AsyncExitStack() as stack:
            clients = [
                await stack.enter_async_context(
                    connected(f"group{n}", owner=Owner({user_key(n): None}, user_key(n)))
                )
                for n in range(count)
            ]
            await apublish_many((f"group{n}", "found") for n in range(count))
            for client in clients:
                assert await client.until_events(1) == ["found"]
            for n in range(count):
                await acancel(user=n)
            for client in clients:
                await client.until(client.stream.ended.done)


async def test_a_hub_that_cannot_compare_itself_says_so_once_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tried = 0

    async def fail(store: DatabaseStore, cursor: Any, groups: Any) -> Any:
        nonlocal tried
        tried += 1
        raise OSError("The store is down.")

    with override_settings(DJANGO_SSE={"SYNC_INTERVAL": 0.02}):
        async with connected("news") as client:
            with monkeypatch.context() as down:
                down.setattr(DatabaseStore, "achanged", fail)
                down.setattr("django_sse.doorbells.base.ring_here", lambda hints: None)
                # A comparison that began before may still find what is published now.
                await until(lambda: tried)
                await apublish("news", "unheard")
                await until(lambda: tried > 3)
                assert not client.events
            assert await client.until_events(1) == ["unheard"]
    assert caplog.text.count("The hub cannot compare itself") == 1


@pytest.fixture
def by_a_layer_alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Another process publishes, and only the layer tells of it."""
    monkeypatch.setattr("django_sse.doorbells.base.ring_here", lambda hints: None)
    with override_settings(
        CHANNEL_LAYERS=layer("tests.layers.OwnInMemoryLayer"), DJANGO_SSE={"SYNC_INTERVAL": 3600}
    ):
        yield


@pytest.mark.usefixtures("by_a_layer_alone")
async def test_a_kick_of_another_process_is_heard_by_the_layer() -> None:
    owner = Owner({user_key(7): None}, user_key(7))
    async with connected("news", owner=owner) as kicked, connected("news") as other:
        await acancel(user=7, reason="over")
        await kicked.until(kicked.stream.ended.done)
        assert kicked.events[-1].json() == {"reason": "over"}
        await apublish("news", "goes on")
        assert await other.until_events(1) == ["goes on"]


@pytest.mark.usefixtures("by_a_layer_alone")
async def test_a_group_that_was_left_is_left_on_the_layer() -> None:
    channel_layer: Any = get_channel_layer()
    async with connected("news"):
        async with connected("sport"):
            assert doorbell_group("sport") in channel_layer.groups
        await until(lambda: doorbell_group("sport") not in channel_layer.groups)
        await until(lambda: "sport" not in channel_layer.groups)
        assert doorbell_group("news") in channel_layer.groups


@pytest.mark.usefixtures("synced_rarely")
async def test_hints_that_have_piled_up_let_other_tasks_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hub, "_HEARING_SECONDS", 0.0)
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    hints: list[Hint] = []
    events = [NewEntry("news", Event(n).encode()) for n in range(1, BURST)]
    async with connected("news") as client:
        await apublish("news", 0)
        await client.until_events(1)
        await sync_to_async(get_store().append)(events, hints.extend)
        counting = asyncio.create_task(count_turns())
        for entry in hints[0].entries:
            current_hub().hear_soon([Hint("news", entry.number, False, (entry,))])
        assert await client.until_events(BURST) == [str(n) for n in range(BURST)]
        counting.cancel()
    assert turns >= BURST / 2


@pytest.mark.usefixtures("synced_rarely")
async def test_a_hint_that_waits_to_be_read_is_not_taken_for_a_lost_one() -> None:
    """Each of many groups would read the store, and be counted as one without doorbells."""
    hints: list[Hint] = []
    async with connected("news") as client:
        await apublish("news", "first")
        await client.until_events(1)
        entry = NewEntry("news", Event("second").encode())
        await sync_to_async(get_store().append)([entry], hints.extend)
        present = current_hub()
        # Read in the next turn.
        present.hear_soon(hints)
        subscription = present._subscriptions["news"]
        before = subscription._healing
        told = hints[0]._replace(entries=())
        present._compare_group(subscription, told, present._unread())
        assert subscription._healing is before
        assert await client.until_events(2) == ["first", "second"]


@pytest.mark.usefixtures("synced_rarely")
async def test_a_producer_is_heard_of_though_its_hint_waits_to_be_read() -> None:
    """No hint tells of it, so that clients would not start the next one."""
    async with connected("news", restarts=True) as client:
        published = await apublish("news", "known")
        assert published.number
        await client.until_events(1)
        present = current_hub()
        hint = Hint("news", published.number, False)
        # Read in the next turn.
        present.hear_soon([hint])
        subscription = present._subscriptions["news"]
        handed_over = hint._replace(producer=HANDED_OVER)
        present._compare_group(subscription, handed_over, present._unread())
        await until(lambda: client.stream.ended.done())
        assert client.stream.ended.result() == "handed over"


@pytest.mark.usefixtures("synced_rarely")
async def test_an_old_answer_of_the_store_fetches_nothing_that_nobody_has_announced() -> None:
    """It may be from after a kick that this hub has not heard of, either."""
    hints: list[Hint] = []
    async with connected("news") as client:
        known = await apublish("news", "known")
        assert known.number
        await client.until_events(1)
        entry = NewEntry("news", Event("unannounced").encode())
        await sync_to_async(get_store().append)([entry], hints.extend)
        subscription = current_hub()._subscriptions["news"]
        subscription.compare(Hint("news", known.number - 1, cancelled=False))
        assert subscription._healing
        await asyncio.wait([subscription._healing])
        for _ in range(10):
            await asyncio.sleep(0)
        assert client.data == ["known"]
        current_hub().hear_soon(hints)
        assert await client.until_events(2) == ["known", "unannounced"]


async def cancelled(group: str) -> Subscription:
    """Cancel a group, and return its subscription once that knows."""
    await acancel(group)
    subscription = current_hub()._subscriptions[group]
    await until(lambda: subscription.cancelled)
    return subscription


@pytest.mark.usefixtures("synced_rarely")
async def test_a_reopen_whose_doorbell_was_lost_is_found_though_an_older_hint_waits() -> None:
    async with connected("news", "sport") as client:
        known = await apublish("news", "known")
        assert known.number
        await client.until_events(1)
        present = current_hub()
        subscription = await cancelled("news")
        await sync_to_async(get_store().append)([REOPEN], lambda hints: None)
        # Read in the next turn.
        present.hear_soon([Hint("news", subscription.head, cancelled=True)])
        told = Hint("news", subscription.head, cancelled=False)
        present._compare_group(subscription, told, present._unread())
        await until(lambda: not subscription.cancelled)


@pytest.mark.usefixtures("synced_rarely")
async def test_a_page_that_is_lost_and_for_which_nobody_waits_any_more_is_no_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failures: list[Any] = []
    may_answer = asyncio.Event()

    async def nothing(group: str, after: int, limit: int) -> list[Entry]:
        await may_answer.wait()
        return []

    asyncio.get_running_loop().set_exception_handler(lambda loop, context: failures.append(context))
    async with connected("news") as client:
        await apublish("news", "known")
        await client.until_events(1)
        subscription = current_hub()._subscriptions["news"]
        monkeypatch.setattr(subscription._reader, "page", nothing)
        reading = asyncio.create_task(subscription.read(1))
        await until(lambda: 1 in subscription._pages)
        reading.cancel()
        await asyncio.wait([reading])
        may_answer.set()
        await until(lambda: not subscription._pages)
    # asyncio says it of a task that is dropped.
    del reading
    gc.collect()
    assert not failures


@pytest.fixture
def hints_heard_one_by_one(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(hub, "_HEARING_SECONDS", 0.0)
    # Its answers take few turns of the loop, so they come before what still waits to be read.
    with override_settings(DJANGO_SSE={"STORE": "memory", "SYNC_INTERVAL": 3600}):
        yield


OWNER = Owner({user_key(7): None}, user_key(7))
KICK = NewEntry(user_key(7), closing_wire("over"), Kind.END)
AFTER_THE_KICK = NewEntry("news", Event("after the kick").encode())


async def unrung(*entries: NewEntry) -> list[Hint]:
    """Append entries, one after the other, and return the hints that nobody has heard."""
    hints: list[Hint] = []
    for entry in entries:
        await get_store().aappend([entry], hints.extend)
    return hints


@pytest.mark.usefixtures("hints_heard_one_by_one")
async def test_a_group_that_is_reopened_after_a_kick_sends_the_kicked_user_nothing_more() -> None:
    async with connected("news", "sport", owner=OWNER) as kicked:
        await apublish("news", "known")
        await kicked.until_events(1)
        present = current_hub()
        await cancelled("news")
        [reopened, *others] = await unrung(REOPEN, KICK, AFTER_THE_KICK)
        present.hear_soon([reopened])
        for _ in range(BURST):
            await asyncio.sleep(0)
        present.hear_soon(others)
        await kicked.until(kicked.stream.ended.done)
        assert kicked.data == ["known", '{"reason":"over"}']


@pytest.mark.usefixtures("hints_heard_one_by_one")
async def test_a_kick_is_heard_before_the_store_answers_however_much_waits() -> None:
    async with connected("news", owner=OWNER) as kicked:
        await apublish("news", "known")
        await kicked.until_events(1)
        present = current_hub()
        [kick, after] = await unrung(KICK, AFTER_THE_KICK)
        present.hear_soon([Hint("news", 1, cancelled=False)] * BURST)
        present.hear_soon([kick])
        # As if it had asked before, such as because a doorbell was lost.
        present._subscriptions["news"].heal(after.head)
        await kicked.until(kicked.stream.ended.done)
        assert kicked.data == ["known", '{"reason":"over"}']


@pytest.mark.usefixtures("hints_heard_one_by_one")
async def test_a_newcomer_brings_a_kicked_user_nothing_from_after_the_kick() -> None:
    """A group that somebody joins asks the store whether it is still cancelled."""
    async with connected("news", "sport", owner=OWNER) as kicked:
        await apublish("news", "known")
        await kicked.until_events(1)
        present = current_hub()
        await cancelled("news")
        hints = await unrung(REOPEN, KICK, AFTER_THE_KICK)
        async with connected("news", "sport"):
            assert not present._subscriptions["news"].cancelled
            for _ in range(BURST):
                await asyncio.sleep(0)
            present.hear_soon(hints)
            await kicked.until(kicked.stream.ended.done)
        assert kicked.data == ["known", '{"reason":"over"}']


@pytest.mark.usefixtures("hints_heard_one_by_one")
@pytest.mark.parametrize("heard", ["by a doorbell", "by a comparison"])
async def test_a_kick_that_cannot_be_looked_up_at_first_is_looked_up_again(
    heard: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until then, the kicked user gets nothing new."""
    ask, failed = MemoryStore.astates, asyncio.Event()

    async def fail_once(self: MemoryStore, groups: Sequence[str]) -> dict[str, GroupState]:
        if failed.is_set() or user_key(7) not in groups:
            return await ask(self, groups)
        failed.set()
        raise OSError

    async with connected("news", owner=OWNER) as kicked, connected("news") as other:
        await apublish("news", "known")
        await kicked.until_events(1)
        hints = await unrung(KICK, AFTER_THE_KICK)
        monkeypatch.setattr(MemoryStore, "astates", fail_once)
        for module in ("rechecks", "stream"):
            monkeypatch.setattr(f"django_sse.streaming.{module}.OWNER_CHECK_SECONDS", 30)
        monkeypatch.setattr("django_sse.streaming.rechecks._LOOK_UP_AGAIN_SECONDS", 0.01)
        if heard == "by a doorbell":
            current_hub().hear_soon(hints)
        else:
            current_hub().compare_soon()
        await kicked.until(kicked.stream.ended.done)
        assert failed.is_set()
        assert kicked.data == ["known", '{"reason":"over"}']
        assert await other.until_events(2) == ["known", "after the kick"]


@pytest.mark.usefixtures("hints_heard_one_by_one")
async def test_a_failed_read_is_repeated_for_what_was_announced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What comes later may be from after a kick that this hub has not heard of, either."""
    read, failed = MemoryStore.aread, asyncio.Event()

    async def fail_once(self: MemoryStore, group: str, after: int, limit: int) -> list[Entry]:
        if failed.is_set():
            return await read(self, group, after, limit)
        failed.set()
        raise OSError

    monkeypatch.setattr("django_sse.streaming.subscription._PAUSE_SECONDS", 0.01)
    async with connected("news") as client:
        await apublish("news", "known")
        await client.until_events(1)
        [announced, later] = await unrung(
            NewEntry("news", Event("announced").encode()), NewEntry("news", Event("later").encode())
        )
        monkeypatch.setattr(MemoryStore, "aread", fail_once)
        present = current_hub()
        present.hear_soon([announced._replace(entries=())])
        assert await client.until_events(2) == ["known", "announced"]
        healing = present._subscriptions["news"]._healing
        assert healing
        await asyncio.wait([healing])
        for _ in range(BURST):
            await asyncio.sleep(0)
        assert client.data == ["known", "announced"]
        present.hear_soon([later])
        assert await client.until_events(3) == ["known", "announced", "later"]


@pytest.mark.usefixtures("hints_heard_one_by_one")
async def test_a_reopened_group_is_not_taken_for_a_cancelled_one() -> None:
    """With another group cancelled, its streams would end for good."""
    async with connected("news", "sport") as client:
        present = current_hub()
        subscription = await cancelled("news")
        [reopened, published] = await unrung(REOPEN, NewEntry("news", Event("new").encode()))
        present.hear_soon([reopened])
        await until(lambda: not subscription.cancelled)
        await cancelled("sport")
        present.hear_soon([published])
        await client.until(lambda: "new" in client.data)
        assert not client.stream.ended.done()


@pytest.mark.usefixtures("hints_heard_one_by_one")
async def test_a_reopen_during_the_question_whether_a_group_is_cancelled_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with connected("news", "sport"):
        present = current_hub()
        subscription = await cancelled("news")
        ask, asked, may_answer = subscription._reader.states, asyncio.Event(), asyncio.Event()

        async def answer_late(groups: Sequence[str]) -> dict[str, GroupState]:
            states = await ask(groups)
            asked.set()
            await may_answer.wait()
            return states

        monkeypatch.setattr(subscription._reader, "states", answer_late)
        # As somebody who joins does.
        subscription.recheck_cancelled()
        await asked.wait()
        present.hear_soon(await unrung(REOPEN))
        for _ in range(10):
            await asyncio.sleep(0)
        may_answer.set()
        assert subscription._healing
        await asyncio.wait([subscription._healing])
        assert not subscription.cancelled
