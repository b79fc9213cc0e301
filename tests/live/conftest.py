"""Fixtures of the tests on real servers."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from itertools import count
from pathlib import Path
from zlib import crc32

import pytest

from tests.live.browser import BROWSERS, Browser, Tab
from tests.live.servers import SERVERS, Server, require, serve
from tests.live.sites import Site, run

_numbers = count()
_number = pytest.StashKey[int]()


def pytest_itemcollected(item: pytest.Item) -> None:
    item.stash[_number] = next(_numbers)
    # Those in a browser are about what a server has sent, which the others test on each Python.
    if "browser" in getattr(item, "fixturenames", ()):
        item.add_marker("once")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of a module back into the order in which they are written, for each browser,
    server or whatever else they share in turn.

    They share a server and its database, and what one leaves there the next one finds.
    """
    places = defaultdict(list)
    for place, item in enumerate(items):
        if _number in item.stash:
            places[item.path].append(place)
    for of_module in places.values():
        tests = sorted((items[place] for place in of_module), key=_as_written)
        for place, test in zip(of_module, tests, strict=True):
            items[place] = test


def _as_written(item: pytest.Item) -> tuple[list[str], int]:
    shared = []
    if isinstance(item, pytest.Function) and hasattr(item, "callspec"):
        fixtures = item._fixtureinfo.name2fixturedefs
        # By value: the only browser of a test that runs in turn is its first one, whichever it is.
        shared = [
            str(value)
            for name, value in item.callspec.params.items()
            if name in fixtures and fixtures[name][-1].scope == "module"
        ]
    return sorted(shared), item.stash[_number]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    # Of a module, so that all its tests in one browser come before those in the next.
    if "browser" in metafunc.fixturenames:
        names = list(BROWSERS)
        if metafunc.definition.get_closest_marker("chromium"):
            names = ["chromium"]
        elif metafunc.definition.get_closest_marker("in_turn") and not metafunc.config.getoption(
            "every_browser"
        ):
            names = [names[crc32(metafunc.definition.name.encode()) % len(names)]]
        metafunc.parametrize("browser", names, indirect=True, scope="module")


# A newer Python serves with one of them; what differs between them is theirs.
_ON_EACH_PYTHON = "uvicorn"


@pytest.fixture(
    scope="module",
    params=[
        name if name == _ON_EACH_PYTHON else pytest.param(name, marks=pytest.mark.once)
        for name in SERVERS
    ],
)
def running_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    require(request.param)
    with serve(request.param, tmp_path_factory.mktemp(request.param)) as server:
        yield server


@pytest.fixture
def server(running_server: Server) -> Iterator[Server]:
    """Each of the servers, started once for all tests of a module."""
    yield running_server
    # Shown by pytest where the test has failed.
    print(running_server.log())  # noqa: T201


@pytest.fixture(scope="session")
def running_browser(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[str], Browser]]:
    """Gives a browser by its name; each is started once for all tests."""
    with ExitStack() as running:

        @cache
        def start(name: str) -> Browser:
            return running.enter_context(BROWSERS[name](tmp_path_factory.mktemp(name)))

        yield start


@pytest.fixture(scope="module")
def browser(request: pytest.FixtureRequest, running_browser: Callable[[str], Browser]) -> Browser:
    """Each of the browsers in turn, or Chromium for a test that is marked so.

    The tests share it; each takes a tab of its own.
    """
    return running_browser(request.param)


@pytest.fixture
def another_profile(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Browser]:
    """The same browser with another profile, which has no cookies and no storage of the first."""
    with BROWSERS[request.node.callspec.params["browser"]](tmp_path) as another:
        yield another


@pytest.fixture(scope="module")
def directory(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory for each browser, whose server there is asked by it alone."""
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def site(request: pytest.FixtureRequest, directory: Path) -> Iterator[Site]:
    """The test project for a browser, with the settings that a test's module names ``SITE``."""
    with run(directory, **getattr(request.module, "SITE", {})) as site:
        yield site
        assert "Traceback" not in site.server.log()


@pytest.fixture
def tab(browser: Browser, site: Site) -> Iterator[Tab]:
    """A tab with a page of the test project."""
    with Tab.open(browser, site.origin) as tab:
        # They are those of all ports of a host, and so of the sites of other tests.
        browser.delete_all_cookies()
        yield tab


@pytest.fixture
def group(request: pytest.FixtureRequest) -> str:
    """A group of the test's own, so that tests can share a server."""
    return str(request.node.originalname)
