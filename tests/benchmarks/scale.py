"""How much of everything: for the whole benchmark, and for daily use."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """How many streams and events the workloads have."""

    streams: int = 1000
    burst_events: int = 200
    paced_events: int = 50
    each_events: int = 10
    idle_streams: int = 5000


FULL = Scale()
QUICK = Scale(paced_events=30, idle_streams=2000)
