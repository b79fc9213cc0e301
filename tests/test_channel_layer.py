"""Every channel layer supported keeps the contract, and Redis may go away under its layers."""

import asyncio
import time
import unittest
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar
from unittest.mock import patch

import pytest
from channels.layers import BaseChannelLayer, InMemoryChannelLayer
from django.test import TransactionTestCase

from django_sse import publish
from django_sse.doorbells.layer import from_message, to_message
from django_sse.doorbells.layer_channel import Message
from django_sse.groups.entries import Hint
from django_sse.stores import get_store
from django_sse.stores.base import Cursor
from django_sse.streaming.hub import current_hub
from django_sse.testing import ChannelLayerContract
from django_sse.testing.layers import (
    BURST,
    NEVER,
    SECONDS,
    SOON,
    STREAMS,
    Client,
    connected,
    publish_elsewhere,
    with_layer,
)
from django_sse.testing.threads import in_thread
from tests import redis

# What it shows is the layers'.
pytestmark = pytest.mark.once


class InProcessContract(ChannelLayerContract):
    """The contract for layers that only stand for one that crosses processes."""

    async def publish_elsewhere(self, group: str, texts: Sequence[str]) -> None:
        """As if this process was another one: its hub is not told directly."""

        def publish_them() -> None:
            for text in texts:
                publish(group, text)

        with patch("django_sse.doorbells.base.ring_here", lambda hints: None):
            await in_thread(publish_them)


class InMemoryTests(InProcessContract, TransactionTestCase):
    channel_layers = {"BACKEND": "tests.layers.OwnInMemoryLayer"}


if TYPE_CHECKING:
    _TestCase = TransactionTestCase
else:
    _TestCase = object


@unittest.skipUnless(redis.binary(), "Redis is not installed.")
class OnRedis(_TestCase):
    """A Redis server of each test's own, and a layer on it."""

    backend: ClassVar[str]
    options: ClassVar[dict[str, Any]] = {}
    program: ClassVar[str | None] = None
    channel_layers: dict[str, Any]

    def setUp(self) -> None:
        super().setUp()
        self.server = self.enterContext(redis.serve(self.program))
        config = {"hosts": [self.server.url], **self.options}
        self.channel_layers = {"BACKEND": self.backend, "CONFIG": config}

    async def suffer(self, fault: Callable[[], object]) -> None:
        """Let something happen in the middle of a burst, of which nothing may be missing."""
        burst = [str(number) for number in range(BURST)]
        async with connected(STREAMS, "news") as clients:
            publishing = asyncio.create_task(publish_elsewhere("news", burst))
            await clients[0].until_events(BURST // 10)
            await asyncio.to_thread(fault)
            await publishing
            for client in clients:
                await client.until(burst[-1])
                self.assertEqual(client.texts, ["ready", *burst])


class Faults(OnRedis):
    """Redis goes away in the middle of things: streams miss nothing, and the layer comes back."""

    async def is_heard_again(self, client: Client) -> None:
        """Publish until the client is told, which only the layer can have done."""
        sent = ["ready"]
        async with asyncio.timeout(SECONDS):
            while len(client.events) < 2:
                sent.append(f"after {len(sent)}")
                await publish_elsewhere("news", sent[-1:])
            await client.until(sent[-1])
        self.assertEqual(client.texts, sent)

    def restart(self) -> None:
        self.server.kill()
        self.server.start()

    def go_away_for_a_while(self) -> None:
        self.server.kill()
        time.sleep(3)
        self.server.start()

    def pause(self) -> None:
        self.server.pause()
        time.sleep(3)
        self.server.resume()

    @with_layer(SOON)
    async def test_a_burst_survives_a_restart(self, layer: BaseChannelLayer) -> None:
        await self.suffer(self.restart)

    @with_layer(SOON)
    async def test_a_burst_survives_a_pause(self, layer: BaseChannelLayer) -> None:
        await self.suffer(self.pause)

    @with_layer(NEVER)
    async def test_the_layer_is_heard_again_after_a_restart(self, layer: BaseChannelLayer) -> None:
        async with connected(1, "news") as [client]:
            await asyncio.to_thread(self.restart)
            await self.is_heard_again(client)

    @with_layer(NEVER)
    async def test_the_layer_is_heard_again_after_an_outage(self, layer: BaseChannelLayer) -> None:
        async with connected(1, "news") as [client]:
            await asyncio.to_thread(self.go_away_for_a_while)
            await self.is_heard_again(client)

    @with_layer(NEVER)
    async def test_the_layer_is_heard_again_after_a_pause(self, layer: BaseChannelLayer) -> None:
        async with connected(1, "news") as [client]:
            await asyncio.to_thread(self.pause)
            await self.is_heard_again(client)

    @with_layer(NEVER)
    async def test_the_layer_is_heard_again_after_it_was_flushed(
        self, layer: BaseChannelLayer
    ) -> None:
        with patch("django_sse.doorbells.layer_channel._RENEW_SECONDS", 0.0):
            async with connected(1, "news") as [client]:
                await layer.flush()
                await current_hub().renew_memberships()
                await self.is_heard_again(client)


class RedisTests(ChannelLayerContract, Faults, TransactionTestCase):
    """Lists of Redis: no error says that a Redis which was restarted has forgotten the groups."""

    backend = "channels_redis.core.RedisChannelLayer"

    test_the_layer_is_heard_again_after_a_restart = None  # type: ignore[assignment]
    test_the_layer_is_heard_again_after_an_outage = None  # type: ignore[assignment]

    @with_layer(SOON)
    async def test_what_the_store_has_to_tell_lets_the_layer_be_heard_again(
        self, layer: BaseChannelLayer
    ) -> None:
        async def tell_nothing(cursor: Cursor, groups: object) -> tuple[list[Hint], Cursor]:
            return [], cursor

        async with connected(1, "news") as [client]:
            await asyncio.to_thread(self.restart)
            await publish_elsewhere("news", ["found in the store"])
            await client.until("found in the store")
            with patch.object(get_store(), "achanged", tell_nothing):
                sent = ["ready", "found in the store"]
                async with asyncio.timeout(SECONDS):
                    while client.texts[-1] == "found in the store":
                        sent.append(f"heard {len(sent)}")
                        await publish_elsewhere("news", sent[-1:])
                    await client.until(sent[-1])
                self.assertEqual(client.texts, sent)


class RedisPubSubTests(ChannelLayerContract, Faults, TransactionTestCase):
    backend = "channels_redis.pubsub.RedisPubSubChannelLayer"


# Not channels_valkey.core (0.3): its group_discard warns that what it calls is deprecated.
@unittest.skipUnless(redis.valkey_binary(), "Valkey is not installed.")
class ValkeyPubSubTests(ChannelLayerContract, Faults, TransactionTestCase):
    backend = "channels_valkey.pubsub.ValkeyPubSubChannelLayer"
    program = redis.valkey_binary()


class SmallRedisTests(OnRedis, TransactionTestCase):
    """A layer that holds one message a process, for a second."""

    backend = "channels_redis.core.RedisChannelLayer"
    options = {"capacity": 1, "expiry": 1}

    @with_layer(SOON)
    async def test_a_burst_survives_messages_that_are_dropped(
        self, layer: BaseChannelLayer
    ) -> None:
        await self.suffer(lambda: None)

    @with_layer(SOON)
    async def test_a_burst_survives_messages_that_expire(self, layer: BaseChannelLayer) -> None:
        loop = asyncio.get_running_loop()
        # Nothing is received while the loop is held up.
        await self.suffer(lambda: loop.call_soon_threadsafe(time.sleep, 2.5))


# Layers that break the contract, and the tests that tell


class Deaf(InMemoryChannelLayer):  # type: ignore[misc]
    async def group_send(self, group: str, message: Message) -> None:
        """Tell nobody."""


class ForDoorbellsOnly(InMemoryChannelLayer):  # type: ignore[misc]
    async def group_send(self, group: str, message: Message) -> None:
        if message["type"] != "sse.event":
            await super().group_send(group, message)


class OneGroupForAll(InMemoryChannelLayer):  # type: ignore[misc]
    async def group_add(self, group: str, channel: str) -> None:
        await super().group_add("all", channel)

    async def group_discard(self, group: str, channel: str) -> None:
        await super().group_discard("all", channel)

    async def group_send(self, group: str, message: Message) -> None:
        await super().group_send("all", message)


class EntersOnce(InMemoryChannelLayer):  # type: ignore[misc]
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.entered: set[tuple[str, str]] = set()

    async def group_add(self, group: str, channel: str) -> None:
        if (group, channel) not in self.entered:
            self.entered.add((group, channel))
            await super().group_add(group, channel)


class KeepsMembers(InMemoryChannelLayer):  # type: ignore[misc]
    async def group_discard(self, group: str, channel: str) -> None:
        """Leave it in the group."""


class Garbles(InMemoryChannelLayer):  # type: ignore[misc]
    """It signs what it garbles: otherwise nobody would believe it."""

    async def group_send(self, group: str, message: Message) -> None:
        hint = from_message(message)
        entries = [entry._replace(wire=entry.wire[:-3] + b"?\n\n") for entry in hint.entries]
        await super().group_send(group, to_message(hint._replace(entries=tuple(entries))))


class GarblesToThoseWhoLeft(Garbles, KeepsMembers):
    pass


BROKEN: list[tuple[type[InMemoryChannelLayer], str]] = [
    (Deaf, "what_another_process_publishes_arrives_through_the_layer_alone"),
    (Garbles, "a_burst_arrives_complete_and_in_order_at_every_stream"),
    (GarblesToThoseWhoLeft, "what_a_lost_membership_leaves_unheard_is_found_in_the_store"),
    (Garbles, "streams_of_two_event_loops_miss_nothing"),
    (ForDoorbellsOnly, "a_plain_message_to_a_group_reaches_its_streams"),
    (OneGroupForAll, "a_plain_message_to_a_group_reaches_its_streams"),
    (EntersOnce, "a_membership_that_was_lost_is_renewed"),
    (KeepsMembers, "the_last_stream_out_leaves_no_membership_behind"),
]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(("layer", "test"), BROKEN)
def test_a_layer_that_breaks_the_contract_fails(
    layer: type[InMemoryChannelLayer], test: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("django_sse.testing.layers.SECONDS", 3)

    class BrokenLayerTests(InProcessContract, TransactionTestCase):
        channel_layers = {"BACKEND": f"{__name__}.{layer.__name__}"}

    result = unittest.TestResult()
    unittest.TestSuite([BrokenLayerTests(f"test_{test}")]).run(result)
    assert result.testsRun == 1
    assert result.failures or result.errors


def test_every_test_of_the_contract_can_fail() -> None:
    tests = {name for name in dir(ChannelLayerContract) if name.startswith("test_")}
    assert {f"test_{test}" for _, test in BROKEN} == tests
