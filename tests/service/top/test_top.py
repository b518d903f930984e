"""`tidegate top` over scripted readings: rates, a restart, and what a terminal shows."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

import httpx
import pytest
from rich.console import Console

from tidegate.cli.top import AWAY, watch
from tidegate.top.scrape import Reader, ScrapeDelta, parse
from tidegate.top.view import screen, view

MODEL = 'model="tiny",version="2"'


def text(
    steps: float = 0,
    ok: float = 0,
    failed: float = 0,
    fast: float = 0,
    slow: float = 0,
    surprise: tuple[float, float] = (0, 0),
    state: str = "normal",
) -> str:
    """What a server's metrics say."""
    return f"""
tidegate_build_info{{version="1.2"}} 1
tidegate_ready 1
tidegate_workers 2
tidegate_sessions{{tier="ephemeral"}} 1234
tidegate_sessions{{tier="durable"}} 5
tidegate_model_info{{{MODEL},provider="CPUExecutionProvider",task="next_token",cell="lstm"}} 1
# TYPE tidegate_steps_total counter
tidegate_steps_total{{{MODEL},kind="step"}} {steps}
tidegate_steps_total{{{MODEL},kind="generated"}} {steps / 2}
tidegate_rows_total{{{MODEL}}} {steps}
tidegate_runs_total{{{MODEL}}} {steps / 4}
tidegate_run_seconds_total{{{MODEL}}} {steps / 1000}
tidegate_queued_chunks{{{MODEL}}} 3
tidegate_surprise_sum_total{{{MODEL}}} {surprise[0]}
tidegate_surprise_steps_total{{{MODEL}}} {surprise[1]}
# TYPE tidegate_surprise histogram
tidegate_surprise_bucket{{{MODEL},unit="bits",le="+Inf"}} 0
tidegate_surprise_count{{{MODEL},unit="bits"}} 0
tidegate_surprise_sum{{{MODEL},unit="bits"}} 0
tidegate_drift_state{{{MODEL},state="normal"}} {float(state == "normal")}
tidegate_drift_state{{{MODEL},state="drift"}} {float(state == "drift")}
tidegate_requests_total{{interface="grpc",method="Step",outcome="ok"}} {ok}
tidegate_requests_total{{interface="grpc",method="Step",outcome="aborted"}} {failed}
# TYPE tidegate_request_seconds histogram
tidegate_request_seconds_bucket{{interface="grpc",method="Step",le="0.001"}} {fast}
tidegate_request_seconds_bucket{{interface="grpc",method="Step",le="0.01"}} {fast + slow}
tidegate_request_seconds_bucket{{interface="grpc",method="Step",le="+Inf"}} {fast + slow}
tidegate_request_seconds_count{{interface="grpc",method="Step"}} {fast + slow}
tidegate_request_seconds_sum{{interface="grpc",method="Step"}} 1
tidegate_store_up{{store="sqlite"}} 0
"""


class Endpoint:
    """A server that says one thing after another; None: it does not answer."""

    def __init__(self, *replies: str | None) -> None:
        self._replies = iter(replies)
        self.seconds = 0.0

    def reader(self) -> Reader:
        client = httpx.Client(base_url="http://test", transport=httpx.MockTransport(self._answer))
        return Reader(client, lambda: self.seconds)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/metrics"
        reply = next(self._replies)
        if reply is None:
            raise httpx.ConnectError("refused")
        return httpx.Response(200, text=reply)

    def pause(self) -> None:
        self.seconds += 2.0


def test_rates_are_those_between_two_readings() -> None:
    before, now = parse(text(100, 10, 1, 5, 6), 10.0), parse(text(300, 30, 5, 21, 14, (50, 25), "drift"), 12.0)
    found = view(before, now)
    (model,), (request,) = found.models, found.requests
    assert (found.version, found.is_ready, found.workers, found.ephemeral, found.durable) == ("1.2", True, 2, 1234, 5)
    assert (model.steps, model.rows_per_run, model.queued) == (150.0, 4.0, 3)
    assert model.busy == pytest.approx(0.1)
    assert (model.surprise, model.unit, model.drift) == (2.0, "bits", "drift")
    assert (request.interface, request.method, request.rate, request.failed) == ("grpc", "Step", 12.0, 2.0)
    assert found.store is not None
    assert not found.store.is_up


def test_quantiles_are_found_within_buckets() -> None:
    between = ScrapeDelta(parse(text(fast=5, slow=5), 0.0), parse(text(fast=21, slow=9), 1.0))
    labels = {"interface": "grpc", "method": "Step"}
    # 16 below a millisecond, 4 below ten.
    assert between.quantile(0.5, "tidegate_request_seconds", **labels) == pytest.approx(0.001 * 10 / 16)
    assert between.quantile(0.9, "tidegate_request_seconds", **labels) == pytest.approx(0.001 + 0.009 * 2 / 4)
    assert between.quantile(0.5, "tidegate_nothing") is None


def test_values_beyond_the_last_bound_are_told_as_it() -> None:
    before = parse('# TYPE x histogram\nx_bucket{le="1"} 0\nx_bucket{le="+Inf"} 0\n', 0.0)
    now = parse('# TYPE x histogram\nx_bucket{le="1"} 1\nx_bucket{le="+Inf"} 9\n', 1.0)
    assert ScrapeDelta(before, now).quantile(0.99, "x") == 1.0


def test_a_server_that_was_started_anew_counts_from_nothing() -> None:
    found = view(parse(text(1000, 100), 0.0), parse(text(30, 7), 1.0))
    assert (found.models[0].steps, found.requests[0].rate) == (45.0, 7.0)


def test_without_requests_there_are_no_means() -> None:
    same = parse(text(5, 5), 0.0)
    found = view(same, parse(text(5, 5), 1.0))
    assert (found.requests[0].p50, found.models[0].rows_per_run, found.models[0].surprise) == (None, None, None)


def test_it_survives_a_restart_of_the_server() -> None:
    endpoint = Endpoint(text(0), text(200), None, None, text(40), text(80), "not metrics {")
    views = watch(endpoint.reader(), endpoint.pause)
    rates = [None if found is None else found.models[0].steps for found in (next(views) for _ in range(6))]
    # 200, and half of that sampled, in 2 s; away; 60 since the start in the 6 s since the last reading; 60 in 2 s.
    assert rates == [150.0, None, None, 10.0, 30.0, None]


def shown(*lines: object, width: int = 150) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    for line in lines:
        console.print(line)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_screen_has_every_figure() -> None:
    found = view(parse(text(), 0.0), parse(text(2000, 90, 10, 80, 20, (50, 25), "drift"), 1.0))
    seen = shown(screen("http://test", found))
    for part in (
        "tidegate 1.2  http://test  ready  2 workers", "1,234 ephemeral, 5 durable copies", "store sqlite away",
        "tiny/2", "3,000", "200%", "2.000 bits", "drift", "grpc Step", "100.0", "10.0", "625 µs", "9.55 ms",
    ):  # fmt: skip
        assert part in seen, (part, seen)


def test_a_server_that_is_away_keeps_its_last_figures_on_the_screen() -> None:
    found = view(parse(text(), 0.0), parse(text(2000), 1.0))
    assert "tiny/2" in shown(screen("http://test", found, AWAY))
    assert AWAY in shown(screen("http://test", None, AWAY))
    assert "reading" in shown(screen("http://test", None))


@pytest.fixture
def views() -> Iterator[object]:
    endpoint = Endpoint(text(), text(10))
    return iter(watch(endpoint.reader(), endpoint.pause))


def test_a_view_is_json(views: Iterator[object]) -> None:
    from dataclasses import asdict

    document = json.loads(json.dumps(asdict(next(views))))  # type: ignore[call-overload]
    assert document["models"][0]["steps"] == 7.5
    assert document["requests"][0]["interface"] == "grpc"
