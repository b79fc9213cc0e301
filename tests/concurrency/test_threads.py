"""Blocking calls that each have a thread to themselves."""

import asyncio
import ssl
import threading
from contextvars import Context
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.db import connections

from django_sse.concurrency import threads
from django_sse.concurrency.threads import CleanThreads, OwnThread, unpooled
from tests import postgresql
from tests.streams import until


def clean_threads(
    at_once: int, most: int = 10, most_each: int | None = None, patience: float = 60
) -> CleanThreads:
    return CleanThreads(at_once, most, most_each or most, patience)


async def within(pool: CleanThreads, coroutine: Any, caller: str = "") -> Any:
    """Await a coroutine in a context of its own, whose calls run in these threads."""
    return await asyncio.create_task(coroutine, context=pool.within(Context(), caller))


class SlowCall:
    """A call that begins, and goes on when it is told to."""

    def __init__(self) -> None:
        self.begun, self.goes_on = threading.Event(), threading.Event()

    def _run(self) -> None:
        self.begun.set()
        self.goes_on.wait(10)

    async def call(self) -> None:
        await sync_to_async(self._run)()


async def quick() -> int:
    return await sync_to_async(int)("3")


async def test_all_calls_are_made_few_at_a_time_and_those_of_a_context_in_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # No call counts as slow, so no further one begins beside it.
    monkeypatch.setattr(threads, "_SLOW_SECONDS", 60)
    pool = clean_threads(at_once=3)
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
    pool = clean_threads(at_once=2)
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


async def test_many_calls_of_a_context_that_find_no_thread_all_fail(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = clean_threads(at_once=2)
    begun, goes_on = threading.Event(), threading.Event()

    class Failing(threading.Thread):
        def start(self) -> None:
            raise RuntimeError("can't start new thread")

    def slow() -> None:
        begun.set()
        goes_on.wait(10)

    async def calls() -> list[Any]:
        first = asyncio.create_task(sync_to_async(slow)())
        await asyncio.to_thread(begun.wait, 10)
        others = [asyncio.create_task(sync_to_async(int)("1")) for _ in range(1000)]
        await asyncio.sleep(0)
        with monkeypatch.context() as patch:
            patch.setattr(threads, "Thread", Failing)
            goes_on.set()
            await first
            answers = await asyncio.gather(*others, return_exceptions=True)
        return [*answers, await sync_to_async(int)("2")]

    *failures, last = await within(pool, calls())
    assert {str(failure) for failure in failures} == {"can't start new thread"}
    assert last == 2


async def test_a_process_that_was_stopped_amid_a_start_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(threads, "_SLOW_SECONDS", 0.01)
    pool = clean_threads(at_once=1)
    goes_on = threading.Event()

    class Stopped(threading.Timer):
        """Runs out before whoever starts it goes on."""

        def start(self) -> None:
            super().start()
            self.join(0.1)

    async def slow() -> None:
        await sync_to_async(goes_on.wait)(10)

    calls = [asyncio.create_task(within(pool, slow()))]
    await asyncio.sleep(0)
    with monkeypatch.context() as patch:
        patch.setattr(threads, "Timer", Stopped)
        calls.append(asyncio.create_task(within(pool, slow())))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    async with asyncio.timeout(5):
        assert await within(pool, quick()) == 3
    goes_on.set()
    await asyncio.gather(*calls)


async def test_a_call_may_wait_for_async_code_that_makes_a_call() -> None:
    async def inner() -> str:
        return await sync_to_async(str)("inner")

    async def calls() -> str:
        return await sync_to_async(async_to_sync(inner))()

    assert await within(clean_threads(at_once=1, most=1), calls()) == "inner"


async def test_calls_that_are_slow_leave_room_for_others_up_to_a_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(threads, "_SLOW_SECONDS", 0.01)
    pool = clean_threads(at_once=1, most=3)
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


async def test_a_call_fails_that_would_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_SLOW_SECONDS", 0.01)
    pool = clean_threads(at_once=1, most=1, patience=0.05)
    slow = SlowCall()
    first = asyncio.create_task(within(pool, slow.call()))
    await asyncio.to_thread(slow.begun.wait, 10)
    with pytest.raises(TimeoutError, match="Too many slow calls"):
        await within(pool, quick())
    slow.goes_on.set()
    await first
    assert await within(pool, quick()) == 3


@pytest.mark.parametrize(
    "of_alias",
    [
        {"ENGINE": "tests.no_such_engine", "NAME": "legacy"},
        {"ENGINE": "tests.no_such_engine", "NAME": "legacy", "OPTIONS": {"pool": True}},
    ],
)
async def test_a_database_that_nobody_can_use_is_in_nobodys_way(
    of_alias: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = {**connections.settings["default"], "OPTIONS": {}, **of_alias}
    monkeypatch.setitem(connections.settings, "legacy", whole)
    async with asyncio.timeout(10):
        assert await within(clean_threads(at_once=1), quick()) == 3
        with OwnThread() as thread:
            assert await asyncio.create_task(quick(), context=thread.within(Context())) == 3


async def test_a_call_whose_thread_cannot_be_prepared_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail() -> None:
        raise RuntimeError("no databases")

    pool = clean_threads(at_once=1)
    with monkeypatch.context() as patch:
        patch.setattr(threads, "leave_pools", fail)
        with pytest.raises(RuntimeError, match="no databases"):
            await within(pool, quick())
    assert await within(pool, quick()) == 3


def test_options_that_cannot_be_copied_leave_their_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    context = ssl.create_default_context()
    options = {"pool": True, "sslcontext": context}
    monkeypatch.setitem(connections["default"].settings_dict, "OPTIONS", options)
    assert unpooled("default").settings_dict["OPTIONS"] == {"sslcontext": context}


@pytest.mark.skipif(not postgresql.binaries(), reason="PostgreSQL is not installed.")
@pytest.mark.django_db(transaction=True, databases=["default", postgresql.ALIAS])
@pytest.mark.parametrize("kind", ["clean", "own"])
async def test_a_call_finds_nothing_that_others_have_left_in_a_pooled_connection(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    of_alias = connections.settings[postgresql.ALIAS]
    monkeypatch.setitem(of_alias, "OPTIONS", {"pool": {"min_size": 1, "max_size": 1}})

    def tenant(name: str = "") -> str | None:
        with connections[postgresql.ALIAS].cursor() as cursor:
            if name:
                cursor.execute("SELECT set_config('app.tenant', %s, false)", [name])
            cursor.execute("SELECT current_setting('app.tenant', true)")
            found: str | None = cursor.fetchone()[0]
            return found

    def request() -> None:
        # The pool's one connection has it then.
        assert tenant("north") == "north"
        connections[postgresql.ALIAS].close()

    async def look() -> str | None:
        return await sync_to_async(tenant)()

    def close_pool() -> None:
        connections[postgresql.ALIAS].close_pool()  # type: ignore[attr-defined]

    try:
        await asyncio.to_thread(request)
        if kind == "clean":
            pool = clean_threads(at_once=1, most=1)
            assert not await within(pool, look())
        else:
            with OwnThread() as thread:
                assert not await asyncio.create_task(look(), context=thread.within(Context()))
    finally:
        await asyncio.to_thread(close_pool)


async def test_a_call_that_is_not_waited_for_any_more_keeps_nobody_waiting() -> None:
    pool = clean_threads(at_once=1, most=1)
    slow = SlowCall()
    first = asyncio.create_task(within(pool, slow.call()))
    await asyncio.to_thread(slow.begun.wait, 10)
    second = asyncio.create_task(within(pool, quick()))
    third = asyncio.create_task(within(pool, quick()))
    await asyncio.sleep(0)
    second.cancel()
    slow.goes_on.set()
    await first
    assert await third == 3


async def test_one_caller_with_many_slow_calls_keeps_no_other_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(threads, "_SLOW_SECONDS", 0.01)
    pool = clean_threads(at_once=1, most=4, most_each=2, patience=0.05)
    slow = [SlowCall() for _ in range(2)]
    calls = [asyncio.create_task(within(pool, call.call(), "one")) for call in slow]
    for call in slow:
        assert await asyncio.to_thread(call.begun.wait, 10)
    with pytest.raises(TimeoutError, match="Too many slow calls"):
        await within(pool, quick(), "one")
    assert await within(pool, quick(), "other") == 3
    for call in slow:
        call.goes_on.set()
    await asyncio.gather(*calls)
    assert await within(pool, quick(), "one") == 3


async def test_one_caller_leaves_a_thread_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    # No call counts as slow, so no further one begins beside it.
    monkeypatch.setattr(threads, "_SLOW_SECONDS", 60)
    pool = clean_threads(at_once=2)
    long = [SlowCall() for _ in range(2)]
    calls = [asyncio.create_task(within(pool, call.call(), "one")) for call in long]
    assert await asyncio.to_thread(long[0].begun.wait, 10)
    assert await within(pool, quick(), "other") == 3
    assert not long[1].begun.is_set()
    for call in long:
        call.goes_on.set()
    await asyncio.gather(*calls)


async def test_callers_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    # On a machine that is busy, the first call takes its time.
    monkeypatch.setattr(threads, "_SLOW_SECONDS", 60)
    pool = clean_threads(at_once=1)
    first = SlowCall()
    order: list[str] = []

    async def call(caller: str) -> None:
        await sync_to_async(order.append)(caller)

    calls = [asyncio.create_task(within(pool, first.call()))]
    assert await asyncio.to_thread(first.begun.wait, 10)
    for caller in ["many", "many", "many", "few"]:
        calls.append(asyncio.create_task(within(pool, call(caller), caller)))
        await until(lambda: sum(map(len, pool._waiting.values())) == len(calls) - 1)
    first.goes_on.set()
    await asyncio.gather(*calls)
    assert order == ["many", "few", "many", "many"]


async def test_many_that_wait_cost_little_while_all_threads_are_slow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(threads, "_SLOW_SECONDS", 0.01)
    pool = clean_threads(at_once=1, most=3)
    slow = [SlowCall() for _ in range(3)]
    calls = [asyncio.create_task(within(pool, call.call(), "slow")) for call in slow]
    for call in slow:
        assert await asyncio.to_thread(call.begun.wait, 10)
    # Each would be asked about again and again.
    asked = CountingCallers()
    monkeypatch.setattr(pool, "_waiting", asked)
    for number in range(200):
        calls.append(asyncio.create_task(within(pool, quick(), f"caller {number}")))
        await asyncio.sleep(0)
    for call in slow:
        call.goes_on.set()
    await asyncio.gather(*calls)
    assert asked.seen < 2000


class CountingCallers(dict[str, Any]):
    """Counts how often a waiting caller was looked at."""

    seen = 0

    def __iter__(self) -> Any:
        for caller in super().__iter__():
            self.seen += 1
            yield caller
