"""A hundred thousand open sessions of which 64 are active: what the others cost in time and in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

from bench.client import Figures, drive
from bench.measure import Goal, Plan, Row, against, compared, interleaved, spread
from bench.processes import Running, server
from bench.sessions import open_sessions, sessions, state_bytes, step_once

NAME = "sessions-100k"
FEW, MANY, MANY_IN_A_QUICK_RUN, ACTIVE = 1_000, 100_000, 10_000, 64
COST_GOAL = Goal("cost per step within 10 % of 1,000 open", 1.10, is_least=False)
MEMORY_GOAL = Goal("memory per idle session ≤ 1.2 × its state + 1 KB", 1.0, is_least=False)
OVERHEAD, EXTRA = 1.2, 1024


def sessions_100k(plan: Plan) -> Iterator[Row]:
    """Two servers beside each other; every open session has made a step, so that it has a state to keep."""
    many = MANY_IN_A_QUICK_RUN if plan.is_quick else MANY
    with ExitStack() as stack:
        servers = {count: stack.enter_context(server(*plan.flags_of(NAME))) for count in (FEW, many)}
        resident = {count: _fill(running, count) for count, running in servers.items()}
        rounds = interleaved(
            plan.rounds,
            {
                "few": lambda: _step(servers[FEW], plan),
                "many": lambda: _step(servers[many], plan),
            },
        )
        state = state_bytes(servers[FEW])
    yield against(
        "sessions-100k-cost",
        "µs CPU/step",
        COST_GOAL,
        rounds,
        ("many", "few"),
        lambda figures: figures.server_us_per_step,
        open=many,
        active=ACTIVE,
        rate_ratio=rounds.ratio("many", "few", lambda figures: figures.steps_per_s).median,
    )
    grown, limit = (resident[many] - resident[FEW]) / (many - FEW), OVERHEAD * state + EXTRA
    ratio = spread([grown / limit])
    details = {"open": many, "state_bytes": state, "resident_mib": resident[many] / 2**20}
    yield compared("sessions-100k-memory", "bytes/session", MEMORY_GOAL, grown, limit, ratio, **details)


def _fill(running: Running, count: int) -> int:
    """Open ``count`` sessions; returns the memory that is occupied then, in bytes."""
    step_once(running, open_sessions(running, count))
    return running.resident_bytes


def _step(running: Running, plan: Plan) -> Figures:
    with sessions(running, ACTIVE) as ids:
        return drive("stream", running, plan.load | {"connections": ACTIVE}, ids)
