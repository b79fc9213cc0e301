"""``python -m tests.benchmarks``: measures what streams cost, and prints the table.

A run of everything also writes the pages of the documentation.
"""

import argparse
import subprocess
import sys
from functools import partial

from tests.benchmarks import report
from tests.benchmarks.contenders import CONTENDERS, of_another_python
from tests.benchmarks.machine import HERE, cores, description, pinned_to, raise_file_limit
from tests.benchmarks.results import Results
from tests.benchmarks.run import run
from tests.benchmarks.scale import FULL, QUICK, small
from tests.benchmarks.table import table
from tests.benchmarks.workloads import WORKLOADS

RESULTS = HERE / "build" / "results.json"
_QUICK_WORKLOADS = ("burst", "yielding", "paced", "groups-of-one", "groups-of-one-async", "idle")
_QUICK_CONTENDERS = ("bare", "ours")


def main() -> int:
    """Return 1 where something could not be measured."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--quick", action="store_true", help="in two minutes; writes nothing")
    parser.add_argument("--only", type=_names, help=f"some of: {', '.join(WORKLOADS)}")
    keys = [contender.key for contender in CONTENDERS]
    parser.add_argument("--contenders", type=_names, help=f"some of: {', '.join(keys)}")
    parser.add_argument("--rounds", type=int, help="1 with --quick, else 5; the median counts")
    parser.add_argument("--streams", type=int, help="few, to try the benchmark itself")
    parser.add_argument("--other-python", help="also measure the main columns on this interpreter")
    parser.add_argument(
        "--report", action="store_true", help="write the pages of the last run that was not quick"
    )
    chosen = parser.parse_args()
    if chosen.report:
        report.write(Results.load(RESULTS))
        return 0
    for given, known in ((chosen.only, WORKLOADS), (chosen.contenders, keys)):
        if unknown := set(given or ()) - set(known):
            parser.error(f"no such name: {', '.join(sorted(unknown))}")
    scale = QUICK if chosen.quick else FULL
    if chosen.streams:
        scale = small(chosen.streams, scale)
    workloads = chosen.only or (_QUICK_WORKLOADS if chosen.quick else list(WORKLOADS))
    wanted = chosen.contenders or (_QUICK_CONTENDERS if chosen.quick else keys)
    contenders = [contender for contender in CONTENDERS if contender.key in wanted]
    if chosen.other_python:
        contenders += of_another_python(chosen.other_python, _version(chosen.other_python))
    is_whole = not (chosen.quick or chosen.only or chosen.contenders or chosen.streams)
    raise_file_limit()
    # The core of the server is the server's alone.
    pinned_to(cores()[1])()
    print(f"{description()}; Python {sys.version.split()[0]}", flush=True)
    rounds = chosen.rounds or (1 if chosen.quick else 5)
    # Also of a part, for `--report`; but not of a quick run.
    save = (lambda results: None) if chosen.quick else partial(Results.save, path=RESULTS)
    results = run(contenders, workloads, scale, rounds, save)
    print("\n".join(results.complaints))
    print(table(results, list(results.titles), results.columns()))
    if is_whole:
        report.write(results)
    return 1 if results.complaints else 0


def _names(text: str) -> list[str]:
    return text.split(",")


def _version(python: str) -> str:
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    return subprocess.check_output([python, "-c", code], text=True).strip()


if __name__ == "__main__":
    sys.exit(main())
