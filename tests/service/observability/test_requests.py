"""What is counted of requests, and what is told of each where somebody wants to know."""

from __future__ import annotations

import asyncio
import json

import pytest

from tidegate import errors
from tidegate.clock import Clock
from tidegate.config import load_settings
from tidegate.errors import ConfigurationError, PositionConflictError, TidegateError
from tidegate.observability.access import AccessLog
from tidegate.observability.requests import RequestMetrics, RequestRecorder, make_requests, make_tracing, outcome_of

OUTCOMES = {
    "InvalidInputError": "invalid_argument",
    "NotFoundError": "not_found",
    "AlreadyExistsError": "already_exists",
    "SessionEndedError": "not_found",
    "FailedPreconditionError": "failed_precondition",
    "TooLargeError": "too_large",
    "OverloadedError": "resource_exhausted",
    "NotSupportedError": "unimplemented",
    "UnavailableError": "unavailable",
    "DeadlineExceededError": "deadline_exceeded",
    "InternalError": "internal",
    "TidegateError": "internal",
}


@pytest.mark.parametrize("name", OUTCOMES)
def test_an_error_s_outcome_tells_overload_from_what_is_too_large(name: str) -> None:
    kind: type[TidegateError] = getattr(errors, name)
    assert outcome_of(kind("message")) == OUTCOMES[name]


def test_other_outcomes() -> None:
    assert outcome_of(PositionConflictError("conflict", position=3)) == "aborted"
    assert outcome_of(ZeroDivisionError()) == "internal"


def test_each_method_has_its_own_counters() -> None:
    requests = RequestMetrics(Clock())
    begun = requests.begin()
    requests.method("grpc", "Step").end(begun)
    requests.method("grpc", "Step").end(begun, "aborted")
    requests.method("http", "Step").end(begun)
    read = [(each.interface, each.method, each.outcomes, each.seconds.num_values) for each in requests.snapshots()]
    assert read == [("grpc", "Step", {"ok": 1, "aborted": 1}, 2), ("http", "Step", {"ok": 1}, 1)]


@pytest.mark.parametrize("style", ["json", "console"])
async def test_the_access_log_has_a_line_a_request(style: str) -> None:
    written: list[str] = []
    requests = RequestRecorder(Clock(), AccessLog(style, Clock(), written.append), None)  # type: ignore[arg-type]
    given = requests.begin([(b"X-Request-Id", b"client-7"), (b"x-request-id", b"second")])
    made = requests.begin(lambda: [("x-request-id", "not an id"), ("other", "value")])
    requests.method("grpc", "Step").end(made, "aborted", "s 1\n")
    requests.method("http", "Open").end(given)
    assert written == [], "lines of one round are handed over at once"
    await asyncio.sleep(0)
    lines = "".join(written).splitlines()
    assert len(lines) == 2
    if style == "json":
        step, opened = map(json.loads, lines)
        assert (step["interface"], step["method"], step["outcome"], step["session"]) == (
            "grpc", "Step", "aborted", "s 1\n",
        )  # fmt: skip
        assert step["seconds"] >= 0
        assert (step["event"], step["level"], step["logger"]) == ("request", "info", "tidegate.access")
        assert opened["request"] == "client-7"
        assert "not an id" not in step["request"]
        assert "session" not in opened
    else:
        assert "interface=grpc method=Step outcome=aborted" in lines[0]
        assert 'session="s 1\\n"' in lines[0]
        assert "request=client-7" in lines[1]


@pytest.mark.parametrize(
    ("settings", "is_detailed"),
    [({}, False), ({"access_log": True}, True), ({"log_level": "debug"}, True), ({"log_level": "error"}, False)],
)
async def test_requests_are_told_one_by_one_only_where_that_is_asked_for(
    settings: dict[str, object], is_detailed: bool
) -> None:
    assert isinstance(make_requests(load_settings(settings), None, Clock()), RequestRecorder) == is_detailed


@pytest.mark.parametrize("url", ["127.0.0.1:4317", "ftp://host:1", "http://"])
def test_a_collector_s_address_is_a_url(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"--otlp: .* is not a URL"):
        load_settings({"otlp": url})


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_traces_are_off_unless_asked_for(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert make_tracing(load_settings({}), Clock()) is None
