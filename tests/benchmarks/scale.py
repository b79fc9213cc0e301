"""How much of everything: for the whole benchmark, and for daily use."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Scale:
    """How many streams and events the workloads have."""

    streams: int = 1000
    burst_events: int = 200
    paced_events: int = 30
    each_events: int = 10
    idle_streams: int = 5000
    connects: int = 500
    storm_streams: int = 5000
    growth: tuple[int, ...] = (1000, 5000, 10_000, 20_000)
    publishes: int = 1000
    many_groups: int = 100_000


FULL = Scale()
QUICK = Scale(
    connects=300,
    storm_streams=1000,
    growth=(1000, 2000),
    publishes=300,
    many_groups=2000,
)


def small(streams: int, scale: Scale) -> Scale:
    """Return a scale of so many streams, to try the benchmark itself."""
    return replace(
        scale,
        streams=streams,
        idle_streams=streams,
        storm_streams=streams,
        growth=(streams // 2, streams),
        publishes=streams,
        many_groups=streams,
    )
