"""The URLs of the test project during a soak test: with views that produce answers."""

import asyncio
from collections.abc import AsyncIterator

from django.http import HttpRequest, HttpResponse
from django.urls import path

from django_sse.views import EventProducerView
from tests import urls, views
from tests.soak.words import Run


async def ask(request: HttpRequest, group: str, words: int, delay: int) -> HttpResponse:
    """Start an answer; 409 if there is or was one."""
    return await views.begun(answer(group, words, delay), group)


class Produced(EventProducerView):
    """An answer that its first client starts."""

    groups = ["{group}"]

    def events(self) -> AsyncIterator[str]:
        return answer(**self.kwargs)


async def answer(group: str, words: int, delay: int) -> AsyncIterator[str]:
    """Say so many words, with so many milliseconds in between."""
    run = Run(group)
    for number in range(1, words + 1):
        yield run.word(number)
        await asyncio.sleep(delay / 1000)
    run.said(words)


urlpatterns = [
    path("ask/<str:group>/<int:words>/<int:delay>/", ask),
    path("produced/<str:group>/<int:words>/<int:delay>/", Produced.as_view()),
    *urls.urlpatterns,
]
