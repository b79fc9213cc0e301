"""A chart of the samples that `manage.py sample_metrics` publishes once a second."""

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import path
from django.views.decorators.http import require_safe

from django_sse.views import EventStreamView


class Metrics(EventStreamView):
    groups = ["metrics"]
    history = 60  # so that a new page shows the last minute at once


@require_safe
def page(request: HttpRequest) -> HttpResponse:
    return render(request, "demo_project/metrics.html")


urlpatterns = [
    path("metrics/", page, name="metrics"),
    path("events/metrics/latest/", Metrics.as_view(), name="metrics-events"),
]
