from django.apps import AppConfig

from django_sse.broadcasts import Broadcast


class Teams(AppConfig):
    name = "tests.live.teams"

    def ready(self) -> None:
        from django.contrib.auth.models import Group

        Broadcast("teams", template="teams/row.html").register(Group)
