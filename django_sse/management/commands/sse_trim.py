from argparse import ArgumentParser
from typing import Any

from django_sse.management.group_command import GroupCommand
from django_sse.stores import get_store


class Command(GroupCommand):
    help = (
        "Drops events older than HISTORY_AGE, and groups idle for their time to live. Publishing "
        "and streaming do so, too, in small steps."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        pass

    def act(self, **options: Any) -> None:
        dropped = get_store().trim()
        self.stdout.write(
            f"Dropped {dropped.events} events and {dropped.groups} groups."
            if dropped is not None
            else "There is nothing to drop: in this store, events and groups expire by themselves."
        )
