"""The processes of a soak test: servers and publishers that can be killed and come back."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil

from tests.live.servers import ROOT, launch, project_environment
from tests.ports import free_port

# uvicorn, about a stream that was ended while its client did not take even the end of it.
_CUT_OFF = "ASGI callable returned without completing response."
# What Django says where an event loop runs in the way of the database.
_NO_DATABASE = "SynchronousOnlyOperation"
# How long a publisher may take over its last event.
_STOP_SECONDS = 60


class Server:
    """A server on a port of its own."""

    def __init__(self, directory: Path, application: str, environment: dict[str, str]) -> None:
        self.port = free_port()
        self._directory = directory
        self._application = application
        self._environment = environment
        self._running = ExitStack()
        self._pid = 0

    def start(self) -> None:
        """Start it, and wait until it listens."""
        server = self._running.enter_context(
            launch("uvicorn", self._directory, self.port, self._application, **self._environment)
        )
        self._pid = server.pid

    def stop(self) -> None:
        """Let it end in good order, as at a deploy, and wait until it has."""
        os.kill(self._pid, signal.SIGTERM)
        # Its parent here reaps it.
        process = psutil.Process(self._pid)
        while process.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.05)
        self._running.close()

    def kill(self) -> None:
        """Kill it with SIGKILL."""
        self._running.close()

    def pause(self) -> None:
        """Let it stand still."""
        os.killpg(self._pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.killpg(self._pid, signal.SIGCONT)

    def streams_cut_off(self) -> int:
        """Return how many streams it has ended whose clients had stopped to read."""
        return (self._directory / f"uvicorn-{self.port}.log").read_text().count(_CUT_OFF)


class Publisher:
    """A process of ``tests.soak.publisher``, with a file of what became of its events."""

    def __init__(self, how: str, directory: Path, environment: dict[str, str], seed: str) -> None:
        self.notes = directory / f"{how}.truth"
        self.how = how
        self._environment = project_environment(directory, **environment)
        self._log = directory / f"{how}.log"
        self._seed = seed
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        green = ["gevent.monkey", "--module"] if self.how == "greenlets" else []
        module = [*green, "tests.soak.publisher"]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *module, self.how, self.notes, self._seed],
                cwd=ROOT,
                env=self._environment,
                stdout=log,
                stderr=log,
            )

    def kill(self) -> None:
        """Kill it with SIGKILL, in the middle of whatever it is doing."""
        if self._process:
            self._process.kill()
            self._process.wait()

    def lost_its_database(self) -> bool:
        """Whether Django has refused it the database, because of an event loop."""
        return _NO_DATABASE in self._log.read_text()

    def stop(self) -> bool:
        """Let it finish; return whether it did."""
        assert self._process
        self._process.terminate()
        try:
            # By the signal itself, if it has not begun yet.
            return self._process.wait(_STOP_SECONDS) in (0, -signal.SIGTERM)
        except subprocess.TimeoutExpired:
            return False


async def ask_store(directory: Path, environment: dict[str, str], *arguments: str) -> Any:
    """Run ``tests.soak.store``; return what it has said."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.soak.store",
        *arguments,
        cwd=ROOT,
        env=project_environment(directory, **environment),
        stdout=subprocess.PIPE,
    )
    output, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"tests.soak.store {arguments[0]} failed.")
    return json.loads(output or "null")
