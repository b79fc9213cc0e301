"""The contenders that are ASGI applications, Django's among them."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tests import postgresql, redis
from tests.benchmarks.contenders.base import Contender, Running, process_of
from tests.live.servers import ROOT
from tests.ports import free_port

_SITE = "tests.benchmarks.apps.django_site"

# Each server as its users run it, without a log of accesses, and with room for all streams.
_SERVERS = {
    "uvicorn": ["uvicorn", "--no-access-log", "--log-level=warning", "--backlog=4096"],
    "daphne": ["daphne", "--verbosity=0"],
    "hypercorn": ["hypercorn", "--log-level=WARNING", "--backlog=4096"],
    "granian": ["granian", "--interface=asgi", "--log-level=warning", "--backpressure=100000"],
}


@dataclass(frozen=True)
class Asgi(Contender):
    """An ASGI application on a server."""

    application: str = "tests.benchmarks.apps.bare_asgi:application"
    server: str = "uvicorn"
    needs: str | None = None
    """A module beside the server."""
    options: tuple[str, ...] = ()
    """More of the server's arguments."""
    python: str = sys.executable

    def lacks(self) -> str | None:
        missing = [name for name in (self.server, self.needs) if name and not find_spec(name)]
        return f"{missing[0]} is not installed" if missing else None

    @contextmanager
    def run(self, directory: Path) -> Iterator[Running]:
        port = free_port()
        with process_of(self.command(port), port) as pid:
            yield Running(port, pid)

    def command(self, port: int) -> list[str]:
        """Return the server's command line."""
        if self.server == "hypercorn":
            bind = [f"--bind=127.0.0.1:{port}"]
        else:
            host = "--bind" if self.server == "daphne" else "--host"
            bind = [f"{host}=127.0.0.1", f"--port={port}"]
        server = [*_SERVERS[self.server], *self.options]
        return [self.python, "-m", *server, *bind, self.application]


@dataclass(frozen=True)
class DjangoSite(Asgi):
    """A Django project on a server, whose clients are logged in."""

    application: str = f"{_SITE}.ours:application"
    app: str = "django_sse"
    store: str = "memory"
    """One of: memory, sqlite, postgresql, redis."""
    users: int = 1
    """How many users the clients are, in turn."""

    def lacks(self) -> str | None:
        if self.store == "postgresql" and not postgresql.binaries():
            return "PostgreSQL is not installed"
        if self.store == "redis" and not redis.binary():
            return "redis-server is not installed"
        return super().lacks()

    @contextmanager
    def run(self, directory: Path) -> Iterator[Running]:
        port, cookies = free_port(), directory / "cookies"
        with ExitStack() as services:
            environment = self._environment(directory, services)
            subprocess.run(
                [self.python, "-m", f"{_SITE}.prepare", str(self.users), str(cookies)],
                cwd=ROOT,
                env={**os.environ, **environment},
                check=True,
            )
            pid = services.enter_context(process_of(self.command(port), port, environment))
            yield Running(port, pid, environment, cookies)

    def _environment(self, directory: Path, services: ExitStack) -> dict[str, str]:
        database: dict[str, Any] = {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": str(directory / "site.sqlite3"),
            # As the documentation of django_sse recommends it.
            "OPTIONS": {
                "transaction_mode": "IMMEDIATE",
                "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL",
                "timeout": 60,
            },
        }
        store: Any = "memory" if self.store == "memory" else "database"
        if self.store == "postgresql":
            binaries = postgresql.binaries()
            assert binaries
            database = {
                "ENGINE": "django.db.backends.postgresql",
                "NAME": "postgres",
                "USER": "postgres",
                "HOST": "127.0.0.1",
                "PORT": services.enter_context(postgresql.serve(binaries)),
            }
        elif self.store == "redis":
            url = services.enter_context(redis.serve()).url
            store = {"BACKEND": "redis", "OPTIONS": {"url": url}}
        return {
            "DJANGO_SETTINGS_MODULE": f"{_SITE}.settings",
            "BENCH_APP": self.app,
            "BENCH_URLCONF": self.application.partition(":")[0],
            "BENCH_DATABASES": json.dumps({"default": database}),
            "BENCH_STORE": json.dumps(store),
        }
