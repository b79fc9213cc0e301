"""Producers: what their readers get, whatever happens to them."""

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from copy import deepcopy
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.contrib.auth.models import User
from django.db import transaction
from pytest_django import Settings

from django_sse import Event, acancel, apublish, areopen, cancel, producing, publish
from django_sse.doorbells.base import POLL_SECONDS_WITH_DOORBELL
from django_sse.exceptions import AlreadyProducing, Cancelled, Close, GroupCancelled, InvalidEvent
from django_sse.groups.entries import Kind
from django_sse.groups.names import OWNER_PREFIX
from django_sse.producing import AsyncProducer, aproduce, produce, start_producing
from django_sse.stores import get_store
from django_sse.stores.memory import MemoryStore
from django_sse.streaming.hub import open_streams
from django_sse.streaming.watch import Watch
from django_sse.views import ALL, EventStreamView
from tests.streams import TIMEOUT, get, open_stream, until

answers = EventStreamView.as_view(groups=["answer"], history=ALL)

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("everything_ends"),
]


def data_of(events: list[Event]) -> list[Any]:
    return [event.data for event in events if event.event != "close"]


def reason_in(events: list[Event]) -> Any:
    return events[-1].json()["reason"]


async def all_of_it() -> tuple[list[Any], Any]:
    """What a client gets that comes now, and why its stream ends."""
    async with open_stream(answers) as stream:
        events = await stream.rest()
    return data_of(events), reason_in(events)


class Model:
    """A source of words, which notes what happens to it."""

    def __init__(self, *words: str, then: BaseException | None = None, waits: bool = False) -> None:
        self.words = words
        self.then = then
        self.waits = waits
        self.begun = self.closed = 0

    async def answer(self) -> AsyncIterator[Any]:
        self.begun += 1
        try:
            for word in self.words:
                await asyncio.sleep(0)
                yield word
            if self.waits:
                await asyncio.Event().wait()
            if self.then:
                raise self.then
        finally:
            self.closed += 1


async def said(*steps: str | asyncio.Event) -> AsyncIterator[str]:
    """Yield the texts, and wait for each event before what follows it."""
    for step in steps:
        if isinstance(step, asyncio.Event):
            await step.wait()
        else:
            yield step


async def test_a_client_gets_all_of_it_and_that_it_is_complete() -> None:
    model = Model(*"abc")
    await start_producing(model.answer(), group="answer")
    async with open_stream(answers) as stream:
        events = await stream.rest()
    assert data_of(events) == ["a", "b", "c"]
    assert reason_in(events) == "complete"
    # Also when it comes late, and whatever it has; but not again once it has it all.
    assert await all_of_it() == (["a", "b", "c"], "complete")
    response = await answers(get(headers={"Last-Event-ID": stream.last_event_id}))
    assert response.status_code == 204


async def test_it_goes_on_without_any_client() -> None:
    model = Model(*"abc")
    await start_producing(model.answer(), group="answer")
    await until(lambda: model.closed)
    await until_ended()
    assert await all_of_it() == (["a", "b", "c"], "complete")
    assert model.begun == 1


async def until_ended() -> None:
    async with open_stream(answers) as stream:
        await stream.rest()


async def test_all_is_kept_whatever_the_history_size(settings: Settings) -> None:
    settings.DJANGO_SSE = {"HISTORY_SIZE": 5}
    words = [str(number) for number in range(300)]
    await start_producing(Model(*words).answer(), group="answer")
    assert await all_of_it() == (words, "complete")


async def test_a_group_has_one_producer_at_a_time() -> None:
    first, second = Model("a", waits=True), Model("b")
    await start_producing(first.answer(), group="answer")
    with pytest.raises(AlreadyProducing, match="'answer'"):
        await start_producing(second.answer(), group="answer")
    with pytest.raises(AlreadyProducing):
        async with aproduce("answer"):
            pass
    assert second.begun == 0
    async with open_stream(answers) as stream:
        assert (await stream.next_event()).data == "a"
    await acancel("answer")
    await until(lambda: first.closed)
    # Nor is it paid for twice afterwards.
    with pytest.raises(GroupCancelled):
        await start_producing(second.answer(), group="answer")
    assert second.begun == 0
    await areopen("answer")
    await start_producing(second.answer(), group="answer")
    assert (await all_of_it())[0] == ["a", "b"]


async def test_a_cancel_stops_it_and_its_readers() -> None:
    model = Model("a", waits=True)
    await start_producing(model.answer(), group="answer")
    async with open_stream(answers) as stream:
        assert (await stream.next_event()).data == "a"
        await acancel("answer", reason="stopped")
        assert reason_in(await stream.rest()) == "stopped"
    await until(lambda: model.closed)
    assert await all_of_it() == (["a"], "stopped")


@pytest.mark.parametrize(
    ("error", "reason"),
    [(Close("quota"), "quota"), (ValueError("secret"), "failed"), (MemoryError(), "failed")],
)
async def test_it_says_why_it_ends(
    error: Exception, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    await start_producing(Model("a", then=error).answer(), group="answer")
    assert await all_of_it() == (["a"], reason)
    assert ("failed" in caplog.text) is (reason == "failed")


async def test_its_end_may_have_a_result() -> None:
    await start_producing(
        Model("a", then=Close("complete", {"url": "/7/"})).answer(), group="answer"
    )
    async with open_stream(answers) as stream:
        close = (await stream.rest())[-1]
    assert close.json() == {"reason": "complete", "result": {"url": "/7/"}}


@pytest.mark.parametrize("result", [object(), "x" * 2_000_000])
async def test_a_result_that_cannot_be_sent_is_a_failure(
    result: Any, caplog: pytest.LogCaptureFixture
) -> None:
    await start_producing(Model("a", then=Close("complete", result)).answer(), group="answer")
    assert await all_of_it() == (["a"], "failed")
    assert "The result of group 'answer' cannot be sent" in caplog.text


async def test_an_event_that_cannot_be_published_is_a_failure() -> None:
    async def answer() -> AsyncIterator[Any]:
        yield "a"
        yield Event("b", id="no")

    await start_producing(answer(), group="answer")
    assert await all_of_it() == (["a"], "failed")


async def test_it_may_publish_so_many_bytes(settings: Settings) -> None:
    settings.DJANGO_SSE = {"PRODUCER_BYTES": 1000}
    await start_producing(Model("x" * 600, "y" * 600).answer(), group="answer")
    assert await all_of_it() == (["x" * 600], "failed")
    async with aproduce("another") as producer:
        with pytest.raises(InvalidEvent, match="PRODUCER_BYTES"):
            await producer.apublish("x" * 1001)


async def test_blocking_calls_work_in_it() -> None:
    async def answer() -> AsyncIterator[Any]:
        user = await User.objects.acreate(username="anna")
        yield user.username
        yield await sync_to_async(threading.get_ident)() != threading.get_ident()

    await start_producing(answer(), group="answer")
    assert await all_of_it() == (["anna", "true"], "complete")


async def test_a_user_who_is_cancelled_has_no_producer_left() -> None:
    user = await User.objects.acreate(username="anna")
    model, of_others = Model("a", waits=True), Model("b", waits=True)
    # What was cancelled before does not count.
    await acancel(user=user)
    await start_producing(model.answer(), group="answer", owner=user)
    await start_producing(of_others.answer(), group="of-others")
    async with open_stream(answers) as stream:
        assert (await stream.next_event()).data == "a"
        await acancel(user=user)
        assert reason_in(await stream.rest()) == "stopped"
    await until(lambda: model.closed)
    assert not of_others.closed
    await acancel("of-others")
    await until(lambda: of_others.closed)


async def test_it_counts_for_no_limit(settings: Settings) -> None:
    settings.DJANGO_SSE = {"MAX_STREAMS": 1}
    model = Model("a", waits=True)
    await start_producing(model.answer(), group="answer")
    async with open_stream(answers) as stream:
        assert (await stream.next_event()).data == "a"
        assert open_streams() == 1
        await acancel("answer")
    await until(lambda: model.closed)


async def test_others_may_publish_between() -> None:
    go_on = asyncio.Event()

    await start_producing(said("a", go_on, "c"), group="answer")
    async with open_stream(answers) as stream:
        assert (await stream.next_event()).data == "a"
        await apublish("answer", "b")
        assert (await stream.next_event()).data == "b"
        go_on.set()
        assert (await stream.next_event()).data == "c"


# Blocks


async def test_a_block_ends_as_a_generator_does() -> None:
    async with aproduce("answer") as producer:
        await producer.apublish("a")
        await producer.apublish({"b": 1}, event="part")
        assert not producer.cancelled
    assert await all_of_it() == (["a", '{"b":1}'], "complete")


async def test_an_exception_leaves_the_block_but_close_does_not() -> None:
    async def fail() -> None:
        async with aproduce("answer") as producer:
            await producer.apublish("a")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert await all_of_it() == (["a"], "failed")
    await areopen("answer")
    async with aproduce("answer"):
        raise Close("quota")
    assert await all_of_it() == (["a"], "quota")


async def test_a_block_is_told_that_it_is_cancelled() -> None:
    async def work() -> None:
        async with aproduce("answer") as producer:
            await producer.apublish("a")
            await acancel("answer", reason="stopped")
            await until(lambda: producer.cancelled)
            await producer.apublish("b")

    with pytest.raises(Cancelled, match="'answer'"):
        await work()
    texts, reason = await all_of_it()
    assert reason == "stopped"
    assert "b" not in texts


async def test_a_block_whose_task_is_cancelled_is_interrupted() -> None:
    begun = asyncio.Event()

    async def work() -> None:
        async with aproduce("answer") as producer:
            await producer.apublish("a")
            begun.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await begun.wait()
    task.cancel()
    assert await all_of_it() == (["a"], "interrupted")


def test_synchronous_code_produces() -> None:
    with produce("answer") as producer:
        producer.publish("a")
        publish("answer", "b")
        producer.publish("c", event="part")
        assert producer.group == "answer"
    texts, reason = async_to_sync(all_of_it)()
    assert sorted(texts) == ["a", "b", "c"]
    assert reason == "complete"


def test_a_transaction_on_sqlite_is_refused() -> None:
    with pytest.raises(RuntimeError, match="inside a transaction on SQLite"):  # noqa: SIM117
        with transaction.atomic(), produce("answer"):
            pass
    assert not get_store().states(["answer"])["answer"].producer


async def test_nothing_is_published_after_the_end() -> None:
    async with aproduce("answer") as producer:
        await producer.apublish("a")
    with pytest.raises(RuntimeError, match="has ended"):
        await producer.apublish("b")


def test_a_loop_that_ends_publishes_the_rest_and_closes_the_groups() -> None:
    published: Counter[str] = Counter()

    async def answer(group: str) -> AsyncIterator[Any]:
        while True:
            yield "word"
            # It goes on, so what was yielded before is published.
            published[group] += 1
            await asyncio.sleep(0.005)

    async def work(number: int) -> None:
        groups = [f"answer-{number}-{of_loop}" for of_loop in range(10)]
        for group in groups:
            await start_producing(answer(group), group=group)
        await until(lambda: all(published[group] > 10 for group in groups))

    for number in range(4):
        asyncio.run(work(number))
    assert len(published) == 40
    store = get_store()
    for group, words in published.items():
        entries = async_to_sync(store.aread)(group, 0, 1000)
        assert b"interrupted" in entries.pop().wire
        assert len(entries) >= words


async def test_a_cancel_amid_the_normal_end_loses_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = get_store()
    appends = store.aappend_apart
    begun = asyncio.Event()

    async def slowly(entries: Any, ring: Any) -> Any:
        if entries[0].kind is Kind.EVENT:
            begun.set()
            await asyncio.sleep(0.02)
        return await appends(entries, ring)

    async def work() -> None:
        async with aproduce("answer") as producer:
            for number in range(1200):
                await producer.apublish(number)

    monkeypatch.setattr(store, "aappend_apart", slowly)
    working = asyncio.create_task(work())
    await begun.wait()
    await asyncio.sleep(0)
    working.cancel()
    texts, reason = await all_of_it()
    assert (len(texts), reason) == (1200, "complete")


def test_synchronous_code_is_told_that_it_is_cancelled() -> None:
    def work() -> None:
        with produce("answer") as producer:
            cancel("answer")
            async_to_sync(until)(lambda: producer.cancelled)
            producer.publish("a")

    with pytest.raises(Cancelled):
        work()
    assert async_to_sync(all_of_it)() == ([], None)


# What is refused


async def test_what_is_no_async_generator_is_refused() -> None:
    model = Model("a")
    with pytest.raises(TypeError, match="async generator, not method"):
        await start_producing(model.answer, group="answer")  # type: ignore[arg-type]


def test_a_loop_that_ends_with_the_call_is_refused() -> None:
    model = Model("a")
    with pytest.raises(RuntimeError, match=r"use produce\(\)"):
        async_to_sync(start_producing)(model.answer(), group="answer")
    assert not model.begun


# What fails


class FaultyStore(MemoryStore):
    """A store that can be away, and whose answers can be lost."""

    never_blocks = False
    is_away = False
    loses_answers = False
    refused = 0
    looks_for_lapsed = 0
    hides_readers = False
    hidden = 0

    async def alapsed(self, seconds: float) -> Any:
        self.looks_for_lapsed += 1
        return await super().alapsed(seconds)

    def forget_all(self) -> None:
        for kept in (self._groups, self._producing):
            kept.clear()

    def _append(self, entries: Any, *, staged: bool = False) -> Any:
        if self.is_away:
            self.refused += 1
            raise ConnectionError("The store is away.")
        answer = super()._append(entries, staged=staged)
        if self.loses_answers:
            raise ConnectionError("The answer is lost.")
        return answer

    async def astates(self, groups: Any) -> Any:
        if self.is_away:
            raise ConnectionError("The store is away.")
        if self.hides_readers and groups[0].startswith(OWNER_PREFIX):
            self.hidden += 1
            raise ConnectionError("The store is away.")
        return await super().astates(groups)


@pytest.fixture
def faulty(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> FaultyStore:
    settings.DJANGO_SSE = {"STORE": f"{__name__}.FaultyStore", "PRODUCER_TTL": 3}
    monkeypatch.setattr(producing, "_PAUSE_SECONDS", 0.01)
    store = get_store()
    assert isinstance(store, FaultyStore)
    return store


@pytest.mark.parametrize("fault", ["is_away", "loses_answers"])
async def test_each_event_comes_once_though_the_store_fails(
    faulty: FaultyStore, fault: str
) -> None:
    words = [str(number) for number in range(200)]

    async def answer() -> AsyncIterator[Any]:
        for number, word in enumerate(words):
            setattr(faulty, fault, number % 20 > 10)
            await asyncio.sleep(0.002)
            yield word
        setattr(faulty, fault, False)

    await start_producing(answer(), group="answer", flush_seconds=0)
    assert await all_of_it() == (words, "complete")


async def test_its_end_comes_once_though_the_answer_is_lost(faulty: FaultyStore) -> None:
    async def answer() -> AsyncIterator[Any]:
        yield "a"
        faulty.loses_answers = True

    await start_producing(answer(), group="answer")
    assert await all_of_it() == (["a"], "complete")


async def test_a_producer_waits_while_the_store_is_away(faulty: FaultyStore) -> None:
    yielded = 0

    async def answer() -> AsyncIterator[Any]:
        nonlocal yielded
        faulty.is_away = True
        while yielded < 50:
            yield "x" * 10_000
            yielded += 1

    await start_producing(answer(), group="answer")
    await until(lambda: yielded >= 10 and faulty.refused >= 5)
    assert yielded < 30
    faulty.is_away = False
    texts, reason = await all_of_it()
    assert (len(texts), reason) == (50, "complete")


async def test_a_store_that_has_forgotten_it_all_gets_the_rest(faulty: FaultyStore) -> None:
    go_on = asyncio.Event()

    await start_producing(said("a", go_on, "b"), group="answer")
    async with open_stream(answers) as stream:
        assert (await stream.next_event()).data == "a"
    faulty.forget_all()
    go_on.set()
    # Whoever has seen more gets a reset, and comes back.
    async with asyncio.timeout(TIMEOUT):
        while await data_that_come() != ["b"]:
            pass
    assert await all_of_it() == (["b"], "complete")


async def test_a_store_may_have_forgotten_it_before_its_first_event(faulty: FaultyStore) -> None:
    go_on = asyncio.Event()

    await start_producing(said(go_on, "a"), group="answer")
    faulty.forget_all()
    go_on.set()
    assert await all_of_it() == (["a"], "complete")


async def test_a_store_may_have_gone_back_to_what_it_was(faulty: FaultyStore) -> None:
    """As a Redis that was restarted with its last snapshot."""
    go_on, last = asyncio.Event(), asyncio.Event()

    await start_producing(said("a", go_on, "b", last, "c"), group="answer")
    async with open_stream(answers) as stream:
        await stream.until("a")
        snapshot = deepcopy(faulty._groups["answer"])
        go_on.set()
        await stream.until("b")
    for kept in (faulty._groups, faulty._producing):
        kept["answer"] = snapshot
    last.set()
    async with asyncio.timeout(TIMEOUT):
        while await data_that_come() != ["a", "c"]:
            pass
    assert await all_of_it() == (["a", "c"], "complete")


async def test_others_may_publish_first_to_a_store_that_has_forgotten_it(
    faulty: FaultyStore,
) -> None:
    go_on = asyncio.Event()

    await start_producing(said("a", go_on, "c"), group="answer")
    async with open_stream(answers) as stream:
        await stream.until("a")
    faulty.forget_all()
    await apublish("answer", "b")
    go_on.set()
    async with asyncio.timeout(TIMEOUT):
        while await data_that_come() != ["b", "c"]:
            pass
    assert await all_of_it() == (["b", "c"], "complete")


async def test_who_is_cancelled_and_reopened_is_not_taken_for_forgotten(
    faulty: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its stream has not seen it.
    monkeypatch.setattr(Watch, "end_if_cancelled", lambda self: None)
    go_on = asyncio.Event()

    await start_producing(said("a", go_on, "too late"), group="answer")
    async with open_stream(answers) as stream:
        await stream.until("a")
    await acancel("answer")
    await areopen("answer")
    async with open_stream(answers) as stream:
        go_on.set()
        await until(lambda: not producing._running)
        assert not faulty._groups["answer"].producer
        await acancel("answer", reason="over")
        assert data_of(await stream.rest()) == ["a"]


async def test_a_kick_amid_an_append_whose_answer_is_lost_closes_the_group(
    faulty: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So that the kick comes before the next try.
    monkeypatch.setattr(producing, "_PAUSE_SECONDS", 0.5)
    user = await User.objects.acreate(username="anna")

    async def answer() -> AsyncIterator[Any]:
        faulty.loses_answers = True
        yield "a"
        await asyncio.Event().wait()

    await start_producing(answer(), group="answer", owner=user)
    await until(lambda: faulty._groups["answer"].entries)
    faulty.loses_answers = False
    await acancel(user=user)
    assert await all_of_it() == (["a"], "stopped")


async def test_who_leaves_while_it_begins_does_not_stop_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a client whose request is cancelled by the server."""
    appending, goes_on = slow_begin(monkeypatch)
    model = Model("a", "b")
    request = asyncio.create_task(start_producing(model.answer(), group="answer"))
    await appending.wait()
    request.cancel()
    await asyncio.wait([request])
    goes_on.set()
    assert await all_of_it() == (["a", "b"], "complete")


async def test_a_block_that_is_cancelled_while_it_begins_keeps_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def work() -> None:
        async with aproduce("answer"):
            raise AssertionError

    appending, goes_on = slow_begin(monkeypatch)
    working = asyncio.create_task(work())
    await appending.wait()
    working.cancel()
    await asyncio.wait([working])
    goes_on.set()
    assert await all_of_it() == ([], "interrupted")


async def test_a_block_that_is_cancelled_right_when_it_begins_keeps_nothing() -> None:
    for turns in range(1, 6):
        group = f"answer-{turns}"

        async def work(group: str = group) -> None:
            async with aproduce(group):
                await asyncio.Event().wait()

        working = asyncio.create_task(work())
        for _ in range(turns):
            await asyncio.sleep(0)
        working.cancel()
        await asyncio.wait([working])
        store = get_store()
        async with asyncio.timeout(TIMEOUT):
            while (await store.astates([group]))[group].producer:
                await asyncio.sleep(0.01)


async def test_a_cancel_and_a_reopen_stop_one_that_has_published_nothing(
    faulty: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its stream has not seen it.
    monkeypatch.setattr(Watch, "end_if_cancelled", lambda self: None)
    go_on = asyncio.Event()
    closed = asyncio.Event()

    async def answer() -> AsyncIterator[Any]:
        try:
            await go_on.wait()
            yield "too late"
            await asyncio.Event().wait()
        finally:
            closed.set()

    await start_producing(answer(), group="answer")
    await acancel("answer")
    await areopen("answer")
    go_on.set()
    async with asyncio.timeout(TIMEOUT):
        await closed.wait()
    assert not faulty._groups["answer"].producer
    await acancel("answer", reason="over")
    assert await all_of_it() == ([], "over")


def slow_begin(monkeypatch: pytest.MonkeyPatch) -> tuple[asyncio.Event, asyncio.Event]:
    """Let the store take its time once it has the first entry."""
    store = get_store()
    appends = store.aappend_apart
    appending, goes_on = asyncio.Event(), asyncio.Event()

    async def slowly(entries: Any, ring: Any) -> Any:
        numbers = await appends(entries, ring)
        appending.set()
        await goes_on.wait()
        return numbers

    monkeypatch.setattr(store, "aappend_apart", slowly)
    return appending, goes_on


@pytest.mark.usefixtures("faulty")
@pytest.mark.parametrize("restartable", [False, True])
async def test_what_cannot_begin_leaves_the_group_to_others(
    settings: Settings, restartable: bool
) -> None:
    settings.DJANGO_SSE = {"STORE": f"{__name__}.FaultyStore", "PRODUCER_TTL": 1}
    store: Any = get_store()
    first, second = Model("a"), Model("b")
    await apublish("answer", "queued")
    store.loses_answers = True
    with pytest.raises(ConnectionError):
        await start_producing(first.answer(), group="answer", restartable=restartable)
    store.loses_answers = False
    await until(lambda: not store.states(["answer"])["answer"].producer)

    async def begin() -> None:
        async with asyncio.timeout(TIMEOUT):
            while True:
                try:
                    return await start_producing(second.answer(), group="answer")
                except AlreadyProducing:
                    await asyncio.sleep(0.01)

    await begin()
    assert await all_of_it() == (["queued", "b"], "complete")
    assert not first.begun


async def test_a_user_who_is_cancelled_while_it_begins_has_none_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    user = await User.objects.acreate(username="anna")
    appending, goes_on = slow_begin(monkeypatch)
    model = Model("a", waits=True)
    request = asyncio.create_task(start_producing(model.answer(), group="answer", owner=user))
    await appending.wait()
    await acancel(user=user)
    goes_on.set()
    await request
    assert (await all_of_it())[1] == "stopped"
    await until(lambda: model.begun == model.closed)


async def data_that_come() -> list[Any]:
    async with open_stream(answers) as stream:
        return data_of(await stream.rest())


async def test_a_producer_that_has_died_is_told_of_once(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.DJANGO_SSE = {"PRODUCER_TTL": 1}
    model = Model("a", waits=True)
    # It sleeps, as a process that was stopped.
    monkeypatch.setattr(producing, "renewal_seconds", lambda: 3600)
    await start_producing(model.answer(), group="answer")
    async with open_stream(answers) as one, open_stream(answers) as other:
        assert reason_in(await one.rest()) == "interrupted"
        assert reason_in(await other.rest()) == "interrupted"
    # What it does afterwards is in vain.
    await until(lambda: model.closed)
    assert await all_of_it() == (["a"], "interrupted")


async def test_a_producer_that_lives_is_not_taken_for_dead(
    settings: Settings, faulty: FaultyStore
) -> None:
    settings.DJANGO_SSE = {"STORE": f"{__name__}.FaultyStore", "PRODUCER_TTL": 1}
    store: Any = get_store()

    async def answer() -> AsyncIterator[Any]:
        # Longer than it would be given.
        await until(lambda: store.looks_for_lapsed >= 10)
        yield "a"

    await start_producing(answer(), group="answer")
    assert await all_of_it() == (["a"], "complete")


async def test_a_paused_producer_writes_into_no_other_ones_group(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = asyncio.Event()

    settings.DJANGO_SSE = {"PRODUCER_TTL": 1}
    monkeypatch.setattr(Watch, "end_if_cancelled", lambda self: None)
    await start_producing(said("of the first", go_on, "too late"), group="answer")
    async with open_stream(answers) as stream:
        assert (await stream.next_event()).data == "of the first"
        await acancel("answer")
    await areopen("answer")
    second = Model("of the second", waits=True)
    await start_producing(second.answer(), group="answer")
    async with open_stream(answers) as stream:
        await stream.until("of the second")
        go_on.set()
        await acancel("answer", reason="over")
        assert data_of(await stream.rest()) == []


# Nobody reads


@pytest.fixture
def quick(settings: Settings) -> None:
    settings.DJANGO_SSE = {"PRODUCER_TTL": 1, "SYNC_INTERVAL": 0.05}


@pytest.mark.usefixtures("quick")
async def test_what_nobody_reads_is_stopped() -> None:
    model = Model("a", waits=True)
    await start_producing(model.answer(), group="answer", stop_when_unread=0.1)
    await until(lambda: model.closed)
    assert await all_of_it() == (["a"], "unread")


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("comes", ["before it begins", "afterwards"])
async def test_what_somebody_reads_goes_on(comes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    look = AsyncProducer._look_for_readers

    async def looking(self: AsyncProducer, seconds: float) -> None:
        await look(self, seconds)
        looks.append(self._looks)

    monkeypatch.setattr(AsyncProducer, "_look_for_readers", looking)
    model = Model("a", waits=True)
    async with AsyncExitStack() as stack:
        if comes == "before it begins":
            await stack.enter_async_context(open_stream(answers))
        await start_producing(model.answer(), group="answer", stop_when_unread=0.1)
        if comes == "afterwards":
            await stack.enter_async_context(open_stream(answers))
        # Several times as many as would stop it.
        await until(lambda: len(looks) > 15)
        assert not model.closed
    await until(lambda: model.closed)


async def test_a_reader_is_known_however_short_a_lease_is(settings: Settings) -> None:
    """Its process hears of a producer that begins later by its next comparison with the store."""
    settings.DJANGO_SSE = {"PRODUCER_TTL": 1}
    model = Model("a", waits=True)
    async with open_stream(answers) as stream:
        await start_producing(model.answer(), group="answer", stop_when_unread=0.1)
        await stream.until("a")
        # The longest that a comparison takes to come, and a lease.
        await asyncio.sleep(POLL_SECONDS_WITH_DOORBELL + 2)
        assert not model.closed
        await acancel("answer")


@pytest.mark.usefixtures("faulty")
async def test_a_store_that_is_away_is_no_sign_that_nobody_reads(
    settings: Settings,
) -> None:
    settings.DJANGO_SSE = {**settings.DJANGO_SSE, "PRODUCER_TTL": 1, "SYNC_INTERVAL": 0.05}
    store: Any = get_store()
    model = Model("a", waits=True)
    await start_producing(model.answer(), group="answer", stop_when_unread=0.1)
    store.hides_readers = True
    await until(lambda: store.hidden > 10)
    assert not model.closed
    store.hides_readers = False
    await until(lambda: model.closed)


@pytest.mark.usefixtures("quick")
async def test_a_block_is_told_that_nobody_reads() -> None:
    async with aproduce("answer", stop_when_unread=0.1) as producer:
        await until(lambda: producer.cancelled)
    assert await all_of_it() == ([], "unread")


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), "5", True])
async def test_a_wrong_number_of_seconds_is_refused(seconds: Any) -> None:
    model = Model("a")
    with pytest.raises(ValueError, match="stop_when_unread must be a finite number of seconds"):
        await start_producing(model.answer(), group="answer", stop_when_unread=seconds)
    assert model.begun == 0


# Handing over


async def test_what_is_restartable_goes_on_with_the_next_producer() -> None:
    first, second = Model("a", waits=True), Model("b")
    await start_producing(first.answer(), group="answer", restartable=True)
    async with open_stream(answers) as stream:
        assert (await stream.next_event()).data == "a"
        await producing.wind_down()
        assert first.closed
        await start_producing(second.answer(), group="answer", restartable=True)
        events = await stream.rest()
    assert (data_of(events), reason_in(events)) == (["b"], "complete")
    assert await all_of_it() == (["a", "b"], "complete")


async def test_what_nobody_goes_on_with_is_interrupted(settings: Settings) -> None:
    settings.DJANGO_SSE = {"PRODUCER_TTL": 1, "SYNC_INTERVAL": 0.05, "RETRY": 100}
    await start_producing(Model("a", waits=True).answer(), group="answer", restartable=True)
    async with open_stream(answers) as stream:
        assert (await stream.next_event()).data == "a"
        await producing.wind_down()
        assert reason_in(await stream.rest()) == "interrupted"


async def test_clients_that_take_their_time_to_come_back_are_not_too_late(
    settings: Settings,
) -> None:
    settings.DJANGO_SSE = {"PRODUCER_TTL": 1, "SYNC_INTERVAL": 0.05, "RETRY": 1500}
    await start_producing(Model("a", waits=True).answer(), group="answer", restartable=True)
    async with open_stream(answers) as stream:
        assert (await stream.next_event()).data == "a"
        await producing.wind_down()
        # As long as the last of them was told to stay away.
        await asyncio.sleep(3)
        await start_producing(Model("b").answer(), group="answer", restartable=True)
        assert data_of(await stream.rest()) == ["b"]


async def test_one_that_is_still_beginning_is_handed_over_at_the_end_of_the_grace(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.DJANGO_SSE = {"PRODUCER_GRACE": 0.5}
    appending, goes_on = slow_begin(monkeypatch)
    first = start_producing(Model("a", waits=True).answer(), group="answer", restartable=True)
    beginning = asyncio.create_task(first)
    await appending.wait()
    ending = asyncio.create_task(producing.wind_down())
    await asyncio.sleep(0)
    goes_on.set()
    await beginning
    await ending
    await start_producing(Model("b").answer(), group="answer")
    assert await all_of_it() == (["a", "b"], "complete")


def test_a_task_that_is_stopped_leaves_its_group_to_the_next_one() -> None:
    def work() -> None:
        with produce("answer", restartable=True) as producer:
            producer.publish("a")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    with produce("answer") as producer:
        producer.publish("b")
    assert async_to_sync(all_of_it)() == (["a", "b"], "complete")


async def test_a_restartable_producer_ends_as_any_other() -> None:
    await start_producing(Model("a").answer(), group="answer", restartable=True)
    assert await all_of_it() == (["a"], "complete")


async def test_a_cancel_may_come_while_the_end_is_being_published(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = get_store()
    appends = store.aappend_apart
    begun, appended, goes_on = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def slowly(entries: Any, ring: Any) -> Any:
        numbers = await appends(entries, ring)
        if b"the first" in entries[0].wire:
            begun.set()
        if b"the last" in entries[0].wire:
            appended.set()
            await goes_on.wait()
        return numbers

    async def work() -> None:
        async with aproduce("answer", flush_seconds=3600) as producer:
            await producer.apublish("the first")
            await begun.wait()
            await producer.apublish("the last")

    monkeypatch.setattr(store, "aappend_apart", slowly)
    working = asyncio.create_task(work())
    await appended.wait()
    await acancel("answer", reason="stopped")
    await until_ended()
    goes_on.set()
    await working
    assert await all_of_it() == (["the first", "the last"], "stopped")
