"""Caddy and HAProxy before a server, as the documentation has them."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.live.servers import ROOT, unavailable
from tests.ports import free_port, wait_until_listening

PAGE = ROOT / "docs/servers-and-proxies.md"

# Where each listens, in the documentation and here.
_LISTENS = {
    "caddy": ("example.com {", "http://127.0.0.1:{port} {"),
    "haproxy": ("bind :80", "bind 127.0.0.1:{port}"),
}
# For running beside another Caddy.
_APART = {"caddy": "{\n    admin off\n    auto_https off\n}\n", "haproxy": ""}
_ARGUMENTS = {
    "caddy": ["run", "--adapter", "caddyfile", "--config"],
    "haproxy": ["-db", "-f"],
}
PROXIES = tuple(_LISTENS)


def documented(heading: str, language: str, page: Path = PAGE) -> str:
    """Return the configuration beneath a heading of the documentation."""
    pattern = rf"^#+ {heading}\n(?:(?!^#).)*?^```{language}\n(.*?)^```$"
    block = re.search(pattern, page.read_text(), re.MULTILINE | re.DOTALL)
    assert block, f"{page.name} has no {language} block beneath {heading!r}."
    return block[1]


@contextmanager
def proxy(name: str, server_port: int, directory: Path) -> Iterator[int]:
    """Run a proxy before what listens on a port, now or later; the block gets the proxy's port.

    It is set up as the documentation says, but for where it listens, and for how soon a client
    comes back while the server is away.
    """
    command = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    if not command:
        unavailable(f"{name} is not installed")
    port = free_port()
    there, here = _LISTENS[name]
    text = documented({"caddy": "Caddy", "haproxy": "HAProxy"}[name], "text")
    assert there in text
    text = text.replace(there, here.replace("{port}", str(port)))
    text = text.replace(":8000", f":{server_port}").replace("retry: 5000", "retry: 200")
    configuration, output = directory / f"{name}.conf", directory / f"{name}.log"
    configuration.write_text(_APART[name] + text)
    with (
        output.open("wb") as file,
        subprocess.Popen(
            [command, *_ARGUMENTS[name], str(configuration)],
            env={**os.environ, "XDG_DATA_HOME": str(directory), "XDG_CONFIG_HOME": str(directory)},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        try:
            wait_until_listening(process, port)
            yield port
        finally:
            process.kill()
            process.wait()
            # Shown by pytest where a test has failed.
            print(output.read_text())  # noqa: T201
