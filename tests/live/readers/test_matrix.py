"""Each cell of the table of clients, with the real client on a real server."""

import re
from collections.abc import Callable, Iterator
from functools import cache
from math import inf
from typing import TypeVar

import aiohttp
import httpx
import pytest

from django_sse.conf import Conf
from tests.live.browser import Browser, wait_until
from tests.live.readers.matrix import CLIENTS, PAGE, Cell, Row, page
from tests.live.readers.readers import Stage
from tests.live.readers.rows import (
    MAX_STREAMS,
    WORKS,
    Trial,
    events_of_each_kind,
    has_received,
    is_ended_by_a_view_with_history,
)
from tests.live.sites import Site, run

pytestmark = pytest.mark.once

Result = TypeVar("Result")

# Short, so that the clients that heed it are back soon.
RETRY = 0.1


class Stand:
    """Where clients are tried out, one at a time: so it is known whose stream is open."""

    def __init__(self, site: Site, stage: Stage) -> None:
        self._site = site
        self._stage = stage
        # One run shows what comes of all kinds of events.
        self._events = cache(self._events_of_each_kind)

    def works(self, client: str, row: Row, *, own_lines: bool) -> bool:
        """Return whether a client does what a row asks, with lines of one's own or without."""
        if row in WORKS:
            return self.run(client, WORKS[row], own_lines)
        return has_received(self._events(client, own_lines), row)

    def run(self, client: str, play: Callable[[Trial], Result], own_lines: bool) -> Result:
        """Play something through with a client, on a group of its own; return what comes of it."""
        program = CLIENTS[client].program
        program.require()
        wait_until(lambda: self._site.open_streams() == 0, "a stream was left open")
        group = re.sub(r"\W", "-", f"{client}.{play.__name__}.{own_lines}")
        with program.ready(self._stage) as start:
            return play(Trial(self._site, group, start, own_lines))

    def _events_of_each_kind(self, client: str, own_lines: bool) -> list[tuple[str, str]]:
        return self.run(client, events_of_each_kind, own_lines)


@pytest.fixture(scope="module")
def stand(
    running_browser: Callable[[str], Browser], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stand]:
    directory = tmp_path_factory.mktemp("readers")
    environment = {"LIVE_URLCONF": "tests.live.readers.urls"}
    limits = {"MAX_STREAMS_PER_GROUP": MAX_STREAMS}
    with run(directory, environment=environment, RETRY=round(RETRY * 1000), **limits) as site:
        stage = Stage(site.origin, directory, lambda: running_browser("chromium"))
        yield Stand(site, stage)
        assert "Traceback" not in site.server.log()


@pytest.mark.parametrize("row", Row, ids=lambda row: row.name.lower())
@pytest.mark.parametrize("client", CLIENTS)
def test_a_cell_of_the_table_is_as_it_says(stand: Stand, client: str, row: Row) -> None:
    cell = CLIENTS[client].cell(row)
    assert stand.works(client, row, own_lines=False) == (cell is Cell.YES)
    # To end at `close` has to be possible for those, too, whose own lines make them come back.
    if cell is not Cell.YES or row is Row.CLOSE:
        assert stand.works(client, row, own_lines=True) == (cell is not Cell.NO)


def test_a_view_with_history_ends_a_client_that_204_does_not(stand: Stand) -> None:
    client = "reconnecting-eventsource"
    assert CLIENTS[client].cell(Row.NO_CONTENT) is Cell.NO
    assert stand.run(client, is_ended_by_a_view_with_history, own_lines=True)


def test_clients_with_a_time_limit_of_their_own_have_to_be_told_a_longer_one() -> None:
    assert (httpx.Client().timeout.read or inf) < (Conf().HEARTBEAT or inf)
    assert aiohttp.client.DEFAULT_TIMEOUT.total == 5 * 60


def test_the_documentation_has_the_table_that_is_tested() -> None:
    assert PAGE.read_text() == page(), "Run python -m tests.live.readers."
