"""``python -m tests.mutants``: changes the core at random, and tells what no test notices.

The changes are made in a copy of the working tree. A test that hangs has noticed the change.
"""

import argparse
import ast
import json
import os
import random
import re
import shlex
import shutil
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from cosmic_ray.commands.init import init
from cosmic_ray.mutating import mutate_and_test
from cosmic_ray.plugins import OPERATOR_PROVIDERS
from cosmic_ray.testing import run_tests
from cosmic_ray.work_db import use_db
from cosmic_ray.work_item import MutationSpec, TestOutcome

from tests.mutants.core import CORE, find_tests
from tests.mutants.operators import LeaveOutStatement

OPERATOR_PROVIDERS["django_sse"] = {"LeaveOutStatement": LeaveOutStatement}

_PACKAGE = Path("django_sse")
_TEST_SECONDS = 60
# All tests of a change may take this much longer than they took without it.
_TIMES_SLOWER = 3
_MORE_SECONDS = 60


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--sample", type=int, default=200, help="how many changes to try")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    chosen = parser.parse_args()
    print(f"seed {chosen.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="mutants-") as directory:
        _enter_copy(Path(directory))
        mutants = sample(Path(directory, "mutants.sqlite"), chosen.sample, chosen.seed)
        print(f"{len(mutants)} changes; first the tests without one", flush=True)
        seconds = _seconds_of_tests(mutants, Path(directory, "seconds.json"))
        noticed = sum(is_noticed(mutant, seconds) for mutant in mutants)
    print(f"{noticed} of {len(mutants)} noticed ({noticed / len(mutants):.0%})")


def sample(database: Path, size: int, seed: int) -> list[MutationSpec]:
    """Choose places of the core at random, and one change for each; the same for the same seed."""
    modules = sorted(module for part in CORE for module in _modules(_PACKAGE / part))
    annotations = {module: _annotations(module) for module in modules}
    places = defaultdict(list)
    with use_db(str(database)) as db:
        init(modules, db, {})
        for [mutant] in (item.mutations for item in db.work_items):
            module, begin = mutant.module_path, mutant.start_pos
            if not any(start <= begin < end for start, end in annotations[module]):
                places[module, begin, mutant.end_pos].append(mutant)
    dice = random.Random(seed)
    return [
        dice.choice(sorted(places[place], key=lambda mutant: mutant.operator_name))
        for place in dice.sample(sorted(places), min(size, len(places)))
    ]


def is_noticed(mutant: MutationSpec, seconds: dict[str, float | None]) -> bool:
    """Run the tests that concern a mutant, and print which one notices it, or what none does."""
    tests = _tests(mutant)
    usual = sum(seconds[test] or 0.0 for test in seconds if test.startswith(tuple(tests)))
    limit = usual * _TIMES_SLOWER + _MORE_SECONDS
    result = mutate_and_test([mutant], _pytest("--exitfirst", *tests), limit)
    if result.test_outcome == TestOutcome.INCOMPETENT:
        raise RuntimeError(result.output)
    place = f"{mutant.module_path}:{mutant.start_pos[0]}"
    if result.is_killed:
        failed = re.search("^(FAILED|ERROR) (tests/.*)", result.output, re.MULTILINE)
        print(f"{place}: noticed by {failed[2] if failed else 'a hang'}", flush=True)
    else:
        change = re.findall(r"^[-+](?![-+]).*", result.diff, re.MULTILINE)
        print(f"{place}: NOT NOTICED ({mutant.operator_name})", *change, sep="\n", flush=True)
    return bool(result.is_killed)


def _seconds_of_tests(mutants: list[MutationSpec], notes: Path) -> dict[str, float | None]:
    os.environ["MUTANTS_SECONDS"] = str(notes)
    run_tests(_pytest(*sorted({test for mutant in mutants for test in _tests(mutant)})), None)
    seconds: dict[str, float | None] = json.loads(notes.read_text())
    for test in seconds:
        if seconds[test] is None:
            print(f"{test} fails without a change, and is left out", flush=True)
    return seconds


def _enter_copy(directory: Path) -> None:
    # Bytecode of the copy is of what it was compiled from.
    left_out = shutil.ignore_patterns(".*", "__pycache__", "*build", "dist", "*.sqlite3*")
    shutil.copytree(".", directory / "copy", ignore=left_out)
    os.chdir(directory / "copy")


def _modules(part: Path) -> list[Path]:
    return [part] if part.is_file() else list(part.rglob("*.py"))


def _tests(mutant: MutationSpec) -> list[str]:
    return find_tests(str(mutant.module_path.relative_to(_PACKAGE)))


def _pytest(*arguments: str) -> str:
    plugins = ["no:cacheprovider", "no:randomly", "tests.mutants.fastest_first"]
    options = ["-q", f"--timeout={_TEST_SECONDS}", *(f"-p{plugin}" for plugin in plugins)]
    # What is asked of the databases' servers is not the core's.
    options += ["-k", "not postgresql and not mysql"]
    return shlex.join([sys.executable, "-m", "pytest", *options, *arguments])


def _annotations(module: Path) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Return where annotations begin and end: only a type checker looks at them."""
    found = []
    for node in ast.walk(ast.parse(module.read_text())):
        for name in ("annotation", "returns"):
            if isinstance(annotation := getattr(node, name, None), ast.expr):
                end = (annotation.end_lineno or 0, annotation.end_col_offset or 0)
                found.append(((annotation.lineno, annotation.col_offset), end))
    return found


if __name__ == "__main__":
    main()
