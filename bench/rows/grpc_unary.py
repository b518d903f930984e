"""gRPC unary calls, a step each."""

from __future__ import annotations

from collections.abc import Iterator

from bench.measure import Goal, Plan, Row
from bench.rows.stepping import CpuRule, Way, against_echo, or_by_cpu

NAME = "grpc-unary-64"
RULE = CpuRule(share=0.35)
GOAL = Goal(f"≥ 2.5 times the bare grpc.aio echo, or {RULE}", 2.5)


def grpc_unary_64(plan: Plan) -> Iterator[Row]:
    yield or_by_cpu(against_echo(NAME, plan, Way("unary"), GOAL, ("grpc_echo",)), RULE, plan.seconds)
