"""What processes report of their streams, beside what their clients got."""

import asyncio
import json
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.live.client import SECONDS, act, connect, until_open
from tests.live.engines import ENGINES
from tests.live.servers import manage, serve, unavailable

# What it shows is the stores'.
pytestmark = pytest.mark.once


@pytest.mark.parametrize("engine", ["postgresql", "redis"])
async def test_the_status_agrees_with_the_clients_also_after_a_kill(
    engine: str, tmp_path: Path
) -> None:
    if lacking := ENGINES[engine].lacks():
        unavailable(f"{lacking} is not installed")
    with ExitStack() as running:
        environment = running.enter_context(ENGINES[engine].run()).environment
        await manage(tmp_path, "migrate", "--verbosity", "0", **environment)
        one, other = (
            running.enter_context(serve("uvicorn", tmp_path, **environment))  # type: ignore[arg-type]
            for _ in range(2)
        )

        async def status(count: int) -> dict[str, dict[str, Any]]:
            reports: list[dict[str, Any]] = []
            async with asyncio.timeout(SECONDS):
                # A busy process may answer too late for one look.
                while len(reports) != count:
                    shown = await manage(
                        tmp_path, "sse_status", "--json", "--wait", "3", **environment
                    )
                    reports = json.loads(shown)["processes"]
            return {report["process"].rpartition(":")[2]: report for report in reports}

        async with AsyncExitStack() as stack:
            clients = [
                await (await stack.enter_async_context(connect(port, "/events/news/"))).opened()
                for port in (one.port, one.port, other.port, other.port, other.port)
            ]
            for number in range(10):
                await act(one.port, "/publish/news/", data=str(number))
            await asyncio.gather(*(client.events(10) for client in clients))
            reports = await status(2)
            assert {pid: report["streams"] for pid, report in reports.items()} == {
                str(one.pid): 2,
                str(other.pid): 3,
            }
            delivered = {pid: report["counters"]["delivered"] for pid, report in reports.items()}
            assert delivered == {str(one.pid): 20, str(other.pid): 30}
            assert reports[str(one.pid)]["counters"]["published"] == 10
            assert reports[str(other.pid)]["groups"] == {"news": 3}

            one.kill()
            await act(other.port, "/publish/news/", data="last")
            await asyncio.gather(*(client.event() for client in clients[2:]))
            [report] = (await status(1)).values()
            assert report["counters"]["delivered"] == 33
        await until_open(other.port, 0)
