"""What one stream, event, publish and reconnect costs, as measured on a machine."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class RedisCosts:
    """What differs between one Redis server and a cluster. CPU time is in microseconds."""

    # A process that serves streams.
    process_idle: float
    """In a second, with few streams and no events."""
    event: float
    """For an event of a group that the process has streams of."""
    delivery: float
    """For an event and a stream."""

    # Redis, all servers together.
    store_idle: float
    """For a process in a second in which nothing happens."""
    store_event: float
    """To number and keep an event, with what the servers do by themselves meanwhile."""
    store_told: float
    """To tell a process of an event."""

    # Who publishes.
    publish: float
    """An event by ``publish``."""
    wait: float
    """Milliseconds that ``publish`` takes: the median."""


@dataclass(frozen=True)
class Constants:
    """CPU time is in microseconds, memory in KiB."""

    one: RedisCosts
    """With one Redis server."""
    cluster: RedisCosts

    # A process that serves streams.
    process_memory: float
    stream_memory: float
    stream_idle: float
    """For a stream in a second, with its heartbeats."""
    name: float
    """To look through the name of a group that has changed, when it asks the store."""
    state: float
    """To ask for the state of a group of its own."""
    connect: float
    reconnect: float
    """With a resume ticket."""

    # Redis.
    store_name: float
    """To tell a process the name of a group that has changed, when it asks."""
    store_state: float
    """To tell a process the state of a group."""

    # The load client.
    client: float
    """For an event and a stream."""

    def redis(self, nodes: int) -> RedisCosts:
        """Return the costs with so many Redis servers."""
        return self.one if nodes == 1 else self.cluster

    def save(self, path: Path) -> None:
        """Write them to a file."""
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1))

    @classmethod
    def load(cls, path: Path) -> "Constants":
        """Read what ``save`` wrote."""
        saved = json.loads(path.read_text())
        one, cluster = RedisCosts(**saved.pop("one")), RedisCosts(**saved.pop("cluster"))
        return cls(one, cluster, **saved)
