"""What /metrics says of given statistics."""

from __future__ import annotations

import threading

import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from tests.service.fake_core import FakeCore
from tidegate import __version__
from tidegate.api import (
    DriftReport,
    EngineStatistics,
    EngineStatsSnapshot,
    QualitySnapshot,
    ServiceStatistics,
    StoreStatistics,
)
from tidegate.clock import Clock
from tidegate.config import load_settings
from tidegate.engine.stats import EngineStats
from tidegate.histogram import SECONDS, Histogram
from tidegate.observability.exposition import CONTENT_TYPE, render
from tidegate.observability.families import Snapshot
from tidegate.observability.metrics import MetricsCollector
from tidegate.observability.requests import RequestMetrics


def read(*values: float) -> Histogram:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    return histogram


STATS = EngineStatsSnapshot(
    steps={"step": 50, "prompt": 11, "predict": 12, "generated": 7},
    num_repeats=3,
    num_conflicts=2,
    num_generated=6,
    queue=read(0.0002, 0.0002, 0.3).snapshot(),
    ticks=read(0.002).snapshot(),
)
DRIFT = DriftReport("warning", 2.2, 40, 64, 2.0, 0.1, (1.9, 2.1), (1.7, 2.3))
QUALITY = QualitySnapshot(
    unit="bits",
    num_steps=640,
    surprise=1300.0,
    num_nan=2,
    num_outliers=9,
    blocks=read(1.9, 2.2).snapshot(),
    drift=DRIFT,
    changes={"normal": 1, "warning": 2, "drift": 0},
    num_unknown=4,
    num_out_of_range=5,
    num_missing=6,
    num_inside=0,
    num_outside=0,
)
FORECAST = QUALITY._replace(unit="", drift=None, num_inside=8, num_outside=2)
ENGINE = EngineStatistics(
    model="shakespeare-lstm",
    version="2",
    provider="CPUExecutionProvider",
    task="next_token",
    cell="lstm",
    num_runs=6,
    num_rows=75,
    num_steps=80,
    num_failed_runs=1,
    rows_per_run={1: 3, 8: 2, 64: 1},
    run_seconds=0.25,
    queued=7,
    arena_slots_used=9,
    arena_bytes=36_864,
    num_padding_steps=4,
    stats=STATS,
    quality=QUALITY,
)
SETTINGS = load_settings({"store": "redis://127.0.0.1:1/0", "arena_mb": 2})
STORE = StoreStatistics(4, 20, 2, 1, read(0.001, 0.002, 0.003, 0.004).snapshot(), is_available=True, num_damaged=5)
DONE = {"fork": 3, "checkpoint": 4, "rewind": 1, "restore": 2, "upgrade": 5, "loaded": 6, "refused": 1}


def measured(
    models: tuple[EngineStatistics, ...] = (ENGINE,), *, is_ready: bool = True, store: StoreStatistics | None = STORE
) -> FakeCore:
    """A core that has been measured already."""
    ended = {"SESSION_CLOSED": 4, "SESSION_EVICTED": 1}
    counted = ServiceStatistics(list(models), 12, ended, 5, 8, store, DONE)
    return FakeCore(settings=SETTINGS, is_ready=is_ready, counted=counted)


def samples(core: FakeCore, requests: RequestMetrics | None = None) -> list[Sample]:
    figures = MetricsCollector(core, requests or RequestMetrics(Clock()))
    text = render([*figures.own(), *figures.of_process()]).decode()
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]


def value(told: list[Sample], name: str, **labels: str) -> float:
    found = [sample for sample in told if sample.name == name and labels.items() <= sample.labels.items()]
    assert len(found) == 1, (name, labels, found)
    return float(found[0].value)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tidegate_runs_total", 6),
        ("tidegate_rows_total", 75),
        ("tidegate_run_seconds_total", 0.25),
        ("tidegate_failed_runs_total", 1),
        ("tidegate_padding_steps_total", 4),
        ("tidegate_repeats_total", 3),
        ("tidegate_conflicts_total", 2),
        ("tidegate_generated_tokens_total", 6),
        ("tidegate_queued_chunks", 7),
        ("tidegate_arena_slots", 9),
        ("tidegate_arena_bytes", 36_864),
        ("tidegate_queue_seconds_count", 3),
        ("tidegate_tick_seconds_sum", 0.002),
        ("tidegate_surprise_count", 2),
        ("tidegate_surprise_steps_total", 640),
        ("tidegate_surprise_sum_total", 1300),
        ("tidegate_surprise_nan_total", 2),
        ("tidegate_surprise_outliers_total", 9),
        ("tidegate_drift_ewma", 2.2),
        ("tidegate_input_unknown_total", 4),
        ("tidegate_input_out_of_range_total", 5),
        ("tidegate_input_missing_total", 6),
    ],
)
def test_every_figure_of_a_model_is_told(name: str, expected: float) -> None:
    assert value(samples(measured()), name, model="shakespeare-lstm", version="2") == expected


@pytest.mark.parametrize(
    ("name", "labels", "expected"),
    [
        ("tidegate_build_info", {"version": __version__}, 1),
        ("tidegate_workers", {}, 1),
        ("tidegate_models_loaded", {}, 1),
        ("tidegate_model_info", {"provider": "CPUExecutionProvider", "task": "next_token", "cell": "lstm"}, 1),
        ("tidegate_steps_total", {"kind": "step"}, 50),
        ("tidegate_steps_total", {"kind": "prompt"}, 11),
        ("tidegate_steps_total", {"kind": "predict"}, 12),
        ("tidegate_steps_total", {"kind": "generated"}, 7),
        ("tidegate_surprise_bucket", {"unit": "bits", "le": "2.5"}, 2),
        ("tidegate_drift_state", {"state": "normal"}, 0),
        ("tidegate_drift_state", {"state": "warning"}, 1),
        ("tidegate_drift_state", {"state": "drift"}, 0),
        ("tidegate_drift_limit", {"limit": "warning", "side": "high"}, 2.1),
        ("tidegate_drift_limit", {"limit": "drift", "side": "low"}, 1.7),
        ("tidegate_drift_changes_total", {"state": "warning"}, 2),
        ("tidegate_sessions", {"tier": "ephemeral"}, 7),
        ("tidegate_sessions", {"tier": "durable"}, 5),
        ("tidegate_sessions_ended_total", {"reason": "SESSION_CLOSED"}, 4),
        ("tidegate_evictions_total", {"tier": "ephemeral", "reason": "arena_full"}, 1),
        ("tidegate_evictions_total", {"tier": "durable", "reason": "arena_full"}, 8),
        ("tidegate_forks_total", {}, 3),
        ("tidegate_checkpoints_total", {}, 4),
        ("tidegate_rewinds_total", {}, 1),
        ("tidegate_restores_total", {}, 2),
        ("tidegate_upgrades_total", {}, 5),
        ("tidegate_model_loads_total", {"outcome": "ok"}, 6),
        ("tidegate_model_loads_total", {"outcome": "refused"}, 1),
        ("tidegate_arena_limit_bytes", {}, 2 << 20),
        ("tidegate_log_lines_dropped_total", {}, 0),
        ("tidegate_store_up", {"store": "redis"}, 1),
        ("tidegate_store_commit_seconds_count", {"store": "redis"}, 4),
        ("tidegate_store_writes_total", {"store": "redis"}, 20),
        ("tidegate_store_conflicts_total", {"store": "redis"}, 2),
        ("tidegate_store_failures_total", {"store": "redis"}, 1),
        ("tidegate_store_damaged_total", {"store": "redis"}, 5),
    ],
)
def test_every_figure_of_the_service_is_told(name: str, labels: dict[str, str], expected: float) -> None:
    assert value(samples(measured()), name, **labels) == expected


def test_a_forecast_is_told_by_its_coverage() -> None:
    told = samples(measured((ENGINE._replace(task="forecast", quality=FORECAST),)))
    assert value(told, "tidegate_forecast_coverage_total", inside="true") == 8
    assert value(told, "tidegate_forecast_coverage_total", inside="false") == 2
    assert not [sample for sample in told if sample.name.startswith(("tidegate_surprise", "tidegate_drift"))]


def test_requests_are_told_by_interface_method_and_outcome() -> None:
    requests = RequestMetrics(Clock())
    step = requests.method("grpc", "Step")
    step.count(0.0004, "ok")
    step.count(0.02, "ok")
    step.count(0.2, "aborted")
    told = samples(measured(), requests)
    assert value(told, "tidegate_requests_total", interface="grpc", method="Step", outcome="ok") == 2
    assert value(told, "tidegate_requests_total", interface="grpc", method="Step", outcome="aborted") == 1
    assert value(told, "tidegate_request_seconds_bucket", interface="grpc", method="Step", le="0.025") == 2
    assert value(told, "tidegate_request_seconds_sum", interface="grpc", method="Step") == pytest.approx(0.2204)


def test_histograms_of_durations_have_every_bucket() -> None:
    bounds = [
        float(sample.labels["le"]) for sample in samples(measured()) if sample.name == "tidegate_queue_seconds_bucket"
    ]
    assert bounds == [*SECONDS, float("inf")]


def test_rows_per_run_are_a_histogram() -> None:
    told = samples(measured())

    def bucket(bound: str) -> float:
        return value(told, "tidegate_run_rows_bucket", le=bound)

    assert [bucket(bound) for bound in ("1.0", "2.0", "4.0", "8.0", "32.0", "64.0", "+Inf")] == [3, 3, 3, 5, 5, 6, 6]
    assert value(told, "tidegate_run_rows_count") == 6
    assert value(told, "tidegate_run_rows_sum") == 75


def test_more_rows_than_the_largest_bucket_are_not_lost() -> None:
    told = samples(measured((ENGINE._replace(rows_per_run={2**14: 5}),)))
    assert value(told, "tidegate_run_rows_bucket", le="4096.0") == 0
    assert value(told, "tidegate_run_rows_bucket", le="+Inf") == 5


def test_without_a_store_nothing_is_told_of_one() -> None:
    assert not [sample for sample in samples(measured(store=None)) if sample.name.startswith("tidegate_store")]


def test_a_store_that_is_away_is_down() -> None:
    assert value(samples(measured(store=STORE._replace(is_available=False))), "tidegate_store_up") == 0


@pytest.mark.parametrize("is_ready", [True, False])
def test_readiness(is_ready: bool) -> None:
    assert value(samples(measured(is_ready=is_ready)), "tidegate_ready") == is_ready


def test_a_server_without_models_has_metrics_of_its_process() -> None:
    told = samples(measured(models=()))
    assert value(told, "process_resident_memory_bytes") > 0
    assert value(told, "tidegate_models_loaded") == 0


def test_idle_stats_tell_zeros() -> None:
    told = samples(measured((ENGINE._replace(stats=EngineStats().snapshot()),)))
    assert value(told, "tidegate_steps_total", kind="generated") == 0
    assert value(told, "tidegate_queue_seconds_count") == 0


def test_the_text_says_what_format_it_has() -> None:
    assert CONTENT_TYPE.startswith("text/plain; version=")


async def test_what_the_system_says_is_read_beside_the_event_loop() -> None:
    class Watched(MetricsCollector):
        def of_process(self) -> Snapshot:
            self.thread = threading.get_ident()
            return super().of_process()

    figures = Watched(measured(), RequestMetrics(Clock()))
    assert {"tidegate_ready", "process_open_fds"} <= {family.name for family in await figures.all()}
    assert figures.thread != threading.get_ident()
