"""HTTP `:step` on connections that are kept."""

from __future__ import annotations

from collections.abc import Iterator

from bench.measure import Goal, Plan, Row
from bench.rows.stepping import CpuRule, Way, against_echo, or_by_cpu

NAME = "http-step-64"
RULE = CpuRule(more=8)
GOAL = Goal(f"≥ 0.75 of a bare ASGI echo, or {RULE}", 0.75)
OTHERS = {"starlette": ("http_echo", "starlette"), "fastapi": ("http_echo", "fastapi")}


def http_step_64(plan: Plan) -> Iterator[Row]:
    yield or_by_cpu(against_echo(NAME, plan, Way("http"), GOAL, ("http_echo", "asgi"), OTHERS), RULE, plan.seconds)
