"""What an idle stream costs: memory, and CPU for heartbeats."""

import time

from tests.benchmarks.scale import Scale
from tests.benchmarks.trial import Cell, Trial

_SETTLE_SECONDS = 2
# As long as the interval of the heartbeats, or a multiple of it.
_HEARTBEAT_SECONDS = 15


def idle(trial: Trial, scale: Scale) -> dict[str, Cell]:
    """Kilobytes for each idle stream, and per cent of a core for all of them."""
    # What the first streams load is not the streams' own.
    trial.open("/all/", 20)
    trial.close()
    time.sleep(_SETTLE_SECONDS)
    before = trial.server.memory_kilobytes()
    trial.open("/all/", scale.idle_streams)
    time.sleep(_SETTLE_SECONDS)
    memory = (trial.server.memory_kilobytes() - before) / scale.idle_streams
    begun, cpu = time.monotonic(), trial.server.cpu_seconds()
    time.sleep(_HEARTBEAT_SECONDS)
    share = (trial.server.cpu_seconds() - cpu) / (time.monotonic() - begun)
    return {"KB per idle stream": Cell(memory), "idle CPU %": Cell(share * 100)}
