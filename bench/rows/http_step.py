"""HTTP `:step` on connections that are kept."""

from __future__ import annotations

from collections.abc import Iterator

from bench.measure import Goal, Plan, Row
from bench.rows.stepping import Way, against_echo

NAME = "http-step-64"
GOAL = Goal("≥ 0.60 of a bare ASGI echo", 0.60)
OTHERS = {"starlette": ("http_echo", "starlette"), "fastapi": ("http_echo", "fastapi")}


def http_step_64(plan: Plan) -> Iterator[Row]:
    yield against_echo(NAME, plan, Way("http"), GOAL, ("http_echo", "asgi"), OTHERS)
