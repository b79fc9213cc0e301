"""What each server sends with is known, so that no event needs a task."""

from pathlib import Path

import httpx
import pytest

from tests.live.servers import SERVERS, require, serve

pytestmark = pytest.mark.once


@pytest.mark.parametrize("name", SERVERS)
def test_a_servers_own_needs_no_task(name: str, tmp_path: Path) -> None:
    require(name)
    with serve(name, tmp_path, application="tests.live.own_send:application") as server:
        assert httpx.get(f"http://127.0.0.1:{server.port}/").text == "True"
