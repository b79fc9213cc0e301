"""The versions of what takes part."""

import json
import platform
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from datetime import date
from importlib.metadata import PackageNotFoundError, version

from tests.benchmarks.contenders.others import nchan_versions
from tests.benchmarks.machine import HERE, description, raise_file_limit
from tests.benchmarks.scale import FULL, Scale

_PACKAGES = (
    "Django",
    "channels",
    "uvicorn",
    "uvloop",
    "httptools",
    "daphne",
    "granian",
    "hypercorn",
    "sse-starlette",
    "django-eventstream",
    "redis",
    "psycopg",
)
_TRIAL = ". **A trial of the benchmark itself, with {} streams**, whatever the tables say"
_PROGRAMS = (
    ["node", "--version"],
    ["nginx", "-v"],
    ["redis-server", "--version"],
    ["cc", "--version"],
)


def machine(rounds: int, scale: Scale) -> dict[str, str]:
    """Return what a reader has to know of the run, by what it is called."""
    better_sse = json.loads((HERE / "apps" / "better_sse" / "package.json").read_text())
    return {
        "Date": date.today().isoformat(),
        "Rounds": f"{rounds}{'' if scale == FULL else _TRIAL.format(scale.streams)}",
        "Machine": f"{description()}, {raise_file_limit():,} open files a process",
        "Python": platform.python_version(),
        "Packages": ", ".join(_packages()),
        "Others": ", ".join(
            [
                *_programs(),
                f"better-sse {better_sse['dependencies']['better-sse']}",
                *(f"nchan {version}" for version in nchan_versions()),
            ]
        ),
    }


def _packages() -> Iterable[str]:
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            yield f"{name} {version(name)}"


def _programs() -> Iterable[str]:
    for command in _PROGRAMS:
        with suppress(OSError):
            # nginx says it on standard error.
            run = subprocess.run(command, capture_output=True, text=True)
            said = (run.stdout or run.stderr).splitlines()[0]
            yield said if command[0] != "node" else f"Node {said}"
