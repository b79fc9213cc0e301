from django.urls import path

from demo_project import views

urlpatterns = [
    path("events/", views.Groups.as_view()),
    path("events/<str:group>/", views.Group.as_view()),
    path("progress/", views.progress),
]
