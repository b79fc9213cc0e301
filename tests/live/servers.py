"""Starts the test project on real servers, in processes of their own."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn

import psutil
import pytest

from tests.ports import free_port, wait_until_listening

ROOT = Path(__file__).resolve().parents[2]
_HYPERCORNS_TIMEOUT = re.compile(
    r"Unhandled exception in client_connected_cb\ntransport: .*\n"
    r"Traceback .*\n(?:  .*\n)+TimeoutError: \[Errno 110\]"
)
SERVERS = ("daphne", "uvicorn", "hypercorn", "granian")


@dataclass(frozen=True)
class Server:
    """A running server, with all processes that it consists of."""

    name: str
    port: int
    pid: int
    directory: Path
    output: Path

    def log(self) -> str:
        """Return what the server has printed."""
        return self.output.read_text(errors="replace")

    def tracebacks(self) -> str:
        """Return what the server has printed, if there is a traceback in it; else nothing.

        But for the one that hypercorn prints for each connection that the kernel has given up.
        """
        others = _HYPERCORNS_TIMEOUT.sub("", self.log())
        return others if "Traceback" in others else ""

    def threads(self) -> int:
        """Return how many threads there are."""
        return sum(process.num_threads() for process in self.processes())

    def connections(self) -> int:
        """Return how many connections to the database are open: each opens the write-ahead log."""
        return self._open_files(f"{database_of(self.directory)}-wal")

    def database_files(self) -> int:
        """Return how often the database's main file is open.

        SQLite may keep it open for a closed connection, while another one holds a lock.
        """
        return self._open_files(str(database_of(self.directory)))

    def has_exited(self) -> bool:
        """Return whether the server's own process has ended."""
        return psutil.Process(self.pid).status() == psutil.STATUS_ZOMBIE

    def terminate(self) -> None:
        """Send SIGTERM to the server's own process, as a process manager does."""
        os.kill(self.pid, signal.SIGTERM)

    def interrupt(self) -> None:
        """Send SIGINT to all of its processes, as a terminal does for Ctrl-C."""
        os.killpg(self.pid, signal.SIGINT)

    def kill(self) -> None:
        """Kill the server with SIGKILL, at once and entirely."""
        os.killpg(self.pid, signal.SIGKILL)

    def _open_files(self, path: str) -> int:
        return sum(
            file.path == path for process in self.processes() for file in process.open_files()
        )

    def processes(self) -> list[psutil.Process]:
        """Return all that it consists of now."""
        # hypercorn and granian serve in a child.
        process = psutil.Process(self.pid)
        return [process, *process.children(recursive=True)]


def require(server: str) -> None:
    """Skip the test where the server is not installed; on CI it has to be."""
    if find_spec(server) is None:
        unavailable(f"{server} is not installed")


def unavailable(reason: str) -> NoReturn:
    """Skip the test, but on CI, where everything has to be there, let it fail."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@contextmanager
def serve(
    name: str,
    directory: Path,
    *,
    port: int | None = None,
    application: str = "tests.asgi:application",
    options: Sequence[str] = (),
    **environment: str,
) -> Iterator[Server]:
    """Run a server, ``runserver`` included, on the database in a directory.

    Args:
        options: More arguments of its command line.
        environment: What ``tests.live.settings`` reads, beside the database.
    """
    running = launch(
        name, directory, port or free_port(), application, options=options, **environment
    )
    with running as server:
        try:
            yield server
            assert not server.tracebacks()
        finally:
            # Shown by pytest where the test has failed.
            print(server.log())  # noqa: T201


@contextmanager
def launch(
    name: str,
    directory: Path,
    port: int,
    application: str,
    *,
    options: Sequence[str] = (),
    **environment: str,
) -> Iterator[Server]:
    """Run a server as ``serve`` does, whatever it logs."""
    output = directory / f"{name}-{port}.log"
    with (
        output.open("ab") as file,
        subprocess.Popen(
            [*_command(name, application, port), *options],
            cwd=ROOT,
            env=project_environment(directory, **environment),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process,
    ):
        server = Server(name, port, process.pid, directory, output)
        try:
            wait_until_listening(process, port)
            yield server
        finally:
            if process.poll() is None:
                server.kill()


async def manage(directory: Path, *arguments: str, input: str = "", **environment: str) -> str:
    """Run a management command in a process of its own; return what it prints."""
    return await finish(await start(directory, *arguments, **environment), input)


async def start(directory: Path, *arguments: str, **environment: str) -> Process:
    """Start a management command in a process of its own."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "manage.py",
        *arguments,
        cwd=ROOT,
        env=project_environment(directory, **environment),
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
    )


async def finish(process: Process, input: str = "") -> str:
    """Give a management command the last of its input; return what it prints."""
    output, errors = await process.communicate(input.encode())
    assert process.returncode == 0, errors.decode()
    return output.decode()


def project_environment(directory: Path, **environment: str) -> dict[str, str]:
    """Return the environment of the project's processes; make the database if there is none."""
    database = database_of(directory)
    if not database.exists():
        database.write_bytes(_migrated_database())
    return {**_environment_on(database), **environment}


def database_of(directory: Path) -> Path:
    return directory / "project.sqlite3"


def _command(name: str, application: str, port: int) -> list[str]:
    bind = ["--host", "127.0.0.1", "--port", str(port)]
    gunicorn = ["--worker-class", "uvicorn_worker.UvicornWorker", "--log-level", "warning"]
    gevent = ["--worker-class", "gevent", "--log-level", "warning"]
    arguments = {
        "daphne": ["-m", "daphne", "--bind", "127.0.0.1", "--port", str(port), "-v", "0"],
        "uvicorn": ["-m", "uvicorn", *bind, "--log-level", "warning"],
        "hypercorn": ["-m", "hypercorn", "--bind", f"127.0.0.1:{port}", "--log-level", "WARNING"],
        "granian": ["-m", "granian", *bind, "--interface", "asgi", "--log-level", "warning"],
        "gunicorn": ["-m", "gunicorn", "--bind", f"127.0.0.1:{port}", *gunicorn],
        "gunicorn-gevent": ["-m", "gunicorn", "--bind", f"127.0.0.1:{port}", *gevent],
    }
    if name == "runserver":
        return [sys.executable, "manage.py", name, "--insecure", str(port)]
    return [sys.executable, *arguments[name], application]


def _environment_on(database: Path) -> dict[str, str]:
    return {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "tests.live.settings",
        "LIVE_DATABASE": str(database),
        "PYTHONUNBUFFERED": "1",
    }


@cache
def _migrated_database() -> bytes:
    with TemporaryDirectory() as directory:
        database = database_of(Path(directory))
        subprocess.run(
            [sys.executable, "manage.py", "migrate", "--verbosity", "0"],
            cwd=ROOT,
            env=_environment_on(database),
            check=True,
        )
        return database.read_bytes()
