"""The figures of ``django_sse.monitoring`` for OpenTelemetry, by its API alone."""

from collections.abc import Iterable, Mapping
from functools import partial
from time import monotonic
from typing import Final

from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation, get_meter

from django_sse import __version__
from django_sse.monitoring import ProcessReport
from django_sse.streaming.figures import FIGURES, Figure
from django_sse.streaming.hub import report

# The callbacks of one collection come right after each other.
_COLLECTION_SECONDS: Final = 0.05


def instrument(meter_provider: MeterProvider | None = None) -> None:
    """Have the figures of this process observed, as instruments of the meter ``django_sse``.

    Call it once in each process: a worker that was forked has to call it, too.

    Args:
        meter_provider: The provider of the meter; None for the global one.
    """
    meter = get_meter("django_sse", __version__, meter_provider)
    create = {
        "counter": meter.create_observable_counter,
        "amount": meter.create_observable_up_down_counter,
        "level": meter.create_observable_gauge,
    }
    collected = _Collected()
    for figure in FIGURES:
        create[figure.kind](
            f"django_sse.{figure.name}",
            [partial(_observe, figure, collected)],
            figure.unit,
            figure.description,
        )


class _Collected:
    """Reads the figures once for all callbacks of a collection."""

    def __init__(self) -> None:
        self._report: ProcessReport | None = None
        self._read_at = 0.0

    def report(self) -> ProcessReport:
        here = self._report
        if here is None or monotonic() - self._read_at > _COLLECTION_SECONDS:
            here = self._report = report()
            self._read_at = monotonic()
        return here


def _observe(
    figure: Figure, collected: _Collected, options: CallbackOptions
) -> Iterable[Observation]:
    read = figure.read(collected.report())
    if isinstance(read, Mapping):
        return [Observation(value, {"reason": reason}) for reason, value in read.items()]
    return [Observation(read)]
