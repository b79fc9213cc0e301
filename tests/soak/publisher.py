"""A process that publishes until SIGTERM, and notes what became of each event.

``python -m tests.soak.publisher HOW FILE SEED``, and for the HOW ``greenlets``
``python -m gevent.monkey --module tests.soak.publisher greenlets FILE SEED``
"""

import asyncio
import logging
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Thread

import django
from asgiref.sync import sync_to_async
from django.db import close_old_connections, transaction

from django_sse import apublish_many, publish
from django_sse.conf import conf

GROUPS = ("busy", "shared", "quiet")

# How often each publisher chooses which of the groups.
_WEIGHTS = {"plain": (6, 3, 0), "bursts": (9, 1, 0), "transactions": (2, 6, 1)}
# What goes on at once in greenlets. One alone opens transactions: in those of SQLite no other may
# write, and where it waits it does not let the first one go on.
_IN_GREENLETS = ("plain", "plain", "transactions")
# Large enough for a client that does not read to be noticed.
_LONG = "x" * 4000


class Notes:
    """The truth about one publisher's events, a line at a time, so that SIGKILL loses none.

    Before publishing ``try``, then ``done``; ``gone`` when rolled back, ``unknown`` when publishing
    has failed in a way that leaves open whether there is an event.
    """

    def __init__(self, publisher: str, path: Path) -> None:
        self._publisher = publisher
        tried = path.read_text().count("try ") if path.exists() else 0
        self._next = tried + 1
        self._file = path.open("a", buffering=1)

    def tried(self, group: str, padding: str = "") -> tuple[int, str]:
        """Note that an event is to be published; return its number and its text."""
        number = self._next
        self._next += 1
        self._file.write(f"try {number} {group}\n")
        sent = round(time.time() * 1000)
        return number, f"{group} {self._publisher} {number} {sent} {padding}"

    def became(self, outcome: str, numbers: Sequence[int]) -> None:
        """Note what became of events."""
        self._file.writelines(f"{outcome} {number}\n" for number in numbers)


class RolledBackError(Exception):
    """What a project's code raises in the middle of a transaction."""


class Publisher:
    """Publishes in one of three ways, with pauses, until it is told to stop."""

    def __init__(self, how: str, path: Path, seed: str) -> None:
        self._how = how
        self._notes = Notes(path.stem, path)
        self._random = random.Random(f"{seed} {path.stem} {path.stat().st_size}")
        self._stopped = False
        # A store without transactions appends in the commit's hook, whose failure Django only logs.
        store = conf().STORE
        name = store["BACKEND"] if isinstance(store, dict) else store
        self._appends_in_hook = name != "database"
        self._hook_failed = False
        logging.getLogger("django.db.backends.base").addFilter(self._note_failed_hook)

    def run(self) -> None:
        if self._how == "bursts":
            asyncio.run(self._bursts())
        else:
            self._publish_each(self._plain if self._how == "plain" else self._transaction)

    def _publish_each(self, publish_some: Callable[[], None]) -> None:
        while not self._stopped:
            try:
                publish_some()
            except Exception:
                logging.exception("Publishing has failed.")
                # As Django does after a request.
                close_old_connections()
            time.sleep(self._random.uniform(0.05, 0.25))

    def _plain(self) -> None:
        number, text = self._notes.tried(self._group())
        try:
            publish(text.split()[0], text)
        except Exception:
            self._notes.became("unknown", [number])
            raise
        self._notes.became("done", [number])

    def _transaction(self) -> None:
        numbers: list[int] = []
        self._hook_failed = False
        try:
            with transaction.atomic():
                for _ in range(self._random.randint(1, 6)):
                    number, text = self._notes.tried(self._group())
                    numbers.append(number)
                    publish(text.split()[0], text)
                if self._random.random() < 1 / 3:
                    raise RolledBackError
        except RolledBackError:
            self._notes.became("gone", numbers)
        except Exception:
            self._notes.became("unknown", numbers)
            raise
        else:
            in_doubt = self._appends_in_hook and self._hook_failed
            self._notes.became("unknown" if in_doubt else "done", numbers)

    async def _bursts(self) -> None:
        while not self._stopped:
            size = self._random.choice([1, 3, 10, 30])
            tried = [self._notes.tried(self._group(), _LONG) for _ in range(size)]
            numbers = [number for number, _ in tried]
            try:
                await apublish_many([(text.split()[0], text) for _, text in tried])
                self._notes.became("done", numbers)
            except Exception:
                logging.exception("Publishing has failed.")
                self._notes.became("unknown", numbers)
                await sync_to_async(close_old_connections)()
            await asyncio.sleep(self._random.uniform(0.1, 2))

    def _group(self) -> str:
        return self._random.choices(GROUPS, _WEIGHTS[self._how])[0]

    def _note_failed_hook(self, record: logging.LogRecord) -> bool:
        self._hook_failed = True
        return True

    def stop(self) -> None:
        self._stopped = True


def publishers(how: str, path: Path, seed: str) -> list[Publisher]:
    """Return what publishes in one process, each with a file of its own."""
    if how != "greenlets":
        return [Publisher(how, path, seed)]
    return [
        Publisher(how, path.with_stem(f"{path.stem}-{number}"), seed)
        for number, how in enumerate(_IN_GREENLETS)
    ]


def run(publishers: Sequence[Publisher]) -> None:
    """Publish until SIGTERM."""

    def stop(*args: object) -> None:
        for publisher in publishers:
            publisher.stop()

    signal.signal(signal.SIGTERM, stop)
    first, *others = publishers
    for publisher in others:
        Thread(target=publisher.run).start()
    first.run()


if __name__ == "__main__":
    django.setup()
    how, path, seed = sys.argv[1:]
    run(publishers(how, Path(path), seed))
