"""The test project for a browser: clients come back soon, and the network to it can be cut."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.live.browser import Requests
from tests.live.client import SECONDS
from tests.live.network import Network
from tests.live.servers import ROOT, Server, launch, project_environment, require
from tests.ports import free_port

# Short, so that a browser which is not stopped for good comes back while the test looks on.
RETRY = 0.2
# What a client is told that is to come back at a time of its own: so many seconds, up to twice.
JITTERED_RETRY = 0.5
# How long a process may take to learn from the store what another one has done, in seconds.
SYNC_INTERVAL = 1.0

REQUEST_LOG = "requests"


@dataclass(frozen=True)
class Site:
    """The test project on a server behind a network, with a log of all requests that reach it."""

    server: Server
    network: Network

    @property
    def origin(self) -> str:
        return self.origin_of("127.0.0.1")

    def origin_of(self, host: str) -> str:
        """Return the origin by another name; what ends in ``.localhost`` is this machine."""
        return f"http://{host}:{self.network.port}"

    @property
    def other_origin(self) -> str:
        """Another origin of the same site, to which browsers send the same cookies."""
        return f"http://127.0.0.1:{self.server.port}"

    @property
    def requests(self) -> Requests:
        return Requests(self.server.directory / REQUEST_LOG)

    def statuses(self, url: str) -> list[int | None]:
        """Return the status of each request for a URL."""
        return self.requests.statuses(url)

    def publish(self, group: str, data: str) -> None:
        self.act(f"/publish/{group}/", data=data)

    @contextmanager
    def pushing(self, group: str) -> Iterator[Callable[[str], None]]:
        """Give what publishes a line from another process, without waiting for it."""
        with subprocess.Popen(
            [sys.executable, "manage.py", "sse_push", group, "-"],
            cwd=ROOT,
            env=project_environment(self.server.directory),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        ) as process:
            yield lambda line: print(line, file=process.stdin, flush=True)
        assert process.returncode == 0

    def cancel(self, group: str, reason: str) -> None:
        self.act(f"/cancel/{group}/", reason=reason)

    def reopen(self, group: str) -> None:
        self.act(f"/reopen/{group}/")

    def open_streams(self) -> int:
        return int(self.act("/open-streams/"))

    def act(self, path: str, **query: str) -> str:
        """Let a view do something, which is not in the way of the browser; return its answer."""
        url = f"{self.other_origin}{path}"
        # To read the certificates of all authorities would take longer than the request.
        return httpx.get(url, params=query, verify=False, timeout=SECONDS).raise_for_status().text


@contextmanager
def run(
    directory: Path,
    *,
    port: int | None = None,
    environment: Mapping[str, str] | None = None,
    **settings: object,
) -> Iterator[Site]:
    """Run the test project on the database in a directory, which several may share.

    Args:
        environment: What else ``tests.live.settings`` reads.
        settings: Keys of ``DJANGO_SSE``.
    """
    require("uvicorn")
    port = port or free_port()
    environment = {
        "LIVE_DJANGO_SSE": json.dumps(
            {"RETRY": round(RETRY * 1000), "SYNC_INTERVAL": SYNC_INTERVAL, **settings}
        ),
        "LIVE_REQUEST_LOG": str(directory / REQUEST_LOG),
        **(environment or {}),
    }
    with (
        launch("uvicorn", directory, port, "tests.asgi:application", **environment) as server,
        Network.to(port) as network,
    ):
        yield Site(server, network)
        # Shown by pytest where a test has failed.
        print(server.log())  # noqa: T201
