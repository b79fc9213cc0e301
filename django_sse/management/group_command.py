"""The base classes of the commands that change groups."""

from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.contrib.auth import get_user_model
from django.core.exceptions import ImproperlyConfigured, ValidationError
from django.core.management.base import BaseCommand, CommandError
from django.db import Error as DatabaseFailure
from django.db import router

from django_sse.exceptions import EventStreamError
from django_sse.groups.entries import GroupState
from django_sse.stores import get_store


class GroupCommand(BaseCommand):
    """A command that changes a group, which other processes must see."""

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("group", help="a Channels group name")

    def handle(self, *args: Any, **options: Any) -> None:
        if not get_store().crosses_processes:
            raise CommandError(
                "The event store keeps events in this process, so no other process would ever see "
                'what this command does. Set DJANGO_SSE = {"STORE": "database"}.'
            )
        try:
            with store_failures():
                self.act(**options)
        except EventStreamError as error:
            raise CommandError(str(error)) from error

    def act(self, **options: Any) -> None:
        """Do what the command is for.

        Raises:
            EventStreamError: It cannot be done. The user is shown the error.
        """
        raise NotImplementedError


class OwnerCommand(GroupCommand):
    """A command for a group, for a user's streams, or for a user's streams of a group."""

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("group", nargs="?", help="a Channels group name")
        parser.add_argument("--user", help="the primary key of a user")
        parser.add_argument(
            "--force",
            action="store_true",
            help="accept a key that no user has, such as that of a token's owner",
        )

    def act(self, **options: Any) -> None:
        group, user = options["group"], options["user"]
        if group is None and user is None:
            raise CommandError("Name a group, or give --user.")
        if user is not None and not options["force"] and not _is_user(user):
            raise CommandError(
                f"There is no user with the primary key {user!r}. Give --force if the owner is not "
                "one of the project's users, such as that of a token."
            )
        self.act_on(group, {} if user is None else {"user": user}, options)
        streams = "" if user is None else f"the streams of user {user}"
        self.stdout.write(f"{self.done} {' in '.join(filter(None, (streams, group)))}.")

    done: str
    """What the command reports that it has done, such as "Cancelled"."""

    def act_on(self, group: str | None, owner: dict[str, Any], options: dict[str, Any]) -> None:
        """Do what the command is for.

        Args:
            group: A Channels group name, or None for all of a user's streams.
            owner: The keyword argument ``user``, if the command is about a user; else empty.
            options: All of the command's options.
        """
        raise NotImplementedError


@contextmanager
def store_failures() -> Iterator[None]:
    """Say in one line that the event store or the database does not work. With Django's option
    ``--traceback``, the user sees where it failed.

    Raises:
        CommandError: It does not.
    """
    try:
        yield
    except BrokenPipeError:
        # Of who has read the output.
        raise
    except get_store().failures as error:
        what = "database" if isinstance(error, DatabaseFailure) else "event store"
        said = " ".join([str(error), *getattr(error, "__notes__", ())]).split()
        raise CommandError(
            f"The {what} does not work: {' '.join([f'{type(error).__name__}:', *said])}"
        ) from error


def said_of(state: GroupState, group: str) -> str:
    """Return how a group stands, in the words of the commands."""
    if state.head == state.origin:
        return "nothing was ever published to it, or it was forgotten. Is its name right?"
    kept = f"{state.head - state.oldest + 1} events are kept."
    if state.cancelled:
        return f"it is cancelled, so clients are told to stop (204): sse_reopen {group}. {kept}"
    return f"it is open. {kept}"


def _is_user(key: str) -> bool:
    try:
        model: Any = get_user_model()
        key = model._meta.pk.to_python(key)
    except (ImproperlyConfigured, ValidationError):
        return False
    # The default manager may hide some users.
    users = model._base_manager.using(router.db_for_write(model))
    return bool(users.filter(pk=key).exists())
