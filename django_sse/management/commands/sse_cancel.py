from argparse import ArgumentParser
from typing import Any

from django_sse import cancel
from django_sse.management.group_command import OwnerCommand


class Command(OwnerCommand):
    help = (
        "Cancels a group, a user's streams, or a user's streams of a group. The streams end, and "
        "their clients stop."
    )
    done = "Cancelled"

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--reason", help="sent to the clients with the event `close`")

    def act_on(self, group: str | None, owner: dict[str, Any], options: dict[str, Any]) -> None:
        cancel(group, **owner, reason=options["reason"])
