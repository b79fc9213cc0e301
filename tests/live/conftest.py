"""Fixtures of the tests on real servers."""

from collections.abc import Iterator

import pytest
from selenium import webdriver

from tests.live.browser import chromium
from tests.live.servers import SERVERS, Server, require, serve


def pytest_itemcollected(item: pytest.Item) -> None:
    # Those in a browser are about what a server has sent, which the others test on each Python.
    if "browser" in getattr(item, "fixturenames", ()):
        item.add_marker("once")


@pytest.fixture(scope="module", params=SERVERS)
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
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """Chromium, started once for all tests; each takes a tab of its own."""
    with chromium(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture
def group(request: pytest.FixtureRequest) -> str:
    """A group of the test's own, so that tests can share a server."""
    return str(request.node.originalname)
