"""An answer that goes on, whatever becomes of the page that has asked for it."""

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

from django import forms
from django.http import HttpRequest, HttpResponse, HttpResponseBadRequest
from django.http.response import HttpResponseBase
from django.shortcuts import render
from django.urls import path
from django.utils import timezone
from django.views.decorators.http import require_safe

from demo_project.markov import write
from django_sse import Event
from django_sse.exceptions import Close
from django_sse.views import EventProducerView

SECONDS_PER_WORD = 1 / 30


class Question(forms.Form):
    question = forms.CharField(max_length=200)
    words = forms.IntegerField(label="Words, at least", min_value=1, max_value=2000)
    fail = forms.BooleanField(label="Fail halfway", required=False)


class Answer(EventProducerView):
    """Anybody who knows the link may read and stop an answer. A project checks who may."""

    groups = ["lasting-answer-{pk}"]
    stoppable = True

    async def post(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        self.form = Question(request.POST)
        if not self.form.is_valid():
            return HttpResponseBadRequest(
                self.form.errors.as_json(), content_type="application/json"
            )
        return await super().post(request, *args, **kwargs)

    async def events(self) -> AsyncIterator[Event]:
        if self.request.method != "POST":
            # A link to an answer that nobody has asked for, or that is not kept any more.
            raise Close("unknown")
        asked = self.form.cleaned_data
        began = timezone.now().time().isoformat("milliseconds")
        yield Event(
            {"question": asked["question"], "began": began, "process": os.getpid()}, event="begin"
        )
        seed = f"{asked['question']} {self.kwargs['pk']}"
        for number, word in enumerate(write(seed, asked["words"])):
            if asked["fail"] and number >= asked["words"] / 2:
                raise RuntimeError("The model was told to fail.")
            yield Event(f"{word} ", event="word")
            await asyncio.sleep(SECONDS_PER_WORD)


@require_safe
def page(request: HttpRequest, pk: UUID | None = None) -> HttpResponse:
    form = Question(initial={"question": "What is the use of a book?", "words": 400})
    context = {"form": form, "pk": pk, "process": os.getpid()}
    return render(request, "demo_project/lasting-answer.html", context)


urlpatterns = [
    path("lasting-answer/", page, name="lasting-answer"),
    path("lasting-answer/<uuid:pk>/", page, name="lasting-answer"),
    path("lasting-answer/<uuid:pk>/events/", Answer.as_view(), name="lasting-answer-events"),
]
