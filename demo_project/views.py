"""The front page, and streams for programs, of all groups except the members' group."""

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe

from demo_project.last_word import Members
from django_sse.views import EventStreamView


@require_safe
def index(request: HttpRequest) -> HttpResponse:
    return render(request, "demo_project/index.html", {"push_command": push_command()})


def push_command() -> str:
    """Return the command that publishes a headline, to type in the project's directory."""
    python = Path(sys.executable)
    if python.is_relative_to(settings.BASE_DIR):
        python = python.relative_to(settings.BASE_DIR)
    command = [str(python), "manage.py", "sse_push", "news", '{"title": "hi"}']
    database = os.environ.get("DEMO_DATABASE")
    setting = f"DEMO_DATABASE={shlex.quote(database)} " if database else ""
    return f"{setting}{shlex.join(command)} --event headline"


class Public(EventStreamView):
    """In the demo, anybody may read any group, except those that have a guarded stream."""

    async def authorize(self, groups: Sequence[str]) -> list[str]:
        return [group for group in groups if group not in Members.groups]


class Group(Public):
    groups = ["{group}"]


class Groups(Public):
    async def get_groups(self) -> list[str]:
        return self.request.GET.getlist("group")
