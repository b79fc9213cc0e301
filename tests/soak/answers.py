"""Answers that are produced during a soak test, each with readers that follow it to its end."""

import asyncio
import os
import random
import signal
import subprocess
import sys
from asyncio.subprocess import Process
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from tests.live.client import EndOfStreamError, act, connect
from tests.live.engines import PRODUCER_TTL
from tests.live.servers import ROOT, project_environment
from tests.soak.clients import Client, Texts
from tests.soak.verdict import Answered, Numbered
from tests.soak.words import read_runs, runs_of

# Who produces it: a view that is asked to, the view that streams it, a process of its own.
_PRODUCERS = ("asked", "viewed", "process")
_WORDS = (20, 200)
_DELAY_MILLISECONDS = (5, 30)
_BEFORE_THE_NEXT_SECONDS = (0.5, 2.0)
_BEFORE_ITS_FATE_SECONDS = (0.0, 2.0)
_PAUSE_SECONDS = (PRODUCER_TTL + 1.0, PRODUCER_TTL + 4.0)
_ASKING_SECONDS = (0.1, 2.0)
# From the last fault to the last end.
_ENDING_SECONDS = 10 * PRODUCER_TTL
_UNREACHABLE = (OSError, EndOfStreamError, TimeoutError)


class Answer:
    """A group that has a producer, two readers from the beginning, and one that comes later."""

    def __init__(
        self,
        number: int,
        ports: Sequence[int],
        directory: Path,
        environment: dict[str, str],
        texts: Texts,
        seed: str,
    ) -> None:
        self.group = f"answer-{number}"
        self.fate = "none"
        self._random = random.Random(f"{seed} {self.group}")
        self._producer = _PRODUCERS[number % len(_PRODUCERS)]
        self._fate = self._random.choice(
            ["none", "stopped", "killed", "paused"]
            if self._producer == "process"
            else ["none", "none", "stopped"]
        )
        self._ports = ports
        self._directory = directory
        self._environment = environment
        words, delay = self._random.randint(*_WORDS), self._random.randint(*_DELAY_MILLISECONDS)
        self._arguments = [self.group, str(words), str(delay)]
        path = (
            f"/produced/{'/'.join(self._arguments)}/"
            if self._producer == "viewed"
            else f"/answers/{self.group}/"
        )
        self.readers = [
            Client(
                f"{name} reader of {self.group}",
                [self.group],
                ports,
                texts,
                slow=False,
                seed=f"{seed} {self.group} {name}",
                path=path,
            )
            for name in ("first", "second", "late")
        ]

    def answered(self, texts: Sequence[str], history: Sequence[Numbered]) -> Answered:
        """Return what became of it."""
        return Answered(
            self.group,
            read_runs(runs_of(self._directory, self.group)),
            list(history),
            {reader.name: reader.stretches(self.group, texts) for reader in self.readers},
            [reader.reason for reader in self.readers if reader.closed],
        )

    async def run(self) -> None:
        """Let it be produced and read to its end."""
        *readers, late = self.readers
        producing = asyncio.create_task(self._produce())
        try:
            await asyncio.gather(*(reader.run() for reader in readers))
            await late.run()
            if self._producer == "asked":
                producing.cancel()
            else:
                await producing
        finally:
            producing.cancel()
            with suppress(asyncio.CancelledError):
                await producing

    async def _produce(self) -> None:
        if self._producer != "process":
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._meet_fate(None))
                if self._producer == "asked":
                    tasks.create_task(self._ask())
            return
        with (self._directory / "producers.log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "tests.soak.producer",
                *self._arguments,
                cwd=ROOT,
                env=project_environment(self._directory, **self._environment),
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            await self._meet_fate(process)
            await process.wait()
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def _ask(self) -> None:
        """Ask for it again and again, as somebody does who clicks twice."""
        while True:
            path = f"/ask/{'/'.join(self._arguments)}/"
            with suppress(*_UNREACHABLE):
                async with connect(self._random.choice(self._ports), path):
                    pass
            await asyncio.sleep(self._random.uniform(*_ASKING_SECONDS))

    async def _meet_fate(self, process: Process | None) -> None:
        while not any(reader.deliveries or reader.over for reader in self.readers):
            await asyncio.sleep(0.05)
        await asyncio.sleep(self._random.uniform(*_BEFORE_ITS_FATE_SECONDS))
        if any(reader.over for reader in self.readers):
            return
        self.fate = self._fate
        if self._fate == "stopped":
            await self._stop()
        elif process and process.returncode is None:
            # It may have ended, and asyncio has not heard of it yet.
            with suppress(ProcessLookupError):
                if self._fate == "killed":
                    process.kill()
                elif self._fate == "paused":
                    os.kill(process.pid, signal.SIGSTOP)
                    try:
                        await asyncio.sleep(self._random.uniform(*_PAUSE_SECONDS))
                    finally:
                        os.kill(process.pid, signal.SIGCONT)

    async def _stop(self) -> None:
        while True:
            with suppress(AssertionError, *_UNREACHABLE):
                port = self._random.choice(self._ports)
                await act(port, f"/cancel/{self.group}/", reason="stopped")
                return
            await asyncio.sleep(0.2)


class Answers:
    """Begins answers, one after the other, and several at a time."""

    def __init__(
        self,
        ports: Sequence[int],
        directory: Path,
        environment: dict[str, str],
        texts: Texts,
        seed: str,
    ) -> None:
        self.all: list[Answer] = []
        self._make = partial(
            Answer,
            ports=ports,
            directory=directory,
            environment=environment,
            texts=texts,
            seed=seed,
        )
        self._random = random.Random(f"{seed} answers")
        self._running: set[asyncio.Task[None]] = set()

    @property
    def readers(self) -> list[Client]:
        return [reader for answer in self.all for reader in answer.readers]

    @property
    def fates(self) -> Counter[str]:
        """What was done to producers, beside what happened to their servers."""
        fates = Counter(f"producer {answer.fate}" for answer in self.all)
        del fates["producer none"]
        return fates

    async def run(self) -> None:
        """Begin answers until this is cancelled."""
        while True:
            answer = self._make(len(self.all))
            self.all.append(answer)
            self._running.add(asyncio.create_task(answer.run()))
            await asyncio.sleep(self._random.uniform(*_BEFORE_THE_NEXT_SECONDS))

    async def end(self) -> None:
        """Wait for the end of all of them, for as long as it may take."""
        ended, others = await asyncio.wait(self._running, timeout=_ENDING_SECONDS)
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        for task in ended:
            task.result()
