"""What monitoring systems see of a server with several workers."""

import asyncio
import json
from contextlib import AsyncExitStack
from pathlib import Path
from urllib.request import urlopen

import pytest
from django.urls import path
from prometheus_client.parser import text_string_to_metric_families

from django_sse.contrib.prometheus import metrics
from django_sse.health import HealthView
from tests import urls
from tests.live.client import act, connect
from tests.live.servers import serve

# What it shows is not of Python.
pytestmark = pytest.mark.once

urlpatterns = [
    *urls.urlpatterns,
    path("metrics/", metrics),
    path("health/", HealthView.as_view(timeout=20)),
]

CLIENTS = 12


async def fetched(port: int, path: str) -> str:
    def fetch() -> str:
        with urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
            text: str = answer.read().decode()
            return text

    return await asyncio.to_thread(fetch)


async def summed(port: int, *names: str) -> list[float]:
    families = list(text_string_to_metric_families(await fetched(port, "/metrics/")))
    return [
        sum(
            sample.value
            for family in families
            for sample in family.samples
            if sample.name == f"django_sse_{name}"
        )
        for name in names
    ]


async def test_a_scrape_of_any_worker_has_the_figures_of_all(tmp_path: Path) -> None:
    with serve(
        "uvicorn", tmp_path, options=("--workers", "2"), LIVE_URLCONF="tests.live.test_metrics"
    ) as server:
        assert json.loads(await fetched(server.port, "/health/"))["status"] == "ok"
        async with AsyncExitStack() as stack:
            clients = [
                await (
                    await stack.enter_async_context(connect(server.port, "/events/news/"))
                ).opened()
                for _ in range(CLIENTS)
            ]
            await act(server.port, "/publish/news/", data="hi")
            await asyncio.gather(*(client.event() for client in clients))
            async with asyncio.timeout(60):
                # A busy worker may answer too late for one scrape.
                while (
                    await summed(server.port, "streams", "events_delivered_total") != [CLIENTS] * 2
                ):
                    pass
