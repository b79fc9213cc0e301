"""The figures of ``django_sse.monitoring`` for Prometheus, by prometheus_client."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from django.db import transaction
from django.http import HttpRequest, HttpResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from django_sse.concurrency.shared_answers import SharedAnswer
from django_sse.monitoring import ProcessReport, aprocesses
from django_sse.streaming.figures import FIGURES, Figure
from django_sse.streaming.hub import report

# https://prometheus.io/docs/practices/naming/#base-units
_UNITS: Final = {"By": "_bytes", "s": "_seconds"}


class EventStreamCollector(Collector):
    """Collects the figures of this process: ``REGISTRY.register(EventStreamCollector())``.

    With several workers behind one port, a scrape reaches any of them: see ``metrics``.
    """

    def collect(self) -> Iterable[Metric]:
        """Return what there is to know now. Works in any thread."""
        here = report()
        return [_family(figure, [({}, here)]) for figure in FIGURES]


@transaction.non_atomic_requests
async def metrics(request: HttpRequest) -> HttpResponse:
    """Answer with the figures of all processes that have streams, with the label ``process``.

    It asks over the event store, and waits a second for answers. Requests that come within a second
    share them. It lets everybody in, so do not route it where strangers come.

    Raises:
        Exception: The event store could not be read or written.
    """
    reports = await _reports.get()
    registry = CollectorRegistry()
    registry.register(_Reported(reports))
    return HttpResponse(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)


_reports: Final = SharedAnswer(aprocesses)


class _Reported(Collector):
    def __init__(self, reports: Sequence[ProcessReport]) -> None:
        self._labeled = [({"process": report.process}, report) for report in reports]

    def collect(self) -> Iterable[Metric]:
        return [_family(figure, self._labeled) for figure in FIGURES]


def _family(figure: Figure, labeled: Iterable[tuple[Mapping[str, str], ProcessReport]]) -> Metric:
    name = f"django_sse_{figure.name.replace('.', '_')}{_UNITS.get(figure.unit, '')}"
    is_counter = figure.kind == "counter"
    metric = Metric(name, figure.description, "counter" if is_counter else "gauge")
    for labels, process in labeled:
        read = figure.read(process)
        for reason, value in read.items() if isinstance(read, Mapping) else [(None, read)]:
            by_reason = labels if reason is None else {**labels, "reason": reason}
            metric.add_sample(f"{name}_total" if is_counter else name, dict(by_reason), value)
    return metric
