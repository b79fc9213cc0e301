"""The URLs of the test project."""

from django.contrib.auth.decorators import login_required
from django.contrib.staticfiles.views import serve
from django.urls import path
from django.views.generic import RedirectView

from django_sse.views import ALL
from tests import views

urlpatterns = [
    path("events/", views.Groups.as_view()),
    path("events/<str:group>/", views.Group.as_view()),
    path("history/<str:group>/", views.Group.as_view(history=10)),
    path("ask/<str:group>/", views.ask),
    path("answers/<str:group>/", views.Group.as_view(history=ALL)),
    path("produced/<str:group>/", views.Produced.as_view()),
    path("paid/<str:group>/", views.Paid.as_view()),
    path("job/<str:group>/", views.Job.as_view()),
    path("chat", views.Chat.as_view()),
    path("chat/<str:chat>/stream", views.Chat.as_view()),
    path("stop/<str:group>/", views.stop),
    path("answer-page/<str:group>/", views.answer_page),
    path("members/<str:group>/", views.Members.as_view()),
    path("room/<str:group>/", views.Room.as_view()),
    path("present/<str:group>/", views.present),
    path("resumed/<str:group>/", views.Resumed.as_view()),
    path("unauthorized/<str:group>/", views.Unauthorized.as_view()),
    path(
        "redirected/<str:group>/",
        login_required(views.Group.as_view(), login_url="/event-sources/"),
    ),
    path("localized/<str:group>/", views.Localized.as_view()),
    path("guarded/<str:group>/", views.guarded),
    path("by-hand/", views.by_hand),
    path("progress/", views.progress),
    path("counted/", views.counted),
    path("login/", views.login),
    path("logout/", views.logout),
    path("change-password/", views.change_password),
    path("deactivate/", views.deactivate),
    path("open-streams/", views.open_streams),
    path("publish/<str:group>/", views.publish),
    path("cancel/<str:group>/", views.cancel),
    path("cancel-user/", views.cancel_user),
    path("cancel-user/<str:group>/", views.cancel_user),
    path("reopen/<str:group>/", views.reopen),
    path("event-sources/", views.event_sources),
    path("ends/", views.ends),
    path("says/", views.says),
    path("echo/", views.echo),
    path("posted-elsewhere/", views.posted_elsewhere),
    path("protected/", views.protected),
    path("moved/<str:group>/", RedirectView.as_view(url="/events/%(group)s/")),
    path("forgetful/<str:group>/", views.Forgetful.as_view()),
    path("forgetful-with-state/<str:group>/", views.ForgetfulWithState.as_view()),
    path("slow-page/", views.slow_page),
    path("page-with-policy/", views.page_with_policy),
    path("foreign/", views.foreign),
    path("static/<path:path>", serve, {"insecure": True}),
    path("group-send/<str:group>/", views.group_send),
    path("long-page/", views.long_page),
    path("unavailable/", views.unavailable),
]
