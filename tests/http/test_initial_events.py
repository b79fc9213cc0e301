"""What a stream begins with: the state as of now, of the view's own."""

from collections.abc import AsyncGenerator
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.urls import path
from pytest_django import Settings

from django_sse import Event, aposition, apublish
from django_sse.exceptions import InvalidEvent
from django_sse.views import EventStreamView
from tests.streams import data, get, news, open_stream, publish_numbers, until

pytestmark = [pytest.mark.urls(__name__), pytest.mark.usefixtures("memory_store")]

urlpatterns = [path("news/", news)]


# The state as of now


class Scores(EventStreamView):
    groups = ["scores"]

    async def initial_events(self) -> AsyncGenerator[Event, None]:
        yield Event({"home": 1}, event="score")
        yield Event({"away": 2}, event="score")


scores = Scores.as_view()


async def test_a_new_client_is_sent_the_state_without_ids_and_then_a_position() -> None:
    [last] = await publish_numbers("scores", 1)
    async with open_stream(scores) as stream:
        await until(lambda: stream.last_event_id)
        assert stream.text == (
            "retry: 3000\n\n"
            'event: score\ndata: {"home":1}\n\n'
            'event: score\ndata: {"away":2}\n\n'
            f"id: {last}\n\n"
        )


async def test_what_is_published_while_the_state_is_read_comes_after_it() -> None:
    class Slow(EventStreamView):
        groups = ["scores"]

        async def initial_events(self) -> AsyncGenerator[Event, None]:
            await apublish("scores", "meanwhile")
            yield Event("state")

    async with open_stream(Slow.as_view()) as stream:
        assert data(await stream.until("meanwhile")) == ["state", "meanwhile"]


async def test_a_client_with_a_position_knows_the_state() -> None:
    [first, _] = await publish_numbers("scores", 1, 2)
    async with open_stream(scores, last_event_id=first) as stream:
        assert (await stream.next_event()).data == "2"
        assert "score" not in stream.text


async def test_a_client_that_lost_events_is_told_and_sent_the_state(settings: Settings) -> None:
    settings.DJANGO_SSE = {"STORE": "memory", "HISTORY_SIZE": 1}
    first, *_, last = await publish_numbers("scores", 1, 2, 3)
    async with open_stream(scores, last_event_id=first) as stream:
        await until(lambda: stream.last_event_id)
        # No id before the state is complete: who leaves before is told again.
        assert stream.text == (
            "retry: 3000\n\n"
            "event: reset\ndata: {}\n\n"
            'event: score\ndata: {"home":1}\n\n'
            'event: score\ndata: {"away":2}\n\n'
            f"id: {last}\n\n"
        )


async def test_a_client_that_does_not_know_one_of_the_groups_is_sent_the_state() -> None:
    view = Scores.as_view(groups=["scores", "news"])
    position = await aposition("scores")
    async with open_stream(view, last_event_id=position) as stream:
        assert data([await stream.next_event()]) == ['{"home":1}']
    async with open_stream(view, last_event_id=await aposition("scores", "news")) as stream:
        await publish_numbers("news", 1)
        assert data([await stream.next_event()]) == ["1"]


async def test_the_state_may_be_nothing() -> None:
    class Empty(EventStreamView):
        groups = ["news"]

        async def initial_events(self) -> AsyncGenerator[Event, None]:
            return
            yield

    async with open_stream(Empty.as_view()) as stream:
        await until(lambda: stream.last_event_id)
        await publish_numbers("news", 1)
        assert (await stream.next_event()).data == "1"


@pytest.mark.parametrize(
    "event", [Event("state", id="7"), Event("state", event="close"), Event("x" * 300_000)]
)
async def test_an_event_of_the_state_obeys_the_rules_of_publish(event: Event) -> None:
    class Wrong(EventStreamView):
        groups = ["news"]

        async def initial_events(self) -> AsyncGenerator[Event, None]:
            yield event

    async with open_stream(Wrong.as_view()) as stream:
        with pytest.raises(ValueError, match=r"must not have an id|not a name|MAX_EVENT_BYTES"):
            await stream.rest()
        assert stream.last_event_id == ""


async def test_a_state_that_is_no_event_says_what_it_has_to_be() -> None:
    class Wrong(EventStreamView):
        groups = ["news"]

        async def initial_events(self) -> AsyncGenerator[Any, None]:
            yield "state"

    async with open_stream(Wrong.as_view()) as stream:
        with pytest.raises(InvalidEvent, match="initial_events has to yield an Event, not str"):
            await stream.rest()


async def test_the_state_may_be_any_asynchronous_iterator() -> None:
    class Steps:
        """Without `aclose`."""

        def __init__(self) -> None:
            self._left = ["one", "two"]

        def __aiter__(self) -> "Steps":
            return self

        async def __anext__(self) -> Event:
            if not self._left:
                raise StopAsyncIteration
            return Event(self._left.pop(0))

    class Stepping(EventStreamView):
        groups = ["news"]

        def initial_events(self) -> Any:
            return Steps()

    async with open_stream(Stepping.as_view()) as stream:
        await until(lambda: stream.last_event_id)
        await publish_numbers("news", 3)
        assert data(await stream.until("3")) == ["one", "two", "3"]


async def later() -> Event:
    return Event("later")


@pytest.mark.parametrize(
    ("result", "name"),
    [
        (lambda: [Event("x")], "list"),
        (lambda: Event("x"), "Event"),
        (lambda: None, "NoneType"),
        (lambda: iter([Event("x")]), "list_iterator"),
        (lambda: later(), "coroutine"),
    ],
)
async def test_a_state_that_is_no_iterator_says_how_to_write_it(result: Any, name: str) -> None:
    class Wrong(EventStreamView):
        groups = ["news"]

        def initial_events(self) -> Any:
            return result()

    with pytest.raises(
        ImproperlyConfigured, match=rf"Wrong.initial_events returned {name}\. .* yields each"
    ):
        await Wrong.as_view()(get())


async def test_a_state_that_cannot_be_read_ends_the_stream_without_a_position() -> None:
    class Failing(EventStreamView):
        groups = ["news"]

        async def initial_events(self) -> AsyncGenerator[Event, None]:
            yield Event("first")
            raise RuntimeError("The state is gone.")

    async with open_stream(Failing.as_view()) as stream:
        with pytest.raises(RuntimeError, match="The state is gone"):
            await stream.rest()
        # It comes back, and is sent all of the state.
        assert stream.last_event_id == ""
        assert "gone" not in stream.text


def test_history_beside_initial_events_is_refused_before_a_client_comes() -> None:
    class Both(Scores):
        history = 5

    with pytest.raises(ImproperlyConfigured, match="both `history` and `initial_events`"):
        Both.as_view()
    with pytest.raises(ImproperlyConfigured, match="both `history` and `initial_events`"):
        Scores.as_view(history=5)
    Both.as_view(history=0)
