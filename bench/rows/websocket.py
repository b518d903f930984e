"""WebSocket steps, a frame each."""

from __future__ import annotations

from collections.abc import Iterator

from bench.measure import Goal, Plan, Row
from bench.rows.stepping import Way, against_echo, or_by_cpu

NAME = "websocket-64"
GOAL = Goal(
    "≥ 0.60 of a bare WebSocket echo, or server CPU per step ≤ the echo's + the raw run's + 10 µs",
    0.60,
)


def websocket_64(plan: Plan) -> Iterator[Row]:
    yield or_by_cpu(against_echo(NAME, plan, Way("websocket"), GOAL, ("http_echo", "asgi")), plan.seconds)
