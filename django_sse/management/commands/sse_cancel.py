from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError

from django_sse import cancel
from django_sse.management.group_command import GroupCommand


class Command(GroupCommand):
    help = (
        "Cancels a group, a user's streams, or a user's streams of a group: they end, and their "
        "clients are stopped."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("group", nargs="?", help="a Channels group name")
        parser.add_argument("--user", help="the primary key of a user")
        parser.add_argument("--reason", help="told to the clients with the event `close`")

    def act(self, **options: Any) -> None:
        group, user = options["group"], options["user"]
        if group is None and user is None:
            raise CommandError("Name a group, or give --user.")
        whom = {} if user is None else {"user": user}
        cancel(group, **whom, reason=options["reason"])
        whose = "" if user is None else f"the streams of user {user}"
        self.stdout.write(f"Cancelled {' in '.join(filter(None, (whose, group)))}.")
