"""What one stream, event, publish and reconnect costs, as measured on a machine."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Constants:
    """CPU time is in microseconds, memory in KiB."""

    # A process that serves streams.
    full: float
    """The share of its core that it uses at the highest rate at which it keeps up."""
    process_memory: float
    stream_memory: float
    process_idle: float
    """For a process in a second, with few streams and no events."""
    process_idle_cluster: float
    stream_idle: float
    """For a stream in a second, with its heartbeats."""
    event: float
    """For an event of a group that the process has streams of."""
    delivery: float
    """For an event and a stream."""
    name: float
    """To look through the name of a group that has changed, when it asks the store."""
    state: float
    """To ask for the state of a group of its own."""
    connect: float
    reconnect: float
    """With a resume ticket."""

    # Redis.
    store_event: float
    """To number and keep an event, for the server that has its group."""
    store_told: float
    """To tell a process of an event."""
    store_name: float
    """To tell a process the name of a group that has changed, when it asks."""
    store_state: float
    """To tell a process the state of a group."""
    store_idle: float
    """For a process in a second in which nothing happens."""
    store_idle_cluster: float
    """The same, all servers of a cluster together."""

    # Who publishes.
    publish: float
    """An event by ``publish``."""
    publish_many: float
    """Each event of a ``publish_many`` for one server."""
    publish_many_cluster: float
    """Each event of a ``publish_many`` for a cluster."""
    wait: float
    """Milliseconds that ``publish`` takes: the median."""
    wait_cluster: float

    # The load client.
    client: float
    """For an event and a stream."""

    def save(self, path: Path) -> None:
        """Write them to a file."""
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1))

    @classmethod
    def load(cls, path: Path) -> "Constants":
        """Read what ``save`` wrote."""
        return cls(**json.loads(path.read_text()))
