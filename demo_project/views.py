import asyncio
import os
import shlex
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from django import forms
from django.conf import settings
from django.http import HttpRequest, HttpResponse, HttpResponseBadRequest
from django.http.response import HttpResponseBase
from django.shortcuts import render
from django.views.decorators.http import require_POST, require_safe

from django_sse import Event, acancel, areopen
from django_sse.decorators import event_stream
from django_sse.views import EventStreamView


@require_safe
def index(request: HttpRequest) -> HttpResponse:
    return render(request, "demo_project/index.html", {"push_command": push_command()})


def push_command() -> str:
    """Return what publishes a headline when it is typed in the project's directory."""
    python = Path(sys.executable)
    if python.is_relative_to(settings.BASE_DIR):
        python = python.relative_to(settings.BASE_DIR)
    command = [str(python), "manage.py", "sse_push", "news", '{"title": "hi"}']
    database = os.environ.get("DEMO_DATABASE")
    setting = f"DEMO_DATABASE={shlex.quote(database)} " if database else ""
    return f"{setting}{shlex.join(command)} --event headline"


class Group(EventStreamView):
    groups = ["{group}"]


class Groups(EventStreamView):
    async def get_groups(self) -> list[str]:
        return self.request.GET.getlist("group")


class Headlines(EventStreamView):
    groups = ["news"]
    history = 5


class Metrics(EventStreamView):
    groups = ["metrics"]
    history = 60


@require_POST
async def cancel_news(request: HttpRequest) -> HttpResponse:
    await acancel("news", reason="cancelled on the page")
    return HttpResponse(status=204)


@require_POST
async def reopen_news(request: HttpRequest) -> HttpResponse:
    await areopen("news")
    return HttpResponse(status=204)


class Job(forms.Form):
    steps = forms.IntegerField(min_value=1, max_value=1000)
    delay = forms.FloatField(min_value=0, max_value=60)


async def progress(request: HttpRequest) -> HttpResponseBase:
    job = Job({"steps": 5, "delay": 0.2, **request.GET.dict()})
    if not job.is_valid():
        return HttpResponseBadRequest(job.errors.as_json(), content_type="application/json")
    response: HttpResponseBase = await run(request, **job.cleaned_data)
    return response


@event_stream
async def run(request: HttpRequest, steps: int, delay: float) -> AsyncIterator[Event]:
    for step in range(1, steps + 1):
        await asyncio.sleep(delay)
        yield Event({"step": step, "steps": steps}, event="progress")
