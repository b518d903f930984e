"""Metrics in Prometheus' text format, read from the service's statistics when somebody asks.

Knows names, labels and units. Counts nothing itself: the core counts, and does not know that Prometheus exists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from tidegate import __version__
from tidegate.service import EngineStatistics, ServiceStatistics

_MODEL = ("model", "version")
_ROW_BOUNDS = tuple(2**power for power in range(13))

Family = TypeVar("Family", CounterMetricFamily, GaugeMetricFamily)

_COUNTERS: tuple[tuple[str, str, Callable[[EngineStatistics], float]], ...] = (
    ("tidegate_runs", "Runs of onnxruntime.", lambda engine: engine.num_runs),
    ("tidegate_rows", "Rows (sessions or sequences) in those runs.", lambda engine: engine.num_rows),
    ("tidegate_steps", "Steps of all rows.", lambda engine: engine.num_steps),
    ("tidegate_run_seconds", "Seconds inside onnxruntime.", lambda engine: engine.run_seconds),
    ("tidegate_failed_runs", "Runs that failed with all their rows.", lambda engine: engine.num_failed_runs),
)
_GAUGES: tuple[tuple[str, str, Callable[[EngineStatistics], float]], ...] = (
    ("tidegate_queued_chunks", "Chunks that wait for a run.", lambda engine: engine.queued),
    ("tidegate_arena_slots", "Slots of the arena in use.", lambda engine: engine.arena_slots_used),
    ("tidegate_arena_bytes", "Bytes that the arena has taken.", lambda engine: engine.arena_bytes),
)


class Measured(Protocol):
    """What can be asked: the service."""

    @property
    def is_ready(self) -> bool: ...

    def statistics(self) -> ServiceStatistics: ...


def render(service: Measured, replica: str | None = None) -> tuple[bytes, str]:
    """Return the metrics of the service and its process as text, and the text's content type.

    ``replica`` names the process that answers, where it has a name: each worker of a server tells its own metrics.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_ServiceCollector(service, replica))
    ProcessCollector(registry=registry)
    return generate_latest(registry), CONTENT_TYPE_LATEST


class _ServiceCollector(Collector):
    """Turns one reading of the statistics into metric families."""

    def __init__(self, service: Measured, replica: str | None) -> None:
        self._service = service
        self._build = {"version": __version__} | ({} if replica is None else {"replica": replica})

    def collect(self) -> Iterator[Metric]:
        statistics = self._service.statistics()
        yield InfoMetricFamily("tidegate_build", "The running program.", self._build)
        yield GaugeMetricFamily("tidegate_ready", "1 while requests are welcome.", float(self._service.is_ready))
        yield GaugeMetricFamily("tidegate_models", "Loaded versions of models.", len(statistics.models))
        yield _providers(statistics.models)
        for name, text, value in _COUNTERS:
            yield _filled(CounterMetricFamily(name, text, labels=_MODEL), statistics.models, value)
        for name, text, value in _GAUGES:
            yield _filled(GaugeMetricFamily(name, text, labels=_MODEL), statistics.models, value)
        yield _rows_per_run(statistics.models)
        yield GaugeMetricFamily("tidegate_sessions", "Open sessions.", statistics.num_sessions)
        yield _endings(statistics.ended)


def _filled(family: Family, engines: Iterable[EngineStatistics], value: Callable[[EngineStatistics], float]) -> Family:
    for engine in engines:
        family.add_metric((engine.model, engine.version), value(engine))
    return family


def _providers(engines: Iterable[EngineStatistics]) -> Metric:
    family = InfoMetricFamily("tidegate_model", "Where each model runs.", labels=_MODEL)
    for engine in engines:
        family.add_metric((engine.model, engine.version), {"provider": engine.provider})
    return family


def _rows_per_run(engines: Iterable[EngineStatistics]) -> Metric:
    family = HistogramMetricFamily("tidegate_run_rows", "Rows in a run: how well steps are batched.", labels=_MODEL)
    for engine in engines:
        buckets = list(_cumulative(engine.rows_per_run))
        family.add_metric((engine.model, engine.version), buckets=buckets, sum_value=engine.num_rows)
    return family


def _cumulative(runs_by_bound: dict[int, int]) -> Iterator[tuple[str, float]]:
    """For each bound the runs of at most that many rows; always the same buckets, or rates over them would lie."""
    runs = 0
    for bound in _ROW_BOUNDS:
        runs += runs_by_bound.get(bound, 0)
        yield str(float(bound)), runs
    yield "+Inf", sum(runs_by_bound.values())


def _endings(ended: dict[str, int]) -> Metric:
    family = CounterMetricFamily("tidegate_sessions_ended", "Sessions that have ended, by reason.", labels=("reason",))
    for reason, count in sorted(ended.items()):
        family.add_metric((reason,), count)
    return family
