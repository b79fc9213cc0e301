"""The contenders that are not Python's: the C floor, better-sse on Node, and nchan in nginx."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import unquote

from tests import npm
from tests.benchmarks.apps.payload import payload
from tests.benchmarks.contenders.base import Contender, Running, process_of
from tests.benchmarks.machine import HERE, build, raise_file_limit
from tests.ports import free_port

_BETTER_SSE = HERE / "apps" / "better_sse"
_NGINX_CONF = HERE / "apps" / "nginx.conf"
_MODULE = "usr/lib/nginx/modules/ngx_nchan_module.so"
_PACKAGE = "libnginx-mod-nchan"
# Where the package is unpacked if it is not installed.
_UNPACKED = HERE / "build"


class Floor(Contender):
    """A C program that does nothing but write."""

    def lacks(self) -> str | None:
        return None if shutil.which("cc") else "cc is not installed"

    @contextmanager
    def run(self, directory: Path) -> Iterator[Running]:
        port = free_port()
        with process_of([str(build("floor", directory)), str(port)], port) as pid:
            yield Running(port, pid)


class BetterSse(Contender):
    """better-sse on Node."""

    def lacks(self) -> str | None:
        if not shutil.which("node") or not shutil.which("npm"):
            return "node and npm are not installed"
        try:
            npm.install(_BETTER_SSE)
        except (subprocess.SubprocessError, OSError) as error:
            return f"npm could not install better-sse ({error})"
        return None

    @contextmanager
    def run(self, directory: Path) -> Iterator[Running]:
        port = free_port()
        command = ["node", str(_BETTER_SSE / "server.js"), str(port)]
        with process_of(command, port, {"NODE_ENV": "production"}) as pid:
            yield Running(port, pid)


class Nchan(Contender):
    """nginx with the module nchan."""

    def lacks(self) -> str | None:
        if not shutil.which("nginx"):
            return "nginx is not installed"
        if not _module():
            try:
                _unpack()
            except (subprocess.SubprocessError, OSError) as error:
                return f"{_PACKAGE} could not be downloaded ({error})"
        return None

    @contextmanager
    def run(self, directory: Path) -> Iterator[Running]:
        port, conf = free_port(), directory / "nginx.conf"
        conf.write_text(
            _NGINX_CONF.read_text().format(
                module=_module(),
                directory=directory,
                port=port,
                files=raise_file_limit(),
                user="user root;" if os.getuid() == 0 else "",
            )
        )
        with process_of(["nginx", "-c", str(conf), "-p", str(directory)], port) as pid:
            yield _Nginx(port, pid)


class _Nginx(Running):
    """Takes events by POST, over one connection."""

    def order(self, what: str, **arguments: int) -> str:
        events = arguments["events"]
        numbers = range(1, events + 1)
        with socket.create_connection(("127.0.0.1", self.port)) as connection:
            if what.startswith("each"):
                groups = [f"one-{group}" for group in range(arguments["groups"])]
                for number in numbers:
                    self._post(connection, ((group, number) for group in groups))
            elif what == "burst":
                self._post(connection, (("all", number) for number in numbers))
            else:
                begun, pace = time.monotonic(), arguments.get("milliseconds", 0) / 1000
                for number in numbers:
                    time.sleep(max(0.0, begun + number * pace - time.monotonic()))
                    self._post(connection, [("all", number)])
        return ""

    def _post(self, connection: socket.socket, events: Iterable[tuple[str, int]]) -> None:
        """Post events without waiting between two of them, and wait for all answers."""
        posts = [_post(group, number) for group, number in events]
        connection.sendall(b"".join(posts))
        answered, rest = 0, b""
        while answered < len(posts):
            text = rest + connection.recv(65536)
            answered += text.count(b"HTTP/1.1 20")
            # A part of the next answer's first line may be in it.
            rest = text[text.rfind(b"\n") + 1 :]
            if b"HTTP/1.1 20" in rest:
                rest = b""


def _post(group: str, number: int) -> bytes:
    data = payload(number)
    head = f"POST /publish/{group}/ HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(data)}"
    return f"{head}\r\n\r\n{data}".encode()


def _module() -> Path | None:
    """Return nchan's module, if it is here."""
    paths = (Path("/") / _MODULE, _UNPACKED / _MODULE)
    return next((path for path in paths if path.exists()), None)


def _unpack() -> None:
    """Download the package, and unpack it here: nothing of the system changes."""
    _UNPACKED.mkdir(exist_ok=True)
    subprocess.run(
        ["apt-get", "download", _PACKAGE], cwd=_UNPACKED, check=True, capture_output=True
    )
    package = next(_UNPACKED.glob(f"{_PACKAGE}_*.deb"))
    subprocess.run(["dpkg", "-x", package, _UNPACKED], check=True)


def nchan_versions() -> list[str]:
    """Return the version of Debian's package, if it is here."""
    # The name of the file has it, with its colon encoded.
    unpacked = [unquote(path.name.split("_")[1]) for path in _UNPACKED.glob(f"{_PACKAGE}_*.deb")]
    query = ["dpkg-query", "--show", "--showformat=${Version}", _PACKAGE]
    with suppress(OSError):
        installed = subprocess.run(query, capture_output=True, text=True).stdout
        return [installed] if installed else unpacked
    return unpacked
