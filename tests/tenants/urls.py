"""Its views, of every tenant."""

from typing import Any

from django.contrib.auth import aauthenticate, alogin, alogout
from django.contrib.auth.models import Group
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.urls import path

from django_sse import apublish, publish
from django_sse.mixins import LoginRequiredMixin
from django_sse.views import EventStreamView


class Members(LoginRequiredMixin, EventStreamView):
    """For the members, whom the tenant's own tables name."""

    groups = ["news"]

    async def still_allowed(self) -> bool:
        user: Any = await self.request.auser()
        return await Group.objects.filter(name="members", user=user).aexists()


async def log_in(request: HttpRequest) -> HttpResponse:
    user = await aauthenticate(request, username="ada", password=request.GET["password"])
    assert user
    await alogin(request, user)
    return HttpResponse()


async def log_out(request: HttpRequest) -> HttpResponse:
    await alogout(request)
    return HttpResponse()


async def say(request: HttpRequest) -> HttpResponse:
    await apublish("news", request.GET["text"])
    return HttpResponse()


def say_at_commit(request: HttpRequest) -> HttpResponse:
    with transaction.atomic():
        publish("news", request.GET["text"])
    return HttpResponse()


urlpatterns = [
    path("news/", EventStreamView.as_view(groups=["news"])),
    path("members/", Members.as_view()),
    path("log-in/", log_in),
    path("log-out/", log_out),
    path("say/", say),
    path("say-at-commit/", say_at_commit),
]
