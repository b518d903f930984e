"""The policy: who runs next, with whom, for how long."""

from __future__ import annotations

from concurrent.futures import Future

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.api import Prediction, StepOptions
from tidegate.engine.request import Request, chunk
from tidegate.engine.scheduler import LONG, SHORT, Plan, Scheduler


def work(steps: int, deadline: float | None = None) -> Request:
    reply: Future[Prediction] = Future()
    return chunk(None, (np.zeros(steps, np.int64),), StepOptions(), None, deadline, reply)


def planned(scheduler: Scheduler, now: float = 0.0) -> Plan:
    plan = scheduler.plan(now)
    assert plan is not None
    return plan


def run(scheduler: Scheduler, now: float = 0.0) -> Plan:
    """Plan, run and put back who is not done."""
    plan = planned(scheduler, now)
    for one in plan.requests:
        one.offset += plan.length
        if one.remaining:
            scheduler.add(one)
    return plan


def kind(steps: int) -> int:
    return 0 if steps < SHORT else 1 if steps < LONG else 2


def test_nothing_waits_nothing_runs() -> None:
    assert Scheduler(4, 100).plan(0.0) is None


def test_single_steps_share_a_run_first_come_first_served() -> None:
    scheduler = Scheduler(max_rows=3, max_steps=100)
    works = [work(1) for _ in range(5)]
    for one in works:
        scheduler.add(one)
    assert run(scheduler)[:3] == (works[:3], 1, [])
    assert run(scheduler)[:3] == (works[3:], 1, [])
    assert len(scheduler) == 0


def test_rows_of_a_run_advance_as_far_as_the_shortest() -> None:
    scheduler = Scheduler(max_rows=8, max_steps=1000)
    works = [work(5), work(3), work(9)]
    for one in works:
        scheduler.add(one)
    assert run(scheduler)[:3] == (works, 3, [])
    assert [one.remaining for one in works] == [2, 0, 6]


def test_who_comes_again_waits_behind_those_who_waited() -> None:
    scheduler = Scheduler(max_rows=1, max_steps=100, max_piece=20)
    first, second = work(200), work(200)
    scheduler.add(first)
    scheduler.add(second)
    assert [run(scheduler).requests for _ in range(4)] == [[first], [second], [first], [second]]


def test_rows_times_steps_are_bounded() -> None:
    scheduler = Scheduler(max_rows=10, max_steps=30)
    for _ in range(6):
        scheduler.add(work(12))
    plan = run(scheduler)
    assert (len(plan.requests), plan.length) == (6, 5)


def test_fewer_steps_than_rows_bound_the_rows() -> None:
    scheduler = Scheduler(max_rows=256, max_steps=100)
    for _ in range(256):
        scheduler.add(work(1))
    assert len(run(scheduler).requests) == 100


def test_long_work_runs_in_small_pieces_while_others_are_about_and_in_larger_ones_when_alone() -> None:
    scheduler = Scheduler(max_rows=4, max_steps=100_000, max_piece=50)
    scheduler.add(work(10_000))
    alone = run(scheduler).length
    scheduler.add(work(1))
    lengths = [run(scheduler).length for _ in range(3)]
    assert alone == 200
    assert lengths == [1, 50, 50]
    assert [run(scheduler).length for _ in range(12)][-1] == 200


def test_a_single_step_waits_for_at_most_one_run_of_each_other_kind() -> None:
    scheduler = Scheduler(max_rows=1, max_steps=1000)
    for steps in [300, 300, 300, 9, 9, 9]:
        scheduler.add(work(steps))
    for _ in range(3):
        run(scheduler)
        single = work(1)
        scheduler.add(single)
        before = 0
        while single.remaining:
            run(scheduler)
            before += 1
        assert before <= 3


def test_long_work_always_advances_under_a_storm_of_single_steps() -> None:
    scheduler = Scheduler(max_rows=2, max_steps=1000, max_piece=10)
    long = work(100)
    scheduler.add(long)
    runs = 0
    while long.remaining:
        for _ in range(4):
            scheduler.add(work(1))
        run(scheduler)
        runs += 1
    assert runs <= 2 * 100 / 10 + 2


@pytest.mark.parametrize("steps", [1, 5, 50])
def test_the_late_and_the_abandoned_fall_out_without_taking_a_row(steps: int) -> None:
    scheduler = Scheduler(max_rows=2, max_steps=1000)
    late, abandoned, first, second = work(steps, deadline=1.0), work(steps), work(steps, deadline=9.0), work(steps)
    for one in (late, abandoned, first, second):
        scheduler.add(one)
    abandoned.reply.set_result(None)
    plan = planned(scheduler, now=1.0)
    assert (plan.requests, plan.dropped) == ([first, second], [late, abandoned])
    assert len(scheduler) == 0


def test_a_plan_may_hold_nothing_but_the_dropped() -> None:
    scheduler = Scheduler(max_rows=2, max_steps=1000)
    late = work(20, deadline=1.0)
    scheduler.add(late)
    plan = planned(scheduler, now=2.0)
    assert (plan.requests, plan.dropped) == ([], [late])
    assert scheduler.plan(2.0) is None


@pytest.mark.parametrize("steps", [1, 5, 50])
def test_discarded_work_is_gone_and_discarding_twice_is_no_error(steps: int) -> None:
    scheduler = Scheduler(max_rows=2, max_steps=1000)
    one, other = work(steps), work(steps)
    scheduler.add(one)
    scheduler.add(other)
    scheduler.discard(one)
    scheduler.discard(one)
    assert planned(scheduler).requests == [other]
    assert scheduler.plan(0.0) is None


@given(
    lengths=st.lists(st.integers(1, 400), min_size=1, max_size=40),
    arrivals=st.lists(st.integers(0, 10), min_size=40, max_size=40),
    max_rows=st.integers(1, 12),
    max_steps=st.integers(1, 300),
    max_piece=st.integers(1, 80),
)
def test_everything_completes_within_the_bounds_and_nobody_twice_in_a_run(
    lengths: list[int], arrivals: list[int], max_rows: int, max_steps: int, max_piece: int
) -> None:
    scheduler = Scheduler(max_rows, max_steps, max_piece)
    works = [work(steps) for steps in lengths]
    coming = sorted(zip(arrivals, range(len(works)), works, strict=False), key=lambda item: item[:2])
    time = total = 0
    while coming or len(scheduler):
        while coming and coming[0][0] <= time:
            scheduler.add(coming.pop(0)[2])
        time += 1
        if not len(scheduler):
            continue
        plan = planned(scheduler)
        assert 1 <= len(plan.requests) <= max_rows
        assert len({id(one) for one in plan.requests}) == len(plan.requests)
        assert 1 <= plan.length <= min(one.remaining for one in plan.requests)
        assert plan.length * len(plan.requests) <= max_steps
        assert len({kind(one.remaining) for one in plan.requests}) == 1
        for one in plan.requests:
            one.offset += plan.length
            if one.remaining:
                scheduler.add(one)
        total += plan.length * len(plan.requests)
    assert total == sum(lengths)
    assert all(one.remaining == 0 for one in works)
