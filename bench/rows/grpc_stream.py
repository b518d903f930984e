"""gRPC streams, one token a message."""

from __future__ import annotations

from collections.abc import Iterator

from bench.measure import Goal, Plan, Row, skipped
from bench.rows.stepping import CpuRule, Way, against_echo, or_by_cpu

NAME = "grpc-stream-64"
RULE = CpuRule()
GOAL = Goal(f"≥ 0.75 of the bare bidirectional echo, or {RULE}", 0.75)


def grpc_stream_64(plan: Plan) -> Iterator[Row]:
    yield or_by_cpu(against_echo(NAME, plan, Way("stream"), GOAL, ("grpc_echo",)), RULE, plan.seconds)
    why = "peers have environments of their own: make bench-peers"
    yield skipped(f"{NAME}-peers", "steps/s", "≥ 7 times the best Python peer", why)
