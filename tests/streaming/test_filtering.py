"""What a view shows of an event: its filter, and its handlers of plain Channels messages."""

import asyncio
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from channels.layers import get_channel_layer
from django.core.exceptions import ImproperlyConfigured
from django.urls import path
from pytest_django import Settings

from django_sse import Event, acancel, aposition, apublish
from django_sse.decorators import on_message
from django_sse.event import NO_DATA
from django_sse.views import EventStreamView
from tests.streams import (
    News,
    data,
    news,
    open_stream,
    requested,
    until,
)

pytestmark = [pytest.mark.urls(__name__), pytest.mark.usefixtures("memory_store")]

urlpatterns = [path("news/", news)]


# Filtering


class Filtered(EventStreamView):
    """Hides some events, changes others, and fails with one."""

    groups = ["news"]

    def filter_event(self, event: Event) -> Event | None:
        match event.text:
            case "hidden":
                return None
            case "secret":
                return Event("public", event="notice")
            case "broken":
                raise RuntimeError("The filter is broken.")
        return event


filtered = Filtered.as_view()


async def test_a_filter_hides_and_replaces_events() -> None:
    async with open_stream(filtered) as stream, open_stream(news) as unfiltered:
        for text in ("first", "hidden", "secret"):
            await apublish("news", text, event="message-type")
        last = (await apublish("news", "last")).id
        first, notice, end = await stream.until("last")
        assert (first.data, first.event) == ("first", "message-type")
        assert (notice.data, notice.event) == ("public", "notice")
        assert end.id == last
        assert data(await unfiltered.until("last")) == ["first", "hidden", "secret", "last"]


async def test_a_filter_sees_what_is_replayed() -> None:
    position = await aposition("news")
    for text in ("first", "hidden", "last"):
        await apublish("news", text)
    async with open_stream(filtered, last_event_id=position) as stream:
        assert data(await stream.until("last")) == ["first", "last"]


class WithoutComments(EventStreamView):
    """Shows who may not see all of an event only what it is about."""

    groups = ["news"]

    def filter_event(self, event: Event) -> Event | None:
        if event.comment is None and event.retry is None:
            return event
        return None if event.data is NO_DATA else Event(event.data, event=event.event)


@pytest.mark.parametrize("live", [True, False], ids=["live", "replayed"])
async def test_a_filter_sees_comments_and_retry_and_what_it_does_not_return_is_not_sent(
    live: bool,
) -> None:
    async def publish() -> None:
        await apublish("news", Event(comment="secret\nof two lines"))
        await apublish("news", Event("shown", event="message-type", comment="secret", retry=86_400))
        await apublish("news", Event(retry=86_400))
        await apublish("news", "last")

    position = await aposition("news")
    if not live:
        await publish()
    view = WithoutComments.as_view(retry=1000)
    async with open_stream(view, last_event_id=position) as stream:
        if live:
            await publish()
        shown, _ = await stream.until("last")
        assert (shown.text, shown.event) == ("shown", "message-type")
        assert "secret" not in stream.text
        assert stream.reconnection_time == 1000


async def test_a_filter_does_not_see_the_close() -> None:
    async with open_stream(filtered) as stream:
        await acancel("news", reason="broken")
        [close] = await stream.rest()
        assert close.event == "close"


def errors_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the texts of what was logged as an error."""
    return [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]


async def test_an_event_that_a_filter_cannot_read_is_hidden_and_logged_once_with_its_id(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with open_stream(filtered) as stream, open_stream(filtered) as another:
        start = stream.last_event_id
        await apublish("news", "first")
        broken = (await apublish("news", "broken")).id
        await apublish("news", "last")
        assert data(await stream.until("last")) == ["first", "last"]
        assert data(await another.until("last")) == ["first", "last"]
    # Nor does it end who comes back for it.
    async with open_stream(filtered, last_event_id=start) as stream:
        assert data(await stream.until("last")) == ["first", "last"]
    [error] = errors_of(caplog)
    assert error.startswith("Filtered: filter_event failed")
    assert f"event {broken} of group 'news'" in error
    assert "The filter is broken." in caplog.text


async def test_each_event_that_a_filter_cannot_read_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with open_stream(filtered) as stream:
        ids = [(await apublish("news", "broken")).id for _ in range(3)]
        await apublish("news", "last")
        await stream.until("last")
    for published, error in zip(ids, errors_of(caplog), strict=True):
        assert f"event {published} of" in error


async def test_the_position_moves_past_an_event_that_a_filter_cannot_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("django_sse.streaming.hub._TICK_SECONDS", 0.01)
    async with open_stream(Filtered.as_view(heartbeat=0.01)) as stream:
        broken = (await apublish("news", "broken")).id
        await until(lambda: stream.last_event_id == broken)


@pytest.mark.parametrize("shown", [Event("x", id="7"), Event("x", event="close")])
async def test_what_a_filter_returns_obeys_the_rules_of_publish(
    shown: Event, caplog: pytest.LogCaptureFixture
) -> None:
    class Wrong(EventStreamView):
        groups = ["news"]

        def filter_event(self, event: Event) -> Event | None:
            return shown if event.text == "hi" else event

    async with open_stream(Wrong.as_view()) as stream:
        await apublish("news", "hi")
        await apublish("news", "last")
        assert data(await stream.until("last")) == ["last"]
    assert "filter_event failed" in caplog.text


async def later() -> Event:
    return Event("later")


@pytest.mark.parametrize(
    ("result", "told"),
    [
        (lambda: "text", "return an Event or None, not str"),
        (lambda: {"data": "x"}, "return an Event or None, not dict"),
        (lambda: ("x", "y"), "return an Event or None, not tuple"),
        (lambda: [Event("x")], "return an Event or None, not list"),
        (lambda: True, "return an Event or None, not bool"),
        (lambda: "", "return an Event or None, not str"),
        (later, "not `async def`"),
    ],
    ids=["str", "dict", "tuple", "list", "bool", "empty", "coroutine"],
)
@pytest.mark.parametrize("what", ["filter_event", "message handler"])
async def test_what_is_no_event_is_an_error_that_says_so_and_no_loop(
    what: str, result: Any, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Wrong(EventStreamView):
        groups = ["news"]

        def filter_event(self, event: Event) -> Any:
            return event if event.text == "last" else result()

        @on_message("news.update")
        def news_update(self, message: dict[str, Any]) -> Any:
            return result()

    async with open_stream(Wrong.as_view()) as stream:
        for _ in range(3):
            if what == "filter_event":
                await apublish("news", "hi")
            else:
                await group_send("news.update")
        await group_send("sse.event", data="last")
        assert data(await stream.until("last")) == ["last"]
        # A plain message may overtake events that are read from the store.
        await until(lambda: errors_of(caplog))
    [error] = errors_of(caplog)
    assert what in error
    assert "Wrong:" in error
    assert told in caplog.text


async def test_a_failure_that_is_no_exception_is_one_all_the_same(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Panic(BaseException):
        """As pyo3 has it."""

    class Panicking(EventStreamView):
        groups = ["news"]

        def filter_event(self, event: Event) -> Event:
            if event.text == "panic":
                raise Panic
            if event.text == "endless":
                return self.filter_event(event)
            if event.text == "cancelled":
                raise asyncio.CancelledError
            return event

    async with open_stream(Panicking.as_view()) as stream:
        start = stream.last_event_id
        for text in ("panic", "endless", "cancelled", "last"):
            await apublish("news", text)
        assert data(await stream.until("last")) == ["last"]
    async with open_stream(Panicking.as_view(), last_event_id=start) as stream:
        assert data(await stream.until("last")) == ["last"]
    assert len(errors_of(caplog)) == 3


async def test_a_filter_may_be_given_in_the_urls() -> None:
    view = News.as_view(filter_event=lambda event: None if event.text == "hidden" else event)
    async with open_stream(view) as stream:
        for text in ("hidden", "last"):
            await apublish("news", text)
        assert data(await stream.until("last")) == ["last"]


async def test_a_position_that_moved_unseen_is_told_with_the_next_heartbeat(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("django_sse.streaming.hub._TICK_SECONDS", 0.01)
    async with open_stream(Filtered.as_view(heartbeat=0.01)) as stream:
        hidden = (await apublish("news", "hidden")).id
        await until(lambda: stream.last_event_id == hidden)
        await until(lambda: stream.text.endswith(":\n\n"))
        assert stream.text.count(f"id: {hidden}\n\n") == 1


# Plain Channels messages


class Handling(EventStreamView):
    """Streams the messages of a group that feeds WebSockets as well."""

    groups = ["news"]

    @on_message("news.update")
    def news_update(self, message: dict[str, Any]) -> Event | None:
        if message["text"] == "quiet":
            return None
        if message["text"] == "broken":
            raise RuntimeError("The handler is broken.")
        return Event(message["text"], event="update")


handling = Handling.as_view()


async def group_send(message_type: str, **fields: Any) -> None:
    await get_channel_layer().group_send("news", {"type": message_type, **fields})


async def test_a_plain_message_is_streamed_without_an_id_and_is_not_replayed() -> None:
    async with open_stream(news) as stream:
        position = stream.last_event_id
        await group_send("sse.event", data={"title": "hi"}, event="headline")
        event = await stream.next_event()
        assert (event.text, event.event) == ('{"title":"hi"}', "headline")
        assert stream.text.endswith('\n\nevent: headline\ndata: {"title":"hi"}\n\n')
        assert stream.last_event_id == position
    async with open_stream(news, last_event_id=position) as stream:
        await apublish("news", "next")
        assert (await stream.next_event()).data == "next"


async def test_a_plain_message_reaches_every_stream_of_its_group_and_no_other() -> None:
    async with (
        open_stream(news) as one,
        open_stream(handling) as two,
        open_stream(requested, "/?group=jobs") as other,
    ):
        await group_send("sse.event", data="hi")
        assert (await one.next_event()).data == "hi"
        assert (await two.next_event()).data == "hi"
        await apublish("jobs", "mine")
        assert (await other.next_event()).data == "mine"


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"data": "x", "id": "7"},
        {"data": "x", "event": "close"},
        {"data": "x", "event": "a\nb"},
        {"data": b"bytes"},
        {"data": "x" * 300_000},
        {"data": "x", "unknown": 1},
    ],
)
async def test_a_plain_message_obeys_the_rules_of_publish(
    fields: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    async with open_stream(news) as stream:
        await group_send("sse.event", **fields)
        await group_send("sse.event", data="next")
        assert (await stream.next_event()).data == "next"
    assert "sse.event" in caplog.text
    assert "'news' was refused" in caplog.text


async def test_a_view_handles_messages_as_a_consumer_does() -> None:
    async with open_stream(handling) as stream, open_stream(news) as without_handler:
        await group_send("news.update", text="first")
        await group_send("news.update", text="quiet")
        await group_send("news.other", text="not for a view")
        await group_send("news.update", text="last")
        events = await stream.until("last")
        assert [(event.data, event.event) for event in events] == [
            ("first", "update"),
            ("last", "update"),
        ]
        await apublish("news", "next")
        assert (await without_handler.next_event()).data == "next"


async def test_plain_messages_and_handled_ones_keep_their_order() -> None:
    async with open_stream(handling) as stream:
        for number in range(0, 10, 2):
            await group_send("sse.event", data=str(number))
            await group_send("news.update", text=str(number + 1))
        assert data(await stream.until("9")) == [str(number) for number in range(10)]


async def test_a_handler_may_take_its_message_apart() -> None:
    class Popping(EventStreamView):
        groups = ["news"]

        @on_message("news.update")
        def news_update(self, message: dict[str, Any]) -> Event | None:
            return Event(message.pop("text") + message["card"].pop("title"))

    view = Popping.as_view()
    async with open_stream(view) as one, open_stream(view) as two:
        await group_send("news.update", text="for ", card={"title": "both"})
        assert (await one.next_event()).data == "for both"
        assert (await two.next_event()).data == "for both"


async def test_what_a_handler_adds_for_one_user_reaches_no_other_one() -> None:
    class Cards(EventStreamView):
        groups = ["news"]

        @on_message("card.moved")
        def card_moved(self, message: dict[str, Any]) -> Event:
            message["card"]["shown to"].append(self.request.GET["user"])
            return Event(message["card"])

    view = Cards.as_view()
    async with open_stream(view, "/?user=ada") as ada, open_stream(view, "/?user=eve") as eve:
        await group_send("card.moved", card={"shown to": []})
        assert (await ada.next_event()).json() == {"shown to": ["ada"]}
        assert (await eve.next_event()).json() == {"shown to": ["eve"]}


@pytest.mark.parametrize(
    "message_type",
    [
        *("get", "as_view", "authorize", "filter.event", "_secret", "__init__", "delete.room"),
        # The name of a handler, and not its type.
        "news_update",
        "News.update",
        " news.update",
    ],
)
async def test_a_message_reaches_only_what_the_view_declares_as_a_handler(
    message_type: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Own(EventStreamView):
        groups = ["news"]

        @on_message("news.update")
        def news_update(self, message: dict[str, Any]) -> Event | None:
            return Event("update")

        def delete_room(self, message: dict[str, Any] | None = None) -> Event | None:
            raise AssertionError

        def _secret(self, message: dict[str, Any]) -> Event | None:
            raise AssertionError

    async with open_stream(Own.as_view()) as stream:
        # What was said of the stream itself.
        caplog.clear()
        await group_send(message_type)
        await group_send("news.update")
        assert (await stream.next_event()).data == "update"
    # A stream that stays in its request, as this one does, says so.
    logged = [record.getMessage() for record in caplog.records]
    assert not [text for text in logged if "stays in its request" not in text]


class Declaring(EventStreamView):
    groups = ["news"]

    @on_message("news.update", "card.moved")
    @on_message("card.added")
    def note(self, message: dict[str, Any]) -> Event | None:
        return Event(f"noted {message['type']}")

    @on_message("news.other")
    def note_other(self, message: dict[str, Any]) -> Event | None:
        return Event(f"noted {message['type']}")


class Overriding(Declaring):
    """Declares nothing again, takes one handler back, and gives another one other types."""

    def note(self, message: dict[str, Any]) -> Event | None:
        return Event(f"overridden {message['type']}")

    note_other = None  # type: ignore[assignment]


class Redeclaring(Declaring):
    @on_message("room.closed")
    def note(self, message: dict[str, Any]) -> Event | None:
        return Event(f"redeclared {message['type']}")


class NoView:
    """A mixin that is no view."""

    @on_message("room.closed")
    def room_closed(self, message: dict[str, Any]) -> Event | None:
        return Event(f"mixed in {message['type']}")


class Mixing(NoView, Declaring):
    """Handles what both of its bases declare."""


@pytest.mark.parametrize(
    ("view", "shown"),
    [
        (
            Declaring,
            ["noted news.update", "noted card.moved", "noted card.added", "noted news.other"],
        ),
        (
            Overriding,
            ["overridden news.update", "overridden card.moved", "overridden card.added"],
        ),
        (Redeclaring, ["noted news.other", "redeclared room.closed"]),
        (
            Mixing,
            [
                *("noted news.update", "noted card.moved", "noted card.added", "noted news.other"),
                "mixed in room.closed",
            ],
        ),
    ],
)
async def test_handlers_are_inherited_overridden_and_taken_back(
    view: type[EventStreamView], shown: list[str]
) -> None:
    async with open_stream(view.as_view()) as stream:
        for name in ("news.update", "card.moved", "card.added", "news.other", "room.closed"):
            await group_send(name)
        await group_send("sse.event", data="last")
        assert data(await stream.until("last")) == [*shown, "last"]


def test_two_handlers_of_one_type_are_refused_when_the_class_is_made() -> None:
    with pytest.raises(
        ImproperlyConfigured, match=r"'news.update': note and update\. Declare only one"
    ):

        class Two(Declaring):
            @on_message("news.update")
            def update(self, message: dict[str, Any]) -> Event | None:
                return None


async def later_handler(self: Any, message: dict[str, Any]) -> None:
    """Wait."""


@pytest.mark.parametrize(
    "method",
    [
        later_handler,
        sync_to_async(lambda self, message: None),
        lambda self, message: (yield Event("x")),
        "news",
    ],
    ids=["async", "sync_to_async", "generator", "text"],
)
def test_a_handler_that_can_only_fail_is_refused_when_the_class_is_made(method: Any) -> None:
    wanted = r"Late.note handles .* card.moved, .* it has to be `def note\(self, message\)`"
    with pytest.raises(ImproperlyConfigured, match=wanted):
        # It overrides what its base declares.
        type("Late", (Declaring,), {"note": method})
    if callable(method):
        with pytest.raises(ImproperlyConfigured, match=wanted):
            type("Late", (News,), {"note": on_message("card.moved")(method)})


@pytest.mark.parametrize("name", ["sse.event", "sse.doorbell", "sse."])
def test_what_the_library_handles_itself_may_not_be_declared(name: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=f"'{name}'.* handled by django_sse itself"):
        on_message("news.update", name)


@pytest.mark.parametrize("types", [(), ("",), (None,), (later_handler,), (7,), ("news", b"x")])
def test_a_handler_without_a_type_is_told_how_to_name_one(types: Any) -> None:
    with pytest.raises(TypeError, match=r'@on_message\("card.moved"\)'):
        on_message(*types)


async def test_a_message_that_a_handler_cannot_read_is_hidden_and_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with open_stream(handling) as stream, open_stream(handling) as other:
        await group_send("news.update", text="broken")
        await group_send("news.update", text="next")
        assert data(await stream.until("next")) == ["next"]
        assert data(await other.until("next")) == ["next"]
    [error] = errors_of(caplog)
    assert error.startswith("Handling: a message handler failed")
    assert "'news.update' to group 'news'" in error
    assert "The handler is broken." in caplog.text


async def test_plain_messages_can_be_turned_off() -> None:
    layer = get_channel_layer()
    async with open_stream(News.as_view(channel_messages=False)) as stream:
        # No channel is opened for the group.
        assert "news" not in layer.groups
        await group_send("sse.event", data="plain")
        await apublish("news", "published")
        assert (await stream.next_event()).data == "published"


async def test_plain_messages_are_off_also_beside_a_stream_that_has_them() -> None:
    quiet = Handling.as_view(channel_messages=False)
    async with open_stream(quiet) as stream, open_stream(handling) as other:
        await group_send("sse.event", data="plain")
        await group_send("news.update", text="update")
        await other.until("update")
        await apublish("news", "published")
        assert (await stream.next_event()).data == "published"


async def test_streams_need_no_channel_layer(settings: Settings) -> None:
    settings.CHANNEL_LAYERS = {}
    async with open_stream(news) as stream:
        await apublish("news", "hi")
        assert (await stream.next_event()).data == "hi"
