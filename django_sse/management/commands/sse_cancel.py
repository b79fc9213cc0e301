from argparse import ArgumentParser
from typing import Any

from django_sse import cancel
from django_sse.management.group_command import GroupCommand


class Command(GroupCommand):
    help = "Cancels a group: its streams end, and their clients are stopped."

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--reason", help="told to the clients with the event `close`")

    def act(self, **options: Any) -> None:
        cancel(options["group"], reason=options["reason"])
        self.stdout.write(f"Cancelled {options['group']}.")
