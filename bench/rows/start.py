"""From the start of the process to ready, with all committed bundles, and the memory that it takes then."""

from __future__ import annotations

from collections.abc import Iterator

from bench.measure import Goal, Plan, Row, absolute, spread
from bench.processes import Running, server

NAME = "start"
SECONDS_GOAL = Goal("start to ready ≤ 0.6 s with all committed bundles", 0.6, is_least=False)
MEMORY_GOAL = Goal("resident memory ≤ 170 MB once ready", 170, is_least=False)


def start(plan: Plan) -> Iterator[Row]:
    with server(*plan.flags_of(NAME)):
        pass  # what is read for the first time is not what is measured
    starts = [_start(plan) for _ in range(2 * plan.rounds)]
    seconds = spread([running.ready_after for running, _ in starts])
    memory = spread([resident / 1e6 for _, resident in starts])
    yield absolute("start-to-ready", "s", SECONDS_GOAL, seconds)
    yield absolute("resident-memory", "MB", MEMORY_GOAL, memory)


def _start(plan: Plan) -> tuple[Running, int]:
    with server(*plan.flags_of(NAME)) as running:
        return running, running.resident_bytes
