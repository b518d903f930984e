"""Sums only grow, and what was waited is parted into queue and runs."""

from __future__ import annotations

import pytest

from tests.clock import ManualClock
from tidegate.api import EngineCounts
from tidegate.transports.oip.statistics import Statistics, Timing

KEY = ("m", "1")


class Engine:
    def __init__(self) -> None:
        self.counts = EngineCounts(0, 0.0)

    def __call__(self, name: str, version: str) -> EngineCounts:
        return self.counts


def test_the_mean_run_is_told_as_inference_and_the_rest_of_the_wait_as_queue() -> None:
    engine = Engine()
    statistics = Statistics(engine, ManualClock().clock())
    for _ in range(4):
        statistics.succeeded(KEY, 2, Timing(0, 10, 1_000_010, 1_000_030))
    engine.counts = EngineCounts(2, 0.0004)
    told = statistics.document(KEY)
    assert told["inference_count"] == 8
    assert told["execution_count"] == 2
    stats = told["inference_stats"]
    assert stats["success"] == {"count": 4, "ns": 4_000_120}
    assert stats["compute_infer"] == {"count": 4, "ns": 800_000}
    assert stats["queue"] == {"count": 4, "ns": 3_200_000}
    assert (stats["compute_input"]["ns"], stats["compute_output"]["ns"]) == (40, 80)


def test_a_second_reading_is_not_smaller_whatever_the_runs_took() -> None:
    engine = Engine()
    clock = ManualClock()
    statistics = Statistics(engine, clock.clock())
    statistics.succeeded(KEY, 1, Timing(0, 0, 10_000_000, 10_000_000))
    engine.counts = EngineCounts(1, 0.009)
    first = statistics.document(KEY)["inference_stats"]
    engine.counts = EngineCounts(1001, 0.0091)
    second = statistics.document(KEY)["inference_stats"]
    assert first == second
    arrived = clock.clock().nanoseconds()
    clock.now += 0.5
    statistics.failed(KEY, arrived)
    third = statistics.document(KEY)["inference_stats"]
    assert third["fail"] == {"count": 1, "ns": pytest.approx(500_000_000, abs=1000)}


def test_runs_of_a_model_that_was_loaded_anew_count_from_there() -> None:
    engine = Engine()
    engine.counts = EngineCounts(100, 5.0)
    statistics = Statistics(engine, ManualClock().clock())
    statistics.succeeded(KEY, 1, Timing(0, 0, 1000, 1000))
    engine.counts = EngineCounts(0, 0.0)
    assert statistics.document(KEY)["inference_stats"]["queue"]["ns"] == 1000
