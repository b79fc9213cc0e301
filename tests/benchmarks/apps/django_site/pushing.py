"""``python -m tests.benchmarks.apps.django_site.pushing``: publishes, and asks the store.

Each line of its standard input is an order in JSON: the name of a function of this module, and its
arguments. Each is answered by a line of JSON with what the function returns.
"""

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from statistics import median
from typing import Any

import django

django.setup()

from django_sse import publish, publish_many  # noqa: E402
from django_sse.stores import get_store  # noqa: E402
from django_sse.stores.base import EventStore  # noqa: E402
from tests.benchmarks.apps.payload import payload  # noqa: E402

_MANY = 100

_cursor: Any = None


def push(prefix: str, groups: int, rate: float, seconds: float) -> dict[str, Any]:
    """Publish events one by one, to each of the groups in turn.

    Args:
        prefix: The names of the groups begin with it.
        rate: Events a second.

    Returns:
        What was published, what that took, and for how many milliseconds an event let the
        publisher wait.
    """
    waits: list[float] = []
    events = int(rate * seconds)
    spent, begun = time.process_time(), time.monotonic()
    for n in range(events):
        time.sleep(max(begun + n / rate - time.monotonic(), 0))
        before = time.monotonic()
        publish(f"{prefix}{n % groups}", payload(n // groups + 1))
        waits.append((time.monotonic() - before) * 1000)
    return {
        "events": events,
        "seconds": time.monotonic() - begun,
        "cpu_seconds": time.process_time() - spent,
        "wait": median(waits),
    }


def change(groups: int) -> None:
    """Publish an event to each of so many groups."""
    for first in range(0, groups, _MANY):
        publish_many((name, payload(1)) for name in _changed(range(first, first + _MANY)))


def note_cursor() -> None:
    """Keep the cursor of now, for ``ask_changed``."""
    global _cursor
    # Where nothing has ever changed, all may have.
    publish("first", payload(1))
    _, _cursor = asyncio.run(_asking(lambda store: store.achanged(None, {})))[0]


def ask_changed(groups: int) -> float:
    """Ask the store what has changed since, as a hub does that follows so many other groups."""
    own = dict.fromkeys(f"own-{number}" for number in range(groups))
    return asyncio.run(_asking(lambda store: store.achanged(_cursor, own)))[1]


def ask_states(groups: int) -> float:
    """Ask the store for the states of groups."""
    return asyncio.run(_asking(lambda store: store.astates(_changed(range(groups)))))[1]


def _changed(numbers: Iterable[int]) -> list[str]:
    return [f"changed-{number}" for number in numbers]


async def _asking(question: Callable[[EventStore], Awaitable[Any]]) -> tuple[Any, float]:
    """Return the answer to a question, and the CPU seconds of this process that it took."""
    store = get_store()
    # Connected, and with its script known.
    await store.astates(["none"])
    begun = time.process_time()
    answer = await question(store)
    spent = time.process_time() - begun
    await store.aclose()
    return answer, spent


if __name__ == "__main__":
    for line in sys.stdin:
        name, arguments = json.loads(line)
        print(json.dumps(globals()[name](**arguments)), flush=True)
