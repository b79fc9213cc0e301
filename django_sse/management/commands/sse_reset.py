from argparse import ArgumentParser
from typing import Any

from django_sse.management.group_command import GroupCommand
from django_sse.stores import get_store


class Command(GroupCommand):
    help = (
        "Gives all groups new numbers, so that clients that have seen events which the database "
        "does not know any more get a reset. To be run after a backup was restored."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        pass

    def act(self, **options: Any) -> None:
        groups = get_store().forget()
        self.stdout.write(
            f"{groups} groups get new numbers when they are next used."
            if groups is not None
            else "There is nothing to do: this store knows by itself what it has lost."
        )
