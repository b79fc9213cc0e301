"""The figures of processes, as a Prometheus server scrapes them."""

import re

import pytest
from django.http import HttpResponse
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from pytest_django import Settings

from django_sse import acancel, apublish
from django_sse.contrib import prometheus
from django_sse.contrib.prometheus import EventStreamCollector
from django_sse.testing.threads import in_thread
from django_sse.views import EventStreamView
from tests.streams import news, open_stream, respond

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("everything_ends")]

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture(autouse=True)
def nothing_is_answered_yet() -> None:
    """No test gets the answer of another."""
    prometheus._reports.forget()


def scraped(collector: Collector) -> Samples:
    registry = CollectorRegistry()
    registry.register(collector)
    return samples_in(generate_latest(registry).decode())


def samples_in(text: str) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def figure(samples: Samples, name: str, **labels: str) -> float:
    return samples.get((f"django_sse_{name}", frozenset(labels.items())), 0.0)


async def test_a_scrape_has_the_figures_of_this_process() -> None:
    before = scraped(EventStreamCollector())
    async with open_stream(news) as reader, open_stream(news):
        await apublish("news", "hi")
        await reader.next_event()
        # As from a thread of prometheus_client's own server.
        now = await in_thread(lambda: scraped(EventStreamCollector()))
        assert figure(now, "streams") == 2
        await acancel("news")
        await reader.rest()
    after = scraped(EventStreamCollector())

    def grown(name: str, **labels: str) -> float:
        return figure(after, name, **labels) - figure(before, name, **labels)

    assert figure(after, "streams") == 0
    assert grown("streams_opened_total") == 2
    assert grown("streams_closed_total", reason="cancelled") == 2
    assert grown("events_published_total") == 1
    assert grown("events_delivered_total") == 2
    assert grown("healed_total") == 0


async def test_a_scrape_says_why_requests_were_refused(settings: Settings) -> None:
    settings.DJANGO_SSE = {"MAX_STREAMS": 1}
    before = scraped(EventStreamCollector())
    async with open_stream(news):
        assert (await respond(news)).status_code == 503
    name, reason = "requests_refused_total", "MAX_STREAMS"
    after = scraped(EventStreamCollector())
    assert figure(after, name, reason=reason) == figure(before, name, reason=reason) + 1


def test_the_names_are_those_of_the_documentation() -> None:
    samples = scraped(EventStreamCollector())
    assert {name for name, _ in samples} >= {
        "django_sse_streams",
        "django_sse_slow_clients",
        "django_sse_waiting_bytes",
        "django_sse_event_loop_lag_seconds",
        "django_sse_store_lag_seconds",
    }


async def test_one_scrape_has_the_figures_of_all_processes() -> None:
    async with open_stream(news), open_stream(EventStreamView.as_view(groups=["sport"])):
        answer = await respond(prometheus.metrics)
    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    [(labels, value)] = [
        (dict(labels), value)
        for (name, labels), value in samples_in(answer.content.decode()).items()
        if name == "django_sse_streams"
    ]
    assert re.fullmatch(r".+:\d+", labels["process"])
    assert value == 2
    assert "news" not in answer.content.decode()


async def test_scrapes_within_a_second_ask_the_processes_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = 0

    async def ask() -> list[object]:
        nonlocal asked
        asked += 1
        return []

    monkeypatch.setattr(prometheus._reports, "_ask", ask)
    answers: list[HttpResponse] = [await respond(prometheus.metrics) for _ in range(5)]
    assert {answer.status_code for answer in answers} == {200}
    assert asked == 1
