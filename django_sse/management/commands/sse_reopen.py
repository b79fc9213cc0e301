from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from django_sse import EventStreamError, reopen


class Command(BaseCommand):
    help = "Brings a cancelled group back, with its numbers and its history."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("group", help="a Channels group name")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            reopen(options["group"])
        except EventStreamError as error:
            raise CommandError(str(error)) from error
        self.stdout.write(f"Reopened {options['group']}.")
