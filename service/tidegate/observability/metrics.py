"""The metrics of one process, read from the service's statistics at each request for them.

This module defines names, labels and units; docs/monitoring.md lists them. It counts nothing itself: the parts of the
service count, and know nothing of metrics.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from tidegate import __version__
from tidegate.api import Core, DriftReport, EngineStatistics, QualitySnapshot, ServiceStatistics, StoreStatistics
from tidegate.histogram import HistogramSnapshot
from tidegate.observability.families import Family, Labels, Snapshot, Value
from tidegate.observability.logs import num_dropped_lines
from tidegate.observability.requests import MethodSnapshot, RequestMetrics

if TYPE_CHECKING:
    from prometheus_client import Metric, ProcessCollector

MODEL = ("model", "version")
ROW_BOUNDS = tuple(float(2**power) for power in range(13))
ARENA_FULL = "arena_full"

Values = dict[Labels, Value]
Told = tuple[str, str, Callable[[EngineStatistics], Value]]


def _rows_per_run(engine: EngineStatistics) -> HistogramSnapshot:
    """Return the histogram with fixed buckets: rates over changing ones would be wrong."""
    runs = engine.rows_per_run
    counts = tuple(runs.get(int(bound), 0) for bound in ROW_BOUNDS)
    return HistogramSnapshot(ROW_BOUNDS, (*counts, sum(runs.values()) - sum(counts)), engine.num_rows)


_COUNTERS: tuple[Told, ...] = (
    ("tidegate_runs", "Runs of onnxruntime.", lambda engine: engine.num_runs),
    ("tidegate_rows", "Rows (sessions or sequences) in those runs.", lambda engine: engine.num_rows),
    ("tidegate_run_seconds", "Seconds inside onnxruntime.", lambda engine: engine.run_seconds),
    ("tidegate_failed_runs", "Failed runs; all rows of a failed run fail.", lambda engine: engine.num_failed_runs),
    ("tidegate_padding_steps", "Computed steps of rows that only pad a run.", lambda engine: engine.num_padding_steps),
    ("tidegate_repeats", "Repeated chunks answered with the stored reply.", lambda engine: engine.stats.num_repeats),
    ("tidegate_conflicts", "Chunks refused because of their position.", lambda engine: engine.stats.num_conflicts),
    ("tidegate_generated_tokens", "Sampled tokens.", lambda engine: engine.stats.num_generated),
)
_GAUGES: tuple[Told, ...] = (
    ("tidegate_queued_chunks", "Chunks waiting or running.", lambda engine: engine.queued),
    ("tidegate_arena_slots", "Slots of the arena in use.", lambda engine: engine.arena_slots_used),
    ("tidegate_arena_bytes", "Bytes allocated for the arena.", lambda engine: engine.arena_bytes),
)
_HISTOGRAMS: tuple[Told, ...] = (
    ("tidegate_run_rows", "Rows per run.", _rows_per_run),
    (
        "tidegate_queue_seconds",
        "Seconds from a chunk's arrival in the engine to its first run.",
        lambda engine: engine.stats.queue,
    ),
    ("tidegate_tick_seconds", "Seconds of a tick, from planning to replies.", lambda engine: engine.stats.ticks),
)
_SURPRISE: tuple[Told, ...] = (
    (
        "tidegate_surprise_steps",
        "Scored steps: surprise is a number and not an outlier.",
        lambda engine: engine.quality.num_steps,
    ),
    ("tidegate_surprise_sum", "Sum of the surprise of scored steps.", lambda engine: engine.quality.surprise),
    ("tidegate_surprise_nan", "Steps whose surprise is not finite.", lambda engine: engine.quality.num_nan),
    (
        "tidegate_surprise_outliers",
        "Steps whose surprise is implausibly large.",
        lambda engine: engine.quality.num_outliers,
    ),
)
_INPUTS: tuple[Told, ...] = (
    ("tidegate_input_unknown", "Tokens outside the vocabulary.", lambda engine: engine.quality.num_unknown),
    (
        "tidegate_input_out_of_range",
        "Values outside the training range.",
        lambda engine: engine.quality.num_out_of_range,
    ),
    (
        "tidegate_input_missing",
        "Requests refused for a value that is not finite.",
        lambda engine: engine.quality.num_missing,
    ),
)
_DONE = (
    ("tidegate_forks", "Sessions forked.", "fork"),
    ("tidegate_checkpoints", "Checkpoints created.", "checkpoint"),
    ("tidegate_rewinds", "Rewinds to a checkpoint.", "rewind"),
    ("tidegate_restores", "Sessions opened from a snapshot.", "restore"),
    ("tidegate_upgrades", "Sessions moved to another version.", "upgrade"),
)


class MetricsCollector:
    """All metrics of this process."""

    def __init__(self, service: Core, requests: RequestMetrics) -> None:
        self._service = service
        self._requests = requests

    async def all(self) -> Snapshot:
        """Return the metrics of the server, which is this process."""
        # First, because it is slow (files, and once an import): the service's own values are then the newest.
        process = await asyncio.to_thread(self.of_process)
        return [*self.own(), *process]

    def own(self) -> Snapshot:
        """Return what this process has counted itself so far."""
        settings, statistics = self._service.settings, self._service.statistics()
        return [
            _gauge(
                "tidegate_build_info",
                "Version of the running program; always 1.",
                {(__version__,): 1.0},
                ("version",),
                "max",
            ),
            _gauge(
                "tidegate_ready",
                "1 while the server accepts requests, else 0.",
                {(): float(self._service.is_ready)},
                (),
                "min",
            ),
            _gauge("tidegate_workers", "Serving processes.", {(): 1.0}),
            # A restarted worker counts on from where the one before it ended: `cluster.metrics`.
            _counter("tidegate_starts", "Process starts, including restarts of workers.", {(): 1.0}),
            _counter(
                "tidegate_log_lines_dropped",
                "Log lines dropped because the reader was too slow or the write failed.",
                {(): float(num_dropped_lines())},
            ),
            *_of_requests(list(self._requests.snapshots()), self._requests.failed_lanes),
            *_of_models(statistics.models),
            *_of_quality(statistics.models),
            *_of_sessions(statistics),
            _gauge(
                "tidegate_arena_limit_bytes",
                "Bytes that all arenas together may take.",
                {(): float(settings.arena_mb << 20)},
            ),
            *_of_store(settings.store, statistics.store),
        ]

    @cached_property
    def _process(self) -> ProcessCollector:
        # Imported at the first request for metrics, to keep the start fast.
        from prometheus_client import ProcessCollector

        return ProcessCollector(registry=None)

    def of_process(self) -> Snapshot:
        """Return the system's metrics of this process; reads files."""
        return [_of_process(metric) for metric in self._process.collect()]


def _of_process(metric: Metric) -> Family:
    values: Values = {(): metric.samples[0].value}
    over: Literal["sum", "min"] = "min" if metric.name == "process_start_time_seconds" else "sum"
    kind: Literal["counter", "gauge"] = "counter" if metric.type == "counter" else "gauge"
    return Family(metric.name, kind, metric.documentation, (), values, over)


def _of_requests(readings: Sequence[MethodSnapshot], failed_lanes: Mapping[str, int]) -> Iterator[Family]:
    outcomes: Values = {
        (each.interface, each.method, outcome): float(count)
        for each in readings
        for outcome, count in each.outcomes.items()
    }
    seconds: Values = {(each.interface, each.method): each.seconds for each in readings}
    lanes: Values = {(outcome,): float(count) for outcome, count in failed_lanes.items()}
    yield _counter("tidegate_requests", "Requests answered.", outcomes, ("interface", "method", "outcome"))
    text = "Seconds from a request's arrival, or a stream message's, to its answer."
    yield Family("tidegate_request_seconds", "histogram", text, ("interface", "method"), seconds)
    text = "Failed lanes of columnar messages. A message fails only if all its lanes do."
    yield _counter("tidegate_lane_failures", text, lanes, ("outcome",))


def _of_models(engines: Sequence[EngineStatistics]) -> Iterator[Family]:
    info: Values = {(*_key(engine), engine.provider, engine.task, engine.cell): 1.0 for engine in engines}
    yield _gauge("tidegate_model_info", "Loaded models; always 1.", info, (*MODEL, "provider", "task", "cell"), "max")
    yield _gauge("tidegate_models_loaded", "Loaded versions of models.", {(): float(len(engines))}, (), "max")
    steps: Values = {
        (*_key(engine), kind): float(count) for engine in engines for kind, count in engine.stats.steps.items()
    }
    text = "Steps run, by kind."
    yield _counter("tidegate_steps", text, steps, (*MODEL, "kind"))
    for name, text, value in _COUNTERS:
        yield _counter(name, text, _values(engines, value), MODEL)
    for name, text, value in _GAUGES:
        yield _gauge(name, text, _values(engines, value), MODEL)
    for name, text, value in _HISTOGRAMS:
        yield Family(name, "histogram", text, MODEL, _values(engines, value))


def _of_quality(engines: Sequence[EngineStatistics]) -> Iterator[Family]:
    surprised = [engine for engine in engines if engine.quality.unit]
    blocks: Values = {(*_key(engine), engine.quality.unit): engine.quality.blocks for engine in surprised}
    yield Family("tidegate_surprise", "histogram", "Mean surprise of a block of steps.", (*MODEL, "unit"), blocks)
    for name, text, value in _SURPRISE:
        yield _counter(name, text, _values(surprised, value), MODEL)
    for name, text, value in _INPUTS:
        yield _counter(name, text, _values(engines, value), MODEL)
    coverage: Values = {}
    for engine in engines:
        if engine.task == "forecast":
            coverage[(*_key(engine), "true")] = float(engine.quality.num_inside)
            coverage[(*_key(engine), "false")] = float(engine.quality.num_outside)
    text = "Inputs inside and outside the 80 % interval that the step before predicted."
    yield _counter("tidegate_forecast_coverage", text, coverage, (*MODEL, "inside"))
    yield from _of_drift([(_key(engine), engine.quality, engine.quality.drift) for engine in engines])


def _of_drift(charts: Sequence[tuple[Labels, QualitySnapshot, DriftReport | None]]) -> Iterator[Family]:
    state: Values = {}
    ewma: Values = {}
    limits: Values = {}
    changes: Values = {}
    for key, quality, drift in charts:
        if drift is None:
            continue
        ewma[key] = drift.ewma
        for name, (low, high) in (("warning", drift.warning), ("drift", drift.drift)):
            limits[(*key, name, "low")], limits[(*key, name, "high")] = low, high
        for each, count in quality.changes.items():
            state[(*key, each)], changes[(*key, each)] = float(drift.state == each), float(count)
    text = "1 for the control chart's state; with several workers, for each state that a worker's chart is in."
    yield _gauge("tidegate_drift_state", text, state, (*MODEL, "state"), "max")
    text = "Moving average of surprise; with several workers, the largest."
    yield _gauge("tidegate_drift_ewma", text, ewma, MODEL, "max")
    text = "Limits of the control chart's moving average."
    yield _gauge("tidegate_drift_limit", text, limits, (*MODEL, "limit", "side"), "max")
    text = "Times that the control chart entered a state."
    yield _counter("tidegate_drift_changes", text, changes, (*MODEL, "state"))


def _of_sessions(statistics: ServiceStatistics) -> Iterator[Family]:
    durable, done = statistics.num_durable, statistics.done
    held: Values = {("ephemeral",): float(statistics.num_sessions - durable), ("durable",): float(durable)}
    yield _gauge("tidegate_sessions", "Sessions in memory; durable ones are copies of the store's.", held, ("tier",))
    ended: Values = {(reason,): float(count) for reason, count in sorted(statistics.ended.items())}
    yield _counter("tidegate_sessions_ended", "Ephemeral sessions that have ended.", ended, ("reason",))
    evicted: Values = {
        ("ephemeral", ARENA_FULL): float(statistics.ended.get("SESSION_EVICTED", 0)),
        ("durable", ARENA_FULL): float(statistics.num_evicted),
    }
    text = "Sessions evicted from the arena; durable ones are read again at their next step."
    yield _counter("tidegate_evictions", text, evicted, ("tier", "reason"))
    for name, text, key in _DONE:
        yield _counter(name, text, {(): float(done.get(key, 0))})
    loads: Values = {("ok",): float(done.get("loaded", 0)), ("refused",): float(done.get("refused", 0))}
    yield _counter("tidegate_model_loads", "Bundles loaded or refused.", loads, ("outcome",))


def _of_store(url: str, store: StoreStatistics | None) -> Iterator[Family]:
    if store is None:
        return
    key, label = (url.partition(":")[0].replace("rediss", "redis"),), ("store",)
    up: Values = {key: float(store.is_available)}
    yield _gauge("tidegate_store_up", "1 while the store of durable sessions can be written, else 0.", up, label, "min")
    text = "Seconds of a group of writes to the store."
    yield Family("tidegate_store_commit_seconds", "histogram", text, label, {key: store.seconds})
    yield _counter("tidegate_store_writes", "Writes attempted.", {key: float(store.num_writes)}, label)
    text = "Writes refused because another replica wrote first."
    yield _counter("tidegate_store_conflicts", text, {key: float(store.num_conflicts)}, label)
    text = "Writes without an answer: the outcome is unknown."
    yield _counter("tidegate_store_failures", text, {key: float(store.num_failures)}, label)
    text = "Reads of a damaged record; only its own session answers STORE_CORRUPT."
    yield _counter("tidegate_store_damaged", text, {key: float(store.num_damaged)}, label)


def _key(engine: EngineStatistics) -> tuple[str, str]:
    return engine.model, engine.version


def _values(engines: Sequence[EngineStatistics], value: Callable[[EngineStatistics], Value]) -> Values:
    return {_key(engine): value(engine) for engine in engines}


def _counter(name: str, text: str, values: Mapping[Labels, Value], labels: Labels = ()) -> Family:
    return Family(name, "counter", text, labels, values)


def _gauge(
    name: str,
    text: str,
    values: Mapping[Labels, Value],
    labels: Labels = (),
    over: Literal["sum", "max", "min"] = "sum",
) -> Family:
    return Family(name, "gauge", text, labels, values, over)
