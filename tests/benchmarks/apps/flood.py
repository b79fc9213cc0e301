"""``python -m tests.benchmarks.apps.flood RATE GROUPS``: publishes to a database, and nothing else.

It publishes so many events of 100 bytes in a second, a hundred at a time to each of so many groups
in turn, until it is ended. ``BENCH_SETTINGS`` has Django's settings in JSON. ``migrate`` instead of
the arguments makes the tables.
"""

import json
import os
import sys
import time
from itertools import count

import django
from django.conf import settings
from django.core.management import call_command

_AT_ONCE = 100
_PAYLOAD = "x" * 100


def flood(rate: float, groups: int) -> None:
    """Publish for ever."""
    # It needs the settings.
    from django_sse import publish_many

    begun = time.monotonic()
    for turn in count(1):
        time.sleep(max(begun + turn * _AT_ONCE / rate - time.monotonic(), 0))
        publish_many([(f"group-{turn % groups}", _PAYLOAD)] * _AT_ONCE)


if __name__ == "__main__":
    settings.configure(**json.loads(os.environ["BENCH_SETTINGS"]))
    django.setup()
    if sys.argv[1:] == ["migrate"]:
        call_command("migrate", verbosity=0)
    else:
        flood(float(sys.argv[1]), int(sys.argv[2]))
