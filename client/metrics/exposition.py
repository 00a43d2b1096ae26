"""Families of figures, and how a scrape sees them: in Prometheus' text form, or OpenMetrics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from itertools import accumulate

from prometheus_client import GC_COLLECTOR, PROCESS_COLLECTOR
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics import exposition as openmetrics

from ...swarm.runtime.histogram import Distribution
from ...swarm.terminal_text import exact

TEXT = "text/plain; version=0.0.4; charset=utf-8"

Family = Metric
"""One figure, with all its labels and what it is."""

Labels = tuple[str, ...]
"""Values of labels, in the order of their names. A label has few values: each makes a series of its own."""


def counter(
    name: str, text: str, values: float | Mapping[Labels, float], labels: Sequence[str] = ()
) -> Family:
    """What only grows. ``name`` without its ``_total``; ``text`` says what it is."""
    return _filled(CounterMetricFamily(name, text, labels=labels), values)


def gauge(name: str, text: str, values: float | Mapping[Labels, float], labels: Sequence[str] = ()) -> Family:
    """What grows and shrinks."""
    return _filled(GaugeMetricFamily(name, text, labels=labels), values)


def histogram(
    name: str, text: str, values: Distribution | Mapping[Labels, Distribution], labels: Sequence[str] = ()
) -> Family:
    family = HistogramMetricFamily(name, text, labels=labels)
    by_labels = {(): values} if isinstance(values, Distribution) else values
    for of, value in by_labels.items():
        ends = [*map(str, map(float, value.bounds)), "+Inf"]
        buckets = list(zip(ends, accumulate(value.counts), strict=True))
        family.add_metric(list(map(exact, of)), buckets, value.total)
    return family


def _filled(
    family: CounterMetricFamily | GaugeMetricFamily, values: float | Mapping[Labels, float]
) -> Family:
    by_labels = {(): values} if isinstance(values, int | float) else values
    for of, value in by_labels.items():
        family.add_metric(list(map(exact, of)), value)
    return family


class _Once:
    """Families as a collector, and beside them those of any Python process: memory, processor time, files."""

    def __init__(self, families: Iterable[Family]) -> None:
        self._families = families

    def collect(self) -> Iterable[Family]:
        yield gauge(
            "swarm_node_build_info", "The version that runs.", {(version("swarm-node"),): 1}, ["version"]
        )
        yield from self._families
        yield from PROCESS_COLLECTOR.collect()
        yield from GC_COLLECTOR.collect()


def exposition(families: Iterable[Family], accept: str) -> tuple[str, str]:
    """Text and media type of a scrape whose header Accept is ``accept``."""
    if "application/openmetrics-text" in accept:  # the package's own choice repeats what the header says
        return openmetrics.generate_latest(_Once(families)).decode(), openmetrics.CONTENT_TYPE_LATEST
    return generate_latest(_Once(families)).decode(), TEXT
