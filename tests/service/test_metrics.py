"""What /metrics says of given statistics."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from tidegate.observe.metrics import render
from tidegate.service import EngineStatistics, ServiceStatistics

ENGINE = EngineStatistics(
    model="shakespeare-lstm",
    version="2",
    provider="CPUExecutionProvider",
    num_runs=6,
    num_rows=75,
    num_steps=80,
    num_failed_runs=1,
    rows_per_run={1: 3, 8: 2, 64: 1},
    run_seconds=0.25,
    queued=7,
    arena_slots_used=9,
    arena_bytes=36_864,
)


@dataclass(frozen=True)
class Measured:
    """A service that has been measured already."""

    models: tuple[EngineStatistics, ...] = (ENGINE,)
    is_ready: bool = True

    def statistics(self) -> ServiceStatistics:
        return ServiceStatistics(list(self.models), num_sessions=12, ended={"SESSION_CLOSED": 4, "SESSION_IDLE": 1})


def samples(measured: Measured) -> list[Sample]:
    body, _ = render(measured)
    return [sample for family in text_string_to_metric_families(body.decode()) for sample in family.samples]


def value(measured: Measured, name: str, **labels: str) -> float:
    found = [sample for sample in samples(measured) if sample.name == name and labels.items() <= sample.labels.items()]
    assert len(found) == 1, (name, labels, found)
    return float(found[0].value)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tidegate_runs_total", 6),
        ("tidegate_rows_total", 75),
        ("tidegate_steps_total", 80),
        ("tidegate_run_seconds_total", 0.25),
        ("tidegate_failed_runs_total", 1),
        ("tidegate_queued_chunks", 7),
        ("tidegate_arena_slots", 9),
        ("tidegate_arena_bytes", 36_864),
    ],
)
def test_every_figure_of_a_model_is_told(name: str, expected: float) -> None:
    assert value(Measured(), name, model="shakespeare-lstm", version="2") == expected


def test_rows_per_run_are_a_histogram() -> None:
    def bucket(bound: str) -> float:
        return value(Measured(), "tidegate_run_rows_bucket", le=bound)

    assert [bucket(bound) for bound in ("1.0", "2.0", "4.0", "8.0", "32.0", "64.0", "+Inf")] == [3, 3, 3, 5, 5, 6, 6]
    assert value(Measured(), "tidegate_run_rows_count") == 6
    assert value(Measured(), "tidegate_run_rows_sum") == 75


def test_more_rows_than_the_largest_bucket_are_not_lost() -> None:
    measured = Measured((ENGINE._replace(rows_per_run={2**14: 5}),))
    assert value(measured, "tidegate_run_rows_bucket", le="4096.0") == 0
    assert value(measured, "tidegate_run_rows_bucket", le="+Inf") == 5


def test_sessions_and_how_they_ended() -> None:
    assert value(Measured(), "tidegate_sessions") == 12
    assert value(Measured(), "tidegate_sessions_ended_total", reason="SESSION_CLOSED") == 4
    assert value(Measured(), "tidegate_sessions_ended_total", reason="SESSION_IDLE") == 1


def test_models_and_their_providers() -> None:
    measured = Measured((ENGINE, ENGINE._replace(version="3")))
    assert value(measured, "tidegate_models") == 2
    assert value(measured, "tidegate_model_info", version="3", provider="CPUExecutionProvider") == 1


@pytest.mark.parametrize("is_ready", [True, False])
def test_readiness(is_ready: bool) -> None:
    assert value(Measured(is_ready=is_ready), "tidegate_ready") == is_ready


def test_a_server_without_models_has_metrics_of_its_process() -> None:
    assert value(Measured(models=()), "process_resident_memory_bytes") > 0
    assert value(Measured(models=()), "tidegate_models") == 0


def test_the_text_says_what_format_it_has() -> None:
    _, content_type = render(Measured())
    assert content_type.startswith("text/plain; version=")
