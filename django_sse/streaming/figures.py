"""The figures of a process, as monitoring systems name them.

They have no labels but reasons, of which there are a few. A label with the names of groups or users
would make a time series for each of them, which monitoring systems are not made for:
https://prometheus.io/docs/practices/naming/#labels
"""

from collections.abc import Callable, Mapping
from typing import Final, Literal, NamedTuple

from django_sse.streaming.reports import ProcessReport


class Figure(NamedTuple):
    """One figure.

    ``name`` follows ``django_sse``, in words that are joined by full stops. ``kind`` says whether
    it only grows, is an amount of which the sum over processes makes sense, or neither. ``unit`` is
    a UCUM code, as OpenTelemetry has it. ``read`` returns the figure, or figures by reason.
    """

    name: str
    kind: Literal["counter", "amount", "level"]
    unit: str
    description: str
    read: Callable[[ProcessReport], float | Mapping[str, int]]


FIGURES: Final = (
    Figure(
        "streams", "amount", "{stream}", "Streams that are open.", lambda process: process.streams
    ),
    Figure(
        "streams.opened",
        "counter",
        "{stream}",
        "Streams that have begun.",
        lambda process: process.counters.opened,
    ),
    Figure(
        "streams.closed",
        "counter",
        "{stream}",
        "Streams that have ended.",
        lambda process: process.counters.closed,
    ),
    Figure(
        "requests.refused",
        "counter",
        "{request}",
        "Requests that were told to come back.",
        lambda process: process.counters.refused,
    ),
    Figure(
        "events.published",
        "counter",
        "{event}",
        "Events that the process has published.",
        lambda process: process.counters.published,
    ),
    Figure(
        "events.delivered",
        "counter",
        "{event}",
        "Events, once for each stream that they were handed to.",
        lambda process: process.counters.delivered,
    ),
    Figure(
        "healed",
        "counter",
        "{time}",
        "How often the store had events that no doorbell had told of.",
        lambda process: process.counters.healed,
    ),
    Figure(
        "resets",
        "counter",
        "{time}",
        "How often a client was told that it has lost events.",
        lambda process: process.counters.resets,
    ),
    Figure(
        "slow_clients",
        "amount",
        "{client}",
        "Clients that have not taken a send for more than a second.",
        lambda process: process.slow_clients,
    ),
    Figure(
        "waiting",
        "amount",
        "By",
        "What is being sent or waits for clients.",
        lambda process: process.waiting_bytes,
    ),
    Figure(
        "event_loop_lag",
        "level",
        "s",
        "How late the event loop was at most in the last minute.",
        lambda process: process.loop_lag,
    ),
    Figure(
        "store_lag",
        "level",
        "s",
        "How long ago the process last heard from the event store.",
        lambda process: process.store_lag,
    ),
)
