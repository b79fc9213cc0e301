import json
import sys
from argparse import ArgumentParser
from collections.abc import Iterable, Iterator
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from django_sse import EventStreamError, Published, publish
from django_sse.stores import get_store


class Command(BaseCommand):
    help = "Publishes an event to a group, or one for each line of standard input."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("group", help="a Channels group name")
        parser.add_argument(
            "data", nargs="?", default="", help="the event's text; - reads a line an event"
        )
        parser.add_argument("--event", help="the event's type, `message` in the browser without it")
        parser.add_argument("--json", action="store_true", help="refuse what is not JSON")
        parser.add_argument("--id-only", action="store_true", help="print the ids, a line each")

    def handle(self, *args: Any, **options: Any) -> None:
        if not get_store().crosses_processes:
            raise CommandError(
                "The event store keeps events in its own process, so nobody would ever see this "
                'one. Set DJANGO_SSE = {"STORE": "database"}.'
            )
        from_input = options["data"] == "-"
        lines = (line.rstrip("\r\n") for line in sys.stdin) if from_input else [options["data"]]
        published = self._publish(lines, options)
        if options["id_only"]:
            for event in published:
                self.stdout.write(str(event.id))
        elif from_input:
            self._count(published)
        else:
            for event in published:
                self.stdout.write(f"Published to {options['group']} as {event.id}.")

    def _publish(self, lines: Iterable[str], options: dict[str, Any]) -> Iterator[Published]:
        for number, line in enumerate(lines, start=1):
            try:
                data = json.loads(line) if options["json"] else line
                yield publish(options["group"], data, event=options["event"])
            except json.JSONDecodeError as error:
                raise CommandError(f"Event {number} is not JSON: {error}") from error
            except EventStreamError as error:
                raise CommandError(f"Event {number} was not published: {error}") from error

    def _count(self, published: Iterable[Published]) -> None:
        count = 0
        for count, _ in enumerate(published, start=1):
            if self.stdout.isatty():
                self.stdout.write(f"\r{count} published", ending="")
                self.stdout.flush()
        self.stdout.write(
            f"\r{count} published." if self.stdout.isatty() else f"{count} published."
        )
