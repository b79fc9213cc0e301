"""Tasks let other tasks run, and a busy event loop makes no answer late."""

import asyncio
import gc
import sys
import time
from collections.abc import Collection
from contextvars import ContextVar
from weakref import ref

import pytest

from django_sse import aposition, apublish_many, views
from django_sse.concurrency.tasks import Coalescer, go_on, in_own_context, in_time, limited
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


async def test_what_was_begun_outside_of_tasks_goes_on_in_one_that_can_be_cancelled() -> None:
    reached: list[object] = []

    async def run() -> None:
        try:
            await asyncio.sleep(0)
            await asyncio.sleep(0.01)
            reached.append(asyncio.current_task())
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            reached.append("cancelled")
            # As a coroutine may that has something to clean up.
            await asyncio.sleep(0.01)
            raise

    running = run()
    task = asyncio.create_task(go_on(running, running.send(None)))
    await until(lambda: task in reached)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert reached == [task, "cancelled"]


async def test_what_goes_on_returns_and_raises_as_it_does() -> None:
    async def run(error: Exception | None) -> str:
        await asyncio.sleep(0)
        if error:
            raise error
        return "done"

    running = run(None)
    assert await go_on(running, running.send(None)) == "done"
    running = run(ValueError("no"))
    awaited = running.send(None)
    with pytest.raises(ValueError, match="no"):
        await go_on(running, awaited)


async def test_what_runs_in_its_own_context_leaves_nothing_in_that_of_the_task() -> None:
    async def run(error: Exception | None) -> str:
        assert language.get() == "en"
        language.set("de")
        await asyncio.sleep(0)
        assert asyncio.current_task() is task
        assert language.get() == "de"
        if error:
            raise error
        return "done"

    language, task = ContextVar("language", default=""), asyncio.current_task()
    language.set("en")
    assert await in_own_context(run(None)) == "done"
    with pytest.raises(ValueError, match="no"):
        await in_own_context(run(ValueError("no")))
    assert await in_own_context(asyncio.sleep(0, "at once")) == "at once"
    assert language.get() == "en"


async def test_what_runs_in_its_own_context_is_cancelled_with_its_task_and_leaves_no_circle() -> (
    None
):
    class Held:
        pass

    async def run() -> None:
        held = Held()
        begun.append(ref(held))
        await asyncio.Event().wait()

    begun: list[ref[Held]] = []
    task = asyncio.create_task(in_own_context(run()))
    await until(lambda: begun)
    gc.disable()
    try:
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        del task
        assert begun[0]() is None
    finally:
        gc.enable()


async def test_questions_that_follow_one_another_wait_for_more_keys() -> None:
    asked: list[Collection[int]] = []
    may_answer = asyncio.Event()

    async def ask(keys: Collection[int]) -> None:
        asked.append(keys)
        await may_answer.wait()

    questions = Coalescer[int, None](ask, pause=0.2)
    first = questions.add([0])
    await until(lambda: asked)
    others = [questions.add([1])]
    may_answer.set()
    await first
    for key in range(2, 20):
        others.append(questions.add([key]))
        await asyncio.sleep(0)
    await asyncio.gather(*others)
    assert asked == [{0}, set(range(1, 20))]


async def test_nobody_waits_for_a_question_that_is_not_asked_any_more() -> None:
    asked: list[Collection[int]] = []
    asking: list[asyncio.Task[None] | None] = []
    answered = asyncio.Event()

    async def ask(keys: Collection[int]) -> None:
        asked.append(keys)
        asking.append(asyncio.current_task())
        await answered.wait()

    questions = Coalescer[int, None](ask, pause=60)
    first = questions.add([1])
    await until(lambda: asking)
    second = questions.add([2])
    answered.set()
    await first
    assert asking[0]
    asking[0].cancel()
    await asyncio.wait([second], timeout=5)
    assert second.cancelled()
    await questions.add([3])
    # Of what it was about, whoever comes next asks.
    assert asked == [{1}, {2, 3}]


async def test_a_time_limit_counts_from_the_first_wait_and_ends_what_waits_too_long() -> None:
    ended = []

    async def work(seconds: float) -> str:
        try:
            if seconds:
                await asyncio.sleep(seconds)
            return "done"
        finally:
            ended.append(seconds)

    others = asyncio.get_running_loop().create_future()
    others.get_loop().call_soon(others.set_result, None)
    assert await limited(work(0), 0.001) == "done"
    # Nothing else ran meanwhile.
    assert not others.done()
    assert await limited(work(0.001), 60) == "done"
    assert await limited(work(0.001), None) == "done"
    # Not a coroutine, as of granian's `send`.
    assert await limited(asyncio.ensure_future(work(0.001)), 60) == "done"
    ended.clear()
    for hanging in (work(60), asyncio.ensure_future(work(60))):
        with pytest.raises(TimeoutError):
            await limited(hanging, 0.001)
    await until(lambda: ended == [60, 60])
    task = asyncio.create_task(limited(work(60), 60))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert ended == [60, 60, 60]


async def test_an_answer_in_time_is_the_answer_of_this_context_at_once_or_late() -> None:
    async def answer(seconds: float, error: Exception | None = None) -> str:
        assert tenant.get() == "acme"
        tenant.set("other")
        if seconds:
            await asyncio.sleep(seconds)
        if error:
            raise error
        return "done"

    tenant = ContextVar("tenant", default="")
    tenant.set("acme")
    others = asyncio.get_running_loop().create_future()
    others.get_loop().call_soon(others.set_result, None)
    assert await in_time(answer(0), 60) == "done"
    assert others.done() is (sys.version_info < (3, 12))
    assert await in_time(answer(0.001), 60) == "done"
    assert await in_time(asyncio.ensure_future(answer(0.001)), 60) == "done"
    for seconds in (0, 0.001):
        with pytest.raises(ValueError, match="no"):
            await in_time(answer(seconds, ValueError("no")), 60)
    assert tenant.get() == "acme"


async def test_an_answer_that_takes_too_long_or_that_nobody_waits_for_is_cancelled() -> None:
    async def hang() -> None:
        begun.append(True)
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    begun: list[bool] = []
    cancelled: list[bool] = []
    with pytest.raises(TimeoutError):
        await in_time(hang(), 0.01)
    await until(lambda: len(cancelled) == 1)
    task = asyncio.create_task(in_time(hang(), 60))
    await until(lambda: len(begun) == 2)
    task.cancel()
    await asyncio.wait([task])
    await until(lambda: len(cancelled) == 2)
