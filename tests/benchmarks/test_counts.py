"""What must not grow with streams and events, counted: times are for ``make bench``.

What a reconnect asks the store is in ``tests/streaming/test_reconnects.py``.
"""

import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any, cast

import pytest
from channels.layers import InMemoryChannelLayer
from django.test import override_settings

from django_sse import apublish, publish
from django_sse.streaming.hub import report
from django_sse.streaming.open_stream import OpenStream
from django_sse.streaming.stream import Stream
from tests.clients import AsyncClients
from tests.layers import layer
from tests.live.servers import ROOT
from tests.streams import until

_STREAMS = 50
_EVENTS = 200
# A bound, and not what it is: that differs between versions of Python.
_BYTES_OF_IDLE_STREAM = 7_000


@pytest.mark.usefixtures("memory_store")
async def test_a_burst_is_one_or_two_sends_to_each_stream_of_the_very_same_bytes() -> None:
    async with AsyncClients(_STREAMS, "news") as clients:
        before = [len(client.chunks) for client in clients]
        _while_the_loop_waits(_burst)
        for client in clients:
            await client.until_events(_EVENTS)
        sent = [client.chunks[sends:] for client, sends in zip(clients, before, strict=True)]
        # The first event may go out before the others have been heard of.
        assert max(len(chunks) for chunks in sent) <= 2
        assert len({tuple(map(id, chunks)) for chunks in sent}) == 1


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("everything_ends")
async def test_a_publish_is_one_message_of_the_layer_for_any_number_of_streams() -> None:
    with override_settings(CHANNEL_LAYERS=layer("tests.benchmarks.test_counts.Counted")):
        Counted.messages = 0
        async with AsyncClients(_STREAMS, "news") as clients:
            for event in ("1", "2", "3"):
                await apublish("news", event)
            for client in clients:
                await client.until_events(3)
        await until(lambda: Counted.messages)
        assert Counted.messages <= 3


@pytest.mark.usefixtures("memory_store")
async def test_a_report_looks_at_no_stream_that_is_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0
    info = vars(Stream)["info"].fget

    def counted(stream: Stream) -> OpenStream:
        nonlocal looks
        looks += 1
        return cast("OpenStream", info(stream))

    async with AsyncClients(_STREAMS, "news"):
        monkeypatch.setattr(Stream, "info", property(counted))
        reported = report()
    assert (reported.streams, reported.groups) == (_STREAMS, {"news": _STREAMS})
    assert looks == 0


def printed_by(module: str) -> str:
    """Run a module in a process of its own; return what it prints."""
    return subprocess.run(
        [sys.executable, "-m", module],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout


def test_what_an_idle_stream_keeps_is_bounded() -> None:
    assert 1000 < int(printed_by("tests.benchmarks.idle_bytes")) < _BYTES_OF_IDLE_STREAM


def test_the_least_that_an_event_takes_is_told_beside_what_it_takes() -> None:
    lines = printed_by("tests.benchmarks.least").splitlines()
    assert [line.partition(":")[0] for line in lines] == ["least", "django_sse"]


class Counted(InMemoryChannelLayer):  # type: ignore[misc]
    """Counts what is sent to groups. A subclass is taken for a layer that crosses processes."""

    messages = 0

    async def group_send(self, group: str, message: dict[str, Any]) -> None:
        Counted.messages += 1
        await super().group_send(group, message)


def _burst() -> None:
    for number in range(_EVENTS):
        publish("news", str(number))


def _while_the_loop_waits(work: Callable[[], object]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
