"""``python -m tests.benchmarks.apps.django_site.pushing``: publishes at a rate.

Each line of its standard input is an order in JSON, the arguments of ``push``. Each is answered by
a line of JSON with what ``push`` returns.
"""

import json
import sys
import time
from itertools import count, islice
from statistics import median
from typing import Any

import django

django.setup()

from django_sse import publish, publish_many  # noqa: E402
from tests.benchmarks.apps.payload import payload  # noqa: E402

# How often what is due is published: one event by itself, and the others together.
_TURN_SECONDS = 0.01


def push(prefix: str, groups: int, rate: float, seconds: float, alone: bool) -> dict[str, Any]:
    """Publish events, to each of the groups in turn.

    Args:
        prefix: The names of the groups begin with it.
        rate: Events a second.
        alone: Whether all events are published one by one, and not only one of each turn.

    Returns:
        What was published, what that took, and for how many milliseconds an event that was
        published by itself let the publisher wait.
    """
    waits: list[float] = []
    published = 0
    spent, begun = time.process_time(), time.monotonic()
    for turn in count(1):
        time.sleep(max(begun + turn * _TURN_SECONDS - time.monotonic(), 0))
        passed = min(time.monotonic() - begun, seconds)
        due = range(published, int(rate * passed))
        events = ((f"{prefix}{n % groups}", payload(n // groups + 1)) for n in due)
        for event in events if alone else islice(events, 1):
            before = time.monotonic()
            publish(*event)
            waits.append((time.monotonic() - before) * 1000)
        if not alone and len(due) > 1:
            publish_many(events)
        published += len(due)
        if passed == seconds:
            break
    return {
        "events": published,
        "seconds": time.monotonic() - begun,
        "cpu_seconds": time.process_time() - spent,
        "wait": median(waits),
    }


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(push(**json.loads(line))), flush=True)
