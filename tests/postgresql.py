"""PostgreSQL servers of the tests' own, started from Debian's binaries."""

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.ports import free_port

ALIAS = "postgresql"

_STREAMING_SECONDS = 30
_STREAMS = "SELECT 1 FROM pg_stat_replication WHERE state = 'streaming'"


def binaries() -> Path | None:
    """Return the directory of the newest PostgreSQL installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if found:
        return found[-1].parent
    initdb = shutil.which("initdb")
    return Path(initdb).parent if initdb else None


@contextmanager
def serve(directory: Path, *, fsync: bool = False) -> Iterator[int]:
    """Run a server for the length of the block; gives its port.

    Args:
        directory: The directory of the binaries.
        fsync: Whether commits wait for the disk, and write-ahead files are as large as by default.
    """
    with _home() as home:
        server = PostgreSQLServer(directory, home / "data", fsync=fsync)
        server.make()
        server.start()
        try:
            yield server.port
        finally:
            server.stop()


@contextmanager
def serve_pair(directory: Path, *, synchronous: bool = False) -> Iterator["PostgreSQLPair"]:
    """Run a primary with a standby for the length of the block.

    Args:
        directory: The directory of the binaries.
        synchronous: Whether a commit waits for the standby.
    """
    with _home() as home, ExitStack() as stack:
        pair = PostgreSQLPair(
            PostgreSQLServer(directory, home / "one"),
            PostgreSQLServer(directory, home / "another"),
            synchronous=synchronous,
        )
        stack.callback(pair.stop)
        pair.begin()
        yield pair


class PostgreSQLServer:
    """A server with a port and a directory of its own, which may be away for a while."""

    def __init__(self, directory: Path, data: Path, *, fsync: bool = False) -> None:
        self.port = free_port()
        self.data = data
        self._fsync = fsync
        self._directory = directory
        # It refuses to run as root.
        self._account = "postgres" if os.getuid() == 0 else None

    def make(self) -> None:
        """Make an empty cluster."""
        self._run(
            *("initdb", "-D", self.data, "-A", "trust", "-U", "postgres", "-E", "UTF8"),
            *(() if self._fsync else ("--no-sync", "--wal-segsize=1")),
        )

    def copy(self, primary: "PostgreSQLServer") -> None:
        """Become a standby of another server, with a copy of all that it has."""
        shutil.rmtree(self.data, ignore_errors=True)
        source = f"host=127.0.0.1 port={primary.port} user=postgres"
        self._run("pg_basebackup", "-D", self.data, "-d", source, "-R", "-c", "fast", "--no-sync")

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = f"-p {self.port} -k {self.data.parent} -c listen_addresses=127.0.0.1"
        options += f" -c fsync={'on' if self._fsync else 'off'}"
        with open(self.data.parent / f"{self.data.name}.log", "ab") as log:
            self._run(*self._control, "-o", options, "start", output=log)

    def stop(self) -> None:
        """End it as a crash does. Nobody sees what a commit has waited for."""
        self._run(*self._control, "-m", "immediate", "stop")

    def promote(self) -> None:
        """Have a standby take writes, and wait until it does."""
        self._run(*self._control, "promote")

    def execute(self, statement: str, parameters: Any = None, *, name: str = "postgres") -> Any:
        """Run a statement in a session of its own; return its first row, if it has rows."""
        # Only where a server runs is there a driver.
        import psycopg

        address = {"host": "127.0.0.1", "port": self.port, "user": "postgres", "dbname": name}
        with psycopg.connect(**address, autocommit=True) as session:  # type: ignore[arg-type]
            cursor = session.execute(statement, parameters)
            return cursor.fetchone() if cursor.description else None

    def dump(self, name: str, path: Path) -> None:
        """Back a database up."""
        self._run("pg_dump", "-Fc", "-f", path, *self._client, name)

    def restore(self, name: str, path: Path, *options: str) -> None:
        """Restore a database from a backup."""
        self._run("pg_restore", *options, *self._client, "-d", name, path)

    @property
    def is_running(self) -> bool:
        return (self.data / "postmaster.pid").exists()

    @property
    def _control(self) -> list[str]:
        return ["pg_ctl", "-D", str(self.data), "-w"]

    @property
    def _client(self) -> list[str]:
        return ["-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres"]

    def _run(self, program: str, *arguments: Any, output: Any = subprocess.PIPE) -> None:
        # A pipe would stay open for as long as a server that was started.
        subprocess.run(
            [self._directory / program, *arguments],
            check=True,
            stdout=output,
            stderr=subprocess.STDOUT,
            user=self._account,
            cwd=self.data.parent,
        )


class PostgreSQLPair:
    """A primary with a standby, which take each other's place."""

    def __init__(
        self, primary: PostgreSQLServer, standby: PostgreSQLServer, *, synchronous: bool
    ) -> None:
        self.primary = primary
        self.standby = standby
        self.synchronous = synchronous
        self._servers = (primary, standby)

    @property
    def database(self) -> dict[str, Any]:
        """What Django's ``DATABASES`` has for whichever of the two is the primary."""
        return {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": "postgres",
            "USER": "postgres",
            "HOST": ",".join("127.0.0.1" for _ in self._servers),
            "PORT": ",".join(str(server.port) for server in self._servers),
            "OPTIONS": {"target_session_attrs": "read-write"},
        }

    def begin(self) -> None:
        """Start the two."""
        self.primary.make()
        self.primary.start()
        self.follow()

    def follow(self) -> None:
        """Have the standby begin anew with what the primary has, and wait until it streams."""
        if self.standby.is_running:
            self.standby.stop()
        self.standby.copy(self.primary)
        self.standby.start()
        deadline = time.monotonic() + _STREAMING_SECONDS
        while not self.has_standby:
            assert time.monotonic() < deadline, "The standby does not stream."
            time.sleep(0.05)
        # Only now, since commits would wait for it.
        self.wait_for_standby(self.synchronous)

    def fail_over(self) -> None:
        """Kill the primary and promote the standby. Nobody follows it until ``follow``."""
        self.primary.stop()
        self.promote()

    def promote(self) -> None:
        """Promote the standby, wherever the primary is."""
        self.standby.promote()
        self.primary, self.standby = self.standby, self.primary
        # It is in the configuration that was copied, and there is nobody to wait for.
        self.wait_for_standby(False)

    def cut_off(self) -> None:
        """Have the standby get no more of what the primary has, until it follows anew."""
        self.standby.execute("ALTER SYSTEM SET primary_conninfo = ''")
        self.standby.execute("SELECT pg_reload_conf()")
        deadline = time.monotonic() + _STREAMING_SECONDS
        while self.standby.execute("SELECT 1 FROM pg_stat_wal_receiver"):
            assert time.monotonic() < deadline, "The standby does not let go of the primary."
            time.sleep(0.01)

    def stop(self) -> None:
        """End what runs."""
        for server in self._servers:
            if server.is_running:
                server.stop()

    def wait_for_standby(self, waits: bool) -> None:
        """Let commits wait for the standby from now on, or not."""
        names = "*" if waits else ""
        self.primary.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{names}'")
        self.primary.execute("SELECT pg_reload_conf()")

    @property
    def has_standby(self) -> bool:
        """Whether the standby gets what the primary has."""
        return self.standby.is_running and bool(self.primary.execute(_STREAMS))


@contextmanager
def _home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        if os.getuid() == 0:
            os.chown(home, pwd.getpwnam("postgres").pw_uid, -1)
        yield Path(home)
