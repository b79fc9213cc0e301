from django.urls import include, path

from demo_project import views

urlpatterns = [
    path("", views.index, name="index"),
    path("events/", views.Groups.as_view()),
    path("events/<str:group>/", views.Group.as_view(), name="group"),
    path("", include("demo_project.metrics")),
    path("", include("demo_project.headlines")),
    path("", include("demo_project.job")),
    path("", include("demo_project.long_job")),
    path("", include("demo_project.chat")),
    path("", include("demo_project.text")),
    path("", include("demo_project.lasting_answer")),
    path("", include("demo_project.last_word")),
    path("", include("demo_project.tabs")),
    path("recipes/", include("demo_project.recipes.urls")),
]
