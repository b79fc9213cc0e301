"""The URLs of the test project."""

from django.urls import path

from tests import views

urlpatterns = [
    path("events/", views.Groups.as_view()),
    path("events/<str:group>/", views.Group.as_view()),
    path("members/<str:group>/", views.Members.as_view()),
    path("progress/", views.progress),
    path("login/", views.login),
    path("open-streams/", views.open_streams),
    path("group-send/<str:group>/", views.group_send),
    path("long-page/", views.long_page),
    path("unavailable/", views.unavailable),
]
