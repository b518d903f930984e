"""What a reader is told: figures, and what they are worth."""

from __future__ import annotations

import json

import pytest

from tests.service.fake_core import FakeCore
from tests.service.loadgen.models import model
from tidegate.api import EngineStatistics, ServiceStatistics
from tidegate.clock import Clock
from tidegate.codecs.scores import Scores
from tidegate.engine.quality import Quality
from tidegate.engine.stats import EngineStats
from tidegate.loadgen.counts import ServerCounts, Usage, parse_counts, read_usage
from tidegate.loadgen.load import Interface, Load, Mix
from tidegate.loadgen.measure import Measurement
from tidegate.loadgen.record import LoadRecord
from tidegate.loadgen.report import as_json, as_text, latency_rows, warnings
from tidegate.observability.exposition import render
from tidegate.observability.metrics import MetricsCollector
from tidegate.observability.requests import RequestMetrics

IDLE = Usage(0.3, 0.05)
SERVER = ServerCounts(runs=10, rows=250, steps=300, cpu_seconds=1.5)


def measured(client: Usage = IDLE, server: ServerCounts | None = SERVER) -> Measurement:
    record = LoadRecord(100, 102)
    for each in range(1000):
        record.answered("1", due=100 + each / 1000, now=100 + each / 1000 + (each + 1) / 1e5, steps=1)
    record.answered("16-512", due=100, now=101, steps=200)
    return Measurement(record, client, server)


def test_the_document_holds_every_figure() -> None:
    load = Load("tiny", mix=Mix.parse("1:99,16-512:1"), rate=500)
    document = json.loads(json.dumps(as_json(load, model(), measured())))
    assert (document["model"], document["version"], document["interface"]) == ("tiny", "2", "stream")
    assert (document["chunk"], document["rate"], document["arrivals"]) == ("1:99,16-512:1", 500, "even")
    assert (document["requests"], document["steps"], document["seconds"]) == (1001, 1200, 2)
    assert (document["requests_per_second"], document["steps_per_second"]) == (500.5, 600)
    single = document["latency_ms"]["1"]
    assert single.pop("mean") == pytest.approx(5.005)
    assert single == pytest.approx({"count": 1000, "p50": 5, "p90": 9, "p99": 9.9, "p999": 9.99, "max": 10})
    assert document["latency_ms"]["16-512"]["p50"] == 1000
    assert document["server"] == {"runs": 10, "rows": 250, "steps": 300, "rows_per_run": 25, "cpu": 0.75}
    assert document["client_bound"] is False


def test_the_text_holds_the_figures_a_person_looks_for() -> None:
    text = as_text(Load("tiny", sessions=8, prompt_sessions=2), model(), measured())
    assert "tiny/2 over stream, 8 sessions, 2 more push 1024 steps, closed loop, 2.0 s" in text
    assert "500.5 requests/s, 600.0 steps/s" in text
    assert "rows per run: 25.0" in text
    assert "errors: none" in text
    assert "note" not in text
    assert latency_rows(measured())[0] == ("1", "1000", "5.00", "9.00", "9.90", "9.99", "10.00", "5.01")


@pytest.mark.parametrize("client", [Usage(0.95, 0), Usage(0.6, 0.35), Usage(1.2, 0)])
def test_a_client_that_had_no_time_left_says_so(client: Usage) -> None:
    seen = measured(client)
    assert "the client itself was the bound" in "".join(warnings(Load("tiny"), seen))
    assert as_json(Load("tiny"), model(), seen)["client_bound"] is True


def test_a_rate_that_was_not_reached_is_told() -> None:
    seen = measured()
    assert warnings(Load("tiny", rate=500), seen) == []
    assert warnings(Load("tiny", rate=600), seen) == ["note: the asked rate was not reached"]
    seen.record.unsent([101, 101.5])
    assert "2 requests were due and never sent" in warnings(Load("tiny", rate=600), seen)[0]


def test_what_was_cut_off_is_told() -> None:
    seen = measured()
    seen.record.unfinished(101)
    assert warnings(Load("tiny"), seen) == ["note: 1 requests were cut off at the end and are in no latency"]


def test_errors_are_told_by_reason_most_frequent_first() -> None:
    seen = measured()
    seen.record.failed(101, ["OVERLOADED", "DRAINING", "DRAINING"])
    assert "errors: DRAINING 2, OVERLOADED 1" in as_text(Load("tiny"), model(), seen)


def test_a_run_that_ended_in_its_warm_up_measured_nothing() -> None:
    record = LoadRecord(100, 102)
    record.close(99)
    seen = Measurement(record, Usage(0, 0), None)
    assert warnings(Load("tiny", rate=10), seen) == ["note: it ended before the warm-up did: nothing was measured"]
    assert as_json(Load("tiny"), model(), seen)["steps_per_second"] == 0
    assert latency_rows(seen) == []


def test_rows_per_run_are_told_only_where_they_are_known() -> None:
    assert "not known (no /metrics" in as_text(Load("tiny"), model(), measured(server=None))
    assert as_json(Load("tiny"), model(), measured(server=None))["server"] is None
    elsewhere = measured(server=ServerCounts())
    assert "another server?" in as_text(Load("tiny"), model(), elsewhere)
    assert as_json(Load("tiny"), model(), elsewhere)["server"]["rows_per_run"] is None


def test_callers_and_messages_are_named() -> None:
    text = as_text(Load("tiny", interface=Interface.PREDICT, batch=16, rate=9), model(), measured())
    assert "tiny/2 over predict, 64 callers, 16 in a message, 9 requests/s due (even)" in text


def server() -> FakeCore:
    """What /metrics is made from."""
    engines = [
        EngineStatistics(
            model="tiny",
            version=version,
            provider="cpu",
            num_runs=runs,
            num_rows=30,
            num_steps=45,
            num_failed_runs=0,
            rows_per_run={4: runs},
            run_seconds=0.5,
            queued=0,
            arena_slots_used=0,
            arena_bytes=0,
            task="next_token",
            cell="lstm",
            num_padding_steps=0,
            quality=Quality(Scores(), None, "tiny").snapshot(),
            stats=EngineStats().snapshot()._replace(steps={"step": 40, "predict": 5}),
        )
        for version, runs in (("1", 7), ("2", 10))
    ]
    return FakeCore(counted=ServiceStatistics(engines, 0, {}))


def test_counts_are_those_of_the_model_and_version() -> None:
    figures = MetricsCollector(server(), RequestMetrics(Clock()))
    counts = parse_counts(render([*figures.own(), *figures.of_process()]).decode(), model())
    assert (counts.runs, counts.rows, counts.steps, counts.rows_per_run) == (10, 30, 45, 3)
    assert counts.cpu_seconds > 0
    assert counts.since(counts) == ServerCounts()
    assert ServerCounts().rows_per_run is None


def test_usage_is_a_share_of_the_time() -> None:
    assert Usage(3.0, 0.5).share_since(Usage(1.0, 0.25), 4) == Usage(0.5, 0.0625)
    assert Usage(3.0, 0.5).share_since(Usage(1.0, 0.25), 0) == Usage(0, 0)
    before, after = read_usage(), read_usage()
    assert after.cpu >= before.cpu > 0
    assert after.waiting >= before.waiting >= 0
