"""The front page, and the stream of any group, for programs."""

import os
import shlex
import sys
from pathlib import Path

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe

from django_sse.views import EventStreamView


@require_safe
def index(request: HttpRequest) -> HttpResponse:
    return render(request, "demo_project/index.html", {"push_command": push_command()})


def push_command() -> str:
    """Return what publishes a headline when it is typed in the project's directory."""
    python = Path(sys.executable)
    if python.is_relative_to(settings.BASE_DIR):
        python = python.relative_to(settings.BASE_DIR)
    command = [str(python), "manage.py", "sse_push", "news", '{"title": "hi"}']
    database = os.environ.get("DEMO_DATABASE")
    setting = f"DEMO_DATABASE={shlex.quote(database)} " if database else ""
    return f"{setting}{shlex.join(command)} --event headline"


class Group(EventStreamView):
    # In the demo anybody may read any group; in a project `authorize` says who.
    groups = ["{group}"]


class Groups(EventStreamView):
    async def get_groups(self) -> list[str]:
        return self.request.GET.getlist("group")
