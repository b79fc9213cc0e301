"""Streams in one process: what is published reaches each of them, once and in order."""

import asyncio
import itertools
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from typing import Any

import pytest
from channels.layers import InMemoryChannelLayer, get_channel_layer
from django.db import transaction
from django.test import override_settings

from django_sse import (
    Event,
    acancel,
    aposition,
    apublish,
    apublish_many,
    areopen,
    cancel,
    publish,
)
from django_sse.access.owners import Owner, user_key
from django_sse.doorbells.layer import doorbell_group, to_message
from django_sse.doorbells.layer_channel import LayerChannel
from django_sse.groups.entries import Entry, GroupState, Hint
from django_sse.groups.position import parse_position
from django_sse.models import EventGroup, StoredEvent
from django_sse.stores import get_store
from django_sse.stores.database import DatabaseStore
from django_sse.streaming.hub import current_hub, open_streams
from django_sse.streaming.stream import Stream
from django_sse.testing.threads import in_thread
from django_sse.views import EventStreamView
from tests.clients import AsyncClients, Client, connected
from tests.queries import queries_for_events
from tests.streams import get, reading, until

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("everything_ends")]

BURST = 1000
STREAMS = 100


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


def layer(path: str) -> dict[str, Any]:
    return {"default": {"BACKEND": path}}


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


@pytest.mark.parametrize("heads_above", [1, 10**15], ids=["next", "far above"])
@override_settings(CHANNEL_LAYERS=layer("tests.layers.OwnInMemoryLayer"))
async def test_a_forged_doorbell_brings_nothing_and_loses_nothing(heads_above: int) -> None:
    first = await apublish("news", "first")
    before = (await get_store().astates(["news"]))["news"]
    forged = Entry(before.head + 1, b"id: mine\nevent: close\ndata: forged\n\n", closes=True)
    head = before.head + heads_above
    message = {
        **to_message(Hint("news", head, cancelled=True)),
        "entries": [[forged.number, forged.wire.decode(), True, ""]],
        "signature": "0" * 64,
    }
    async with connected("news") as client:
        await until(lambda: client.stream.subscriptions[0].joined.done())
        await get_channel_layer().group_send(doorbell_group("news"), message)
        await apublish("news", "second")
        assert await client.until_events(1) == ["second"]
        # Nor has it begun the group anew, as if the store had forgotten what it had.
        after = (await get_store().astates(["news"]))["news"]
        assert (after.first, after.oldest, after.head) == (
            before.first,
            before.oldest,
            before.head + 1,
        )
    async with connected("news", after=first.id) as client:
        assert await client.until_events(1) == ["second"]


async def test_a_flood_of_doorbells_about_an_owner_asks_the_store_a_few_times(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []
    astates = DatabaseStore.astates

    async def states_noted(store: DatabaseStore, groups: Sequence[str]) -> dict[str, GroupState]:
        asked.extend(groups)
        return await astates(store, groups)

    owner_key = user_key(7)
    async with connected("news", owner=Owner({owner_key: None}, owner_key)) as client:
        await apublish("news", "1")
        await client.until_events(1)
        monkeypatch.setattr(DatabaseStore, "astates", states_noted)
        for head in range(1000):
            current_hub().hear_soon([Hint(owner_key, head, cancelled=False)])
        await apublish("news", "2")
        await client.until_events(2)
        await until(lambda: owner_key in asked)
        assert asked.count(owner_key) < 10


@pytest.mark.parametrize(
    ("channel_layers", "directly", "store"),
    [
        pytest.param({}, True, "memory", id="directly, memory"),
        pytest.param({}, True, "database", id="directly, database"),
        pytest.param(layer("tests.layers.OwnInMemoryLayer"), False, "database", id="layer"),
        pytest.param({}, False, "database", id="store alone"),
    ],
)
async def test_what_is_published_after_a_kick_is_not_for_who_was_kicked(
    channel_layers: dict[str, Any], directly: bool, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not directly:
        monkeypatch.setattr("django_sse.doorbells.base.ring_here", lambda hints: None)
    owner = Owner({user_key(7): None, user_key(7, "room"): "room"}, user_key(7))
    interval = 3600 if channel_layers else 0.05

    def kick_in_a_transaction() -> None:
        with transaction.atomic():
            cancel("room", user=7)
            publish("room", "he is gone")

    async def kick() -> None:
        await acancel("room", user=7)
        await apublish("room", "he is gone")

    conf = {"STORE": store, "SYNC_INTERVAL": interval}
    with override_settings(CHANNEL_LAYERS=channel_layers, DJANGO_SSE=conf):
        for n in range(10):
            async with connected("room", owner=owner) as kicked, connected("room") as other:
                await apublish("room", "before")
                await kicked.until_events(1)
                await (kick() if n % 2 else in_thread(kick_in_a_transaction))
                assert await other.until_events(2) == ["before", "he is gone"]
                await kicked.until(kicked.stream.ended.done)
                assert [event.event for event in kicked.events] == [None, "close"]
            await areopen("room", user=7)


async def test_what_is_published_before_a_kick_is_sent_to_who_is_kicked() -> None:
    owner = Owner({user_key(7): None}, user_key(7))
    for _ in range(10):
        async with connected("room", owner=owner) as kicked:
            await apublish("room", "before")
            await kicked.until_events(1)
            await apublish("room", "you are out")
            await acancel(user=7)
            await kicked.until(kicked.stream.ended.done)
            assert kicked.data[:2] == ["before", "you are out"]
        await areopen(user=7)


async def test_a_flood_of_doorbells_about_an_owner_holds_no_stream_for_long() -> None:
    owner_key = user_key(7)
    async with connected("news", owner=Owner({owner_key: None}, owner_key)) as client:
        await apublish("news", "0")
        await client.until_events(1)
        flooding = asyncio.create_task(flood(owner_key))
        try:
            for n in range(1, 4):
                await apublish("news", str(n))
            assert await client.until_events(4) == ["0", "1", "2", "3"]
            assert not flooding.done()
        finally:
            flooding.cancel()
            await asyncio.wait([flooding])


async def test_a_flood_of_doorbells_about_an_owner_stops_no_replay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each read takes longer than the next doorbell."""
    aread = DatabaseStore.aread

    async def read_slowly(*args: Any) -> list[Entry]:
        await asyncio.sleep(0.03)
        return await aread(*args)

    monkeypatch.setattr(DatabaseStore, "aread", read_slowly)
    monkeypatch.setattr("django_sse.streaming.stream._OWNER_CHECK_SECONDS", 0.2)
    owner_key, start = user_key(7), await aposition("news")
    await apublish_many(("news", str(n)) for n in range(3))
    owner = Owner({owner_key: None}, owner_key)
    async with connected("news", after=start, owner=owner) as client:
        flooding = asyncio.create_task(flood(owner_key))
        try:
            assert await client.until_events(3) == ["0", "1", "2"]
            assert not flooding.done()
        finally:
            flooding.cancel()
            await asyncio.wait([flooding])


async def flood(owner_key: str) -> None:
    while True:
        current_hub().hear_soon([Hint(owner_key, 1, cancelled=False)])
        await asyncio.sleep(0)


async def test_streams_of_one_group_are_sent_the_very_same_bytes() -> None:
    async with AsyncClients(3, "news") as clients:
        await apublish("news", "x")
        for client in clients:
            await client.until_events(1)
        assert clients[0].chunks[-1] is clients[1].chunks[-1] is clients[2].chunks[-1]


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


async def test_a_client_behind_the_tail_is_replayed_from_the_store_in_pages() -> None:
    start = await aposition("news")
    await apublish_many(("news", f"{n} {'x' * 4000}") for n in range(400))
    async with connected("news") as other, connected("news", after=start) as client:
        await apublish("news", "live")
        data = await client.until_events(401)
        assert [text.split()[0] for text in data] == [*(str(n) for n in range(400)), "live"]
        assert await other.until_events(1) == ["live"]


async def test_a_group_never_published_to_is_followed_from_its_first_event() -> None:
    async with connected("news") as client:
        await apublish("news", "first")
        assert await client.until_events(1) == ["first"]


async def test_several_groups_share_an_id_that_goes_on_in_each_of_them() -> None:
    async with connected("a", "b") as client:
        await apublish("a", "a1")
        await apublish("b", "b1")
        await client.until_events(2)
        first_id = client.events[0].id
        assert first_id is not None
    await apublish("a", "a2")
    async with connected("a", "b", after=first_id) as client:
        assert sorted(await client.until_events(2)) == ["a2", "b1"]
    last_id = client.decoder.last_event_id
    async with connected("a", "b", after=last_id) as client:
        await apublish("b", "b2")
        assert await client.until_events(1) == ["b2"]


async def test_what_another_process_wrote_is_found_in_the_store(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with connected("news") as client:
        await apublish("news", "known")
        await client.until_events(1)
        monkeypatch.setattr("django_sse.doorbells.base.ring_here", lambda hints: None)
        await apublish("news", "found")
        assert await client.until_events(2) == ["known", "found"]


async def test_cancelling_sends_what_is_left_then_close_and_ends() -> None:
    async with connected("news") as client:
        await apublish("news", "last")
        await acancel("news", reason="done")
        assert await client.stream.ended == "cancelled"
        assert client.data == ["last", '{"reason":"done"}']
        assert client.events[-1].event == "close"
        position = parse_position(client.decoder.last_event_id, ["news"])
        assert position["news"] == (await get_store().astates(["news"]))["news"].head


async def test_a_stream_of_several_groups_ends_when_all_are_cancelled() -> None:
    async with connected("a", "b") as client:
        await acancel("a", reason="a")
        await apublish("b", "goes on")
        assert await client.until_events(1) == ["goes on"]
        await acancel("b", reason="b")
        assert await client.stream.ended == "cancelled"
        assert [event.event for event in client.events] == [None, "close"]


async def test_an_old_close_is_skipped_after_reopening() -> None:
    start = await aposition("news")
    await apublish("news", "before")
    await acancel("news")
    await areopen("news")
    await apublish("news", "after")
    async with connected("news", after=start) as client:
        assert await client.until_events(2) == ["before", "after"]


async def test_a_stream_whose_history_is_lost_ends_so_that_its_client_starts_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with connected("news") as client:
        await apublish("news", "known")
        await client.until_events(1)
        monkeypatch.setattr("django_sse.doorbells.base.ring_here", lambda hints: None)
        # As a store that was rolled back: its numbers are below those known.
        await StoredEvent.objects.all().adelete()
        await EventGroup.objects.aupdate(first=1, head=1)
        monkeypatch.undo()
        hub = current_hub()
        await hub._sweep()
        assert await client.stream.ended == "reset"
        assert client.decoder.reconnection_time is not None
        assert client.decoder.reconnection_time >= 3000


async def test_a_client_that_does_not_read_is_ended_and_resumes_without_loss() -> None:
    stuck = asyncio.Event()

    async def never(chunk: bytes) -> None:
        await stuck.wait()

    start = await aposition("news")
    with override_settings(DJANGO_SSE={"BACKLOG_BYTES": 2000}):
        stream = Stream(current_hub(), parse_position(start, ["news"]))
        await stream.open()
        stream.serve(never)
        async with connected("news") as fast:
            for n in range(100):
                await apublish("news", f"{n} {'x' * 50}")
            assert await asyncio.wait_for(stream.ended, 30) == "backlog full"
            assert len(await fast.until_events(100)) == 100
    async with connected("news", after=start) as resumed:
        assert len(await resumed.until_events(100)) == 100


async def test_a_send_that_takes_too_long_ends_its_stream() -> None:
    async def never(chunk: bytes) -> None:
        await asyncio.Event().wait()

    start = await aposition("news")
    with override_settings(DJANGO_SSE={"SEND_TIMEOUT": 0.5}):
        stream = Stream(current_hub(), parse_position(start, ["news"]))
        await stream.open()
        stream.serve(never)
        await apublish("news", "x")
        assert await asyncio.wait_for(stream.ended, 30) == "send timeout"


async def test_without_a_send_timeout_a_send_takes_its_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("django_sse.streaming.hub._TICK_SECONDS", 0.01)
    goes_on = asyncio.Event()
    sent: list[bytes] = []

    async def slow(chunk: bytes) -> None:
        await goes_on.wait()
        sent.append(chunk)

    start = await aposition("news")
    with override_settings(DJANGO_SSE={"SEND_TIMEOUT": 0}):
        async with connected("news", heartbeat=0.01) as beating:
            stream = Stream(current_hub(), parse_position(start, ["news"]))
            await stream.open()
            stream.serve(slow)
            await apublish("news", "x")
            await beating.until(lambda: beating.chunks.count(b":\n\n") >= 5)
            assert not stream.ended.done()
            goes_on.set()
            await until(lambda: b"data: x" in b"".join(sent))
            stream.end("left")


async def test_a_silent_stream_sends_heartbeats_and_none_when_they_are_off() -> None:
    async with (
        connected("news", heartbeat=0.1) as client,
        connected("news", heartbeat=None) as silent,
    ):
        await client.until(lambda: client.chunks.count(b":\n\n") >= 2)
        assert silent.chunks == []


async def test_a_heartbeat_carries_a_position_that_has_moved_unseen() -> None:
    def hide(event: Event) -> None:
        return None

    async with connected("news", heartbeat=0.1, filter_event=hide) as client:
        published = await apublish("news", "hidden")
        await client.until(lambda: client.decoder.last_event_id == published.id)
        assert client.events == []


async def test_plain_channels_messages_are_streamed_without_an_id() -> None:
    channel_layer = get_channel_layer()
    assert channel_layer is not None
    async with AsyncClients(2, "news") as clients:
        before = clients[0].decoder.last_event_id
        await channel_layer.group_send(
            "news", {"type": "sse.event", "data": {"n": 1}, "event": "n"}
        )
        for client in clients:
            await client.until_events(1)
            assert client.events[0].json() == {"n": 1}
            assert client.events[0].event == "n"
            assert client.decoder.last_event_id == before


@pytest.mark.parametrize(
    "message",
    [
        {"type": "sse.event"},
        {"type": "sse.event", "data": "x", "id": "1"},
        {"type": "sse.event", "data": "x", "event": "close"},
        {"type": "sse.event", "data": "x", "event": "a\nb"},
        {"type": "sse.event", "data": "x", "colour": "red"},
        {"type": "sse.event", "data": b"x"},
        {"type": "unknown"},
        {},
    ],
)
async def test_a_plain_message_that_cannot_be_streamed_is_refused_and_the_next_one_is_not(
    message: dict[str, Any],
) -> None:
    channel_layer = get_channel_layer()
    assert channel_layer is not None
    async with connected("news") as client:
        await channel_layer.group_send("news", message)
        await channel_layer.group_send("news", {"type": "sse.event", "data": "good"})
        assert await client.until_events(1) == ["good"]


async def test_a_stream_may_do_without_plain_messages() -> None:
    channel_layer = get_channel_layer()
    assert channel_layer is not None
    async with connected("news", wants_messages=False) as client:
        await channel_layer.group_send("news", {"type": "sse.event", "data": "plain"})
        await apublish("news", "published")
        assert await client.until_events(1) == ["published"]


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


async def test_the_last_stream_out_leaves_nothing_behind() -> None:
    channel_layer = get_channel_layer()
    assert channel_layer is not None
    tasks = asyncio.all_tasks()
    async with AsyncClients(3, "a", "b"):
        await apublish("a", "x")
    async with asyncio.timeout(10):
        while asyncio.all_tasks() - tasks or channel_layer.groups:
            await asyncio.sleep(0.01)


async def test_publishing_from_a_thread_wakes_the_loop_of_the_stream() -> None:
    async with connected("news") as client:
        await in_thread(lambda: publish("news", "from a thread"))
        assert await client.until_events(1) == ["from a thread"]
        await in_thread(lambda: cancel("news"))
        assert await client.stream.ended == "cancelled"


async def test_a_slow_client_whose_history_is_lost_while_it_catches_up_is_sent_back() -> None:
    start = await aposition("news")
    await apublish_many(("news", f"{n} {'x' * 5000}") for n in range(200))
    taking, taken = asyncio.Event(), asyncio.Event()

    async def slow(chunk: bytes) -> None:
        taking.set()
        await taken.wait()

    stream = Stream(current_hub(), parse_position(start, ["news"]))
    await stream.open()
    stream.serve(slow)
    await asyncio.wait_for(taking.wait(), 10)
    await StoredEvent.objects.all().adelete()
    taken.set()
    assert await asyncio.wait_for(stream.ended, 10) == "reset"


async def test_plain_messages_are_filtered_also_while_a_stream_catches_up() -> None:
    channel_layer = get_channel_layer()
    assert channel_layer is not None

    def hide_secrets(event: Event) -> Event | None:
        return None if "secret" in event.text else event

    stream = Stream(
        current_hub(), parse_position(await aposition("news"), ["news"]), filter_event=hide_secrets
    )
    client = Client(stream)
    await stream.open()
    await channel_layer.group_send("news", {"type": "sse.event", "data": "a secret"})
    await channel_layer.group_send("news", {"type": "sse.event", "data": "for all"})
    async with connected("news") as other:
        await other.until_events(0)
        stream.serve(client.send)
        await channel_layer.group_send("news", {"type": "sse.event", "data": "later"})
        assert await client.until_events(2) == ["for all", "later"]
    stream.end("test is over")


async def test_a_filter_that_fails_in_the_replay_hides_that_event_alone() -> None:
    def fail_at_two(event: Event) -> Event:
        assert event.text != "2"
        return event

    start = await aposition("news")
    await apublish_many(("news", str(n)) for n in range(1, 4))
    async with connected("news", after=start, filter_event=fail_at_two) as client:
        assert await client.until_events(2) == ["1", "3"]
        assert client.decoder.last_event_id == await aposition("news")


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


async def test_a_group_reopened_elsewhere_does_not_close_a_new_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with override_settings(DJANGO_SSE={"SYNC_INTERVAL": 3600}):
        async with connected("a", "b"):
            await acancel("a")
            [subscription] = [s for s in current_hub()._subscriptions.values() if s.group == "a"]
            async with asyncio.timeout(10):
                while not subscription.cancelled:
                    await asyncio.sleep(0.01)
            monkeypatch.setattr("django_sse.doorbells.base.ring_here", lambda hints: None)
            await areopen("a")
            monkeypatch.undo()
            async with connected("a") as client:
                await apublish("a", "open again")
                assert await client.until_events(1) == ["open again"]


async def test_a_group_left_while_it_is_entered_keeps_no_membership() -> None:
    entering, entered = asyncio.Event(), asyncio.Event()

    class SlowLayer(InMemoryChannelLayer):  # type: ignore[misc]
        async def group_add(self, group: str, channel: str) -> None:
            entering.set()
            await entered.wait()
            await super().group_add(group, channel)

    slow = SlowLayer()
    layer_channel = LayerChannel(slow, lambda message: None)
    enter = asyncio.create_task(layer_channel.enter("news"))
    await entering.wait()
    leave = asyncio.create_task(layer_channel.close())
    await asyncio.sleep(0)
    entered.set()
    await asyncio.gather(enter, leave)
    assert not slow.groups.get("news")


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


async def test_who_leaves_while_a_group_is_opened_takes_it_from_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await apublish("news", "before")
    asked, answers = asyncio.Event(), asyncio.Event()
    astates = DatabaseStore.astates

    async def wait(store: DatabaseStore, groups: Sequence[str]) -> dict[str, GroupState]:
        asked.set()
        await answers.wait()
        return await astates(store, groups)

    start = parse_position(await aposition("news"), ["news"])
    monkeypatch.setattr(DatabaseStore, "astates", wait)
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


async def test_a_handler_that_fails_while_its_stream_catches_up_harms_nobody() -> None:
    def fail(message: Any) -> Event:
        raise RuntimeError("broken")

    start = await aposition("news")
    await apublish_many(("news", str(n)) for n in range(3))
    goes_on = asyncio.Event()
    stream = Stream(current_hub(), parse_position(start, ["news"]), message_handler=lambda _: fail)
    slow = Client(stream)

    async def send(chunk: bytes) -> None:
        await goes_on.wait()
        await slow.send(chunk)

    async with connected("news") as other:
        await stream.open()
        stream.serve(send)
        for subscription in current_hub()._subscriptions.values():
            subscription.hear_message({"type": "shout"})
        await apublish("news", "live")
        goes_on.set()
        assert await slow.until_events(4) == ["0", "1", "2", "live"]
        assert await other.until_events(1) == ["live"]
    stream.end("test is over")


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
                await apublish("news", "unheard")
                await until(lambda: tried > 3)
                assert not client.events
            assert await client.until_events(1) == ["unheard"]
    assert caplog.text.count("The hub cannot compare itself") == 1


async def test_a_replay_that_fails_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    start = await aposition("news")
    await apublish("news", "missed")
    aread = DatabaseStore.aread
    failures = 1

    async def fail_once(store: DatabaseStore, *args: Any) -> list[Entry]:
        nonlocal failures
        if failures:
            failures -= 1
            raise OSError("The store is down.")
        return await aread(store, *args)

    monkeypatch.setattr(DatabaseStore, "aread", fail_once)
    async with connected("news", after=start) as client:
        assert await client.until_events(1) == ["missed"]
    assert caplog.text.count("could not replay missed events; it tries again") == 1


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
