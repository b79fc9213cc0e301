import os
import time
from contextlib import suppress
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from django_sse import GroupCancelled
from django_sse.producing import produce


class Command(BaseCommand):
    help = "Does a job of many steps, and publishes its progress to a group."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("group")
        parser.add_argument("steps", type=int)
        parser.add_argument("delay", type=float, help="seconds for each step")
        parser.add_argument("--fail", action="store_true", help="fail halfway")

    def handle(
        self, *args: Any, group: str, steps: int, delay: float, fail: bool, **options: Any
    ) -> None:
        # Stopped before it has begun, or meanwhile; or by Ctrl-C, which its readers are told.
        with suppress(GroupCancelled, KeyboardInterrupt), produce(group) as producer:
            producer.publish({"process": os.getpid()}, event="begin")
            for done in range(steps):
                producer.publish({"done": done, "of": steps}, event="progress")
                if fail and done >= steps / 2:
                    raise CommandError("The job was told to fail.")
                time.sleep(delay)
            producer.publish({"done": steps, "of": steps}, event="progress")
