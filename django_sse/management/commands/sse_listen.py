import asyncio
import os
import sys
from argparse import ArgumentParser, ArgumentTypeError
from typing import Any
from urllib.parse import urlsplit

from django.core.management.base import CommandError

from django_sse.groups.names import validate_group
from django_sse.groups.namespaces import current_namespace, full_name
from django_sse.management.group_command import GroupCommand
from django_sse.management.group_listener import listen_to_group
from django_sse.management.printer import Printer
from django_sse.management.stream_problems import NotStreamedError
from django_sse.management.url_listener import listen_to_url


class Command(GroupCommand):
    help = (
        "Prints the events of a group, or of the stream of a URL, until Ctrl-C or until it is "
        "over, and says what is wrong where none come."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "source", metavar="group|url", help="a Channels group name, or a URL of a stream"
        )
        parser.add_argument("--last-event-id", default="", help="begin after the event of this id")
        parser.add_argument(
            "--history",
            type=_count,
            metavar="N",
            help="begin with the last N events of the group (default: 0)",
        )
        parser.add_argument(
            "--header",
            action="append",
            type=_header,
            default=[],
            metavar="'NAME: VALUE'",
            help="a header to send to the URL; may be given several times",
        )
        parser.add_argument("--json", action="store_true", help="print one JSON object a line")
        parser.add_argument("--verbose", action="store_true", help="print comments, too")

    def handle(self, *args: Any, **options: Any) -> None:
        printer = Printer(
            self.stdout,
            self.stderr,
            as_json=options["json"],
            with_comments=options["verbose"],
            last_event_id=options["last_event_id"],
        )
        try:
            if options["source"].lower().startswith(("http://", "https://")):
                self._listen_to_url(printer, options)
            else:
                super().handle(*args, **options, printer=printer)
        except NotStreamedError as error:
            raise CommandError(str(error)) from error
        except BrokenPipeError:
            # Who has read the output, such as `head`, has had enough. Nothing is left to flush.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except KeyboardInterrupt:
            pass

    def act(self, **options: Any) -> None:
        if options["header"]:
            raise CommandError("--header is for URLs. A group is read from the event store.")
        group = validate_group(options["source"])
        # Asked here, since the tenant may be that of this thread.
        name = full_name(current_namespace(), group)
        asyncio.run(listen_to_group(group, name, options["printer"], options["history"] or 0))

    def _listen_to_url(self, printer: Printer, options: dict[str, Any]) -> None:
        if options["history"] is not None:
            raise CommandError("--history is for groups. The view of a URL has its own `history`.")
        if not _is_url(options["source"]):
            raise CommandError(f"{options['source']!r} is not a URL with a host.")
        listen_to_url(options["source"], printer, dict(options["header"]))


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        # Reading the port checks it.
        return bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _count(text: str) -> int:
    count = int(text)
    if count < 0:
        raise ArgumentTypeError("it must be 0 or more")
    return count


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not (colon and name.strip()) or "\n" in text or "\r" in text:
        raise ArgumentTypeError("it must be like 'Cookie: sessionid=...'")
    return name.strip(), value.strip()
