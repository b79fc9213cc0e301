"""A job that runs outside of the web server, and shows its progress to whoever asks."""

import subprocess
import sys
from threading import Thread
from uuid import UUID, uuid4

from django import forms
from django.conf import settings
from django.http import HttpRequest, HttpResponse, HttpResponseBadRequest, JsonResponse
from django.shortcuts import render
from django.urls import path, reverse
from django.views.decorators.http import require_POST, require_safe

from django_sse.views import ALL, EventStreamView


class Job(forms.Form):
    steps = forms.IntegerField(min_value=1, max_value=1000)
    delay = forms.FloatField(label="Seconds for each", min_value=0, max_value=10)
    fail = forms.BooleanField(label="Fail halfway", required=False)


class Progress(EventStreamView):
    """Anybody who knows the link may follow and stop a job. A project checks who may."""

    groups = ["long-job-{pk}"]
    history = ALL
    stoppable = True


@require_POST
def start(request: HttpRequest) -> HttpResponse:
    job = Job(request.POST)
    if not job.is_valid():
        return HttpResponseBadRequest(job.errors.as_json(), content_type="application/json")
    pk = uuid4()
    steps, delay, fail = (job.cleaned_data[name] for name in ("steps", "delay", "fail"))
    arguments = [f"long-job-{pk}", str(steps), str(delay), *(["--fail"] if fail else [])]
    # Only a demo starts a process here. A project gives the job to a task queue.
    command = [sys.executable, "manage.py", "long_job", *arguments]
    Thread(
        target=subprocess.run, args=[command], kwargs={"cwd": settings.BASE_DIR}, daemon=True
    ).start()
    urls = {"page": reverse("long-job", args=[pk]), "stream": reverse("progress-of", args=[pk])}
    return JsonResponse(urls, status=202)


@require_safe
def page(request: HttpRequest, pk: UUID | None = None) -> HttpResponse:
    form = Job(initial={"steps": 100, "delay": 0.2})
    return render(request, "demo_project/long-job.html", {"form": form, "pk": pk})


urlpatterns = [
    path("long-job/", page, name="long-job"),
    path("long-job/start/", start, name="start-long-job"),
    path("long-job/<uuid:pk>/", page, name="long-job"),
    path("long-job/<uuid:pk>/progress/", Progress.as_view(), name="progress-of"),
]
