from django.urls import include, path

from demo_project import views

urlpatterns = [
    path("", views.index, name="index"),
    path("events/", views.Groups.as_view()),
    path("events/<str:group>/", views.Group.as_view()),
    path("events/news/latest/", views.Headlines.as_view(), name="headlines"),
    path("events/metrics/latest/", views.Metrics.as_view(), name="metrics"),
    path("news/cancel/", views.cancel_news, name="cancel-news"),
    path("news/reopen/", views.reopen_news, name="reopen-news"),
    path("progress/", views.progress, name="progress"),
    path("recipes/", include("demo_project.recipes.urls")),
]
