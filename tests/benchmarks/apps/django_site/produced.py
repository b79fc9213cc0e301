"""Answers in Django: produced by django_sse, and streamed by a plain view."""

import os
from collections.abc import AsyncIterator

import django
from django.http import HttpRequest, StreamingHttpResponse
from django.urls import path

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.benchmarks.apps.django_site.settings")
django.setup()

from django_sse.asgi import get_asgi_application  # noqa: E402
from django_sse.producing import start_producing  # noqa: E402
from django_sse.views import ALL, EventStreamView  # noqa: E402
from tests.benchmarks.apps.answers import ANSWERS, Answers  # noqa: E402


class Reader(EventStreamView):
    """Several readers may have the same answer."""

    history = ALL

    async def get_groups(self) -> list[str]:
        return [f"answer-{self.kwargs['number'] % ANSWERS}"]


class Produced(Answers):
    async def order_produced(self, words: int, milliseconds: int) -> None:
        """Do what ``order_answers`` does, by producers."""
        for number in range(ANSWERS):
            await start_producing(self.words(number), group=f"answer-{number}")
        await self.order_answers(words, milliseconds)


async def plain(request: HttpRequest, number: int) -> StreamingHttpResponse:
    """Stream an answer to the one client that asks for it."""

    async def events() -> AsyncIterator[str]:
        async for word in application.words(number):
            yield f"data: {word}\n\n"

    return StreamingHttpResponse(events(), content_type="text/event-stream")


urlpatterns = [
    path("produced/<int:number>/", Reader.as_view()),
    path("plain/<int:number>/", plain),
]

application = Produced(get_asgi_application())
