"""A channel on the layer, also on a layer that fails."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable

import pytest
from channels.layers import InMemoryChannelLayer
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from django_sse.doorbells.layer_channel import LayerChannel, Message
from tests.failures import Panic
from tests.streams import until


class FailingLayer(InMemoryChannelLayer):  # type: ignore[misc]
    """Raises some errors before it receives."""

    def __init__(self, *errors: BaseException) -> None:
        super().__init__()
        self.errors = list(errors)
        self.entries = 0

    async def receive(self, channel: str) -> Message:
        if self.errors:
            raise self.errors.pop()
        message: Message = await super().receive(channel)
        return message

    async def group_add(self, group: str, channel: str) -> None:
        self.entries += 1
        await super().group_add(group, channel)


class Owner:
    """Keeps what its channel on the layer passes on."""

    def __init__(self, layer: InMemoryChannelLayer) -> None:
        self.heard: list[Message] = []
        self.layer_channel = LayerChannel(layer, self.heard.append)
        self.layer = layer

    async def hears(self) -> None:
        """Wait until a message to the group ``news`` has been passed on."""
        await self.layer.group_send("news", {"type": "hello"})
        await until(lambda: {"type": "hello"} in self.heard)


@pytest.fixture
async def owner() -> AsyncIterator[Callable[[InMemoryChannelLayer], Owner]]:
    owners: list[Owner] = []

    def make(layer: InMemoryChannelLayer) -> Owner:
        owners.append(Owner(layer))
        return owners[-1]

    yield make
    for one in owners:
        await one.layer_channel.close()


async def test_a_wait_that_came_to_nothing_is_no_error(
    owner: Callable[[InMemoryChannelLayer], Owner], caplog: pytest.LogCaptureFixture
) -> None:
    """Of channels_redis: it waits 5 seconds, and so long does redis-py let it."""
    layer = FailingLayer(RedisTimeoutError("Timeout reading"), TimeoutError())
    one = owner(layer)
    await one.layer_channel.enter("news")
    await until(lambda: not layer.errors)
    await one.hears()
    assert layer.entries == 1
    assert caplog.records == []


@pytest.mark.parametrize("error", [RedisConnectionError("Connection refused"), Panic()], ids=repr)
async def test_a_failing_layer_is_logged_once_and_its_groups_are_entered_again(
    error: BaseException,
    owner: Callable[[InMemoryChannelLayer], Owner],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.INFO, "django_sse")
    monkeypatch.setattr("django_sse.doorbells.layer_channel._PAUSE_SECONDS", 0.01)
    layer = FailingLayer(*[error] * 3)
    one = owner(layer)
    await one.layer_channel.enter("news")
    await until(lambda: not layer.errors and layer.entries > 1)
    await one.hears()
    assert [record.getMessage() for record in caplog.records] == [
        "Receiving from the channel layer failed.",
        "The channel layer works again.",
    ]


class Panics(InMemoryChannelLayer):  # type: ignore[misc]
    """Panics for what is about the group ``broken``."""

    async def group_add(self, group: str, channel: str) -> None:
        if group == "broken":
            raise Panic
        await super().group_add(group, channel)

    async def group_discard(self, group: str, channel: str) -> None:
        if group == "broken":
            raise Panic
        await super().group_discard(group, channel)


async def test_a_group_that_cannot_be_entered_or_left_keeps_no_other_one_from_it() -> None:
    layer = Panics()
    one = Owner(layer)
    for group in ("broken", "news"):
        await one.layer_channel.enter(group)
    await one.hears()
    await one.layer_channel.close()
    assert layer.groups == {}


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
