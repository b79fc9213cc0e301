import os
import time
from contextlib import suppress
from typing import Any

import psutil
from django.core.management.base import BaseCommand
from django.db import DatabaseError

from django_sse import GroupCancelled, publish

GROUP = "metrics"


def sample(seconds: float = 1.0) -> dict[str, float]:
    """Measure this machine for some seconds. Return its CPU load in percent, its memory in bytes,
    and its network traffic in bytes per second."""
    begun, before = time.monotonic(), psutil.net_io_counters()
    cpu = psutil.cpu_percent(interval=seconds)
    elapsed, after = time.monotonic() - begun, psutil.net_io_counters()
    memory = psutil.virtual_memory()
    return {
        "time": time.time(),
        "cpu": cpu,
        "memory_used": memory.total - memory.available,
        "memory_total": memory.total,
        "received": (after.bytes_recv - before.bytes_recv) / elapsed,
        "sent": (after.bytes_sent - before.bytes_sent) / elapsed,
    }


class Command(BaseCommand):
    help = (
        f"Publishes the load of this machine to the group {GROUP!r} once a second, until Ctrl-C, "
        "or until the process that started the command is gone."
    )

    trouble: str | None = None

    def handle(self, *args: Any, **options: Any) -> None:
        parent = os.getppid()
        with suppress(KeyboardInterrupt):
            while os.getppid() == parent:
                self.publish(sample())

    def publish(self, load: dict[str, float]) -> None:
        """Publish a sample. If that fails, report why once, and not every second."""
        trouble = None
        try:
            publish(GROUP, load, event="sample")
        except (GroupCancelled, DatabaseError) as error:
            trouble = str(error)
        if trouble != self.trouble:
            self.trouble = trouble
            if trouble:
                self.stderr.write(f"Samples are not published. {trouble}")
            else:
                self.stdout.write("Samples are published again.")
