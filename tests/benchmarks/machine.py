"""The machine: its cores, what processes cost, and what is built from C."""

import os
import platform
import resource
import subprocess
import time
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent


@cache
def cores() -> tuple[int, int]:
    """Return the core of the server, and that of the load client and the services."""
    allowed = sorted(os.sched_getaffinity(0))
    return allowed[0], allowed[-1]


def pinned_to(core: int) -> Callable[[], None]:
    """Return a function that pins the process that calls it, for a ``preexec_fn``."""
    return lambda: os.sched_setaffinity(0, {core})


def raise_file_limit() -> int:
    """Allow as many open files as the machine does; return how many."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def build(name: str, directory: Path) -> Path:
    """Compile a C program of this folder; return the path of the result."""
    binary = directory / name
    source = HERE / f"{name}.c"
    subprocess.run(["cc", "-O2", "-Wall", "-Wextra", "-o", binary, source], check=True)
    return binary


def cpu_seconds(pids: Iterable[int]) -> float:
    """Return the CPU time that processes have used, with all their threads, to the nanosecond.

    ``/proc/PID/stat`` counts in hundredths of a second. The kernel's clock of another process is
    what ``clock_getcpuclockid(3)`` returns, which Python does not have.
    """
    return sum(time.clock_gettime((~pid << 3) | 2) for pid in pids)


def memory_kilobytes(pids: Iterable[int]) -> int:
    """Return the proportional share of memory (PSS) of processes, in kilobytes."""
    total = 0
    for pid in pids:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total


def description() -> str:
    """Return what the machine is, in a line."""
    with open("/proc/cpuinfo") as file:
        models = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    model = models[0] if models else platform.machine()
    return f"{model}, {os.cpu_count()} cores, Linux {platform.release()}"
