"""``python -m tests.soak.rollout``: deploys again and again on two machines, and prints the table.

Four servers on two machines, behind one HAProxy, serve the clients of the soak test. Between the
machines and the services there is a network with latency and loss. Each deploy restarts the four,
one after the other. During one of them, a machine is cut off for a while.
"""

import argparse
import asyncio
import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from bisect import bisect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.live.engines import ENGINES, Engine, Services
from tests.live.proxies import documented
from tests.ports import free_port, wait_until_listening
from tests.soak.faults import Faults
from tests.soak.machines import Link, Machine, lack
from tests.soak.processes import Server
from tests.soak.run import Soak
from tests.soak.verdict import Row, table

# Of each machine: seconds that what is sent takes, and the share that is sent again.
_LINKS = ((0.002, 0.001), (0.02, 0.01))
_SERVERS_EACH = 2
CLIENTS = 100
RETRY_SECONDS = 1.0
"""Clients that are sent away come back after one to two times this."""
# So that all find room at the one machine that is left, while one of its servers is restarted.
MOST_STREAMS = CLIENTS
_READY_SECONDS = 60
_CROWD_SECONDS = 0.1


@dataclass
class Rollout:
    """What came of it: the row of the soak test, and how the clients were passed on.

    ``most_streams`` is the most that a server had, ``returns`` how many times a client came back,
    and ``crowd`` how many tried to come back within the same tenth of a second, at most.
    """

    row: Row
    most_streams: int
    returns: int
    crowd: int


class _RemoteServer(Server):
    """A server on a machine."""

    def __init__(
        self, machine: Machine, directory: Path, application: str, environment: dict[str, str]
    ) -> None:
        super().__init__(directory, application, environment)
        self._machine = machine

    def start(self) -> None:
        self._machine.run(super().start)


async def rollout(
    engine: Engine,
    directory: Path,
    *,
    deploys: int,
    cut_seconds: float,
    seed: str,
    catching_up: float = 120,
) -> Rollout:
    """Deploy so many times under load, and compare what the clients got with what was published.

    Args:
        directory: For the logs and what the publishers note.
        cut_seconds: For how long a machine is cut off, during the last deploy.
        catching_up: Seconds that clients have afterwards to get all that they have missed.
    """
    with engine.run() as services, ExitStack() as stack:
        settings = json.loads(services.environment["LIVE_DJANGO_SSE"])
        settings |= {"RETRY": round(RETRY_SECONDS * 1000), "MAX_STREAMS": MOST_STREAMS}
        environment = {
            **services.environment,
            "LIVE_URLCONF": "tests.soak.urls",
            "LIVE_DJANGO_SSE": json.dumps(settings),
        }
        servers, links = [], []
        for number, (latency, loss) in enumerate(_LINKS):
            machine = stack.enter_context(Machine())
            some = [
                _RemoteServer(machine, directory, "tests.asgi:application", environment)
                for _ in range(_SERVERS_EACH)
            ]
            link = Link(machine, latency=latency, loss=loss, seed=f"{seed} {number}")
            ports = [server.port for server in some]
            stack.enter_context(link.up(outgoing=_ports_of(services), incoming=ports))
            servers += some
            links.append(link)
        proxy = stack.enter_context(_haproxy([server.port for server in servers], directory))
        soak = Soak(
            engine,
            services,
            directory,
            seed,
            "tests.asgi:application",
            catching_up,
            servers,
            [proxy.port],
            CLIENTS,
            answering=False,
        )

        async def deploy(faults: Faults) -> None:
            for number in range(1, deploys + 1):
                cutting = (
                    asyncio.create_task(_cut(links[1], cut_seconds)) if number == deploys else None
                )
                for server in random.Random(f"{seed} {number}").sample(servers, len(servers)):
                    await asyncio.to_thread(server.stop)
                    await asyncio.to_thread(server.start)
                    faults.counts["server deployed"] += 1
                    await proxy.until_up(server.port)
                    # All that it had are back elsewhere.
                    await asyncio.sleep(2 * RETRY_SECONDS)
                if cutting:
                    await cutting
                    faults.counts["machine cut off"] += 1

        row = await soak.run(deploy)
        tries = sorted(tried for client in soak.clients for tried in client.returns)
        return Rollout(row, proxy.most_streams(), len(tries), largest_crowd(tries))


def largest_crowd(tries: Sequence[float]) -> int:
    """Return how many clients tried to come back within the same tenth of a second, at most.

    Args:
        tries: When each did so first, in seconds and in order.
    """
    return max(
        (bisect(tries, begin + _CROWD_SECONDS) - n for n, begin in enumerate(tries)), default=0
    )


async def _cut(link: Link, seconds: float) -> None:
    with link.cut():
        await asyncio.sleep(seconds)


def _ports_of(services: Services) -> list[int]:
    """Return the ports of an engine's services, of which its processes are told some."""
    told = " ".join(services.environment.values())
    ports = {int(port) for port in re.findall(r"\b\d{5}\b", told)}
    if services.several_redis:
        ports.update(services.several_redis.ports)
    return sorted(ports)


class _HAProxy:
    """HAProxy before the servers, set up as the documentation says but for where they are."""

    def __init__(self, port: int, statistics: Path) -> None:
        self.port = port
        self._statistics = statistics

    async def until_up(self, port: int) -> None:
        """Wait until it passes clients on to a server."""
        async with asyncio.timeout(_READY_SECONDS):
            while not self._field("status", port).startswith("UP"):
                await asyncio.sleep(0.05)

    def most_streams(self) -> int:
        """Return the most streams that any server has had at a time."""
        return max(int(line["smax"] or 0) for line in self._lines())

    def _field(self, name: str, port: int) -> str:
        return next(line[name] for line in self._lines() if line["svname"] == f"port{port}")

    def _lines(self) -> list[dict[str, str]]:
        with socket.socket(socket.AF_UNIX) as statistics:
            statistics.connect(str(self._statistics))
            statistics.sendall(b"show stat\n")
            text = b"".join(iter(lambda: statistics.recv(65536), b"")).decode()
        head, *lines = text.removeprefix("# ").strip().splitlines()
        rows = [dict(zip(head.split(","), line.split(","), strict=False)) for line in lines]
        return [row for row in rows if row["svname"].startswith("port")]


@contextmanager
def _haproxy(ports: Sequence[int], directory: Path) -> Iterator[_HAProxy]:
    command = shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin")
    assert command
    port, statistics = free_port(), directory / "haproxy.sock"
    # A link takes each connection, so only an answer shows that a server is there.
    checks = "    option httpchk GET /\n    http-check expect ! rstatus ^5\n    timeout check 2s"
    # A server that is only slow is not down: its clients would make the others slow, too.
    checked = "check inter 500ms fall 3 rise 1 on-marked-down shutdown-sessions"
    lines = "\n".join(f"    server port{p} 127.0.0.1:{p} {checked}" for p in ports)
    text = documented("HAProxy", "text").replace("bind :80", f"bind 127.0.0.1:{port}")
    text = text.replace(
        "    server django 127.0.0.1:8000",
        f"{checks}\n    balance leastconn\n    option redispatch\n{lines}",
    )
    text = text.replace("{ path_beg /events/ }", "TRUE").replace("retry: 5000", "retry: 1000")
    text = f"global\n    stats socket {statistics}\n\n{text}"
    configuration = directory / "haproxy.conf"
    configuration.write_text(text)
    with (directory / "haproxy.log").open("wb") as log:
        process = subprocess.Popen(
            [command, "-db", "-f", str(configuration)], stdout=log, stderr=log
        )
    try:
        wait_until_listening(process, port)
        yield _HAProxy(port, statistics)
    finally:
        process.kill()
        process.wait()


def main() -> int:
    """Return 1 where anything was lost, repeated or told out of order."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak.rollout")
    several = [name for name, engine in ENGINES.items() if engine.crosses_machines]
    parser.add_argument("engines", nargs="*", help=f"some of: {', '.join(several)}; all without")
    parser.add_argument("--deploys", type=int, default=3)
    parser.add_argument("--cut", type=float, default=60, help="seconds that a machine is cut off")
    parser.add_argument("--seed", default=str(random.randrange(10**6)), help="of what goes wrong")
    chosen = parser.parse_args()
    # The clients read positions, which are signed.
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    if unknown := set(chosen.engines) - set(several):
        parser.error(f"no such engine: {', '.join(sorted(unknown))}")
    if why := lack():
        parser.error(why)
    print(f"seed {chosen.seed}")
    rows = []
    for name in chosen.engines or several:
        engine = ENGINES[name]
        if lacking := engine.lacks():
            print(f"{engine.name}: {lacking} is not installed")
            return 1
        directory = Path(tempfile.mkdtemp(prefix=f"rollout-{name}-"))
        result = asyncio.run(
            rollout(
                engine,
                directory,
                deploys=chosen.deploys,
                cut_seconds=chosen.cut,
                seed=chosen.seed,
            )
        )
        row = result.row
        rows.append(row)
        print(f"\n{row.engine}: {'passed' if row.passed else f'FAILED, see {directory}'}")
        print(
            f"{result.returns} times a client came back, at most {result.crowd} of {CLIENTS} "
            f"within {_CROWD_SECONDS} s; "
            f"at most {result.most_streams} streams in a process (limit {MOST_STREAMS})"
        )
        print("\n".join([*row.complaints, *row.findings.examples]), flush=True)
    print(f"\n{table(rows)}")
    return 0 if all(row.passed for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
