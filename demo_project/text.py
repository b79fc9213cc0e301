"""An answer that is sent word by word, as a language model writes it."""

import asyncio
import re
from collections.abc import AsyncIterator

from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import path
from django.utils.html import escape
from django.views.decorators.http import require_safe

from demo_project.answers import ANSWERS
from django_sse import Event
from django_sse.decorators import EventStreamRequest, event_generator

SECONDS_PER_WORD = 0.06


@event_generator
async def answer(request: EventStreamRequest, topic: str) -> AsyncIterator[Event]:
    _, text = ANSWERS.get(topic, ("", "I do not know."))
    words = {str(number): word for number, word in enumerate(re.findall(r"\S+\s*", text))}
    # A returning client goes on where it was.
    seen = request.last_event_id
    for number in list(words)[int(seen) + 1 if seen in words else 0 :]:
        yield Event(escape(words[number]), id=number)
        await asyncio.sleep(SECONDS_PER_WORD)


@require_safe
def page(request: HttpRequest, topic: str = "sse") -> HttpResponse:
    if topic not in ANSWERS:
        raise Http404
    topics = [(key, question) for key, (question, _) in ANSWERS.items()]
    return render(request, "demo_project/text.html", {"topic": topic, "topics": topics})


urlpatterns = [
    path("text/", page, name="text"),
    path("text/<slug:topic>/", page, name="topic"),
    path("text/<slug:topic>/events/", answer, name="answer"),
]
