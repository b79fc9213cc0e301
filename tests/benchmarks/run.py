"""Runs the benchmark: each contender has its turn in each round, so that all share the weather."""

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.benchmarks.contenders import Contender
from tests.benchmarks.machine import build
from tests.benchmarks.results import Results
from tests.benchmarks.scale import Scale
from tests.benchmarks.trial import Cell, trial
from tests.benchmarks.versions import machine
from tests.benchmarks.workloads import WORKLOADS


def run(
    contenders: Sequence[Contender],
    workloads: Sequence[str],
    scale: Scale,
    rounds: int,
    save: Callable[[Results], None],
) -> Results:
    """Run the workloads on all contenders that take part in them.

    Args:
        contenders: The contenders.
        workloads: The names of the workloads.
        scale: How large the workloads are.
        rounds: How many rounds there are.
        save: Keeps what was measured so far. Called after each contender's turn, since a run takes
            long and may be stopped.
    """
    results = Results(
        machine(rounds, scale),
        {contender.key: contender.floor for contender in contenders},
        {contender.key: contender.title for contender in contenders},
    )
    able, all_begun = [], time.monotonic()
    for contender in contenders:
        if lacking := contender.lacks():
            results.complaints.append(f"{contender.title}: skipped, since {lacking}")
        else:
            able.append(contender)
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as place:
        load = build("load", Path(place))
        for number in range(1, rounds + 1):
            for contender in able:
                begun = time.monotonic()
                for names in _by_server(contender, workloads, number):
                    directory = Path(tempfile.mkdtemp(dir=place))
                    try:
                        _measure(contender, names, scale, directory, load, results)
                    except (RuntimeError, OSError) as error:
                        results.complaints.append(f"{contender.title}, {', '.join(names)}: {error}")
                if (seconds := time.monotonic() - begun) > 1:
                    print(f"round {number}: {contender.title}, {seconds:.0f} s", flush=True)
                results.machine["Took"] = f"{(time.monotonic() - all_begun) / 60:.0f} minutes"
                save(results)
    return results


def _by_server(contender: Contender, workloads: Sequence[str], number: int) -> list[list[str]]:
    """Return the workloads of a round, those that share a server together."""
    taken = [
        name
        for name in workloads
        if name in contender.workloads and number <= min(contender.rounds, WORKLOADS[name].rounds)
    ]
    shared = [name for name in taken if not WORKLOADS[name].fresh]
    fresh = [[name] for name in taken if WORKLOADS[name].fresh]
    return [shared, *fresh] if shared else fresh


def _measure(
    contender: Contender,
    workloads: Sequence[str],
    scale: Scale,
    directory: Path,
    load: Path,
    results: Results,
) -> None:
    with trial(contender, directory, load) as running:
        for name in workloads:
            cells: dict[str, Cell] = WORKLOADS[name].measure(running, scale)
            for column, cell in cells.items():
                results.cells[contender.key, column].append(cell)
