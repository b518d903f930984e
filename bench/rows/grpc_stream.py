"""gRPC streams, one token a message."""

from __future__ import annotations

from collections.abc import Iterator

from bench.measure import Goal, Plan, Row, skipped
from bench.rows.stepping import Way, against_echo, or_by_cpu

NAME = "grpc-stream-64"
GOAL = Goal(
    "≥ 0.65 of the bare bidirectional echo, or server CPU per step ≤ the echo's + the raw run's + 10 µs",
    0.65,
)


def grpc_stream_64(plan: Plan) -> Iterator[Row]:
    yield or_by_cpu(against_echo(NAME, plan, Way("stream"), GOAL, ("grpc_echo",)), plan.seconds)
    why = "peers have environments of their own: make bench-peers"
    yield skipped(f"{NAME}-peers", "steps/s", "≥ 6 times the best Python peer", why)
