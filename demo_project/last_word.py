"""The server has the last word: for a group, and for a user.

In the demo, anybody may say it. A project checks who may, for example with `permission_required`.
"""

from django.contrib import auth
from django.contrib.auth.models import User
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import path
from django.utils.html import format_html
from django.views.decorators.http import require_POST, require_safe

from django_sse import acancel, areopen, cancel, publish
from django_sse.mixins import LoginRequiredMixin
from django_sse.views import EventStreamView

USERS = ("ada", "grace")


class Members(LoginRequiredMixin, EventStreamView):
    groups = ["members"]


@require_POST
async def cancel_news(request: HttpRequest) -> HttpResponse:
    await acancel("news", reason="cancelled on the page")
    return HttpResponse(status=204)


@require_POST
async def reopen_news(request: HttpRequest) -> HttpResponse:
    await areopen("news")
    return HttpResponse(status=204)


@require_POST
def kick(request: HttpRequest) -> HttpResponse:
    """End a user's streams of the group, in all tabs and browsers, until the next login."""
    user = get_object_or_404(User, username=request.POST.get("user"))
    # Without the group, all of the user's streams would end.
    cancel("members", user=user, reason="kicked")
    publish("members", format_html("<li>{} was kicked</li>", user.username.title()))
    return HttpResponse(status=204)


@require_POST
def login(request: HttpRequest) -> HttpResponse:
    """Log in as one of the demo's users. They have no passwords."""
    username = request.POST.get("user")
    if username in USERS:
        user, _ = User.objects.get_or_create(username=username)
        auth.login(request, user)
        publish("members", format_html("<li>{} has logged in</li>", username.title()))
    return redirect("last-word")


@require_POST
def logout(request: HttpRequest) -> HttpResponse:
    auth.logout(request)
    return redirect("last-word")


@require_safe
def page(request: HttpRequest) -> HttpResponse:
    return render(request, "demo_project/last-word.html", {"users": USERS})


urlpatterns = [
    path("last-word/", page, name="last-word"),
    path("news/cancel/", cancel_news, name="cancel-news"),
    path("news/reopen/", reopen_news, name="reopen-news"),
    path("last-word/login/", login, name="login"),
    path("last-word/logout/", logout, name="logout"),
    path("last-word/kick/", kick, name="kick"),
    path("last-word/members/", Members.as_view(), name="members"),
]
