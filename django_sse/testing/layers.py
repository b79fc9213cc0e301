"""Tests for authors of channel layers: what streams need a layer to do."""

import asyncio
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, Self, cast
from unittest.mock import patch

from channels.layers import BaseChannelLayer, get_channel_layer
from django.conf import settings
from django.db import DEFAULT_DB_ALIAS, connections
from django.http import StreamingHttpResponse
from django.test import AsyncRequestFactory, override_settings

from django_sse.concurrency import tasks
from django_sse.conf import SETTING
from django_sse.event import Decoder, Event
from django_sse.publishing import apublish
from django_sse.streaming.hub import current_hub, open_streams
from django_sse.testing.threads import in_thread
from django_sse.views import EventStreamView

if TYPE_CHECKING:
    from django.test import TransactionTestCase as _TestCase
else:
    # A mixin, so that a test module that imports the contract does not run it.
    _TestCase = object

# How long to wait. This is generous: only an event that never comes takes as long.
SECONDS = 30
# Seconds between two comparisons with the store. With NEVER, only the layer can have brought an
# event. With SOON, a test can wait for the comparison.
NEVER, SOON = 3600, 0.2
BURST = 1000
STREAMS = 5

_PUBLISHER = """
import pickle, sys
given = pickle.load(sys.stdin.buffer)
from django.conf import settings
settings.configure(**given["settings"])
import django
django.setup()
from django_sse import publish
for text in given["texts"]:
    publish(given["group"], text)
"""


class Client:
    """A client of a group's stream, in this process."""

    def __init__(self, group: str) -> None:
        self._group = group
        self._decoder = Decoder()
        self._changed = asyncio.Event()
        self.events: list[Event] = []

    async def __aenter__(self) -> Self:
        view = EventStreamView.as_view(groups=[self._group])
        self._reading = asyncio.create_task(self._read(await view(AsyncRequestFactory().get("/"))))
        # Once the client has a position there is a hub, and no new event is missed.
        async with asyncio.timeout(SECONDS):
            await self._changed.wait()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._reading.cancel()
        await asyncio.wait([self._reading])

    @property
    def texts(self) -> list[str]:
        """The data of the events received."""
        return [event.text for event in self.events]

    async def until(self, text: str) -> None:
        """Wait until the newest event has this text. It has to come."""
        async with asyncio.timeout(SECONDS):
            while text not in self.texts[-1:]:
                self._changed.clear()
                await self._changed.wait()

    async def until_events(self, count: int) -> None:
        """Wait for this many events."""
        async with asyncio.timeout(SECONDS):
            while len(self.events) < count:
                self._changed.clear()
                await self._changed.wait()

    async def _read(self, response: StreamingHttpResponse) -> None:
        async for chunk in cast("AsyncIterator[bytes]", response):
            self.events += self._decoder.feed(chunk)
            self._changed.set()


@asynccontextmanager
async def connected(count: int, group: str) -> AsyncIterator[list[Client]]:
    """Yield clients of a group that have received its event ``ready``, and so miss no later one."""
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(Client(group)) for _ in range(count)]
        await apublish(group, "ready")
        for client in clients:
            await client.until("ready")
        # A hub that still reads the store might find events that a broken layer did not announce.
        healing = current_hub()._subscriptions[group]._healing
        if healing:
            await asyncio.wait([healing])
        yield clients


@contextmanager
def memberships(layer: BaseChannelLayer) -> Iterator[set[tuple[str, str]]]:
    """Yield the pairs of group and channel that are added to the layer meanwhile."""
    entered: set[tuple[str, str]] = set()
    group_add = layer.group_add

    async def add(group: str, channel: str) -> None:
        entered.add((group, channel))
        await group_add(group, channel)

    with patch.object(layer, "group_add", add):
        yield entered


async def hears(layer: BaseChannelLayer, group: str, channel: str) -> bool:
    """Return whether a channel receives messages to a group. Nobody else may receive from it."""
    receiving = asyncio.create_task(layer.receive(channel))
    while not receiving.done():
        # Sent repeatedly, since some layers only know a channel once somebody receives from it.
        await layer.group_send(group, {"type": "to.group"})
        await layer.send(channel, {"type": "to.channel"})
        await asyncio.wait([receiving], timeout=0.1)
    return bool(receiving.result()["type"] == "to.group")


async def publish_elsewhere(group: str, texts: Sequence[str]) -> None:
    """Publish texts to a group, one after the other, in another process."""
    databases = {DEFAULT_DB_ALIAS: connections[DEFAULT_DB_ALIAS].settings_dict}
    given = {
        "group": group,
        "texts": list(texts),
        "settings": {
            "SECRET_KEY": settings.SECRET_KEY,
            "INSTALLED_APPS": ["django_sse"],
            "USE_TZ": settings.USE_TZ,
            "DATABASES": databases,
            "CHANNEL_LAYERS": settings.CHANNEL_LAYERS,
            SETTING: getattr(settings, SETTING),
        },
    }
    finished = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", _PUBLISHER],
        input=pickle.dumps(given),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr.decode()


def own_tasks() -> list[asyncio.Task[Any]]:
    """Return the library's tasks on the running loop, without tasks of the layer."""
    loop = asyncio.get_running_loop()
    return [task for task in list(tasks._running) if task.get_loop() is loop]


async def everything_ends() -> None:
    """Wait until the last stream has ended, and the tasks that served it."""
    async with asyncio.timeout(SECONDS):
        while open_streams() or own_tasks():
            await asyncio.sleep(0.01)


def with_layer(
    interval: float,
) -> Callable[[Callable[[Any, Any], Awaitable[None]]], Callable[[Any], Awaitable[None]]]:
    """Pass the layer to a test, and have hubs compare with the store at an interval.

    Args:
        interval: Seconds between two comparisons.
    """

    def decorate(test: Callable[[Any, Any], Awaitable[None]]) -> Callable[[Any], Awaitable[None]]:
        @wraps(test)
        async def run(self: "ChannelLayerContract") -> None:
            conf = {**getattr(settings, SETTING, {}), "SYNC_INTERVAL": interval}
            layers = {"default": self.channel_layers}
            others = asyncio.all_tasks()
            with override_settings(CHANNEL_LAYERS=layers, **{SETTING: conf}):
                layer = get_channel_layer()
                try:
                    await test(self, layer)
                finally:
                    await everything_ends()
                    await layer.flush()
                async with asyncio.timeout(SECONDS):
                    while asyncio.all_tasks() - others:
                        await asyncio.sleep(0.01)

        return run

    return decorate


class ChannelLayerContract(_TestCase):
    """The tests that a channel layer has to pass to announce new events to streams.

    Put this class before Django's ``TransactionTestCase``, and configure the layer::

        from django.test import TransactionTestCase
        from django_sse.testing import ChannelLayerContract

        class MyLayerTests(ChannelLayerContract, TransactionTestCase):
            channel_layers = {"BACKEND": "my_project.MyLayer", "CONFIG": {"hosts": [...]}}

    The tests run under ``manage.py test`` and under pytest-django, with the project's event store.
    Other processes publish, so the store has to cross processes. SQLite needs a file for its test
    database: ``"TEST": {"NAME": ...}`` in DATABASES. The layer needs the extensions ``groups`` and
    ``flush``.
    """

    channel_layers: dict[str, Any]
    """The value of ``CHANNEL_LAYERS["default"]``."""

    async def publish_elsewhere(self, group: str, texts: Sequence[str]) -> None:
        """Publish texts to a group, one after the other, in another process."""
        await publish_elsewhere(group, texts)

    @with_layer(NEVER)
    async def test_what_another_process_publishes_arrives_through_the_layer_alone(
        self, layer: BaseChannelLayer
    ) -> None:
        async with connected(STREAMS, "news") as clients:
            await self.publish_elsewhere("news", ["heard"])
            for client in clients:
                await client.until("heard")

    @with_layer(SOON)
    async def test_a_burst_arrives_complete_and_in_order_at_every_stream(
        self, layer: BaseChannelLayer
    ) -> None:
        burst = [str(number) for number in range(BURST)]
        async with connected(STREAMS, "news") as clients:
            await self.publish_elsewhere("news", burst)
            for client in clients:
                await client.until(burst[-1])
                self.assertEqual(client.texts, ["ready", *burst])

    @with_layer(NEVER)
    async def test_a_plain_message_to_a_group_reaches_its_streams(
        self, layer: BaseChannelLayer
    ) -> None:
        async with connected(STREAMS, "news") as clients, connected(1, "sport") as [other]:
            message = {"type": "sse.event", "data": {"n": [1, "ü"]}, "event": "plain"}
            await layer.group_send("news", message)
            await layer.group_send("sport", {"type": "sse.event", "data": "other"})
            for client in clients:
                await client.until('{"n":[1,"ü"]}')
                self.assertEqual(client.events[-1].event, "plain")
            await other.until("other")
            self.assertEqual(other.texts, ["ready", "other"])

    @with_layer(NEVER)
    async def test_a_membership_that_was_lost_is_renewed(self, layer: BaseChannelLayer) -> None:
        with (
            patch("django_sse.doorbells.layer_channel._RENEW_SECONDS", 0.0),
            memberships(layer) as entered,
        ):
            async with connected(STREAMS, "news") as clients:
                for group, channel in entered:
                    await layer.group_discard(group, channel)
                await self.publish_elsewhere("news", ["unheard"])
                await current_hub().renew_memberships()
                await self.publish_elsewhere("news", ["heard"])
                for client in clients:
                    await client.until("heard")
                    self.assertEqual(client.texts, ["ready", "unheard", "heard"])

    @with_layer(SOON)
    async def test_what_a_lost_membership_leaves_unheard_is_found_in_the_store(
        self, layer: BaseChannelLayer
    ) -> None:
        with memberships(layer) as entered:
            async with connected(STREAMS, "news") as clients:
                for group, channel in entered:
                    await layer.group_discard(group, channel)
                await self.publish_elsewhere("news", ["1", "2", "3"])
                for client in clients:
                    await client.until("3")
                    self.assertEqual(client.texts, ["ready", "1", "2", "3"])

    @with_layer(NEVER)
    async def test_the_last_stream_out_leaves_no_membership_behind(
        self, layer: BaseChannelLayer
    ) -> None:
        with memberships(layer) as entered:
            async with connected(STREAMS, "news"), connected(1, "sport"):
                self.assertTrue(entered)
        await everything_ends()
        for group, channel in entered:
            async with asyncio.timeout(SECONDS):
                self.assertFalse(await hears(layer, group, channel), f"{group} has {channel}.")

    @with_layer(SOON)
    async def test_streams_of_two_event_loops_miss_nothing(self, layer: BaseChannelLayer) -> None:
        burst = [str(number) for number in range(20)]
        ready = threading.Event()

        async def follow() -> list[str]:
            async with connected(1, "news") as [client]:
                ready.set()
                await client.until(burst[-1])
            async with asyncio.timeout(SECONDS):
                while own_tasks():
                    await asyncio.sleep(0.01)
            return client.texts

        async with connected(1, "news") as [client]:
            elsewhere = asyncio.create_task(in_thread(lambda: asyncio.run(follow())))
            try:
                self.assertTrue(await asyncio.to_thread(ready.wait, SECONDS))
                await self.publish_elsewhere("news", burst)
                await client.until(burst[-1])
                self.assertEqual(client.texts, ["ready", "ready", *burst])
                self.assertEqual(await elsewhere, ["ready", *burst])
            finally:
                # Wait even after a failure: while it goes on, it disturbs the next test.
                await asyncio.gather(elsewhere, return_exceptions=True)
