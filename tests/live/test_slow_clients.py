"""A client that does not read costs bounded memory, is let go, and has lost nothing."""

import json
from pathlib import Path

import pytest

from django_sse import Event
from tests.live.client import connect, until_open
from tests.live.servers import SERVERS, finish, require, serve, start

EVENT_BYTES = 64 * 1024
EVENTS = 20 * 1024 * 1024 // EVENT_BYTES
# Published, and not yet received by the client that reads.
AHEAD = 4


def number_of(event: Event) -> int:
    number, text = event.text.split()
    assert len(text) == EVENT_BYTES
    return int(number)


@pytest.mark.parametrize("name", SERVERS)
@pytest.mark.parametrize(
    "bounds",
    [
        pytest.param({"BACKLOG_BYTES": 4 * AHEAD * EVENT_BYTES}, id="backlog"),
        pytest.param({"BACKLOG_BYTES": 10**9, "SEND_TIMEOUT": 1}, id="timeout"),
    ],
)
async def test_a_client_that_does_not_read_is_ended_and_resumes_later(
    name: str, bounds: dict[str, int], tmp_path: Path
) -> None:
    require(name)
    settings = json.dumps({"SYNC_INTERVAL": 0.02, **bounds})
    with serve(name, tmp_path, LIVE_DJANGO_SSE=settings) as server:
        async with (
            connect(server.port, "/events/news/") as slow,
            connect(server.port, "/events/news/") as fast,
        ):
            await slow.opened()
            await fast.opened()
            await until_open(server.port, 2)

            pushing = await start(tmp_path, "sse_push", "news", "-", LIVE_DJANGO_SSE=settings)
            assert pushing.stdin
            for number in range(EVENTS + AHEAD):
                if number < EVENTS:
                    pushing.stdin.write(b"%d %s\n" % (number, b"x" * EVENT_BYTES))
                if number >= AHEAD:
                    assert number_of(await fast.event()) == number - AHEAD
            await finish(pushing)

            await until_open(server.port, 1)
            received = [number_of(event) for event in await slow.rest()]
            assert len(received) < EVENTS
            position = slow.last_event_id

        async with connect(server.port, "/events/news/", last_event_id=position) as resumed:
            received += [number_of(event) for event in await resumed.events(EVENTS - len(received))]
        assert received == list(range(EVENTS))
