"""One client's stream: what it is sent in each phase, from opening to end."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from channels.layers import get_channel_layer
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
from django_sse.groups.entries import Entry, Hint
from django_sse.groups.position import parse_position
from django_sse.models import StoredEvent
from django_sse.stores import get_store
from django_sse.stores.database import DatabaseStore
from django_sse.streaming.hub import current_hub
from django_sse.streaming.stream import Stream
from django_sse.testing.threads import in_thread
from tests.clients import AsyncClients, Client, connected
from tests.layers import layer
from tests.streams import (
    data,
    news,
    open_stream,
    publish_numbers,
    requested,
    respond,
    until,
)

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("everything_ends")]


# Events and messages


async def test_streams_of_one_group_are_sent_the_very_same_bytes() -> None:
    async with AsyncClients(3, "news") as clients:
        await apublish("news", "x")
        for client in clients:
            await client.until_events(1)
        assert clients[0].chunks[-1] is clients[1].chunks[-1] is clients[2].chunks[-1]


async def test_a_stream_of_several_groups_has_one_id_that_resumes_each_of_them() -> None:
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


async def test_a_stream_can_leave_out_plain_messages() -> None:
    channel_layer = get_channel_layer()
    assert channel_layer is not None
    async with connected("news", wants_messages=False) as client:
        await channel_layer.group_send("news", {"type": "sse.event", "data": "plain"})
        await apublish("news", "published")
        assert await client.until_events(1) == ["published"]


# Catching up


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


async def test_a_slow_client_whose_history_is_lost_while_it_catches_up_is_sent_back() -> None:
    start = await aposition("news")
    await apublish_many(("news", f"{n} {'x' * 5000}") for n in range(200))
    taking, taken = asyncio.Event(), asyncio.Event()

    async def slow(message: Any) -> None:
        taking.set()
        await taken.wait()

    stream = Stream(current_hub(), parse_position(start, ["news"]))
    await stream.open()
    stream.serve(slow)
    await asyncio.wait_for(taking.wait(), 10)
    await StoredEvent.objects.all().adelete()
    taken.set()
    assert await asyncio.wait_for(stream.ended, 10) == "reset"


async def test_a_filter_that_fails_in_a_replay_hides_only_that_event() -> None:
    def fail_at_two(event: Event) -> Event:
        assert event.text != "2"
        return event

    start = await aposition("news")
    await apublish_many(("news", str(n)) for n in range(1, 4))
    async with connected("news", after=start, filter_event=fail_at_two) as client:
        assert await client.until_events(2) == ["1", "3"]
        assert client.decoder.last_event_id == await aposition("news")


async def test_plain_messages_are_also_filtered_while_a_stream_catches_up() -> None:
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


async def test_a_handler_that_fails_while_its_stream_catches_up_harms_no_stream() -> None:
    def fail(message: Any) -> Event:
        raise RuntimeError("broken")

    start = await aposition("news")
    await apublish_many(("news", str(n)) for n in range(3))
    goes_on = asyncio.Event()
    stream = Stream(current_hub(), parse_position(start, ["news"]), message_handler=lambda _: fail)
    slow = Client(stream)

    async def send(message: Any) -> None:
        await goes_on.wait()
        await slow.send(message)

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


async def test_a_replay_whose_events_are_all_hidden_lets_other_tasks_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Other tasks run after each batch of events, however fast the machine is.
    monkeypatch.setattr("django_sse.concurrency.tasks._TURN_SECONDS", 0)
    start = await aposition("news")
    asked = [0]

    def hide(event: Event) -> None:
        asked[-1] += 1

    async def take_turns() -> None:
        while sum(asked) < 900:
            asked.append(0)
            await asyncio.sleep(0)

    # While this stream is open, the group's newest events are in memory, to be read at once.
    async with connected("news") as other:
        await apublish_many(("news", str(number)) for number in range(900))
        await other.until_events(900)
        async with connected("news", after=start, filter_event=hide):
            await asyncio.wait_for(take_turns(), 10)
    assert max(asked) <= 500


# Kicks


@pytest.mark.parametrize(
    ("channel_layers", "directly", "store"),
    [
        pytest.param({}, True, "memory", id="directly, memory"),
        pytest.param({}, True, "database", id="directly, database"),
        pytest.param(layer("tests.layers.OwnInMemoryLayer"), False, "database", id="layer"),
        pytest.param({}, False, "database", id="store alone"),
    ],
)
async def test_a_kicked_user_does_not_get_what_is_published_after_the_kick(
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


@pytest.fixture
def kicks_before_a_read(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What kicks user 7, before the store answers the next read. An event to the others follows."""
    kicks = list[Any]()
    aread = DatabaseStore.aread

    async def read_late(store: DatabaseStore, group: str, *args: Any) -> list[Entry]:
        if group == "room" and kicks:
            await kicks.pop()("room", user=7)
            await apublish("room", "he is gone")
        return await aread(store, group, *args)

    monkeypatch.setattr(DatabaseStore, "aread", read_late)
    return kicks


async def test_a_read_of_the_store_does_not_overtake_a_kick(
    monkeypatch: pytest.MonkeyPatch, kicks_before_a_read: list[Any]
) -> None:
    """While the hub reads what it has heard of, a kick and what follows it are published."""
    monkeypatch.setattr("django_sse.doorbells.base.ring_here", lambda hints: None)
    kicks_before_a_read.append(acancel)
    owner = Owner({user_key(7): None, user_key(7, "room"): "room"}, user_key(7))
    with override_settings(CHANNEL_LAYERS={}, DJANGO_SSE={"SYNC_INTERVAL": 0.05}):
        async with connected("room", owner=owner) as kicked, connected("room") as other:
            await apublish("room", "before")
            assert await other.until_events(2) == ["before", "he is gone"]
            await kicked.until(kicked.stream.ended.done)
            assert [event.event for event in kicked.events] == [None, "close"]


async def test_a_stream_that_catches_up_does_not_overtake_a_kick(
    monkeypatch: pytest.MonkeyPatch, kicks_before_a_read: list[Any]
) -> None:
    """While it reads what memory does not have, a kick and what follows it are published."""
    monkeypatch.setattr("django_sse.doorbells.base.ring_here", lambda hints: None)
    monkeypatch.setattr("django_sse.streaming.subscription.TAIL_BYTES", 1000)
    monkeypatch.setattr("django_sse.streaming.hub.TAIL_BYTES", 1000)
    owner = Owner({user_key(7): None, user_key(7, "room"): "room"}, user_key(7))
    with override_settings(CHANNEL_LAYERS={}, DJANGO_SSE={"SYNC_INTERVAL": 0.5}):
        await apublish("room", "first")
        start = await aposition("room")
        await apublish_many(("room", f"{number} " + "x" * 900) for number in range(20))
        async with connected("room") as other:
            kicks_before_a_read.append(acancel)
            async with connected("room", owner=owner, after=start) as kicked:
                await kicked.until(kicked.stream.ended.done)
                assert not kicks_before_a_read
                assert "he is gone" not in kicked.data
            assert await other.until_events(1) == ["he is gone"]


async def test_a_kicked_user_gets_what_was_published_before_the_kick() -> None:
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


@asynccontextmanager
async def flooded(owner_key: str) -> AsyncIterator[None]:
    """Doorbells about an owner ring at every turn of the loop, to the end of the block."""

    async def flood() -> None:
        while True:
            current_hub().hear_soon([Hint(owner_key, 1, cancelled=False)])
            await asyncio.sleep(0)

    flooding = asyncio.create_task(flood())
    try:
        yield
        assert not flooding.done()
    finally:
        flooding.cancel()
        await asyncio.wait([flooding])


async def test_a_flood_of_doorbells_about_an_owner_delays_no_stream_for_long() -> None:
    owner_key = user_key(7)
    async with connected("news", owner=Owner({owner_key: None}, owner_key)) as client:
        await apublish("news", "0")
        await client.until_events(1)
        async with flooded(owner_key):
            for n in range(1, 4):
                await apublish("news", str(n))
            assert await client.until_events(4) == ["0", "1", "2", "3"]


async def test_a_flood_of_doorbells_about_an_owner_stops_no_replay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each read takes longer than the next doorbell."""
    aread = DatabaseStore.aread

    async def read_slowly(*args: Any) -> list[Entry]:
        await asyncio.sleep(0.03)
        return await aread(*args)

    monkeypatch.setattr(DatabaseStore, "aread", read_slowly)
    monkeypatch.setattr("django_sse.streaming.stream.OWNER_CHECK_SECONDS", 0.2)
    owner_key, start = user_key(7), await aposition("news")
    await apublish_many(("news", str(n)) for n in range(3))
    owner = Owner({owner_key: None}, owner_key)
    async with connected("news", after=start, owner=owner) as client, flooded(owner_key):
        assert await client.until_events(3) == ["0", "1", "2"]


async def test_the_time_that_a_client_takes_to_read_is_not_taken_from_a_pause(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("django_sse.streaming.stream.OWNER_CHECK_SECONDS", 0.05)
    monkeypatch.setattr("django_sse.streaming.stream._EVENTS_A_TURN", 1)
    owner_key, start = user_key(7), await aposition("news")
    await apublish_many([("news", "0"), ("news", "1")])
    may_read, store_answers = asyncio.Event(), asyncio.Event()
    store_answers.set()
    astates, send = DatabaseStore.astates, Client.send

    async def answer(*args: Any) -> Any:
        await store_answers.wait()
        return await astates(*args)

    async def read_late(client: Client, message: Any) -> None:
        await send(client, message)
        await may_read.wait()

    monkeypatch.setattr(DatabaseStore, "astates", answer)
    monkeypatch.setattr(Client, "send", read_late)
    owner = Owner({owner_key: None}, owner_key)
    async with (
        connected("news", after=start, owner=owner) as client,
        connected("news", after=start) as other,
    ):
        await client.until_events(1)
        await other.until_events(1)
        current_hub().hear_soon([Hint(owner_key, 1, cancelled=False)])
        # Longer than a pause. Those that begin later are as long as it takes.
        await asyncio.sleep(0.1)
        monkeypatch.setattr("django_sse.streaming.stream.OWNER_CHECK_SECONDS", 30)
        store_answers.clear()
        await acancel(user=7)
        await apublish("news", "he is gone")
        may_read.set()
        assert await other.until_events(3) == ["0", "1", "he is gone"]
        assert "he is gone" not in client.data
        store_answers.set()
        await client.until(client.stream.ended.done)
        assert "he is gone" not in client.data


# Time


async def test_a_silent_stream_sends_heartbeats_unless_they_are_off() -> None:
    async with (
        connected("news", heartbeat=0.1) as client,
        connected("news", heartbeat=None) as silent,
    ):
        await client.until(lambda: client.chunks.count(b":\n\n") >= 2)
        assert silent.chunks == []


async def test_a_heartbeat_carries_a_position_that_hidden_events_have_moved() -> None:
    def hide(event: Event) -> None:
        return None

    async with connected("news", heartbeat=0.1, filter_event=hide) as client:
        published = await apublish("news", "hidden")
        await client.until(lambda: client.decoder.last_event_id == published.id)
        assert client.events == []


async def test_the_stream_of_a_client_that_does_not_read_ends_and_resumes_without_loss() -> None:
    stuck = asyncio.Event()

    async def never(message: Any) -> None:
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
    async def never(message: Any) -> None:
        await asyncio.Event().wait()

    start = await aposition("news")
    with override_settings(DJANGO_SSE={"SEND_TIMEOUT": 0.5}):
        stream = Stream(current_hub(), parse_position(start, ["news"]))
        await stream.open()
        stream.serve(never)
        await apublish("news", "x")
        assert await asyncio.wait_for(stream.ended, 30) == "send timeout"


async def test_without_a_send_timeout_a_send_may_take_any_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("django_sse.streaming.hub._TICK_SECONDS", 0.01)
    goes_on = asyncio.Event()
    sent: list[bytes] = []

    async def slow(message: Any) -> None:
        await goes_on.wait()
        sent.append(message["body"])

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


# Cancelled groups


async def test_a_cancel_sends_what_is_left_then_close_and_ends_the_stream() -> None:
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


@pytest.mark.usefixtures("memory_store")
async def test_an_open_stream_of_a_cancelled_group_gets_what_is_left_then_close_and_ends() -> None:
    async with open_stream(news) as stream:
        await publish_numbers("news", 1, 2)
        await acancel("news", reason="over")
        *events, close = await stream.rest()
        assert data(events) == ["1", "2"]
        assert (close.event, close.json()) == ("close", {"reason": "over"})
        last = stream.last_event_id
    assert (await respond(news, headers={"Last-Event-ID": last})).status_code == 204


@pytest.mark.usefixtures("memory_store")
async def test_a_client_that_is_behind_a_cancel_gets_the_rest_then_close_and_ends() -> None:
    [first, _] = await publish_numbers("news", 1, 2)
    await acancel("news", reason="over")
    async with open_stream(news, last_event_id=first) as stream:
        missed, close = await stream.rest()
        assert (missed.data, close.event) == ("2", "close")


@pytest.mark.usefixtures("memory_store")
async def test_a_group_that_was_reopened_streams_again() -> None:
    [first, _] = await publish_numbers("news", 1, 2)
    await acancel("news")
    await areopen("news")
    # The old close is skipped.
    async with open_stream(news, last_event_id=first) as stream:
        await publish_numbers("news", 3)
        assert data(await stream.until("3")) == ["2", "3"]
        assert "close" not in stream.text


@pytest.mark.usefixtures("memory_store")
async def test_a_stream_goes_on_until_the_last_of_its_groups_is_cancelled() -> None:
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
