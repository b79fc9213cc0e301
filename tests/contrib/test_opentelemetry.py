"""The figures of a process, as OpenTelemetry's SDK reads them."""

from collections.abc import Iterator

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    InMemoryMetricReader,
    Metric,
    NumberDataPoint,
    Sum,
)

from django_sse import acancel, apublish
from django_sse.contrib.opentelemetry import instrument
from tests.streams import news, open_stream, until

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("everything_ends")]


class Observed:
    """What a reader sees of the meter."""

    def __init__(self) -> None:
        self.reader = InMemoryMetricReader()
        self.provider = MeterProvider([self.reader])
        instrument(self.provider)

    def metrics(self) -> dict[str, Metric]:
        data = self.reader.get_metrics_data()
        [of_resource] = data.resource_metrics if data else []
        [of_scope] = of_resource.scope_metrics
        assert of_scope.scope.name == "django_sse"
        return {metric.name: metric for metric in of_scope.metrics}

    def value(self, name: str, **attributes: str) -> float:
        metric = self.metrics().get(f"django_sse.{name}")
        points = metric.data.data_points if metric else []
        return sum(
            point.value
            for point in points
            if isinstance(point, NumberDataPoint) and dict(point.attributes or {}) == attributes
        )


@pytest.fixture
def observed() -> Iterator[Observed]:
    observed = Observed()
    yield observed
    observed.provider.shutdown()


async def test_the_figures_of_this_process_are_observed(observed: Observed) -> None:
    async with open_stream(news) as reader, open_stream(news):
        published, delivered, closed = (
            observed.value("events.published"),
            observed.value("events.delivered"),
            observed.value("streams.closed", reason="cancelled"),
        )
        await apublish("news", "hi")
        await reader.next_event()
        await until(lambda: observed.value("streams") == 2)
        await until(lambda: observed.value("events.delivered") == delivered + 2)
        assert observed.value("events.published") == published + 1
        await acancel("news")
        await reader.rest()
    await until(lambda: observed.value("streams.closed", reason="cancelled") == closed + 2)
    assert observed.value("streams") == 0


async def test_counters_grow_amounts_go_up_and_down_and_levels_are_gauges(
    observed: Observed,
) -> None:
    async with open_stream(news):
        metrics = observed.metrics()
    counter, amount, level = (
        metrics[f"django_sse.{name}"].data for name in ("streams.opened", "streams", "store_lag")
    )
    assert isinstance(counter, Sum)
    assert counter.is_monotonic
    assert counter.aggregation_temporality is AggregationTemporality.CUMULATIVE
    assert isinstance(amount, Sum)
    assert not amount.is_monotonic
    assert isinstance(level, Gauge)
    assert metrics["django_sse.waiting"].unit == "By"
    assert metrics["django_sse.event_loop_lag"].unit == "s"
