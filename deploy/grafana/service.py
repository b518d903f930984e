"""The dashboard to look at first: availability, latency, errors, processes."""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard

from deploy.grafana.board import ALERTS, INSTANCE, RATE, Board, Row, assemble
from deploy.grafana.panels import (
    BYTES,
    COUNT,
    GREEN,
    ORANGE,
    RED,
    REQUESTS,
    SECONDS,
    SHARE,
    About,
    Level,
    Panel,
    Query,
    heat,
    lines,
    listing,
    number,
)

STEPS = 'method=~"Step|Columns"'
BURN = (Level(0, GREEN), Level(1, ORANGE), Level(6, RED))


def board() -> Dashboard:
    about = Board("tidegate-service", "Service", "Requests, errors, latency and resources of all servers.")
    rows = [
        Row("Now", _now()),
        Row("Requests", _requests()),
        Row("Latency", _latency()),
        Row("Objectives", _objectives()),
        Row("Processes", _processes()),
    ]
    return assemble(about, rows)


def _now() -> list[Panel]:
    refused = f'sum(rate(tidegate_requests_total{{{INSTANCE},outcome!~"ok|cancelled"}}[{RATE}]))'
    asked = f"sum(rate(tidegate_requests_total{{{INSTANCE}}}[{RATE}]))"
    steps = f"sum by (le) (rate(tidegate_request_seconds_bucket{{{INSTANCE},{STEPS}}}[{RATE}]))"
    return [
        number(
            About("Servers ready", "Servers that accept requests.", COUNT),
            Query(f"sum(tidegate_ready{{{INSTANCE}}})", ""),
            [Level(0, RED), Level(1, GREEN)],
        ),
        number(
            About("Alerts", "Firing alerts of tidegate: docs/monitoring.md says what to do.", COUNT),
            Query(f"count({ALERTS}) or vector(0)", ""),
            [Level(0, GREEN), Level(1, RED)],
        ),
        number(
            About("Requests", "Requests and stream messages per second.", REQUESTS),
            Query(asked, ""),
        ),
        number(
            About(
                "Unsuccessful requests", "Share of all requests, errors of clients included, cancelled ones not.", SHARE
            ),
            Query(f"(({refused}) or vector(0)) / ({asked})", ""),
            [Level(0, GREEN), Level(0.01, ORANGE), Level(0.05, RED)],
        ),
        number(
            About("Step latency, p99", "99 % of steps are answered within this time.", SECONDS),
            Query(f"histogram_quantile(0.99, {steps})", ""),
            [Level(0, GREEN), Level(0.05, ORANGE), Level(0.1, RED)],
        ),
        number(
            About("Models loaded", "Loaded versions of models.", COUNT),
            Query(f"max(tidegate_models_loaded{{{INSTANCE}}})", ""),
            [Level(0, RED), Level(1, GREEN)],
        ),
    ]


def _requests() -> list[Panel]:
    def by(labels: str, more: str = "") -> str:
        return f"sum by ({labels}) (rate(tidegate_requests_total{{{INSTANCE}{more}}}[{RATE}]))"

    return [
        lines(
            About("Requests by interface", "A stream message counts as a request.", REQUESTS),
            Query(by("interface"), "{{interface}}"),
            is_stacked=True,
        ),
        lines(
            About("Requests by method", "The method named as over gRPC, on every interface.", REQUESTS),
            Query(by("method"), "{{method}}"),
            is_stacked=True,
        ),
        lines(
            About(
                "Requests by outcome", "ok, cancelled (by the client), too_large, or the error's gRPC code.", REQUESTS
            ),
            Query(by("outcome"), "{{outcome}}"),
            Query(f"sum by (outcome) (rate(tidegate_lane_failures_total{{{INSTANCE}}}[{RATE}]))", "lanes: {{outcome}}"),
        ),
        lines(
            About(
                "Refused for lack of space",
                "A queue or the arena was full, over five minutes. Alert: above 1 %.",
                SHARE,
            ),
            Query(f"job_instance:tidegate_refused_requests:ratio_rate5m{{{INSTANCE}}}", "{{instance}}"),
            limit=0.01,
        ),
    ]


def _latency() -> list[Panel]:
    def steps(labels: str) -> str:
        return f"sum by ({labels}) (rate(tidegate_request_seconds_bucket{{{INSTANCE},{STEPS}}}[{RATE}]))"

    increase = f"sum by (le) (increase(tidegate_request_seconds_bucket{{{INSTANCE},{STEPS}}}[{RATE}]))"
    recorded = f"max by (interface, method) (job_instance_method:tidegate_request_seconds:p99_rate5m{{{INSTANCE}}})"
    return [
        lines(
            About("Step latency", "Time from a step's arrival to its answer. Objective: 99 % within 100 ms.", SECONDS),
            *(Query(f"histogram_quantile({q}, {steps('le')})", f"p{round(100 * q)}") for q in (0.5, 0.9, 0.99)),
            limit=0.1,
        ),
        heat(About("Step latency, distribution", "Number of steps by their latency.", SECONDS), increase),
        lines(
            About("Step latency by interface, p99", "The 99th percentile of each interface.", SECONDS),
            Query(f"histogram_quantile(0.99, {steps('interface, le')})", "{{interface}}"),
            limit=0.1,
        ),
        lines(
            About(
                "Latency by method, p99",
                "The slowest server, over five minutes. Generations take long.",
                SECONDS,
            ),
            Query(recorded, "{{interface}} {{method}}"),
        ),
    ]


def _objectives() -> list[Panel]:
    def burn(objective: str) -> list[Query]:
        series = f'{{job=~"$job",slo="{objective}"}}'
        return [
            Query(f"job_slo:tidegate_burn_rate:rate{window}{series}", window)
            for window in ("5m", "30m", "1h", "6h", "3d")
        ]

    text = "At 1 the budget lasts 30 days. Alerts: 14.4 over 1h and 5m, 6 over 6h and 30m, 1 over 3d and 6h."
    return [
        lines(
            About("Availability: burn of the error budget", f"99.9 %. {text}", COUNT), *burn("availability"), limit=14.4
        ),
        lines(
            About("Latency: burn of the error budget", f"99 % within 100 ms. {text}", COUNT),
            *burn("latency"),
            limit=14.4,
        ),
    ]


def _processes() -> list[Panel]:
    return [
        lines(
            About("Processor", "Cores in use, all workers together.", COUNT),
            Query(f"rate(process_cpu_seconds_total{{{INSTANCE}}}[{RATE}])", "{{instance}}"),
            width=8,
        ),
        lines(
            About("Memory", "Resident memory of all workers; shared pages count once per worker.", BYTES),
            Query(f"process_resident_memory_bytes{{{INSTANCE}}}", "{{instance}}"),
            width=8,
        ),
        lines(
            About(
                "Open files",
                "Share of the limit; mostly sockets. At the limit the server accepts no more connections.",
                SHARE,
            ),
            Query(f"process_open_fds{{{INSTANCE}}} / process_max_fds{{{INSTANCE}}}", "{{instance}}"),
            width=8,
        ),
        lines(
            About("Workers", "Serving processes behind one address.", COUNT),
            Query(f"tidegate_workers{{{INSTANCE}}}", "{{instance}}"),
        ),
        listing(
            About("Running versions", "Version of the program on each server.", COUNT),
            Query(f"tidegate_build_info{{{INSTANCE}}}", ""),
            ["instance", "version"],
        ),
    ]
