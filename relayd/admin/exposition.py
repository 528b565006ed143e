"""The master's totals as a page for Prometheus; prometheus_client only renders.

What was never counted is there as far as its series are known: a counter without labels is 0
from the start, so that its first increase is seen. Names and labels are those of the table, and
what a newer or older process sent besides is left out.

Source: https://prometheus.io/docs/instrumenting/exposition_formats/, OpenMetrics 1.0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Final, cast

from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.metrics_core import (
    Metric as Family,
)
from prometheus_client.registry import CollectorRegistry

from relayd.master.frames import Json
from relayd.observe.metrics import METRICS, Metric

_LONGEST_ACCEPT: Final = 1000


def render(totals: Json, accept: str = "") -> tuple[bytes, str]:
    """Return the page, and its content type as the Accept header asks for it.

    totals: metrics.Snapshot, as JSON brought it.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Totals(totals if isinstance(totals, Mapping) else {}))
    encoder, content_type = choose_encoder(accept[:_LONGEST_ACCEPT])
    return cast("Callable[[CollectorRegistry], bytes]", encoder)(registry), content_type


class _Totals:
    """What the renderer wants of a collector."""

    def __init__(self, totals: Mapping[str, Json]) -> None:
        self._totals = totals

    def collect(self) -> Iterator[Family]:
        """Yield every metric of the table, in its order."""
        for name, metric in METRICS.items():
            found = self._totals.get(name)
            yield _family(name, metric, found if isinstance(found, Mapping) else {})

    def describe(self) -> Iterator[Family]:
        """Yield nothing: this is the only collector, and cannot clash."""
        return iter(())


def _family(name: str, metric: Metric, found: Mapping[str, Json]) -> Family:
    series = {tuple(key.split("\t")) if key else (): value for key, value in found.items()}
    if not metric.labels and metric.kind != "gauge":
        series.setdefault((), [0] * (len(metric.buckets) + 2) if metric.buckets else 0)
    known = {labels: value for labels, value in series.items() if len(labels) == len(metric.labels)}
    match metric.kind:
        case "counter":
            return _numbers(CounterMetricFamily(name, metric.help, labels=metric.labels), known)
        case "gauge":
            return _numbers(GaugeMetricFamily(name, metric.help, labels=metric.labels), known)
        case "histogram":
            return _histogram(name, metric, known)


def _numbers(
    family: CounterMetricFamily | GaugeMetricFamily, series: Mapping[tuple[str, ...], Json]
) -> Family:
    for labels, value in series.items():
        if isinstance(value, int | float):
            family.add_metric(list(labels), value)
    return family


def _histogram(name: str, metric: Metric, series: Mapping[tuple[str, ...], Json]) -> Family:
    family = HistogramMetricFamily(name, metric.help, labels=metric.labels)
    bounds = [*map(str, metric.buckets), "+Inf"]
    for labels, value in series.items():
        cell = _cell(value)
        if len(cell) != len(bounds) + 1:
            continue  # another version's buckets
        counts = accumulate(cell[1:])
        family.add_metric(list(labels), list(zip(bounds, counts, strict=True)), cell[0])
    return family


def _cell(value: Json) -> Sequence[float]:
    items = value if isinstance(value, list) else []
    return [item for item in items if isinstance(item, int | float)]
