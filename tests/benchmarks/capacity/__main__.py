"""``python -m tests.benchmarks.capacity``: prints how many processes, machines and Redis servers a
site needs.

It computes this from what streams and events cost. ``--measure`` measures these costs on this
machine, ``--check`` compares the model with runs here, and ``--report`` writes both into the page
of the documentation.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from datetime import date
from pathlib import Path

from tests.benchmarks.capacity import page
from tests.benchmarks.capacity.check import Check, checks
from tests.benchmarks.capacity.constants import Constants
from tests.benchmarks.capacity.measure import constants
from tests.benchmarks.capacity.model import Machine, Site
from tests.benchmarks.machine import HERE, build, cores, description, pinned_to, raise_file_limit
from tests.benchmarks.table import number

CONSTANTS = HERE / "build" / "capacity.json"
CHECKS = HERE / "build" / "capacity-checks.json"


def main() -> int:
    """Do what the arguments say."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.capacity",
        description="Print how many processes, machines and Redis servers a site needs.",
    )
    parser.add_argument("--measure", action="store_true", help="what streams and events cost here")
    parser.add_argument("--check", action="store_true", help="compare the model with runs here")
    parser.add_argument("--report", action="store_true", help="write the page of the last runs")
    parser.add_argument("--streams", type=int)
    parser.add_argument("--groups", type=int)
    parser.add_argument("--events", type=float, help="a second, to all groups together")
    parser.add_argument("--cores", type=int, default=Machine.cores, help="of a machine")
    parser.add_argument("--memory", type=float, default=Machine.memory_gib, help="of it, in GiB")
    parser.add_argument("--busy", type=float, default=Machine.busy, help="of a core, at most")
    options = parser.parse_args()
    asked = [options.streams, options.groups, options.events]
    if any(asked) and not all(asked):
        parser.error("--streams, --groups and --events belong together.")
    raise_file_limit()
    if options.measure or options.check:
        # The core of the server is the server's alone.
        pinned_to(cores()[1])()
        print(f"{description()}; Python {platform.python_version()}; load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as place:
        directory = Path(place)
        if options.measure:
            constants(directory, build("load", directory)).save(CONSTANTS)
        if not CONSTANTS.exists():
            parser.error("Nothing has been measured here yet: use --measure.")
        costs = Constants.load(CONSTANTS)
        if options.check:
            done = list(_printed(checks(costs, directory, build("load", directory))))
            about = f"{description()}; Python {platform.python_version()}; {date.today()}"
            saved = {"about": about, "checks": [asdict(each) for each in done]}
            CHECKS.write_text(json.dumps(saved, indent=1))
    print(page.costs_table(costs))
    if all(asked):
        site = Site(options.streams, options.groups, options.events)
        machine = Machine(options.cores, options.memory, options.busy)
        print(page.plans_table(costs, [site], machine))
    if options.report:
        if not CHECKS.exists():
            parser.error("The model has not been checked here yet: use --check.")
        saved = json.loads(CHECKS.read_text())
        page.write(costs, [Check(**fields) for fields in saved["checks"]], saved["about"])
    return 0


def _printed(done: Iterable[Check]) -> Iterator[Check]:
    for check in done:
        print(
            f"{check.processes} processes, {check.nodes} Redis, {check.readers} readers a group: "
            f"{check.what}: predicted {number(check.predicted)}, "
            f"measured {number(check.measured)}, {check.error:+.0%}",
            flush=True,
        )
        yield check


if __name__ == "__main__":
    sys.exit(main())
