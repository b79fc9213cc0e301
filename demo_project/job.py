"""A job that streams its progress. When the job ends, the stream ends."""

import asyncio
from collections.abc import AsyncIterator

from django import forms
from django.http import HttpRequest, HttpResponse, HttpResponseBadRequest
from django.http.response import HttpResponseBase
from django.shortcuts import render
from django.urls import path
from django.views.decorators.http import require_safe

from django_sse import Event
from django_sse.decorators import event_generator


class Job(forms.Form):
    steps = forms.IntegerField(min_value=1, max_value=1000)
    delay = forms.FloatField(min_value=0, max_value=60)


async def progress(request: HttpRequest) -> HttpResponseBase:
    job = Job({"steps": 5, "delay": 0.2, **request.GET.dict()})
    if not job.is_valid():
        return HttpResponseBadRequest(job.errors.as_json(), content_type="application/json")
    response: HttpResponseBase = await run(request, **job.cleaned_data)
    return response


@event_generator
async def run(request: HttpRequest, steps: int, delay: float) -> AsyncIterator[Event]:
    for step in range(1, steps + 1):
        await asyncio.sleep(delay)
        yield Event({"step": step, "steps": steps}, event="progress")


@require_safe
def page(request: HttpRequest) -> HttpResponse:
    return render(request, "demo_project/job.html", {"form": Job({"steps": 20, "delay": 0.2})})


urlpatterns = [
    path("job/", page, name="job"),
    path("progress/", progress, name="progress"),
]
