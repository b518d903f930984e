"""WebSocket steps, a frame each."""

from __future__ import annotations

from collections.abc import Iterator

from bench.measure import Goal, Plan, Row
from bench.rows.stepping import CpuRule, Way, against_echo, or_by_cpu

NAME = "websocket-64"
RULE = CpuRule(more=12)
GOAL = Goal(f"≥ 0.50 of a bare WebSocket echo, or {RULE}", 0.50)


def websocket_64(plan: Plan) -> Iterator[Row]:
    yield or_by_cpu(against_echo(NAME, plan, Way("websocket"), GOAL, ("http_echo", "asgi")), RULE, plan.seconds)
