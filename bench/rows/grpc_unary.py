"""gRPC unary calls, a step each."""

from __future__ import annotations

from collections.abc import Iterator

from bench.measure import Goal, Plan, Row
from bench.rows.stepping import against_echo

NAME = "grpc-unary-64"
GOAL = Goal("≥ 2.0 times the bare grpc.aio echo", 2.0)


def grpc_unary_64(plan: Plan) -> Iterator[Row]:
    yield against_echo(NAME, plan, "unary", GOAL, ("grpc_echo",))
