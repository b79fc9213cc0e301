"""Nothing of one test is left for the next one."""

import asyncio
import unittest
from typing import Any

import pytest
from channels.layers import get_channel_layer
from django.test import AsyncClient
from pytest_django import Settings

from django_sse import publish
from django_sse.doorbells.base import published
from django_sse.groups.entries import Entry, Hint, Kind, NewEntry
from django_sse.logs import log_once
from django_sse.monitoring import Counters, counters
from django_sse.stores import get_store
from django_sse.stores.write_retries import write_retries
from django_sse.streaming import hub
from django_sse.streaming.tally import refusals
from django_sse.testing import EventStreamTestMixin, forget_streams, open_stream


@pytest.fixture(autouse=True)
def memory(settings: Settings) -> None:
    settings.DJANGO_SSE = {"STORE": "memory"}


def head() -> int:
    return get_store().states(["news"])["news"].head


def test_the_events_of_the_memory_store_are_forgotten() -> None:
    publish("news", "hi")
    assert head()
    forget_streams()
    assert not head()


def test_the_events_of_another_store_stay(settings: Settings, db: None) -> None:
    settings.DJANGO_SSE = {}
    store = get_store()
    forget_streams()
    assert get_store() is store


def test_what_was_counted_and_logged_is_forgotten(caplog: pytest.LogCaptureFixture) -> None:
    refusals.note("a limit")
    published.note([Hint("news", 1, cancelled=False, entries=(Entry(1, b""),))])
    log_once("once")
    forget_streams()
    assert counters() == Counters()
    log_once("once")
    assert caplog.messages.count("once") == 2


def test_ends_that_could_not_be_written_are_forgotten() -> None:
    write_retries._ends[get_store(), "owner"] = NewEntry("owner", b"", Kind.END)
    forget_streams()
    assert not write_retries._ends


def test_messages_of_the_layer_are_forgotten() -> None:
    layer: Any = get_channel_layer()
    asyncio.run(layer.send("channel", {"type": "hi"}))
    forget_streams()
    assert get_channel_layer() is not layer


def test_hubs_of_closed_loops_are_forgotten() -> None:
    async def leave_hub() -> hub.Hub:
        return hub.current_hub()

    closed = asyncio.run(leave_hub()).loop
    assert closed in hub._hubs
    forget_streams()
    # Other loops may still run, such as that of a server which a thread serves.
    assert closed not in hub._hubs
    assert closed not in hub._occupancies


@pytest.mark.usefixtures("everything_ends")
async def test_while_a_stream_is_open_nothing_is_forgotten(transactional_db: None) -> None:
    async with open_stream(AsyncClient(), "/events/news/") as stream:
        store = get_store()
        forget_streams()
        assert get_store() is store
        await stream.nothing()


def test_the_mixin_forgets_before_and_after_each_test() -> None:
    heads = []

    class Tests(EventStreamTestMixin, unittest.TestCase):
        def test_one(self) -> None:
            heads.append(head())
            publish("news", "hi")

        test_two = test_one

    publish("news", "hi")
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(Tests).run(result)
    assert result.wasSuccessful(), result.errors
    assert heads == [0, 0]
    assert not head()
