from typing import Any

from django_sse import reopen
from django_sse.management.group_command import OwnerCommand


class Command(OwnerCommand):
    help = (
        "Undoes a cancel. A group comes back with its numbers and its history, and a user may "
        "stream again."
    )
    done = "Reopened"

    def act_on(self, group: str | None, owner: dict[str, Any], options: dict[str, Any]) -> None:
        reopen(group, **owner)
