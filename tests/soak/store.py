"""What the soak test asks of the store itself, in a process of the project.

``python -m tests.soak.store begin FILE|heads|history GROUP...|cancel``
"""

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import django

from django_sse import cancel, publish
from django_sse.stores import get_store
from tests.soak.publisher import GROUPS, Notes

_PAGE = 1000


def begin(path: str) -> None:
    """Publish the first event of each group."""
    notes = Notes("begin", Path(path))
    for group in GROUPS:
        number, text = notes.tried(group)
        publish(group, text)
        notes.became("done", [number])


def heads() -> dict[str, int]:
    """Return each group's last number."""
    return {group: state.head for group, state in get_store().states(GROUPS).items()}


async def history(groups: Sequence[str]) -> dict[str, list[tuple[int, str]]]:
    """Return each group's events: pairs of a number and the text."""
    store = get_store()
    events: dict[str, list[tuple[int, str]]] = {}
    for group in groups:
        events[group] = []
        after = 0
        while page := await store.aread(group, after, _PAGE):
            after = page[-1].number
            events[group] += [
                (entry.number, _text(entry.wire)) for entry in page if not entry.closes
            ]
    await store.aclose()
    return events


def _text(wire: bytes) -> str:
    return wire.decode().removeprefix("data: ").rstrip("\n")


if __name__ == "__main__":
    django.setup()
    match sys.argv[1:]:
        case ["begin", path]:
            begin(path)
        case ["heads"]:
            print(json.dumps(heads()))
        case ["history", *groups]:
            print(json.dumps(asyncio.run(history(groups))))
        case ["cancel"]:
            for group in GROUPS:
                cancel(group)
