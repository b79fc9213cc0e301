"""Runs the soak test on one engine, from its services to its row of the table."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any

from tests.live.engines import Engine, Services
from tests.live.servers import manage
from tests.soak.answers import Answers
from tests.soak.clients import Client, Texts
from tests.soak.faults import Faults
from tests.soak.processes import Publisher, Server, ask_store
from tests.soak.publisher import GROUPS
from tests.soak.verdict import (
    Findings,
    Numbered,
    Row,
    judge_answer,
    judge_client,
    judge_history,
    read_truth,
)

SERVERS = 2
CLIENTS = 200
PUBLISHERS = ("plain", "bursts", "transactions", "greenlets")

# What clients follow: most of them the busy group, alone or among others.
_FOLLOWED = (
    ("busy",), ("busy",), ("shared",), ("quiet",), ("busy", "shared"), ("busy", "shared", "quiet"),
)  # fmt: skip
_STARTING_SECONDS = 60
_CATCHING_UP_SECONDS = 120
# From there to the end is one event.
_ENDING_SECONDS = 30


async def soak(
    engine: Engine,
    directory: Path,
    *,
    seconds: float,
    pause: float,
    seed: str,
    application: str = "tests.asgi:application",
    catching_up: float = _CATCHING_UP_SECONDS,
    clients: int = CLIENTS,
) -> Row:
    """Publish under faults for some seconds, let all clients catch up, and compare.

    Args:
        directory: For the logs, the database and what the publishers note.
        pause: Seconds between two faults, on the average.
        catching_up: Seconds that clients have afterwards to get all that they have missed.
        clients: How many clients follow the groups.
    """
    with engine.run() as services:
        running = Soak(engine, services, directory, seed, application, catching_up, clients=clients)
        return await running.run(lambda faults: faults.run(seconds, pause))


class Soak:
    """Servers, publishers and clients, and what they have to say when all is over.

    Args:
        servers: Where there are servers already, and ``ports`` at which clients reach them.
        clients: How many clients follow the groups.
        answering: Whether producers answer meanwhile.
    """

    def __init__(
        self,
        engine: Engine,
        services: Services,
        directory: Path,
        seed: str,
        application: str,
        catching_up: float,
        servers: Sequence[Server] = (),
        ports: Sequence[int] = (),
        clients: int = CLIENTS,
        answering: bool = True,
    ) -> None:
        environment = {**services.environment, "LIVE_URLCONF": "tests.soak.urls"}
        self.engine = engine
        self.services = services
        self.directory = directory
        self.seed = seed
        self.catching_up = catching_up
        self.servers = servers or [
            Server(directory, application, environment) for _ in range(SERVERS)
        ]
        ports = ports or [server.port for server in self.servers]
        self.publishers = [Publisher(how, directory, environment, seed) for how in PUBLISHERS]
        self.texts = Texts()
        rng = random.Random(seed)
        self.clients = [
            Client(
                f"client {number}",
                rng.choice(_FOLLOWED),
                ports,
                self.texts,
                slow=number % 10 == 0,
                seed=f"{seed} {number}",
            )
            for number in range(clients)
        ]
        self.answers = Answers(ports, directory, environment, self.texts, seed)
        self.complaints: list[str] = []
        self.answering = answering

    async def run(self, go_wrong: Callable[[Faults], Awaitable[None]]) -> Row:
        """Let things go wrong while events are published, and judge what has become of them."""
        began = time.monotonic()
        faults = Faults(
            self.servers,
            self.publishers,
            self.clients,
            self.services,
            forgetful=self.engine.forgetful,
            seed=self.seed,
        )
        with ExitStack() as stack:
            await manage(self.directory, "migrate", "--verbosity", "0", **self.services.environment)
            await self._ask("begin", str(self.directory / "begin.truth"))
            for server in self.servers:
                stack.callback(server.kill)
                await asyncio.to_thread(server.start)
            async with asyncio.TaskGroup() as tasks:
                following = [tasks.create_task(client.run()) for client in self.clients]
                await self._until(_STARTING_SECONDS, "did not begin", lambda c: bool(c.position))
                for publisher in self.publishers:
                    stack.callback(publisher.kill)
                    publisher.start()
                answering = tasks.create_task(self.answers.run()) if self.answering else None
                await go_wrong(faults)
                if answering:
                    answering.cancel()
                    await self.answers.end()
                for publisher in self.publishers:
                    if not await asyncio.to_thread(publisher.stop):
                        self.complaints.append("A publisher did not come to an end.")
                    if publisher.lost_its_database():
                        self.complaints.append("A publisher was refused its database.")
                await self._catch_up()
                await self._ask("cancel")
                ending = min(self.catching_up, _ENDING_SECONDS)
                await self._until(ending, "were not told of the end", lambda c: c.over)
                for task in following:
                    task.cancel()
        stored = await self._history(*GROUPS, *(answer.group for answer in self.answers.all))
        return self._row(time.monotonic() - began, faults.counts, stored)

    async def _catch_up(self) -> None:
        for client in self.clients:
            client.hurry()
        deadline = time.monotonic() + self.catching_up
        while True:
            # Asked again: what a publisher that was killed has left behind comes into being late.
            heads = await self._ask("heads")
            behind = sum(
                client.position != {group: heads[group] for group in client.groups}
                for client in self.clients
            )
            if not behind:
                return
            if time.monotonic() > deadline:
                self.complaints.append(f"{behind} clients did not catch up.")
                return
            await asyncio.sleep(1)

    async def _until(self, seconds: float, what: str, holds: Callable[[Client], bool]) -> None:
        deadline = time.monotonic() + seconds
        while count := sum(not holds(client) for client in self.clients):
            if time.monotonic() > deadline:
                self.complaints.append(f"{count} clients {what}.")
                return
            await asyncio.sleep(0.1)

    async def _ask(self, *arguments: str) -> Any:
        return await ask_store(self.directory, self.services.environment, *arguments)

    async def _history(self, *groups: str) -> dict[str, list[Numbered]]:
        return {
            group: [Numbered(*event) for event in events]
            for group, events in (await self._ask("history", *groups)).items()
        }

    def _row(self, seconds: float, faults: Counter[str], stored: dict[str, list[Numbered]]) -> Row:
        truth = read_truth(self.directory.glob("*.truth"))
        findings = Findings()
        texts = [text.decode() for text in self.texts.keys]
        everybody = [*self.clients, *self.answers.readers]
        resets = sum(client.resets for client in everybody)
        statuses = sum((client.other_answers for client in everybody), Counter())
        for status, count in statuses.items():
            self.complaints.append(f"{count} answers {status}: an EventSource stays away for good.")
        if resets and not self.engine.forgetful:
            self.complaints.append("There were resets, and nothing was forgotten.")
        if unclosed := sum(not client.closed for client in self.clients):
            self.complaints.append(f"{unclosed} clients did not receive `close`.")
        answers = [answer.answered(texts, stored[answer.group]) for answer in self.answers.all]
        for answered in answers:
            judge_answer(answered, findings, forgetful=self.engine.forgetful)
        for group in GROUPS:
            history = stored[group]
            judge_history(group, history, truth, findings, forgetful=self.engine.forgetful)
            followers = [client for client in self.clients if group in client.groups]
            if self.engine.forgetful:
                # With what the store has forgotten, and a client has received.
                received = (client.events(group, texts) for client in followers)
                history = sorted({*history, *chain.from_iterable(received)})
            for client in followers:
                stretches = client.stretches(group, texts)
                judge_client(client.name, group, stretches, history, truth, findings)
        slow_ends = sum(client.slow_ends for client in self.clients)
        slow_ends += sum(server.streams_cut_off() for server in self.servers)
        return Row(
            engine=self.engine.name,
            seconds=seconds,
            events=sum(tried.outcome == "done" for tried in truth.values()),
            deliveries=sum(client.deliveries for client in self.clients),
            faults=faults + self.answers.fates + Counter({"slow client ended": slow_ends}),
            findings=findings,
            resets=resets,
            slowest_recovery=max(client.slowest_recovery for client in self.clients),
            slowest_delivery=max(client.slowest_delivery for client in self.clients),
            complaints=self.complaints,
            answers=answers,
        )
