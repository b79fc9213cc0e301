"""What publishing costs in one process without streams, beside what it is compared with."""

import json
import os
import subprocess
import sys

from tests.benchmarks.machine import cores, pinned_to
from tests.benchmarks.scale import Scale
from tests.benchmarks.trial import Cell, Trial
from tests.live.servers import ROOT

_PROGRAM = "tests.benchmarks.apps.django_site.publishing"


def publish(trial: Trial, scale: Scale) -> dict[str, Cell]:
    """CPU microseconds of the publishing process for each event."""
    run = subprocess.run(
        [sys.executable, "-m", _PROGRAM, str(scale.publishes), str(scale.many_groups)],
        cwd=ROOT,
        env={**os.environ, **trial.server.environment},
        stdout=subprocess.PIPE,
        preexec_fn=pinned_to(cores()[0]),
        check=True,
    )
    return {name: Cell(cost) for name, cost in json.loads(run.stdout).items()}
