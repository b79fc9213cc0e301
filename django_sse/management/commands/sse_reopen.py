from typing import Any

from django_sse import reopen
from django_sse.management.group_command import GroupCommand


class Command(GroupCommand):
    help = "Brings a cancelled group back, with its numbers and its history."

    def act(self, **options: Any) -> None:
        reopen(options["group"])
        self.stdout.write(f"Reopened {options['group']}.")
