"""The streams that the fuzzer asks for: every kind of view, some of their groups secret."""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence

from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.urls import path

from django_sse import Event
from django_sse.decorators import (
    EventStreamRequest,
    event_generator,
    event_stream,
    event_stream_headers,
    no_content_when_cancelled,
    on_message,
)
from django_sse.mixins import UserPassesTestMixin
from django_sse.views import EventStreamView

STATE = Event("state", event="state")


class One(EventStreamView):
    groups = ["{group}"]

    async def authorize(self, groups: Sequence[str]) -> list[str] | None:
        await self.request.auser()
        if groups[0].startswith("secret"):
            raise PermissionDenied
        return None


class Some(EventStreamView):
    async def get_groups(self) -> list[str]:
        return self.request.GET.getlist("group")

    async def authorize(self, groups: Sequence[str]) -> list[str]:
        return [group for group in groups if not group.startswith("secret")]


class Pair(One):
    groups = ["{first}-{second}"]


class State(One):
    async def initial_events(self) -> AsyncGenerator[Event, None]:
        yield STATE


class Filtered(One):
    def filter_event(self, event: Event) -> Event | None:
        if event.event == "change":
            return Event(event.text, event="changed")
        return None if event.event == "hidden" else event


class Handled(One):
    @on_message("card.moved")
    def card_moved(self, message: dict[str, str]) -> Event:
        return Event({"title": message["title"]}, event="moved")


class HasA(UserPassesTestMixin):
    async def test_func(self) -> bool:
        return "a" in self.request.GET.getlist("pass")


class HasB(UserPassesTestMixin):
    async def test_func(self) -> bool:
        return "b" in self.request.GET.getlist("pass")


class Stacked(HasA, HasB, One):
    """Asks two guards of one kind."""


@event_stream("{group}")
async def guarded(request: HttpRequest, group: str) -> None:
    user = await request.auser()
    if group.startswith("secret") or user.is_authenticated:
        raise PermissionDenied


@event_generator
async def generator(request: EventStreamRequest) -> AsyncIterator[Event]:
    yield Event({"last": request.last_event_id}, id="one")


@no_content_when_cancelled("{group}")
@event_stream_headers
async def own(request: HttpRequest, group: str) -> HttpResponseBase:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"data: own\n\n"

    return StreamingHttpResponse(chunks())


urlpatterns = [
    path("one/<str:group>/", One.as_view()),
    path("some/", Some.as_view()),
    path("pair/<str:first>/<str:second>/", Pair.as_view()),
    path("history/<str:group>/", One.as_view(history=3)),
    path("state/<str:group>/", State.as_view()),
    path("filtered/<str:group>/", Filtered.as_view()),
    path("handled/<str:group>/", Handled.as_view()),
    path("silent/<str:group>/", One.as_view(channel_messages=False)),
    path("stacked/<str:group>/", Stacked.as_view()),
    path("bounded/<str:group>/", One.as_view(replay_events=2, replay_age=3600)),
    path("guarded/<str:group>/", guarded),
    path("generator/", generator),
    path("own/<str:group>/", own),
]
