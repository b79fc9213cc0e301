"""A PgBouncer of the tests' own, which lends a connection for one transaction at a time."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.ports import free_port, wait_until_listening

ALIAS = "pooled"


def binary() -> str | None:
    """Return the path of pgbouncer, where it is installed."""
    return shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


@contextmanager
def serve(postgresql_port: int) -> Iterator[int]:
    """Run one in front of a server for the length of the block; gives its port."""
    program = binary()
    assert program
    # It refuses to run as root.
    account = "postgres" if os.getuid() == 0 else None
    port = free_port()
    with tempfile.TemporaryDirectory() as directory:
        settings = Path(directory, "pgbouncer.ini")
        settings.write_text(
            "[databases]\n"
            f"* = host=127.0.0.1 port={postgresql_port} user=postgres\n"
            "[pgbouncer]\n"
            "listen_addr = 127.0.0.1\n"
            f"listen_port = {port}\n"
            "unix_socket_dir =\n"
            "auth_type = any\n"
            "pool_mode = transaction\n"
            # Seconds, 15 by default, until it asks a server again that was away.
            "server_login_retry = 1\n"
        )
        if account:
            os.chown(directory, pwd.getpwnam(account).pw_uid, -1)
        with subprocess.Popen(
            [program, "-q", settings], user=account, stderr=subprocess.DEVNULL
        ) as process:
            try:
                wait_until_listening(process, port)
                yield port
            finally:
                process.terminate()
