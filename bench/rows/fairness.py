"""Fairness: single steps of 32 sessions while a client pushes prompts of 10,000 steps, and the reverse."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager

from bench.client import Driving, Figures, driving
from bench.measure import Goal, Plan, Row, against, interleaved
from bench.processes import Running, server
from bench.sessions import sessions

NAME = "fairness"
STEPPERS, PROMPT = 32, 10_000
LEAST_SECONDS = 5
"""A prompt takes half a second and more: fewer would be too few."""
STEPPERS_GOAL = Goal("steppers' p99 ≤ 3 times that without the prompts", 3.0, is_least=False)
PROMPTS_GOAL = Goal("prompts of 10,000 steps get ≥ 50 % of their rate alone", 0.5)

Both = dict[str, Figures]


def fairness(plan: Plan) -> Iterator[Row]:
    with server(*plan.flags_of(NAME)) as serving:
        rounds = interleaved(
            plan.rounds,
            {
                "alone": lambda: {"steps": _steps_alone(serving, plan), "prompts": _prompts_alone(serving, plan)},
                "both": lambda: _both(serving, plan),
            },
        )
    yield against(
        "fairness-steppers-p99",
        "µs",
        STEPPERS_GOAL,
        rounds,
        ("both", "alone"),
        lambda figures: figures["steps"].p99,
        alone_steps_per_s=rounds.median("alone", lambda figures: figures["steps"].steps_per_s),
        both_steps_per_s=rounds.median("both", lambda figures: figures["steps"].steps_per_s),
        alone_p50_us=rounds.median("alone", lambda figures: figures["steps"].p50),
        both_p50_us=rounds.median("both", lambda figures: figures["steps"].p50),
    )
    yield against("fairness-prompts-rate", "steps/s", PROMPTS_GOAL, rounds, ("both", "alone"), _prompt_steps)


def _prompt_steps(figures: Both) -> float:
    return figures["prompts"].steps_per_s_between


def _steps_alone(serving: Running, plan: Plan) -> Figures:
    with sessions(serving, STEPPERS) as ids, _steppers(serving, ids, plan) as load:
        return load.figures()


def _prompts_alone(serving: Running, plan: Plan) -> Figures:
    with sessions(serving, 1) as ids, _prompts(serving, ids, plan) as load:
        return load.figures()


def _both(serving: Running, plan: Plan) -> Both:
    with (
        sessions(serving, STEPPERS + 1) as ids,
        _prompts(serving, ids[:1], plan) as prompts,
        _steppers(serving, ids[1:], plan) as steps,
    ):
        return {"steps": steps.figures(), "prompts": prompts.figures()}


def _steppers(serving: Running, ids: list[str], plan: Plan) -> AbstractContextManager[Driving]:
    return driving("stream", serving, plan.load | {"connections": STEPPERS, "seconds": _seconds(plan)}, ids)


def _prompts(serving: Running, ids: list[str], plan: Plan) -> AbstractContextManager[Driving]:
    return driving("stream", serving, plan.load | {"chunk": PROMPT, "seconds": _seconds(plan)}, ids)


def _seconds(plan: Plan) -> float:
    return max(2 * plan.seconds, LEAST_SECONDS)
