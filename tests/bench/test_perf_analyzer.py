from __future__ import annotations

from bench.perf_analyzer import parse

REPORT = """
*** Measurement Settings ***
  Measurement window: 3000 msec
Request concurrency: 64
  Client:
    Request count: 16000
    Sequence count: 8 (0.74 seq/sec)
    Throughput: 4321.5 infer/sec
    Avg latency: 14567 usec (standard deviation 812 usec)
    p50 latency: 14001 usec
    p90 latency: 16100 usec
    p95 latency: 17300 usec
    p99 latency: 20100 usec
    Avg gRPC time: 14560 usec ((un)marshal request/response 9 usec + response wait 14551 usec)
"""


def test_its_report_is_read() -> None:
    figures = {"perf_analyzer_per_s": 4321.5, "perf_analyzer_avg_us": 14567.0}
    assert parse(REPORT) == figures | {"perf_analyzer_p50_us": 14001.0, "perf_analyzer_p99_us": 20100.0}


def test_a_report_without_figures_is_said_to_be_one() -> None:
    assert parse("Failed to obtain stable measurement") == {"perf_analyzer": "absent: its report has no figures"}
