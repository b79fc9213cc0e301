"""What a project annotates, as mypy sees it: it checks this file with all others.

``warn_unused_ignores``, a part of its ``strict``, says that what is refused here is.
"""

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import pytest
from django.http import HttpRequest

from django_sse import Event
from django_sse.decorators import EventStreamRequest, event_generator, event_stream, on_message
from django_sse.views import EventStreamView
from tests.streams import get, open_stream

pytestmark = pytest.mark.usefixtures("memory_store")


class AsIterator(EventStreamView):
    groups = ["news"]

    async def initial_events(self) -> AsyncIterator[Event]:
        yield Event("iterated")


class AsGenerator(EventStreamView):
    groups = ["news"]

    async def initial_events(self) -> AsyncGenerator[Event, None]:
        yield Event("generated")


class OfTexts(EventStreamView):
    async def initial_events(self) -> AsyncIterator[str]:  # type: ignore[override]
        yield "no event"


class Handling(EventStreamView):
    @on_message("card.moved")
    def card_moved(self, message: dict[str, Any]) -> Event | None:
        return None

    @on_message("card.named")  # type: ignore[type-var]
    def card_named(self, message: dict[str, Any]) -> str:
        return "no event"


@event_stream("job-{pk}")
async def guard(request: HttpRequest, pk: int) -> list[str] | None:
    return None


@event_generator
async def count(request: EventStreamRequest) -> AsyncIterator[Event]:
    last: str = request.last_event_id
    yield Event(last)


async def test_what_is_annotated_so_runs() -> None:
    for view, text in ((AsIterator, "iterated"), (AsGenerator, "generated")):
        async with open_stream(view.as_view()) as stream:
            assert (await stream.next_event()).data == text
    async with open_stream(count, "/?lastEventId=7") as stream:
        assert (await stream.next_event()).data == "7"
    assert (await guard(get(), pk=7)).status_code == 200
