"""What the commands that change a group have in common."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from django_sse.exceptions import EventStreamError
from django_sse.stores import get_store


class GroupCommand(BaseCommand):
    """A command that does something to a group, seen by other processes."""

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("group", help="a Channels group name")

    def handle(self, *args: Any, **options: Any) -> None:
        if not get_store().crosses_processes:
            raise CommandError(
                "The event store keeps events in its own process, so nobody would ever see what "
                'this command does. Set DJANGO_SSE = {"STORE": "database"}.'
            )
        try:
            self.act(**options)
        except EventStreamError as error:
            raise CommandError(str(error)) from error

    def act(self, **options: Any) -> None:
        """Do it.

        Raises:
            EventStreamError: It cannot be done; told to the user.
        """
        raise NotImplementedError
