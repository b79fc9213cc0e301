"""A MariaDB server of the tests' own, started from Debian's binaries."""

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.ports import free_port

ALIAS = "mysql"

_START_SECONDS = 60


def binaries() -> Path | None:
    """Return the directory of MariaDB's server, where it is installed."""
    # Debian has it where only root's PATH looks.
    server = shutil.which("mariadbd", path=f"{os.environ['PATH']}:/usr/sbin")
    return Path(server).parent if server and shutil.which("mariadb-install-db") else None


@contextmanager
def serve(directory: Path) -> Iterator[int]:
    """Run a server for the length of the block; gives its port."""
    # It refuses to run as root.
    account = "mysql" if os.getuid() == 0 else None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        if account:
            os.chown(home, pwd.getpwnam(account).pw_uid, -1)
        port = free_port()
        data, socket = f"{home}/data", f"{home}/socket"
        # A server that starts deletes the temporary tables in there, also those of other servers.
        temporary = f"--tmpdir={home}"
        subprocess.run(
            [
                "mariadb-install-db",
                "--no-defaults",
                f"--datadir={data}",
                temporary,
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
            ],
            check=True,
            capture_output=True,
            user=account,
            cwd=home,
        )
        with open(f"{home}/log", "wb") as log:
            server = subprocess.Popen(
                [
                    directory / "mariadbd",
                    "--no-defaults",
                    f"--datadir={data}",
                    temporary,
                    f"--socket={socket}",
                    f"--port={port}",
                    "--bind-address=127.0.0.1",
                    "--character-set-server=utf8mb4",
                    # For speed: no data are to survive.
                    "--innodb-flush-log-at-trx-commit=0",
                    "--innodb-flush-method=nosync",
                ],
                stdout=log,
                stderr=log,
                user=account,
                cwd=home,
            )
        try:
            deadline = time.monotonic() + _START_SECONDS
            # Made only once it listens.
            while not os.path.exists(socket):
                if server.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(Path(f"{home}/log").read_text())
                time.sleep(0.02)
            yield port
        finally:
            server.kill()
            server.wait()
