"""A deployment here: server processes, Redis, a publisher and the load client, on this machine."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import redis
from tests.benchmarks.capacity.model import busy
from tests.benchmarks.contenders import Running
from tests.benchmarks.contenders.asgi import DjangoSite
from tests.benchmarks.load import Load, Report, load_client
from tests.benchmarks.machine import cores, cpu_seconds
from tests.live.servers import ROOT

_SITE = "tests.benchmarks.apps.django_site"
_READY_SECONDS = 60
# A deployment keeps up if this share of the rate is reached, and 99 of 100 events are not later.
_HELD = 0.97
_LATE_MILLISECONDS = 250
_SECONDS = 6
_TRIES = 6
_NEAR = 0.1


@dataclass(frozen=True)
class _Site(DjangoSite):
    """Server processes that meet in a Redis."""

    url: str = ""
    on: tuple[int, ...] = ()
    """The cores of the server processes."""

    def command(self, port: int) -> list[str]:
        return ["taskset", "--cpu-list", ",".join(map(str, self.on)), *super().command(port)]

    def _environment(self, directory: Path, services: ExitStack) -> dict[str, str]:
        store = {"BACKEND": "redis", "OPTIONS": {"url": self.url}}
        return {
            **super()._environment(directory, services),
            "BENCH_STORE": json.dumps(store),
        }


@dataclass(frozen=True)
class Ran:
    """What a run has shown. Seconds are of CPU time, but for ``seconds`` and the waits."""

    processes: int
    events: int
    seconds: float
    seen: Report
    server_seconds: float
    redis_seconds: float
    publisher_seconds: float
    wait: float
    """For how many milliseconds an event let the publisher wait: the median."""

    @property
    def rate(self) -> float:
        """Events a second."""
        return self.events / self.seconds

    @property
    def busy(self) -> float:
        """The share of the fullest core that was used."""
        beside = self.redis_seconds + self.publisher_seconds + self.seen.cpu
        return busy(
            self.server_seconds / self.seen.seconds, beside / self.seen.seconds, self.processes
        )

    def kept_up(self, rate: float) -> bool:
        """Whether what was to be published at a rate was, and arrived in time."""
        return self.rate >= rate * _HELD and self.seen.p99 <= _LATE_MILLISECONDS


class Deployment:
    """Server processes that run, with what belongs to them."""

    def __init__(
        self,
        processes: int,
        server: Running,
        servers: Sequence[redis.RedisServer],
        load: Load,
        publisher: subprocess.Popen[str],
    ) -> None:
        self._processes = processes
        self.server = server
        self._redis = [server.pid for server in servers]
        self._load = load
        self._publisher = publisher

    def open(self, path: str, count: int, *headers: str, in_flight: int = 20) -> float:
        """Open streams beside those that are open. Return CPU seconds of the servers for each."""
        before = self.server.cpu_seconds()
        request = self.server.request(path, *headers)
        report = self._load.open(count, request, values=self.server.cookies, in_flight=in_flight)
        if report.failed:
            raise RuntimeError(f"{report.failed} of {count} streams could not be opened.")
        return (self.server.cpu_seconds() - before) / count

    def close(self) -> None:
        """Close all streams."""
        self._load.close()

    def push(self, prefix: str, groups: int, readers: int, rate: float, seconds: float) -> Ran:
        """Publish to groups with so many readers each, and wait for what they get.

        Args:
            prefix: The names of the groups begin with it.
            rate: Events a second.
        """
        self._load.expect()
        server, stores = self.server.cpu_seconds(), cpu_seconds(self._redis)
        said = self._order("push", prefix=prefix, groups=groups, rate=rate, seconds=seconds)
        seen = self._load.collect(said["events"] * readers)
        return Ran(
            self._processes,
            said["events"],
            said["seconds"],
            seen,
            self.server.cpu_seconds() - server,
            cpu_seconds(self._redis) - stores,
            said["cpu_seconds"],
            said["wait"],
        )

    def push_until(
        self, share: float, prefix: str, groups: int, readers: int, expected: float
    ) -> Ran:
        """Publish at the rate at which the fullest core is so busy.

        Args:
            share: A share of a core.
            expected: About as many events a second as that is.

        Raises:
            RuntimeError: An event was lost, or no such rate was found at which it keeps up.
        """
        rate = expected
        for attempt in range(_TRIES):
            ran = self.push(prefix, groups, readers, rate, _SECONDS)
            if lost := ran.events * readers - ran.seen.received:
                raise RuntimeError(f"{lost} events were lost.")
            near = abs(ran.busy / share - 1) <= _NEAR
            # The first run warms up.
            if attempt and near and ran.kept_up(rate):
                return ran
            rate = ran.rate * share / ran.busy
        raise RuntimeError(
            f"It does not keep up, or is never {share:.0%} busy: last at {ran.rate:.0f} events a "
            "second."
        )

    def rest(self, seconds: float) -> tuple[float, float]:
        """Do nothing for a while. Return the CPU seconds that the servers and Redis took."""
        server, stores = self.server.cpu_seconds(), cpu_seconds(self._redis)
        time.sleep(seconds)
        return self.server.cpu_seconds() - server, cpu_seconds(self._redis) - stores

    def look_through(self, groups: int) -> tuple[float, float]:
        """Have the publisher ask for the names of so many groups that have changed. Return the CPU
        seconds that a name takes it, and Redis."""
        self._order("note_cursor")
        self._order("change", groups=groups)
        return self._asked("ask_changed", groups)

    def ask_states(self, groups: int) -> tuple[float, float]:
        """Have it ask for the states of so many groups that have changed. Return the same."""
        return self._asked("ask_states", groups)

    def _asked(self, order: str, groups: int) -> tuple[float, float]:
        stores = cpu_seconds(self._redis)
        spent = self._order(order, groups=groups)
        return spent / groups, (cpu_seconds(self._redis) - stores) / groups

    def _order(self, name: str, **arguments: Any) -> Any:
        assert self._publisher.stdin
        assert self._publisher.stdout
        self._publisher.stdin.write(f"{json.dumps([name, arguments])}\n")
        self._publisher.stdin.flush()
        return json.loads(self._publisher.stdout.readline())


@contextmanager
def deploy(directory: Path, load: Path, *, processes: int, nodes: int) -> Iterator[Deployment]:
    """Run a deployment for the length of the block.

    Args:
        directory: Where its files are.
        load: The load client's program.
        processes: How many processes serve streams. A single one has the first core to itself, and
            several share all cores with everything else.
        nodes: How many masters Redis has: 1, or 3 that are a cluster, without replicas.
    """
    with ExitStack() as stack:
        if nodes == 1:
            one = stack.enter_context(redis.serve())
            url, servers = one.url, [one]
        else:
            cluster = stack.enter_context(redis.serve_cluster(replicas=False))
            url, servers = cluster.url, cluster.servers
        site = _Site(
            "capacity",
            "django_sse",
            (),
            application=f"{_SITE}.readers:application",
            store="sqlite",
            options=(f"--workers={processes}",) if processes > 1 else (),
            url=url,
            on=(cores()[0],) if processes == 1 else cores(),
        )
        server = stack.enter_context(site.run(directory))
        _wait_for_workers(server, processes)
        publisher = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-m", f"{_SITE}.pushing"],
                cwd=ROOT,
                env={**os.environ, **server.environment},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        # Otherwise the end of the block would wait for it.
        stack.callback(publisher.kill)
        client = stack.enter_context(load_client(load, server.port))
        yield Deployment(processes, server, servers, client, publisher)


def _wait_for_workers(server: Running, processes: int) -> None:
    """Wait until each of the processes has answered a request."""
    seen: set[str] = set()
    deadline = time.monotonic() + _READY_SECONDS
    while len(seen) < processes:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{len(seen)} of {processes} server processes answer.")
        seen.add(server.get("/pid/"))
