"""gRPC unary calls, a step each: on the native front, for which the target is, and on grpcio's own server."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from bench.measure import Goal, Plan, Row
from bench.rows.stepping import Way, against_echo

NAME = "grpc-unary-64"
GOAL = Goal("≥ 2.0 times the bare grpc.aio echo", 2.0)
GRPCIO = "grpc-unary-64-grpcio"


def grpc_unary_64(plan: Plan) -> Iterator[Row]:
    yield against_echo(NAME, plan, Way("unary"), GOAL, ("grpc_echo",), flags=("--native-grpc", "127.0.0.1:0"))
    without = against_echo(GRPCIO, plan, Way("unary"), GOAL, ("grpc_echo",))
    yield replace(without, target="–", met=None, share=None, note="Without the native front, for comparison.")
