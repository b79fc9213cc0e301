"""Blocking calls that each have a thread to themselves."""

import asyncio
import threading
from contextvars import Context
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async

from django_sse.concurrency import threads
from django_sse.concurrency.threads import CleanThreads


async def within(pool: CleanThreads, coroutine: Any) -> Any:
    """Await a coroutine in a context of its own, whose calls run in these threads."""
    return await asyncio.create_task(coroutine, context=pool.within(Context()))


async def test_all_calls_are_made_few_at_a_time_and_those_of_a_context_in_order() -> None:
    pool = CleanThreads(at_once=3, most=10)
    lock = threading.Lock()
    running, most, seen = 0, 0, set()

    def call(context: int, number: int) -> tuple[int, int]:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
            seen.add(threading.current_thread())
        threading.Event().wait(0.001)
        with lock:
            running -= 1
        return context, number

    async def calls(context: int) -> list[tuple[int, int]]:
        return [await sync_to_async(call)(context, number) for number in range(10)]

    answers = await asyncio.gather(*(within(pool, calls(context)) for context in range(20)))
    assert answers == [[(context, number) for number in range(10)] for context in range(20)]
    assert most <= 3
    assert len(seen) == 200


async def test_a_call_without_a_thread_fails_and_the_next_one_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = CleanThreads(at_once=2, most=10)
    whole = threading.Thread
    failures = [RuntimeError("can't start new thread")]

    class Scarce(whole):  # type: ignore[misc, valid-type]
        def start(self) -> None:
            if failures:
                raise failures.pop()
            super().start()

    monkeypatch.setattr(threads, "Thread", Scarce)

    async def calls() -> int:
        with pytest.raises(RuntimeError, match="can't start new thread"):
            await sync_to_async(int)("1")
        return await sync_to_async(int)("2")

    assert await within(pool, calls()) == 2


async def test_a_call_may_wait_for_async_code_that_makes_a_call() -> None:
    async def inner() -> str:
        return await sync_to_async(str)("inner")

    async def calls() -> str:
        return await sync_to_async(async_to_sync(inner))()

    assert await within(CleanThreads(at_once=1, most=1), calls()) == "inner"


async def test_calls_that_are_slow_leave_room_for_others_up_to_a_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(threads, "_SLOW_SECONDS", 0.01)
    pool = CleanThreads(at_once=1, most=3)
    goes_on, begun = threading.Event(), threading.Semaphore(0)

    def slow() -> None:
        begun.release()
        goes_on.wait(10)

    async def call() -> None:
        await sync_to_async(slow)()

    calls = [asyncio.create_task(within(pool, call())) for _ in range(4)]
    for _ in range(3):
        assert await asyncio.to_thread(begun.acquire, timeout=10)
    assert not await asyncio.to_thread(begun.acquire, timeout=0.05)
    goes_on.set()
    await asyncio.gather(*calls)


async def test_a_call_that_is_not_waited_for_any_more_keeps_nobody_waiting() -> None:
    pool = CleanThreads(at_once=1, most=1)
    goes_on, begun = threading.Event(), threading.Event()

    def slow() -> None:
        begun.set()
        goes_on.wait(10)

    async def call() -> None:
        await sync_to_async(slow)()

    async def quick() -> int:
        return await sync_to_async(int)("3")

    first = asyncio.create_task(within(pool, call()))
    await asyncio.to_thread(begun.wait, 10)
    second = asyncio.create_task(within(pool, quick()))
    third = asyncio.create_task(within(pool, quick()))
    await asyncio.sleep(0)
    second.cancel()
    goes_on.set()
    await first
    assert await third == 3
