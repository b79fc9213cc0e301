"""``python -m tests.benchmarks``: measures what streams cost, and prints the table."""

import argparse
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tests.benchmarks.contenders import CONTENDERS, Contender
from tests.benchmarks.machine import build, cores, description, pinned_to, raise_file_limit
from tests.benchmarks.scale import FULL, QUICK, Scale
from tests.benchmarks.table import Results, table
from tests.benchmarks.trial import trial
from tests.benchmarks.workloads import WORKLOADS, Workload


def main() -> int:
    """Return 1 where a contender could not be measured."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="in two minutes; writes nothing")
    parser.add_argument("--only", type=_names, help=f"some of: {', '.join(WORKLOADS)}")
    keys = [contender.key for contender in CONTENDERS]
    parser.add_argument("--contenders", type=_names, help=f"some of: {', '.join(keys)}")
    parser.add_argument("--rounds", type=int, help="1 with --quick, else 5; the median counts")
    parser.add_argument("--streams", type=int, help="in place of 1,000 (and 5,000 idle ones)")
    chosen = parser.parse_args()
    scale = QUICK if chosen.quick else FULL
    if chosen.streams:
        scale = replace(scale, streams=chosen.streams, idle_streams=chosen.streams)
    for given, known in ((chosen.only, WORKLOADS), (chosen.contenders, keys)):
        if unknown := set(given or ()) - set(known):
            parser.error(f"no such name: {', '.join(sorted(unknown))}")
    contenders = [
        contender
        for contender in CONTENDERS
        if (contender.key in chosen.contenders if chosen.contenders else True)
    ]
    workloads = [WORKLOADS[name] for name in WORKLOADS if not chosen.only or name in chosen.only]
    raise_file_limit()
    # The core of the server is the server's alone.
    pinned_to(cores()[1])()
    print(f"{description()}; Python {sys.version.split()[0]}", flush=True)
    rounds = chosen.rounds or (1 if chosen.quick else 5)
    results = run(contenders, workloads, scale, rounds)
    print(table(results, contenders))
    return 0


def run(
    contenders: Sequence[Contender], workloads: Sequence[Workload], scale: Scale, rounds: int
) -> Results:
    """Give each contender its turn in each round."""
    results: Results = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="bench-") as place:
        load = build("load", Path(place))
        for number in range(1, rounds + 1):
            for contender in contenders:
                if lacking := contender.lacks():
                    print(f"{contender.title}: skipped, {lacking} is not installed")
                    continue
                print(f"round {number}: {contender.title}", flush=True)
                for some in _on_one_server(workloads):
                    directory = Path(tempfile.mkdtemp(dir=place))
                    with trial(contender, directory, load) as running:
                        for workload in some:
                            for column, cell in workload.measure(running, scale).items():
                                results[contender.key, column].append(cell)
    return results


def _on_one_server(workloads: Sequence[Workload]) -> list[list[Workload]]:
    """Return the workloads in the groups that share a server."""
    shared = [workload for workload in workloads if not workload.fresh]
    fresh = [[workload] for workload in workloads if workload.fresh]
    return [shared, *fresh] if shared else fresh


def _names(text: str) -> list[str]:
    return text.split(",")


if __name__ == "__main__":
    sys.exit(main())
