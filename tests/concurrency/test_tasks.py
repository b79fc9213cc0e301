"""Tasks let other tasks run, and a busy event loop makes no answer late."""

import asyncio
import time

import pytest

from django_sse import aposition, apublish_many, views
from django_sse.http.refusals import REFUSED_STATUS
from django_sse.streaming import store_reader
from django_sse.streaming.hub import current_hub
from tests.clients import connected
from tests.streams import get, news, until

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("everything_ends")]


async def test_an_answer_that_comes_while_the_event_loop_is_busy_is_not_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A thousand clients that come back at once keep it busy."""
    for module in (store_reader, views):
        monkeypatch.setattr(module, "READ_SECONDS", 0.2)

    async def be_busy() -> None:
        while True:
            time.sleep(0.1)
            await asyncio.sleep(0)

    busy = asyncio.create_task(be_busy())
    response = await news(get(headers={"Accept": "text/event-stream"}))
    busy.cancel()
    assert not response.has_header(REFUSED_STATUS)


async def test_a_replay_from_memory_lets_other_tasks_run() -> None:
    groups = [f"group{number}" for number in range(50)]
    start = await aposition(*groups)
    async with connected(*groups):
        await apublish_many((group, "x") for group in groups for _ in range(200))
        await until(lambda: all(s.head != s.origin for s in current_hub()._subscriptions.values()))
        async with connected(*groups, after=start) as client:
            turns = 0
            while len(client.events) < 50 * 200:
                await asyncio.sleep(0)
                turns += 1
    # Without giving way, there would be one.
    assert turns >= 25
