"""The monitor of the admin: on each server, and as a page shows it, while a process is killed."""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from django_sse.event import Event
from tests.live.browser import Browser, Tab, wait_until
from tests.live.client import SECONDS, Response, act, connect
from tests.live.engines import ENGINES
from tests.live.servers import Server, manage, require, serve, unavailable

SITE = {"DJANGO_SETTINGS_MODULE": "tests.live.admin_settings"}
STREAM = "/admin/django_sse/eventgroup/monitor/stream/"
MONITOR = "/admin/django_sse/eventgroup/monitor/"
GROUPS = "/admin/django_sse/eventgroup/"
ADMIN = "root"


async def prepare(directory: Path, **environment: str) -> None:
    """Make the tables, and somebody who may do everything."""
    await manage(directory, "migrate", "--verbosity", "0", **SITE, **environment)
    arguments = ("--noinput", "--username", ADMIN, "--email", "root@example.org")
    password = {"DJANGO_SUPERUSER_PASSWORD": "not used"}
    await manage(directory, "createsuperuser", *arguments, **password, **SITE, **environment)


@contextmanager
def two_servers(name: str, directory: Path, **environment: str) -> Iterator[tuple[Server, Server]]:
    with (
        serve(name, directory, **SITE, **environment) as one,  # type: ignore[arg-type]
        serve(name, directory, **SITE, **environment) as other,  # type: ignore[arg-type]
    ):
        yield one, other


async def logged_in(port: int) -> dict[str, str]:
    """Return the headers of an admin's browser."""
    async with connect(port, f"/login/?user={ADMIN}") as response:
        cookies = [line.partition(";")[0] for line in response.headers.get_all("set-cookie", [])]
    return {"Cookie": "; ".join(cookies)}


async def streams_by_process(stream: Response, streams: set[int]) -> dict[str, int]:
    """Return the streams that processes have reported, once these numbers are among them."""
    reported: dict[str, int] = {}
    async with asyncio.timeout(SECONDS):
        while set(reported.values()) != streams:
            event: Event = await stream.event()
            assert event.event == "report"
            report = event.json()
            reported[report["process"]] = report["streams"]
    return reported


@pytest.mark.once
@pytest.mark.parametrize(
    ("name", "engine"),
    [
        ("daphne", "sqlite"),
        ("granian", "sqlite"),
        ("hypercorn", "redis"),
        ("uvicorn", "postgresql"),
    ],
)
async def test_the_monitor_gets_the_reports_of_two_processes(
    name: str, engine: str, tmp_path: Path
) -> None:
    require(name)
    if lacking := ENGINES[engine].lacks():
        unavailable(f"{lacking} is not installed")
    with ENGINES[engine].run() as services:
        await prepare(tmp_path, **services.environment)
        with two_servers(name, tmp_path, **services.environment) as (one, other):
            headers = await logged_in(one.port)
            async with (
                connect(other.port, "/events/news/") as reader,
                connect(other.port, "/events/sport/") as another,
                connect(one.port, STREAM, headers=headers) as stream,
            ):
                await reader.opened()
                await another.opened()
                assert stream.headers["content-type"].startswith("text/event-stream")
                # The stream of the monitor is one, too.
                assert len(await streams_by_process(stream, {1, 2})) == 2
                await act(one.port, "/cancel-user/", user=ADMIN, reason="kicked")
                assert (await stream.rest())[-1].event == "close"


@pytest.fixture(scope="module")
def site_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("admin")
    asyncio.run(prepare(directory))
    return directory


def table(tab: Tab) -> dict[str, list[str]]:
    """Return the rows of the monitor's table: the classes, and the cells, by the first cell."""
    rows = tab.run(
        "return [...document.querySelectorAll('#sse-processes tbody tr')].map((row) =>"
        " [row.className, ...[...row.children].map((cell) => cell.textContent)])"
    )
    return {row[1]: [row[0], *row[2:]] for row in rows}


def total(tab: Tab) -> list[str]:
    cells: list[str] = tab.run(
        "return [...document.querySelectorAll('#sse-processes tfoot td')]"
        ".map((cell) => cell.textContent)"
    )
    return cells


@pytest.mark.in_turn
def test_the_page_shows_processes_and_greys_one_that_was_killed(
    browser: Browser, site_directory: Path
) -> None:
    require("uvicorn")
    with ExitStack() as stack:
        one, other = stack.enter_context(two_servers("uvicorn", site_directory))
        origin, elsewhere = (f"http://127.0.0.1:{server.port}" for server in (one, other))
        readers = stack.enter_context(Tab.open(browser, elsewhere))
        readers.opened("/events/news/")
        tab = stack.enter_context(Tab.open(browser, origin))
        tab.get(f"/login/?user={ADMIN}")
        tab.go(f"{origin}{MONITOR}")
        wait_until(lambda: len(table(tab)) == 2, lambda: str(table(tab)))
        assert [row[0] for row in table(tab).values()] == ["", ""]
        [killed] = [name for name in table(tab) if name.endswith(f":{other.pid}")]
        asyncio.run(act(other.port, "/publish/news/", data="hi"))
        wait_until(lambda: table(tab)[killed][6] != "0", lambda: str(table(tab)))
        published = total(tab)[6]
        other.kill()
        wait_until(
            lambda: any("silent for" in name for name in table(tab)), lambda: str(table(tab))
        )
        [grey] = [row for name, row in table(tab).items() if "silent for" in name]
        assert grey[0] == "sse-silent"
        # Its streams are no more; what it has counted is.
        assert total(tab)[0] == "1"
        assert int(total(tab)[6]) >= int(published)


@pytest.mark.in_turn
def test_the_list_shows_how_many_streams_a_group_has(
    browser: Browser, site_directory: Path
) -> None:
    require("uvicorn")
    with serve("uvicorn", site_directory, **SITE) as server:  # type: ignore[arg-type]
        origin = f"http://127.0.0.1:{server.port}"
        with Tab.open(browser, origin) as readers, Tab.open(browser, origin) as tab:
            asyncio.run(act(server.port, "/publish/sport/", data="hi"))
            readers.opened("/events/sport/")
            tab.get(f"/login/?user={ADMIN}")
            tab.go(f"{origin}{GROUPS}")

            def shown() -> str:
                found = "return document.querySelector('[data-streams-of=sport]').textContent"
                return str(tab.run(found))

            wait_until(lambda: shown() == "1", shown)
