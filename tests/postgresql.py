"""A PostgreSQL server of the tests' own, started from Debian's binaries."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.ports import free_port

ALIAS = "postgresql"


def binaries() -> Path | None:
    """Return the directory of the newest PostgreSQL installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if found:
        return found[-1].parent
    initdb = shutil.which("initdb")
    return Path(initdb).parent if initdb else None


@contextmanager
def serve(directory: Path) -> Iterator[int]:
    """Run a server for the length of the block; gives its port."""
    # It refuses to run as root.
    account = "postgres" if os.getuid() == 0 else None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as data:
        if account:
            os.chown(data, pwd.getpwnam(account).pw_uid, -1)
        port = free_port()
        subprocess.run(
            [directory / "initdb", "-D", data, "-A", "trust", "-U", "postgres", "-E", "UTF8"],
            check=True,
            capture_output=True,
            user=account,
            cwd=data,
        )
        options = f"-p {port} -k {data} -c listen_addresses=127.0.0.1 -c fsync=off"
        control = [str(directory / "pg_ctl"), "-D", data, "-w"]
        with open(os.path.join(tempfile.gettempdir(), f"postgresql-{port}.log"), "wb") as log:
            subprocess.run(
                [*control, "-o", options, "start"],
                check=True,
                stdout=log,
                stderr=log,
                user=account,
                cwd=data,
            )
        try:
            yield port
        finally:
            subprocess.run(
                [*control, "-m", "immediate", "stop"],
                check=True,
                capture_output=True,
                user=account,
                cwd=data,
            )
            os.unlink(log.name)
