"""What a hub knows of one group, and hands out to the streams that follow it."""

import asyncio
from typing import Any

import pytest
from channels.layers import get_channel_layer
from django.test import override_settings

from django_sse import (
    acancel,
    aposition,
    apublish,
    apublish_many,
    areopen,
)
from django_sse.doorbells.layer import doorbell_group, to_message
from django_sse.groups.entries import Entry, Hint
from django_sse.models import EventGroup, StoredEvent
from django_sse.stores import get_store
from django_sse.streaming.hub import current_hub
from tests.clients import AsyncClients, connected
from tests.layers import layer
from tests.streams import until

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("everything_ends")]


# New events


async def test_a_group_without_events_is_followed_from_its_first_event() -> None:
    async with connected("news") as client:
        await apublish("news", "first")
        assert await client.until_events(1) == ["first"]


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
        # The hub did not begin the group anew, as if the store had lost its events.
        after = (await get_store().astates(["news"]))["news"]
        assert (after.first, after.oldest, after.head) == (
            before.first,
            before.oldest,
            before.head + 1,
        )
    async with connected("news", after=first.id) as client:
        assert await client.until_events(1) == ["second"]


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


async def test_a_stream_whose_history_is_lost_ends_and_its_client_starts_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with connected("news") as client:
        await apublish("news", "known")
        await client.until_events(1)
        monkeypatch.setattr("django_sse.doorbells.base.ring_here", lambda hints: None)
        # The store was rolled back: its numbers are below the known ones.
        await StoredEvent.objects.all().adelete()
        await EventGroup.objects.aupdate(first=1, head=1)
        monkeypatch.undo()
        hub = current_hub()
        await hub._sweep()
        assert await client.stream.ended == "reset"
        assert client.decoder.reconnection_time is not None
        assert client.decoder.reconnection_time >= 3000


# Plain messages


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
async def test_a_plain_message_that_cannot_be_streamed_is_refused_but_the_next_one_is_streamed(
    message: dict[str, Any],
) -> None:
    channel_layer = get_channel_layer()
    assert channel_layer is not None
    async with connected("news") as client:
        await channel_layer.group_send("news", message)
        await channel_layer.group_send("news", {"type": "sse.event", "data": "good"})
        assert await client.until_events(1) == ["good"]


# Earlier events


async def test_a_client_behind_the_tail_is_replayed_from_the_store_in_pages() -> None:
    start = await aposition("news")
    await apublish_many(("news", f"{n} {'x' * 4000}") for n in range(400))
    async with connected("news") as other, connected("news", after=start) as client:
        await apublish("news", "live")
        data = await client.until_events(401)
        assert [text.split()[0] for text in data] == [*(str(n) for n in range(400)), "live"]
        assert await other.until_events(1) == ["live"]
