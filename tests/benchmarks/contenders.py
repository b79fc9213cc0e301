"""The contenders: how each is started, and what each is compared with."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from importlib.util import find_spec
from pathlib import Path

from tests.benchmarks.machine import cores, cpu_seconds, memory_kilobytes, pinned_to, tree_of
from tests.live.servers import ROOT
from tests.ports import free_port, wait_until_listening

_ORDER_SECONDS = 300
_SITE = "tests.benchmarks.apps.django_site"

# Each server as its users run it, without a log of accesses, and with room for all streams.
SERVERS = {
    "uvicorn": ["uvicorn", "--no-access-log", "--log-level=warning", "--backlog=4096"],
    "daphne": ["daphne", "--verbosity=0"],
    "hypercorn": ["hypercorn", "--log-level=WARNING", "--backlog=4096"],
    "granian": ["granian", "--interface=asgi", "--log-level=warning", "--backpressure=100000"],
}


@dataclass
class Running:
    """A running server."""

    port: int
    pid: int
    cookies: Path | None

    def cpu_seconds(self) -> float:
        return cpu_seconds(tree_of(self.pid))

    def memory_kilobytes(self) -> int:
        return memory_kilobytes(tree_of(self.pid))

    def order(self, what: str, **arguments: int) -> str:
        """Give an order (see ``apps/orders.py``); return the answer once it is carried out."""
        query = "&".join(f"{name}={value}" for name, value in arguments.items())
        connection = HTTPConnection("127.0.0.1", self.port, timeout=_ORDER_SECONDS)
        connection.request("GET", f"/orders/{what}?{query}", headers={"Connection": "close"})
        response = connection.getresponse()
        answer = response.read().decode()
        connection.close()
        if response.status != 200:
            raise RuntimeError(f"{what}: {response.status} {answer}")
        return answer

    def request(self, path: str, *headers: str) -> str:
        """Return the request for a path, as the load client sends it."""
        lines = [f"GET {path} HTTP/1.1", "Host: 127.0.0.1", "Accept: text/event-stream", *headers]
        if self.cookies:
            lines.append("Cookie: %s")
        return "\r\n".join([*lines, "", ""])


@dataclass(frozen=True)
class Contender:
    """Something that streams, on a server."""

    key: str
    title: str
    floor: str | None = None
    """The contender whose figures its own are divided by."""

    def lacks(self) -> str | None:
        """Return what has to be installed for it, if anything."""
        return None

    @contextmanager
    def run(self, directory: Path) -> Iterator[Running]:
        """Run it for the length of the block."""
        raise NotImplementedError


@dataclass(frozen=True)
class Asgi(Contender):
    """An ASGI application on a server."""

    server: str = "uvicorn"
    application: str = "tests.benchmarks.apps.bare_asgi:application"

    def lacks(self) -> str | None:
        return None if find_spec(self.server) else self.server

    def command(self, port: int) -> list[str]:
        if self.server == "hypercorn":
            bind = [f"--bind=127.0.0.1:{port}"]
        else:
            host = "--bind" if self.server == "daphne" else "--host"
            bind = [f"{host}=127.0.0.1", f"--port={port}"]
        return [sys.executable, "-m", *SERVERS[self.server], *bind, self.application]

    @contextmanager
    def run(self, directory: Path) -> Iterator[Running]:
        port = free_port()
        with running(self.command(port), port, {}) as server:
            yield server


@dataclass(frozen=True)
class DjangoSite(Asgi):
    """A Django project on a server, whose clients are logged in."""

    application: str = f"{_SITE}.ours:application"
    urlconf: str = f"{_SITE}.ours"
    apps: tuple[str, ...] = ("django_sse",)
    store: str = "memory"
    users: int = 1

    @contextmanager
    def run(self, directory: Path) -> Iterator[Running]:
        port = free_port()
        cookies = directory / "cookies"
        database = {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": str(directory / "site.sqlite3"),
            "OPTIONS": {
                "transaction_mode": "IMMEDIATE",
                "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL",
            },
        }
        environment = {
            "DJANGO_SETTINGS_MODULE": f"{_SITE}.settings",
            "BENCH_APPS": json.dumps(self.apps),
            "BENCH_URLCONF": self.urlconf,
            "BENCH_DATABASES": json.dumps({"default": database}),
            "BENCH_DJANGO_SSE": json.dumps({"STORE": self.store}),
        }
        subprocess.run(
            [sys.executable, "-m", f"{_SITE}.prepare", str(self.users), str(cookies)],
            cwd=ROOT,
            env={**_inherited(), **environment},
            check=True,
        )
        with running(self.command(port), port, environment, cookies) as server:
            yield server


@contextmanager
def running(
    command: list[str], port: int, environment: dict[str, str], cookies: Path | None = None
) -> Iterator[Running]:
    """Run a server on its core for the length of the block."""
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env={**_inherited(), **environment},
        stdin=subprocess.DEVNULL,
        preexec_fn=pinned_to(cores()[0]),
    ) as process:
        try:
            wait_until_listening(process, port)
            yield Running(port, process.pid, cookies)
        finally:
            for pid in reversed(tree_of(process.pid)):
                os.kill(pid, signal.SIGKILL)


def _inherited() -> dict[str, str]:
    return {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}


CONTENDERS = [
    Asgi("bare", "bare ASGI on uvicorn"),
    DjangoSite("ours", "django_sse on uvicorn", floor="bare"),
]
