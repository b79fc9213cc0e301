"""What is told of open streams: signals, the log, counters, and the reports of processes."""

import asyncio
import json
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from io import StringIO
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.db import transaction
from django.dispatch import Signal
from pytest_django import Settings

from django_sse import Event, acancel, aposition, apublish, publish
from django_sse.access.owners import Owner
from django_sse.decorators import event_generator
from django_sse.doorbells.base import ring_here
from django_sse.groups.entries import Hint, NewEntry
from django_sse.monitoring import Counters, aprocesses, counters, processes, streams
from django_sse.producing import aproduce
from django_sse.signals import event_published, stream_closed, stream_opened
from django_sse.stores import get_store
from django_sse.streaming.hub import report
from django_sse.testing.threads import in_thread
from django_sse.views import EventStreamView
from tests import tenancy
from tests.clients import connected
from tests.redis import RedisServer
from tests.streams import news, open_stream, until

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("everything_ends")]


@contextmanager
def received(signal: Signal) -> Iterator[list[dict[str, Any]]]:
    """What a receiver of a signal is called with."""
    calls: list[dict[str, Any]] = []

    def receiver(**kwargs: Any) -> None:
        calls.append(kwargs)

    signal.connect(receiver)
    try:
        yield calls
    finally:
        signal.disconnect(receiver)


def counted_since(before: Counters) -> dict[str, Any]:
    now = counters()
    return {
        "opened": now.opened - before.opened,
        "closed": {
            reason: more
            for reason, count in now.closed.items()
            if (more := count - before.closed.get(reason, 0))
        },
        "published": now.published - before.published,
        "delivered": now.delivered - before.delivered,
    }


# Signals


async def test_signals_tell_of_a_stream_and_why_it_has_ended() -> None:
    with received(stream_opened) as opened, received(stream_closed) as closed:
        async with open_stream(news) as reader:
            await apublish("news", "hi")
            await reader.next_event()
            await acancel("news", reason="over")
            await reader.rest()
        await until(lambda: closed)
    assert [call["stream"].groups for call in opened] == [("news",)]
    [call] = closed
    assert call["reason"] == "cancelled"
    assert call["stream"].groups == ("news",)
    assert call["stream"].sent_bytes > 0


async def test_receivers_may_wait_for_the_database_and_an_async_one_runs_on_the_loop() -> None:
    seen: list[str] = []

    def in_the_database(**kwargs: Any) -> None:
        seen.append(f"{User.objects.count()} users")

    async def on_the_loop(**kwargs: Any) -> None:
        seen.append(f"{await User.objects.acount()} users, async")

    for receiver in (in_the_database, on_the_loop):
        stream_opened.connect(receiver)
    try:
        async with open_stream(news):
            await until(lambda: len(seen) == 2)
    finally:
        for receiver in (in_the_database, on_the_loop):
            stream_opened.disconnect(receiver)
    assert sorted(seen) == ["0 users", "0 users, async"]


async def test_a_receiver_that_fails_ends_no_stream() -> None:
    def fail(**kwargs: Any) -> None:
        raise RuntimeError("broken")

    for signal in (stream_opened, event_published):
        signal.connect(fail)
    try:
        async with open_stream(news) as reader:
            await apublish("news", "hi")
            assert (await reader.next_event()).data == "hi"
    finally:
        for signal in (stream_opened, event_published):
            signal.disconnect(fail)


def test_a_published_event_is_told_of_once_it_is_committed() -> None:
    with received(event_published) as calls:
        with transaction.atomic():
            publish("news", {"title": "hi"}, event="headline")
            assert calls == []
        with transaction.atomic():
            publish("news", "never")
            transaction.set_rollback(True)
        event_id = publish("news", "second").id
    first, second = calls
    assert (first["group"], first["event"].event) == ("news", "headline")
    assert json.loads(first["event"].data) == {"title": "hi"}
    assert (second["event"], second["id"]) == (Event("second"), event_id)


# The log


@pytest.fixture
def debugged(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG, logger="django_sse")
    return caplog


async def test_the_log_follows_an_event_from_publishing_to_the_end_of_its_stream(
    debugged: pytest.LogCaptureFixture,
) -> None:
    position = await aposition("news")
    async with open_stream(news, last_event_id=position) as reader:
        event_id = (await apublish("news", "hi")).id
        await reader.next_event()
    begins, published, ended = (
        record for record in debugged.records if record.levelno == logging.DEBUG
    )
    assert begins.getMessage() == f"A stream of news begins after {position}, for user None."
    assert vars(begins)["position"] == position
    assert published.getMessage() == (
        f"An event of news is published as {event_id}. Streams of it in this process: 1."
    )
    assert vars(published)["id"] == event_id
    assert vars(ended)["reason"] == "request ended"
    assert vars(ended)["groups"] == ("news",)
    assert vars(ended)["sent_bytes"] > 0


@pytest.mark.parametrize(
    ("store", "said"),
    [
        (
            "database",
            "This process has no streams; `manage.py sse_status news` tells of those of others.",
        ),
        (
            "memory",
            "This process has no streams, and no other one sees it: the event store is in memory.",
        ),
    ],
)
async def test_the_log_of_a_process_without_streams_says_who_may_have_some(
    store: str, said: str, debugged: pytest.LogCaptureFixture, settings: Settings
) -> None:
    settings.DJANGO_SSE = {"STORE": store}
    event_id = (await apublish("news", "hi")).id
    assert debugged.messages == [f"An event of news is published as {event_id}. {said}"]


async def test_the_log_says_that_a_client_has_lost_events(
    debugged: pytest.LogCaptureFixture,
) -> None:
    before = counters().resets
    position = await aposition("news")
    await apublish("news", "missed")
    await apublish("news", "missed, too")
    view = EventStreamView.as_view(groups=["news"], replay_events=1)
    async with open_stream(view, last_event_id=position) as reader:
        assert (await reader.next_event()).event == "reset"
    assert "A client of news is told that it has lost events (`reset`)." in debugged.messages
    assert counters().resets == before + 1


# Counters


async def test_what_clients_got_was_counted() -> None:
    before = counters()

    @event_generator
    async def ticks(request: Any) -> Any:
        yield 1
        yield 2

    async with open_stream(news) as one, open_stream(news) as other, open_stream(ticks) as third:
        for number in range(3):
            await apublish("news", number)
        for reader in (one, other):
            await reader.until("2")
        await third.rest()
    async with open_stream(EventStreamView.as_view(groups=["news"], history=2)) as late:
        await late.until("2")
    # Three for each of two, two of the generator, and two that were replayed.
    assert counted_since(before) == {
        "opened": 4,
        "closed": {"request ended": 3, "complete": 1},
        "published": 3,
        "delivered": 10,
    }


async def append_unheard(group: str) -> None:
    """Publish an event, and ring nobody."""
    await get_store().aappend([NewEntry(group, Event("unheard").encode())], lambda hints: None)


async def test_what_no_doorbell_has_told_of_was_healed(synced_often: None) -> None:
    await apublish("news", "before")
    before = counters().healed
    async with open_stream(news) as reader:
        await append_unheard("news")
        assert (await reader.next_event()).data == "unheard"
        assert counters().healed == before + 1


async def test_what_a_doorbell_has_told_of_without_bringing_it_was_not_healed(
    synced_rarely: None,
) -> None:
    await apublish("news", "before")
    before = counters().healed
    async with open_stream(news) as reader:
        await append_unheard("news")
        head = (await get_store().astates(["news"]))["news"].head
        ring_here([Hint("news", head, False)])
        assert (await reader.next_event()).data == "unheard"
        assert counters().healed == before


async def test_who_reads_how_late_the_loop_was_takes_it_from_nobody_else() -> None:
    async with open_stream(news):
        # Longer than the hub waits between two looks.
        time.sleep(1.3)
        await until(lambda: report().loop_lag >= 0.2)
        assert report().loop_lag >= 0.2
    assert report().loop_lag == 0.0


async def test_streams_says_what_is_open_and_whose_it_is() -> None:
    ada = await User.objects.acreate(username="ada")

    class Mine(EventStreamView):
        groups = ["news", "sport"]

        async def get_owner(self) -> User:
            return ada

    async with open_stream(Mine.as_view()):
        [stream] = streams()
        assert stream.groups == ("news", "sport")
        assert stream.user == str(ada.pk)
        assert (stream.namespace, stream.waiting_bytes) == ("", 0)
    assert streams() == []


# Reports


async def test_a_process_reports_when_it_is_asked() -> None:
    async with open_stream(news), open_stream(news):
        [report] = await aprocesses(wait=5.0)
        assert report.streams == 2
        assert report.groups == {"news": 2}
        assert report.counters.opened >= 2
    assert await aprocesses(wait=0.3) == []


async def test_synchronous_code_leaves_nothing_open() -> None:
    def threads() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name.startswith("django-sse")}

    before = threads()
    assert await in_thread(lambda: processes(0.2)) == []
    # A thread that has closed its connection takes another moment to end.
    await until(lambda: threads() <= before)


async def test_each_question_is_answered_at_once() -> None:
    async with open_stream(news):
        for _ in range(6):
            assert len(await aprocesses(wait=1.0)) == 1


async def test_what_a_hub_numbers_for_its_publisher_is_told_of_once() -> None:
    """As between the commit and a slow hook of the project's own."""

    def publish_slowly() -> None:
        with transaction.atomic():
            transaction.on_commit(lambda: streamed.wait(10))
            publish("news", "hi")

    streamed = threading.Event()
    with received(event_published) as calls:
        async with open_stream(news) as reader:
            publishing = asyncio.create_task(in_thread(publish_slowly))
            assert (await reader.next_event()).data == "hi"
            streamed.set()
            await publishing
            await until(lambda: calls)
    assert [call["event"].data for call in calls] == ["hi"]


async def test_a_slow_receiver_does_not_slow_a_producer() -> None:
    heard: list[str] = []
    goes_on = threading.Event()

    def wait(**kwargs: Any) -> None:
        heard.append(kwargs["event"].data)
        goes_on.wait(10)

    event_published.connect(wait)
    try:
        async with aproduce("answer", flush_seconds=0) as producer:
            await producer.apublish("one")
            await producer.apublish("two")
            await until(lambda: heard)
            await producer.apublish("three")
        # It has ended, though no receiver has.
        assert heard == ["one"]
        goes_on.set()
        await until(lambda: heard == ["one", "two", "three"])
    finally:
        event_published.disconnect(wait)


async def test_on_the_memory_store_a_process_reports_on_itself(memory_store: None) -> None:
    assert await aprocesses() == []
    async with open_stream(news):
        [report] = await aprocesses()
        assert (report.streams, report.groups) == (1, {"news": 1})


async def test_a_client_that_does_not_read_is_slow() -> None:
    async with connected("news", owner=Owner({}, user="~me", user_id="7")) as client:

        async def never(message: Any) -> None:
            await client.stream.ended

        client.stream._queue._send = never
        await apublish("news", "x" * 1000)
        await until(lambda: streams()[0].seconds_sending > 1)
        [report] = await aprocesses(wait=2.5)
        assert (report.slow_clients, report.users) == (1, 1)
        assert report.waiting_bytes > 1000
        client.stream.end("test is over")


# sse_status


async def status(*arguments: str) -> str:
    output = StringIO()
    await in_thread(lambda: call_command("sse_status", *arguments, stdout=output))
    return output.getvalue()


async def test_the_status_shows_processes_and_groups() -> None:
    async with open_stream(news), open_stream(news):
        await apublish("news", "hi")
        shown = await status("news", "--wait", "2.5")
    head, process, *_ = shown.splitlines()
    assert head.split()[:4] == ["process", "streams", "groups", "users"]
    assert process.split()[1:4] == ["2", "1", "0"]
    assert "news         2" in shown
    assert "news: it is open. 1 events are kept. Streams: 2." in shown


async def test_the_status_does_not_know_the_streams_of_groups_that_a_report_leaves_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("django_sse.streaming.reports._GROUPS", 1)
    async with open_stream(news), open_stream(news), connected("sport"):
        assert "Streams: 0, or a few more." in await status("sport")
        assert "Streams: 2." in await status("news")
    assert "Streams: unknown, since nobody has answered." in await status("news", "--wait", "0.2")


async def test_the_status_says_what_may_be_wrong() -> None:
    await apublish("sport", "hi")
    await acancel("sport")
    shown = await status("news", "sport", "--wait", "0.2")
    assert "No process has answered within 0.2 seconds: none has an open stream" in shown
    assert "news: nothing was ever published to it, or it was forgotten." in shown
    assert "sport: it is cancelled, so clients are told to stop (204): sse_reopen sport." in shown


async def test_the_status_is_for_programs_too() -> None:
    async with open_stream(news):
        shown = json.loads(await status("news", "--json", "--wait", "2.5"))
    [process] = shown["processes"]
    assert process["groups"] == {"news": 1}
    assert shown["groups"]["news"]["is_known"] is False


async def test_the_status_lists_the_groups_that_were_last_published_to(
    settings: Settings,
) -> None:
    assert "Nothing was published yet" in await status("--recent", "--wait", "0.1")
    for group in ("news", "sport", "news"):
        published = await apublish(group, "hi")
    await acancel("sport")
    # SQLite's clock has milliseconds.
    cancelled = time.time()
    await until(lambda: time.time() > cancelled + 0.001)
    await apublish("news", "last")
    position = await aposition("news")
    # Neither an owner's, nor the library's.
    await acancel(user=7)
    listed = [line.split() for line in (await status("--recent", "--wait", "0.1")).splitlines()[2:]]
    today = datetime.now(UTC).date().isoformat()
    assert listed[0] == ["group", "last", "changed", "is", "kept", "last", "id"]
    news, sport = listed[1:]
    assert (news[0], news[1], *news[3:]) == ("news", today, "open", "3", position)
    assert (sport[0], sport[1], *sport[3:5]) == ("sport", today, "cancelled", "2")
    shown = json.loads(await status("--recent", "--json", "--wait", "0.1"))
    assert [each["group"] for each in shown["recent"]] == ["news", "sport"]
    assert published.number
    assert shown["recent"][0]["head"] == published.number + 1
    assert "recent" not in json.loads(await status("--json", "--wait", "0.1"))


async def test_the_status_lists_the_groups_of_one_tenant(settings: Settings) -> None:
    settings.DJANGO_SSE = tenancy.NAMESPACE

    def listed(tenant: str, group: str) -> list[str]:
        output = StringIO()
        with tenancy.entered(tenant):
            publish(group, "hi")
            call_command("sse_status", "--recent", "--json", wait=0.1, stdout=output)
        return [each["group"] for each in json.loads(output.getvalue())["recent"]]

    assert await in_thread(lambda: listed("acme", "news")) == ["news"]
    assert await in_thread(lambda: listed("other", "sport")) == ["sport"]


async def test_only_the_database_store_lists_groups(
    redis_server: RedisServer, settings: Settings
) -> None:
    options = {"url": redis_server.url}
    settings.DJANGO_SSE = {"STORE": {"BACKEND": "redis", "OPTIONS": options}}
    with pytest.raises(CommandError, match="Only the database store can list its groups"):
        await status("--recent", "--wait", "0.1")


async def test_the_status_needs_a_store_that_others_see(memory_store: None) -> None:
    with pytest.raises(CommandError, match="keeps events in this process"):
        await status()
