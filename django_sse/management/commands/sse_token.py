from argparse import ArgumentParser
from datetime import UTC, datetime
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import IntegrityError

from django_sse import InvalidGroup
from django_sse.contrib.http_publish.tokens import create_token, revoke_token, tokens_of_tenant
from django_sse.groups.namespaces import plain_name
from django_sse.management.group_command import store_failures


class Command(BaseCommand):
    help = "Makes, lists and revokes the tokens of services that publish by HTTP."

    def add_arguments(self, parser: ArgumentParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True)
        create = actions.add_parser("create", help="make a token, which is shown once")
        create.add_argument("name", help="what the token is called, written as a group is")
        create.add_argument(
            "--group",
            action="append",
            required=True,
            dest="groups",
            metavar="PATTERN",
            help="the groups that it covers, such as 'orders-*'; may be given again",
        )
        create.add_argument(
            "--expires", type=float, metavar="DAYS", help="for how long it counts; for ever without"
        )
        actions.add_parser("list", help="list the tokens")
        revoke = actions.add_parser("revoke", help="delete a token")
        revoke.add_argument("name")

    def handle(self, *args: Any, **options: Any) -> None:
        with store_failures():
            getattr(self, f"_{options['action']}")(options)

    def _create(self, options: dict[str, Any]) -> None:
        name, days = options["name"], options["expires"]
        if days is not None and not 0 < days < 36_500:
            raise CommandError("--expires is a number of days above 0.")
        try:
            token = create_token(name, options["groups"], days)
        except InvalidGroup as error:
            raise CommandError(str(error)) from error
        except IntegrityError as error:
            raise CommandError(f"There is a token {name}: revoke it first.") from error
        self.stderr.write("This is shown once. Only its hash is kept.")
        self.stdout.write(token)

    def _list(self, options: dict[str, Any]) -> None:
        for each in tokens_of_tenant():
            self.stdout.write(
                f"{plain_name(each.name)}: {each.groups}, expires {_date(each.expires)}, "
                f"last used {_date(each.used)}"
            )

    def _revoke(self, options: dict[str, Any]) -> None:
        try:
            is_revoked = revoke_token(options["name"])
        except InvalidGroup:
            is_revoked = False
        if not is_revoked:
            raise CommandError(f"There is no token {options['name']}.")
        self.stdout.write(f"Revoked {options['name']}.")


def _date(microseconds: int | None) -> str:
    if microseconds is None:
        return "never"
    return datetime.fromtimestamp(microseconds / 1_000_000, UTC).isoformat(" ", "minutes")
