"""What a test has published, without a stream."""

import asyncio
from contextlib import suppress
from threading import Thread
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import User
from django.db import transaction
from django.test import AsyncClient, TestCase, TransactionTestCase, override_settings
from django.urls import path

from django_sse import (
    Event,
    apublish,
    cancel,
    publish,
    publish_many,
    reopen,
)
from django_sse.monitoring import aprocesses
from django_sse.producing import aproduce
from django_sse.stores import base, get_store
from django_sse.streaming.readership import readers_key
from django_sse.streaming.trial import try_delivery
from django_sse.testing import PublishedEvents, open_stream, published
from django_sse.views import EventStreamView

MEMORY = {"STORE": "memory"}


class Room(EventStreamView):
    groups = ["room"]
    presence = True

    async def get_owner(self) -> str:
        return "ada"


class UrlConf:
    urlpatterns = [
        path("room/", Room.as_view()),
        path("answer/", EventStreamView.as_view(groups=["answer"])),
    ]


def failure_of(check: Any, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(AssertionError) as raised:
        check(*args, **kwargs)
    return str(raised.value)


class Collected:
    def test_what_was_published_is_there_in_order(self) -> None:
        with published() as events:
            publish("news", {"title": "hi"}, event="headline")
            publish_many([("sport", "one"), ("sport", Event("two", event="goal"))])
        assert [(one.action, one.group, one.event, one.text) for one in events] == [
            ("publish", "news", "headline", '{"title":"hi"}'),
            ("publish", "sport", None, "one"),
            ("publish", "sport", "goal", "two"),
        ]
        assert len(events) == 3
        assert events[0].json() == {"title": "hi"}
        assert events[1:] == list(events)[1:]

    def test_an_event_is_found_by_the_arguments_of_publish(self) -> None:
        user = User.objects.create(username="ada")
        with published() as events:
            publish("news", {"title": "hi"}, event="headline", key="a", exclude=user)
        for options in ({}, {"event": "headline"}, {"key": "a"}, {"exclude": user}):
            assert events.assert_published("news", {"title": "hi"}, **options) is events[0]
        data = {"title": "hi"}
        for other in (Event(data), Event(data, event="other", key="a")):
            # An Event is looked for with its type and key.
            failure_of(events.assert_published, "news", other)
        whole = Event(data, event="headline", key="a")
        assert events.assert_published("news", whole) is events[0]
        assert events.assert_published("news") is events[0]

    def test_a_failure_shows_what_was_published(self) -> None:
        user = User.objects.create(username="ada")
        with published() as events:
            publish("news", {"title": "hi"}, event="headline")
            publish("sport", "text")
            cancel("news", reason="done")
            reopen("news")
            cancel(user=user)
        said = failure_of(events.assert_published, "news", {"title": "ho"}, event="headline")
        assert said == (
            "No publish('news', {'title': 'ho'}, event='headline').\n"
            "Published:\n"
            "  publish 'news' event='headline' {\"title\":\"hi\"}\n"
            "  publish 'sport' text\n"
            '  cancel \'news\' {"reason":"done"}\n'
            "  reopen 'news'\n"
            '  cancel the streams of a user or a session {"reason":null}'
        )
        for args, options in (
            (("sport", "text"), {"event": "goal"}),
            (("sport", "text"), {"exclude": user}),
            (("other",), {}),
        ):
            assert failure_of(events.assert_published, *args, **options).startswith("No publish(")

    def test_nothing_is_published(self) -> None:
        with published() as events:
            events.assert_nothing()
            assert events == []
            assert not events
            assert failure_of(events.assert_published, "news").endswith("Published:\n  nothing")
            publish("news", "hi")
            events.assert_nothing("sport")
        assert failure_of(events.assert_nothing) == (
            "Nothing was to be published.\nPublished:\n  publish 'news' hi"
        )
        assert "Nothing was to be published in 'news'." in failure_of(events.assert_nothing, "news")

    def test_a_cancel_and_a_reopen_are_found_by_their_arguments(self) -> None:
        user, other = (User.objects.create(username=name) for name in ("ada", "bob"))
        with published() as events:
            cancel("news", reason="done")
            reopen("news")
            cancel(user=user, reason="kicked")
            cancel("sport", user=user)
            reopen(user=user.pk)
        events.assert_cancelled("news")
        events.assert_cancelled("news", reason="done")
        events.assert_reopened("news")
        events.assert_cancelled(user=user, reason="kicked")
        events.assert_cancelled("sport", user=user)
        events.assert_reopened(user=user)
        said = failure_of(events.assert_cancelled, "news", reason="quota")
        assert said.startswith("No cancel('news', reason='quota').\n")
        failure_of(events.assert_cancelled, "sport")
        failure_of(events.assert_cancelled, user=other)
        failure_of(events.assert_reopened, "sport")
        assert failure_of(events.assert_reopened, user=other).startswith("No reopen(user=<User")

    def test_what_is_rolled_back_does_not_count(self) -> None:
        with published() as events:
            with suppress(ZeroDivisionError), transaction.atomic():
                publish("news", "never")
                raise ZeroDivisionError
            with transaction.atomic():
                publish("news", "hi")
                events.assert_published("news", "hi")
                with suppress(ZeroDivisionError), transaction.atomic():
                    publish("news", "never, either")
                    raise ZeroDivisionError
        assert [one.text for one in events] == ["hi"]

    def test_an_inner_collection_does_not_hide_anything_from_an_outer_one(self) -> None:
        with published() as outer:
            with published() as inner:
                publish("news", "hi")
            publish("news", "ho")
        assert [one.text for one in outer] == ["hi", "ho"]
        assert [one.text for one in inner] == ["hi"]

    def test_nothing_is_watched_after_the_block(self) -> None:
        with published() as events:
            assert base.on_append is not None
        assert base.on_append is None
        publish("news", "hi")
        events.assert_nothing()

    async def test_what_async_code_publishes_counts(self) -> None:
        with published() as events:
            await apublish("news", "one")
            await sync_to_async(publish)("news", "two")
        assert [one.text for one in events] == ["one", "two"]


@override_settings(DJANGO_SSE=MEMORY)
class InTestCase(Collected, TestCase):
    pass


@override_settings(DJANGO_SSE=MEMORY)
class InTransactionTestCase(Collected, TransactionTestCase):
    def test_what_threads_publish_counts(self) -> None:
        with published() as events:
            threads = [Thread(target=publish, args=["news", number]) for number in range(20)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert sorted(int(one.text) for one in events) == list(range(20))

    async def test_what_a_producer_publishes_counts(self) -> None:
        with published() as events:
            async with aproduce("answer") as producer:
                await producer.apublish("word")
        events.assert_published("answer", "word")
        events.assert_cancelled("answer")
        assert len(events) == 2

    @override_settings(DJANGO_SSE={"PRODUCER_TTL": 1.2}, ROOT_URLCONF=UrlConf)
    async def test_what_the_library_writes_of_its_own_accord_does_not_count(self) -> None:
        client, key = AsyncClient(), readers_key("answer")
        with published() as events:
            async with open_stream(client, "/room/") as room:
                await room.next("join")
                async with asyncio.timeout(10):
                    while not await aprocesses(wait=0.3):
                        pass
                assert (await try_delivery(10)).failed is None
                assert events == []
                async with (
                    aproduce("answer", stop_when_unread=60) as producer,
                    open_stream(client, "/answer/") as reader,
                ):
                    await producer.apublish("word")
                    await reader.next()
                    async with asyncio.timeout(10):
                        while not (await get_store().astates([key]))[key].first:
                            await asyncio.sleep(0.01)
                await apublish("room", "hi")
                await room.next("message")
        assert [(one.action, one.group, one.text) for one in events] == [
            ("publish", "answer", "word"),
            ("cancel", "answer", '{"reason":"complete"}'),
            ("publish", "room", "hi"),
        ]

    async def test_what_is_published_in_other_threads_of_a_loop_counts(self) -> None:
        with published() as events:
            await asyncio.gather(
                *(asyncio.to_thread(publish, "news", number) for number in range(20))
            )
        assert len(events) == 20


@override_settings(DJANGO_SSE={})
class InTestCaseWithDatabaseStore(Collected, TestCase):
    pass


def test_a_collection_is_shown_as_what_was_published() -> None:
    assert repr(PublishedEvents()) == "Published:\n  nothing"
