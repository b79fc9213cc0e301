"""One failure harms only itself: whatever of a stream, a group, a hub or a callback fails."""

import asyncio
import gc
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any, cast

import pytest
from django.http import StreamingHttpResponse
from django.test import override_settings
from pytest_django import Settings

from django_sse import Event, acancel, aposition, apublish, apublish_many
from django_sse.access.owners import Owner, user_key
from django_sse.concurrency import threads
from django_sse.doorbells.base import listen, ring_here, stop_listening
from django_sse.groups.entries import Hint, NewEntry
from django_sse.groups.position import parse_position
from django_sse.http.hand_off import HandOff
from django_sse.stores import get_store
from django_sse.stores.memory import MemoryStore
from django_sse.streaming import hub, permission_rechecks, rechecks, subscription
from django_sse.streaming.encoded_events import Batch
from django_sse.streaming.fan_out import STREAMS_A_TURN
from django_sse.streaming.hub import current_hub, open_streams
from django_sse.streaming.send_queue import SendQueue
from django_sse.streaming.stream import Stream
from django_sse.streaming.subscription import Follower, Subscription
from django_sse.views import EventStreamView
from tests.clients import AsyncClients, Client, connected
from tests.failures import Panic
from tests.streams import get, until

pytestmark = pytest.mark.usefixtures("memory_store")


FAILURES = [RuntimeError("broken"), RecursionError(), Panic(), asyncio.CancelledError()]


@pytest.fixture
def fails(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let a method of one stream fail."""

    def fail(client: Client, name: str, error: BaseException) -> None:
        whole = getattr(Stream, name)

        def method(self: Stream, *args: Any) -> Any:
            if self is client.stream:
                raise error
            return whole(self, *args)

        monkeypatch.setattr(Stream, name, method)

    return fail


async def assert_sent_back(client: Client) -> None:
    await client.until(client.stream.ended.done)
    assert client.stream.ended.result() == "failed"
    # At a time of its own.
    assert client.decoder.reconnection_time


@pytest.mark.parametrize("error", FAILURES, ids=repr)
async def test_a_stream_that_cannot_take_an_event_is_sent_back_alone_and_catches_up(
    error: BaseException,
    fails: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with AsyncClients(3, "news") as clients:
        await apublish("news", "first")
        for client in clients:
            await client.until_events(1)
        fails(clients[1], "take", error)
        await apublish("news", "second")
        await apublish("news", "third")
        await assert_sent_back(clients[1])
        for client in (clients[0], clients[2]):
            assert await client.until_events(3) == ["first", "second", "third"]
        assert open_streams() == 2
        async with connected("news", after=clients[1].decoder.last_event_id) as back:
            assert await back.until_events(2) == ["second", "third"]
    assert "A stream failed, so its client has to reconnect." in caplog.text


async def test_so_it_is_in_a_large_group(fails: Callable[..., None]) -> None:
    async with AsyncClients(STREAMS_A_TURN + 10, "news") as clients:
        fails(clients[5], "take", RuntimeError("broken"))
        await apublish_many(("news", str(n)) for n in range(3))
        await apublish("news", "last")
        await assert_sent_back(clients[5])
        for client in clients:
            if client is not clients[5]:
                await client.until_events(4)


@pytest.mark.parametrize("error", FAILURES, ids=repr)
@pytest.mark.parametrize("live", [True, False], ids=["live", "replayed"])
async def test_what_was_rendered_before_a_failure_is_not_lost(
    live: bool, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream of two groups writes its own ids."""
    whole = Stream._chunk
    broken = True

    def chunk(self: Stream, encoded: Any) -> bytes:
        if broken and encoded.wire == b"data: 2\n\n":
            raise error
        return whole(self, encoded)

    monkeypatch.setattr(Stream, "_chunk", chunk)
    start = await aposition("news", "jobs")
    numbers = [("news", str(n)) for n in range(1, 4)]
    if not live:
        await apublish_many(numbers)
    async with connected("news", "jobs", after=start) as client:
        if live:
            await apublish_many(numbers)
        await assert_sent_back(client)
        broken = False
        async with connected("news", "jobs", after=client.decoder.last_event_id or start) as back:
            await back.until(lambda: "3" in back.data)
            assert client.data + back.data == ["1", "2", "3"]


@pytest.mark.parametrize("error", FAILURES, ids=repr)
async def test_a_stream_that_fails_at_the_tick_takes_no_heartbeat_from_another(
    error: BaseException, fails: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "_TICK_SECONDS", 0.01)
    async with (
        connected("news", heartbeat=0.01) as one,
        connected("news", heartbeat=0.01) as broken,
        connected("news", heartbeat=0.01) as two,
    ):
        fails(broken, "tick", error)
        await assert_sent_back(broken)
        for client in (one, two):
            client.chunks.clear()
            await client.until(lambda client=client: client.chunks.count(b":\n\n") > 2)  # type: ignore[misc]


async def test_a_stream_that_has_failed_at_the_tick_is_let_go_if_its_client_does_not_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def never(message: Any) -> None:
        await asyncio.Event().wait()

    whole = Stream.tick
    failures = [RuntimeError("broken")]

    def tick(self: Stream, *args: float) -> float:
        if failures:
            raise failures.pop()
        return whole(self, *args)

    monkeypatch.setattr(Stream, "tick", tick)
    monkeypatch.setattr(hub, "_TICK_SECONDS", 0.01)
    with override_settings(DJANGO_SSE={"STORE": "memory", "SEND_TIMEOUT": 0.05}):
        stream = Stream(current_hub(), parse_position(await aposition("news"), ["news"]))
        await stream.open()
        stream.serve(never)
        assert await asyncio.wait_for(stream.ended, 30) == "send timeout"


async def test_a_stream_that_cannot_be_sent_back_keeps_no_other_from_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = SendQueue.finish

    def finish(self: SendQueue, *args: Any) -> None:
        if self is broken.stream._queue:
            raise RuntimeError("broken")
        whole(self, *args)

    monkeypatch.setattr(SendQueue, "finish", finish)
    async with connected("news") as one, connected("news") as broken, connected("news") as two:
        current_hub()._send_back()
        for client in (one, broken, two):
            await client.until(client.stream.ended.done)
        assert all(client.stream.ended.result() == "shutdown" for client in (one, broken, two))
        assert open_streams() == 0


def make_deaf(monkeypatch: pytest.MonkeyPatch, error: BaseException, *names: str) -> None:
    """Let a subscription to the group `broken` fail where it is to take what is new."""
    for name in names:
        whole = getattr(Subscription, name)

        def method(self: Subscription, hint: Hint, whole: Any = whole) -> None:
            if self.group == "broken":
                raise error
            whole(self, hint)

        monkeypatch.setattr(Subscription, name, method)


@pytest.mark.parametrize("error", FAILURES, ids=repr)
async def test_a_group_that_cannot_hear_keeps_no_other_from_hearing(
    error: BaseException,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings.DJANGO_SSE = {"STORE": "memory", "SYNC_INTERVAL": 3600}
    async with connected("broken") as broken, connected("news") as client:
        make_deaf(monkeypatch, error, "hear")
        await apublish_many([("broken", "lost"), ("news", "hi")])
        assert await client.until_events(1) == ["hi"]
        await assert_sent_back(broken)
    assert "New events of group 'broken' could not be taken." in caplog.text


@pytest.mark.parametrize("error", FAILURES, ids=repr)
async def test_a_group_that_fails_keeps_no_other_from_being_compared_with_the_store(
    error: BaseException, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.DJANGO_SSE = {"STORE": "memory", "SYNC_INTERVAL": 0.01}
    async with connected("broken") as broken, connected("news") as client:
        make_deaf(monkeypatch, error, "compare")
        # Without a doorbell.
        new = [NewEntry(group, b"data: hi\n\n") for group in ("broken", "news")]
        await get_store().aappend(new, lambda hints: None)
        assert await client.until_events(1) == ["hi"]
        await assert_sent_back(broken)


async def test_no_memory_for_a_batch_sends_the_clients_of_the_group_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def batch(events: Any) -> Batch:
        if events[0].group == "news":
            raise MemoryError
        return Batch(events)

    start = await aposition("news")
    async with connected("news") as client, connected("jobs") as other:
        monkeypatch.setattr(subscription, "Batch", batch)
        await apublish_many([("news", "large"), ("jobs", "small")])
        await assert_sent_back(client)
        assert await other.until_events(1) == ["small"]
        monkeypatch.undo()
        async with connected("news", after=start) as back:
            assert await back.until_events(1) == ["large"]


async def test_streams_that_cannot_be_listed_lose_nothing() -> None:
    class Streams(dict[Follower, None]):
        has_failed = False

        def __iter__(self) -> Iterator[Follower]:
            if not self.has_failed:
                self.has_failed = True
                raise MemoryError
            return super().__iter__()

    start = await aposition("news")
    async with connected("news") as client:
        followed = current_hub()._subscriptions["news"]
        followed.streams = Streams(followed.streams)
        await apublish("news", "first")
        await assert_sent_back(client)
        async with connected("news", after=start) as back:
            await apublish("news", "second")
            assert await back.until_events(2) == ["first", "second"]


@pytest.mark.parametrize("order", [KeyboardInterrupt(), SystemExit()], ids=repr)
async def test_who_tells_the_process_to_end_is_heard_and_leaves_no_group_silent(
    order: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Stream.take

    def take(self: Stream, *args: Any) -> None:
        if self is broken.stream:
            raise order
        whole(self, *args)

    async with connected("news") as one, connected("news") as broken, connected("news") as two:
        fan_out, followed = current_hub()._fan_out, current_hub()._subscriptions["news"]
        # By hand: on the loop it would end the tests.
        fan_out._runs_soon = True
        await apublish("news", "first")
        await until(lambda: followed.has_new_events)
        monkeypatch.setattr(Stream, "take", take)
        with pytest.raises(type(order)):
            fan_out._run()
        await apublish("news", "second")
        for client in (one, two):
            assert await client.until_events(2) == ["first", "second"]
        await assert_sent_back(broken)


async def test_a_hub_that_cannot_hear_keeps_no_other_from_hearing() -> None:
    class Deaf:
        loop = asyncio.get_running_loop()
        asked = 0

        def hear_soon(self, hints: Any) -> None:
            self.asked += 1
            raise RuntimeError("deaf")

        def compare_soon(self) -> None: ...

        def streams_of(self, group: str) -> int:
            return 0

    deaf = [Deaf() for _ in range(5)]
    async with connected("news") as client:
        for listener in deaf:
            listen(listener)
        try:
            await apublish("news", "hi")
            assert await client.until_events(1) == ["hi"]
            ring_here([Hint("news", 1, cancelled=False)])
            assert [listener.asked for listener in deaf] == [2] * 5
        finally:
            for listener in deaf:
                stop_listening(listener)


async def test_what_fails_at_the_end_of_a_request_keeps_nothing_else_from_its_end() -> None:
    ended = []

    def fail() -> None:
        raise RuntimeError("broken")

    async def nothing(*args: Any) -> Any: ...

    hand_off = HandOff({}, nothing, nothing)
    hand_off.call_on_close(fail)
    hand_off.call_on_close(lambda: ended.append(True))
    hand_off.close()
    assert ended == [True]


async def test_logins_are_judged_on_after_a_panic(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings.DJANGO_SSE = {"STORE": "memory", "SYNC_INTERVAL": 0.01}
    judged = 0

    async def check_logins(self: rechecks.Rechecks, streams: Any) -> None:
        nonlocal judged
        judged += 1
        if judged == 1:
            raise Panic

    monkeypatch.setattr(rechecks.Rechecks, "_check_logins", check_logins)
    async with connected("news"):
        await until(lambda: judged > 2)
    assert "The logins of open streams cannot be checked." in caplog.text


def fail_once(
    monkeypatch: pytest.MonkeyPatch, owner: type, name: str, error: BaseException
) -> list[None]:
    """Let the first call of an async method fail; returns what each call is noted in."""
    whole = getattr(owner, name)
    calls: list[None] = []

    async def method(self: Any, *args: Any) -> Any:
        calls.append(None)
        if len(calls) == 1:
            raise error
        return await whole(self, *args)

    monkeypatch.setattr(owner, name, method)
    return calls


@pytest.mark.parametrize("error", FAILURES, ids=repr)
async def test_a_stream_is_healed_after_a_failure(
    error: BaseException, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.DJANGO_SSE = {"STORE": "memory", "SYNC_INTERVAL": 3600}
    monkeypatch.setattr(subscription, "_PAUSE_SECONDS", 0.01)
    async with connected("news") as client:
        calls = fail_once(monkeypatch, MemoryStore, "aread", error)
        # A doorbell that brings nothing.
        await get_store().aappend(
            [NewEntry("news", b"data: hi\n\n")],
            lambda hints: ring_here([hint._replace(entries=()) for hint in hints]),
        )
        assert await client.until_events(1) == ["hi"]
        assert len(calls) > 1


@pytest.mark.parametrize("error", FAILURES, ids=repr)
async def test_a_stream_is_replayed_after_a_failure(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = await aposition("news")
    await apublish("news", "missed")
    calls = fail_once(monkeypatch, MemoryStore, "aread", error)
    async with connected("news", after=start) as client:
        assert await client.until_events(1) == ["missed"]
        assert len(calls) > 1


@pytest.mark.parametrize("error", FAILURES, ids=repr)
async def test_old_events_are_dropped_on_after_a_failure(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MemoryStore, "takes_trim_turn", lambda store: True)
    monkeypatch.setattr(MemoryStore, "trim_due", 0.0)
    calls = fail_once(monkeypatch, MemoryStore, "atrim", error)
    async with connected("news"):
        await until(lambda: len(calls) > 1)


@pytest.mark.parametrize("error", FAILURES, ids=repr)
async def test_memberships_are_renewed_on_after_a_failure(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "_SWEEP_SECONDS", 0.01)
    calls = fail_once(monkeypatch, hub.Hub, "renew_memberships", error)
    async with connected("news"):
        await until(lambda: len(calls) > 2)


@pytest.mark.parametrize("error", FAILURES, ids=repr)
async def test_who_is_kicked_while_a_kick_cannot_be_read_loses_the_stream(
    error: BaseException, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.DJANGO_SSE = {"STORE": "memory", "SYNC_INTERVAL": 3600}
    whole = rechecks.Rechecks.look_up
    looks: list[None] = []

    async def look_up(self: rechecks.Rechecks, owner_keys: Any) -> None:
        looks.append(None)
        if len(looks) == 1:
            await acancel(user=8)
            raise error
        await whole(self, owner_keys)

    owners = [Owner({owner_key: None}, owner_key) for owner_key in map(user_key, (7, 8))]
    async with connected("news", owner=owners[0]), connected("news", owner=owners[1]) as kicked:
        await until(lambda: current_hub()._synced)
        monkeypatch.setattr(rechecks.Rechecks, "look_up", look_up)
        await acancel(user=7)
        await kicked.until(kicked.stream.ended.done)
        assert kicked.stream.ended.result() == "shut"


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), Panic()], ids=repr)
async def test_views_are_asked_on_after_a_thread_could_not_be_had(
    error: BaseException, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.DJANGO_SSE = {"STORE": "memory", "RECHECK_INTERVAL": 1}
    monkeypatch.setattr(permission_rechecks, "_RETRY_SECONDS", 0.01)
    whole = threads.OwnThread
    failed: list[bool] = []

    def own_thread() -> threads.OwnThread:
        if not failed:
            failed.append(True)
            raise error
        return whole()

    async def no() -> bool:
        return False

    monkeypatch.setattr(permission_rechecks, "OwnThread", own_thread)
    async with connected("news", still_allowed=no) as client:
        await client.until(client.stream.ended.done)
        assert client.stream.ended.result() == "shut"
        assert failed


class Shows(EventStreamView):
    groups = ("news",)

    async def initial_events(self) -> AsyncGenerator[Event, None]:
        while True:
            yield Event("state")
            await asyncio.sleep(0.001)


@pytest.fixture
def quick_collector() -> Iterator[None]:
    """The garbage collector does not look at what other tests have left, which takes seconds."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("quick_collector")
async def test_a_stream_that_the_garbage_collector_ends_complains_of_nothing() -> None:
    """As where a server cuts it off: Django before 6.1 does not close it then."""
    complaints: list[Any] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    tasks = asyncio.all_tasks()
    # Whichever of several generators is collected first.
    for _ in range(20):
        content = aiter(cast("StreamingHttpResponse", await Shows.as_view()(get())))
        for _ in range(3):
            await anext(content)
        # As the hand-off does, whatever becomes of the response.
        for stream in list(current_hub().streams):
            stream.end("request ended")
        del content, stream
        gc.collect()
        await until(lambda: asyncio.all_tasks() == tasks)
    gc.collect()
    assert not complaints
    assert open_streams() == 0
