"""One session alone: how long a step takes where there is nothing to batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

from bench.client import Figures, Mode, Options, drive
from bench.measure import Goal, Plan, Rounds, Row, Spread, compared, interleaved, spread
from bench.processes import Running, floor, server
from bench.raw import raw_steps
from bench.sessions import echoed, sessions

NAME = "single-session-p50"
GOAL = Goal("p50 ≤ that of h2corn's bare echo + 2 × one raw run", 1.0, is_least=False)
MODES: tuple[Mode, ...] = ("stream", "unary", "http", "websocket")


def single_session(plan: Plan) -> Iterator[Row]:
    """Over a gRPC stream; the other protocols stand in the details."""
    with ExitStack() as stack:
        serving = stack.enter_context(server(*plan.flags_of(NAME)))
        echo = stack.enter_context(floor("h2corn_echo"))
        load: Options = {"warmup": plan.warmup / 2, "seconds": plan.seconds / 3}
        rounds = {mode: _measure(mode, serving, echo, load, plan.rounds) for mode in MODES}
    run = spread([raw_steps(1, plan.seconds / 3).seconds_per_call * 1e6 for _ in range(plan.rounds)]).median
    budgets = {mode: found.median("floor", _p50) + 2 * run for mode, found in rounds.items()}
    p50 = rounds["stream"].spread("server", _p50)
    ratio = Spread(*(figure / budgets["stream"] for figure in p50))
    details = {f"{mode}_p50_us": found.median("server", _p50) for mode, found in rounds.items()}
    details |= {f"{mode}_budget_us": budget for mode, budget in budgets.items()}
    yield compared(NAME, "µs", GOAL, p50.median, budgets["stream"], ratio, raw_run_us=run, **details)


def _p50(figures: Figures) -> float:
    return figures.p50


def _measure(mode: Mode, serving: Running, echo: Running, load: Options, rounds: int) -> Rounds[Figures]:
    def step_server() -> Figures:
        with sessions(serving, 1) as ids:
            return drive(mode, serving, load, ids)

    def step_echo() -> Figures:
        return drive(mode, echo, {**load, "echo": "yes"}, echoed(1))

    return interleaved(rounds, {"server": step_server, "floor": step_echo})
