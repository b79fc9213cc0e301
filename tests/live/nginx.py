"""nginx before a server, with its default settings for a proxy."""

import getpass
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.live.servers import unavailable
from tests.ports import free_port, wait_until_listening

# What is named is for running beside another nginx, or, as gzip, what Debian's own file has.
_CONFIGURATION = """
daemon off;
pid {directory}/nginx.pid;
{user}
worker_processes 1;
error_log stderr warn;
events {{}}
http {{
    access_log off;
    gzip on;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    server {{
        listen 127.0.0.1:{port};
        listen 127.0.0.1:{http2_port} http2;
        listen 127.0.0.1:{tls_port} ssl http2;
        ssl_certificate {directory}/certificate.pem;
        ssl_certificate_key {directory}/key.pem;
        location / {{
            proxy_pass http://127.0.0.1:{server_port};
            {settings}
        }}
        {more}
    }}
}}
"""


@dataclass(frozen=True)
class Nginx:
    """A running nginx: HTTP/1.1 on ``port``, and HTTP/2 on the others, on one of them by TLS."""

    port: int
    http2_port: int
    tls_port: int


@contextmanager
def nginx(
    server_port: int, directory: Path, *, settings: str = "", more: str = ""
) -> Iterator[Nginx]:
    """Run nginx before what listens on a port, now or later: it answers 502 while nothing does.

    Args:
        directory: An empty one of its own.
        settings: Directives of the location, beside ``proxy_pass``.
        more: Directives of its ``server``, such as other locations.
    """
    command = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if not command:
        unavailable("nginx is not installed")
    make_certificate(directory)
    running = Nginx(free_port(), free_port(), free_port())
    configuration, output = directory / "nginx.conf", directory / "nginx.log"
    configuration.write_text(
        _CONFIGURATION.format(
            directory=directory,
            # Its workers may not enter the directory otherwise.
            user=f"user {getpass.getuser()};" if os.geteuid() == 0 else "",
            port=running.port,
            http2_port=running.http2_port,
            tls_port=running.tls_port,
            server_port=server_port,
            settings=settings,
            more=more,
        )
    )
    with (
        output.open("wb") as file,
        subprocess.Popen(
            [command, "-e", "stderr", "-p", str(directory), "-c", str(configuration)],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        try:
            wait_until_listening(process, running.port)
            yield running
        finally:
            process.terminate()
            process.wait()
            # Shown by pytest where a test has failed.
            print(output.read_text())  # noqa: T201


def make_certificate(directory: Path) -> None:
    """Make a certificate for this machine, which nobody has signed."""
    if not shutil.which("openssl"):
        unavailable("openssl is not installed")
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    files = ["-keyout", f"{directory}/key.pem", "-out", f"{directory}/certificate.pem"]
    subprocess.run(
        ["openssl", "req", "-x509", *key, *files, "-subj", "/CN=localhost", "-days", "1"],
        check=True,
        capture_output=True,
    )
