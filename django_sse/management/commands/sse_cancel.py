from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from django_sse import EventStreamError, cancel


class Command(BaseCommand):
    help = "Cancels a group: its streams end, and their clients are stopped."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("group", help="a Channels group name")
        parser.add_argument("--reason", help="told to the clients with the event `close`")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            cancel(options["group"], reason=options["reason"])
        except EventStreamError as error:
            raise CommandError(str(error)) from error
        self.stdout.write(f"Cancelled {options['group']}.")
