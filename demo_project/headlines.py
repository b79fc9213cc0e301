"""A list that grows: programs publish JSON, and this page's stream turns it into HTML."""

from django import forms
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import path
from django.utils.html import format_html
from django.views.decorators.http import require_POST, require_safe

from demo_project.views import push_command
from django_sse import Event, GroupCancelled, publish
from django_sse.views import EventStreamView


class Headlines(EventStreamView):
    groups = ["news"]
    history = 5

    def filter_event(self, event: Event) -> Event:
        # The page swaps this in as HTML, and anybody may publish, so escape it.
        return Event(format_html("<li>{}</li>", title_of(event)), event=event.event)


def title_of(event: Event) -> str:
    try:
        return str(event.json()["title"])
    except (ValueError, TypeError, KeyError):
        return event.text


class Headline(forms.Form):
    title = forms.CharField(max_length=200)


@require_safe
def page(request: HttpRequest) -> HttpResponse:
    context = {"form": Headline(auto_id=False), "push_command": push_command()}
    return render(request, "demo_project/headlines.html", context)


@require_POST
def publish_headline(request: HttpRequest) -> HttpResponse:
    form = Headline(request.POST)
    if not form.is_valid():
        return HttpResponse(form.errors.as_text(), "text/plain", status=400)
    try:
        publish("news", form.cleaned_data, event="headline")
    except GroupCancelled as error:
        return HttpResponse(str(error), "text/plain", status=409)
    return HttpResponse(status=204)


urlpatterns = [
    path("headlines/", page, name="headlines"),
    path("events/news/latest/", Headlines.as_view(), name="headlines-events"),
    path("news/publish/", publish_headline, name="publish-news"),
]
