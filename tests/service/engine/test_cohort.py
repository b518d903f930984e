"""Steps of many sessions as one piece of work: each is told what it would be told alone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest

from tests.service.engine.house import POISON, House, house
from tidegate.api import StepOptions, StepResult
from tidegate.engine.cohort import CohortReply
from tidegate.engine.session import Session
from tidegate.errors import (
    DeadlineExceededError,
    InternalError,
    OverloadedError,
    PositionConflictError,
    SessionEndedError,
    TidegateError,
    UnavailableError,
)

pytestmark = pytest.mark.usefixtures("arena")


async def together(it: House, sessions: Sequence[Session], text: str) -> list[StepResult | TidegateError]:
    reply = it.step_together(sessions, text)
    assert reply is not None
    return (await reply).results(len(sessions))


def taken(reply: asyncio.Future[CohortReply] | None) -> asyncio.Future[CohortReply]:
    assert reply is not None
    return reply


def _note(order: list[int], number: int, _: object) -> None:
    order.append(number)


async def test_each_is_told_what_it_would_be_told_alone() -> None:
    async with house() as it:
        one, other = [it.open() for _ in range(4)], [it.open() for _ in range(4)]
        for text in ("abcd", "aaaa", "gfed"):
            found = await together(it, one, text)
            alone = await asyncio.gather(*(it.step(session, each) for session, each in zip(other, text, strict=True)))
            assert [result._replace(session="") for result in found if isinstance(result, StepResult)] == [
                result._replace(session="") for result in alone
            ]
            assert [result.session for result in found if isinstance(result, StepResult)] == [s.id for s in one]
        assert [it.state(session) for session in one] == [it.state(session) for session in other]
        assert it.runner.runs == [(4, 1)] * 6


async def test_cohorts_and_single_steps_share_a_run() -> None:
    async with house() as it:
        sessions = [it.open() for _ in range(7)]
        first, single = it.step_together(sessions[:3], "abc"), it.step(sessions[3], "d")
        second = it.step_together(sessions[4:], "efg")
        stateless = it.predict("a")
        await asyncio.gather(taken(first), single, taken(second), stateless)
        assert it.runner.runs == [(8, 1)]
        assert [session.position for session in sessions] == [1] * 7


async def test_what_is_first_come_is_first_served() -> None:
    async with house(max_rows=4) as it:
        sessions = [it.open() for _ in range(9)]
        order: list[int] = []
        futures: list[asyncio.Future[Any]] = [
            it.step(sessions[0], "a"),
            taken(it.step_together(sessions[1:5], "abcd")),
            it.step(sessions[5], "a"),
            taken(it.step_together(sessions[6:9], "abc")),
        ]
        for number, future in enumerate(futures):
            future.add_done_callback(partial(_note, order, number))
        await asyncio.gather(*futures)
        assert order == [0, 1, 2, 3]
        assert it.runner.runs == [(1, 1), (4, 1), (4, 1)]


async def test_nobody_is_waited_for_where_a_run_is_full() -> None:
    async with house(max_rows=3) as it:
        sessions = [it.open() for _ in range(4)]
        full: list[bool] = []
        single = it.step(sessions[0], "a")
        full.append(it.engine.has_full_run)
        reply = taken(it.step_together(sessions[1:3], "ab"))
        full.append(it.engine.has_full_run)
        it.runner.during[0] = lambda: full.append(it.engine.has_full_run)
        await asyncio.gather(single, reply)
        assert full == [False, True, False]


async def test_a_cohort_larger_than_a_run_is_not_taken() -> None:
    async with house(max_rows=2) as it:
        assert it.step_together([it.open() for _ in range(3)], "abc") is None


async def test_a_full_queue_takes_no_cohort() -> None:
    async with house(max_queue=3) as it:
        sessions = [it.open() for _ in range(5)]
        waiting = it.step_together(sessions[:2], "ab")
        assert it.engine.num_waiting == 2
        assert it.step_together(sessions[2:4], "ab") is None
        last = it.step(sessions[4], "a")
        with pytest.raises(OverloadedError):
            it.step(sessions[3], "a")
        await asyncio.gather(taken(waiting), last)


@pytest.mark.parametrize("positions", [[0, 1], [1, 0], [1, 1]])
async def test_positions_that_are_not_the_sessions_are_decided_one_by_one(positions: list[int]) -> None:
    async with house() as it:
        sessions = [it.open(), it.open()]
        assert it.step_together(sessions, "ab", positions) is None
        await taken(it.step_together(sessions, "ab", [0, 0]))
        assert [session.position for session in sessions] == [1, 1]


async def test_busy_sessions_go_one_by_one() -> None:
    async with house() as it:
        sessions = [it.open(), it.open()]
        single = it.step(sessions[1], "a")
        assert it.step_together(sessions, "ab") is None
        await single
        cohort = it.step_together(sessions, "ab")
        assert it.step_together(sessions, "ab") is None
        behind = it.step(sessions[0], "c")
        await taken(cohort)
        assert (await behind).position == 2


async def test_the_last_step_may_be_repeated_and_nothing_else() -> None:
    async with house() as it:
        sessions = [it.open() for _ in range(3)]
        await taken(it.step_together(sessions, "abc"))
        first = (await taken(it.step_together(sessions, "def"))).results(3)
        runs = len(it.runner.runs)
        for lane, (session, text) in enumerate(zip(sessions, "def", strict=True)):
            assert await it.step(session, text, position=1) == first[lane]
            for other in (
                it.step(session, "a", 1),
                it.step(session, text, 1, StepOptions(top=2)),
                it.step(session, "a", 0),
            ):
                with pytest.raises(PositionConflictError) as caught:
                    await other
                assert caught.value.position == 2
        assert len(it.runner.runs) == runs
        assert it.engine.meter.num_repeats == 3


async def test_a_bad_row_fails_no_other() -> None:
    async with house() as it:
        sessions = [it.open() for _ in range(4)]
        reply, single = it.step_together(sessions[:3], f"a{POISON}b"), it.step(sessions[3], "c")
        results = (await taken(reply)).results(3)
        assert [type(result) for result in results] == [StepResult, InternalError, StepResult]
        assert (await single).position == 1
        assert [session.position for session in sessions] == [1, 0, 1, 1]
        again = await it.step(sessions[2], "b", position=0)
        assert again == results[2]
        assert not isinstance((await together(it, sessions[:2], "ab"))[1], TidegateError)


async def test_a_session_that_ends_while_it_waits_or_runs_fails_alone() -> None:
    async with house() as it:
        sessions = [it.open() for _ in range(4)]
        reply = it.step_together(sessions, "abcd")
        it.end(sessions[1])
        it.runner.during[0] = lambda: it.end(sessions[3])
        results = (await taken(reply)).results(4)
        assert [type(result) for result in results] == [StepResult, SessionEndedError] * 2
        assert [session.slot is None for session in sessions] == [False, True, False, True]
        assert [session.position for session in sessions] == [1, 0, 1, 0]


async def test_the_slot_of_a_session_that_ended_may_be_anothers_before_the_run() -> None:
    async with house(slots=3) as it:
        sessions = [it.open() for _ in range(3)]
        await taken(it.step_together(sessions, "abc"))
        reply = it.step_together(sessions, "abc")
        it.end(sessions[1])
        heir = it.open()
        assert heir.slot is not None
        results = (await taken(reply)).results(3)
        assert isinstance(results[1], SessionEndedError)
        fresh = it.predict("d")
        assert (await it.step(heir, "d")).prediction == await fresh


async def test_a_session_that_ends_in_a_run_that_fails() -> None:
    async with house() as it:
        sessions = [it.open() for _ in range(3)]
        it.runner.during[0] = lambda: it.end(sessions[0])
        results = (await taken(it.step_together(sessions, f"a{POISON}b"))).results(3)
        assert [type(result) for result in results] == [SessionEndedError, InternalError, StepResult]


async def test_all_sessions_end_in_a_run_that_fails() -> None:
    async with house() as it:
        sessions = [it.open() for _ in range(2)]
        it.runner.during[0] = lambda: (it.end(sessions[0]), it.end(sessions[1]))  # type: ignore[func-returns-value]
        results = (await taken(it.step_together(sessions, f"a{POISON}"))).results(2)
        assert [type(result) for result in results] == [SessionEndedError] * 2


async def test_a_cohort_that_nobody_waits_for_changes_nothing() -> None:
    async with house() as it:
        sessions = [it.open() for _ in range(3)]
        early = taken(it.step_together(sessions, "abc"))
        early.cancel()
        behind = it.step(sessions[0], "a")
        assert (await behind).position == 1
        late = taken(it.step_together(sessions, "abc"))
        it.runner.during[len(it.runner.runs)] = late.cancel
        assert (await it.step(sessions[1], "a")).position == 1
        assert [session.position for session in sessions] == [1, 1, 0]


async def test_a_cohort_past_its_deadline_changes_nothing() -> None:
    async with house() as it:
        sessions = [it.open() for _ in range(2)]
        with pytest.raises(DeadlineExceededError):
            await taken(it.step_together(sessions, "ab", deadline=it.now))
        assert [it.state(session)[0] for session in sessions] == [0, 0]


async def test_a_loop_that_stops_answers_its_cohorts() -> None:
    async with house() as it:
        sessions = [it.open() for _ in range(2)]
        reply = taken(it.step_together(sessions, "ab"))
        behind = it.step(sessions[0], "c")
        await it.loop.stop()
        for each in (reply, behind):
            with pytest.raises(UnavailableError):
                await each
        assert it.step_together(sessions, "ab") is None


async def test_what_is_counted() -> None:
    async with house() as it:
        sessions = [it.open() for _ in range(5)]
        await asyncio.gather(taken(it.step_together(sessions[:4], "abcd")), it.step(sessions[4], "e"))
        counts, meter = it.engine.statistics(), it.engine.meter.snapshot()
        assert (counts.num_runs, counts.num_rows, counts.num_steps, counts.num_queued) == (1, 5, 5, 0)
        assert counts.rows_per_run == {8: 1}
        assert meter.steps["step"] == 5
        assert meter.queue.num_values == 5
