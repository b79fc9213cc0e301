import json
import sys
from argparse import ArgumentParser
from collections.abc import Iterable, Iterator
from typing import Any

from django.core.management.base import CommandError

from django_sse import EventStreamError, Published, publish
from django_sse.management.group_command import GroupCommand
from django_sse.stores import get_store


class Command(GroupCommand):
    help = "Publishes an event to a group, or an event for each line of standard input."

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument(
            "data",
            nargs="?",
            default="",
            help="the event's text; - reads an event from each line of standard input",
        )
        parser.add_argument("--event", help="the event's type; `message` in the browser without it")
        parser.add_argument(
            "--key", help="what the event is about: only the newest of a key counts"
        )
        parser.add_argument("--json", action="store_true", help="refuse text that is not JSON")
        parser.add_argument("--id-only", action="store_true", help="print only the ids, one a line")

    def act(self, **options: Any) -> None:
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
        number = 0
        try:
            for line in lines:
                number += 1
                data = _json(line) if options["json"] else line
                yield publish(options["group"], data, event=options["event"], key=options["key"])
        except EventStreamError as error:
            raise CommandError(f"Event {number} was not published: {error}") from error
        except get_store().failures as error:
            error.add_note(f"Event {number} may not have been published.")
            raise
        except UnicodeDecodeError as error:
            raise CommandError(f"The input after event {number} is not text: {error}") from error
        except ValueError as error:
            raise CommandError(f"Event {number} is not JSON: {error}") from error

    def _count(self, published: Iterable[Published]) -> None:
        count = 0
        for count, _ in enumerate(published, start=1):
            if self.stdout.isatty():
                self.stdout.write(f"\r{count} published", ending="")
                self.stdout.flush()
        self.stdout.write(
            f"\r{count} published." if self.stdout.isatty() else f"{count} published."
        )


def _json(text: str) -> str:
    # Dumped again, since Python also reads NaN and the like, which are not JSON.
    return json.dumps(json.loads(text), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
