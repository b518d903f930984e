"""Steps of many sessions as one request: each is told what it would be told alone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial

import pytest

from tests.service.engine.house import POISON, House, house
from tests.service.engine.test_durable import Records
from tidegate.api import StepOptions, StepResult
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
from tidegate.reply import RowResult

pytestmark = pytest.mark.usefixtures("arena")


async def together(it: House, sessions: Sequence[Session], text: str) -> list[RowResult]:
    return await it.step_rows(sessions, text).results()


def kinds(results: Sequence[object]) -> list[str]:
    return [type(result).__name__ for result in results]


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


async def test_rows_and_single_steps_share_a_run() -> None:
    async with house() as it:
        sessions = [it.open() for _ in range(7)]
        first, single = it.step_rows(sessions[:3], "abc"), it.step(sessions[3], "d")
        second = it.step_rows(sessions[4:], "efg")
        stateless = it.predict("a")
        await asyncio.gather(first.results(), single, second.results(), stateless)
        assert it.runner.runs == [(8, 1)]
        assert [session.position for session in sessions] == [1] * 7


async def test_what_is_first_come_is_first_served() -> None:
    async with house(max_rows=4) as it:
        sessions = [it.open() for _ in range(9)]
        order: list[int] = []
        first, second = it.step(sessions[0], "a"), it.step_rows(sessions[1:5], "abcd")
        third, fourth = it.step(sessions[5], "a"), it.step_rows(sessions[6:9], "abc")
        for number, single in ((0, first), (2, third)):
            single.add_done_callback(partial(_note, order, number))
        for number, message in ((1, second), (3, fourth)):
            message.rows.add_done_callback(partial(_note, order, number))
        await asyncio.gather(first, third)
        await it.loop.wait_idle()
        assert sorted(order) == [0, 1, 2, 3]
        assert order.index(0) < order.index(2)
        assert order.index(1) < order.index(3)
        assert it.runner.runs == [(1, 1), (4, 1), (4, 1)]


async def test_nobody_is_waited_for_where_a_run_is_full() -> None:
    async with house(max_rows=3) as it:
        sessions = [it.open() for _ in range(4)]
        full: list[bool] = []
        single = it.step(sessions[0], "a")
        full.append(it.engine.has_full_run)
        reply = it.step_rows(sessions[1:3], "ab")
        full.append(it.engine.has_full_run)
        it.runner.during[0] = lambda: full.append(it.engine.has_full_run)
        await asyncio.gather(single, reply.results())
        assert full == [False, True, False]


async def test_a_full_queue_takes_the_rows_that_it_has_room_for() -> None:
    async with house(max_queue=3) as it:
        sessions = [it.open() for _ in range(5)]
        waiting = it.step_rows(sessions[:2], "ab")
        assert it.engine.num_waiting == 2
        some = it.step_rows(sessions[2:4], "ab")
        none = it.step_rows(sessions[:2], "ab")
        with pytest.raises(OverloadedError):
            it.step(sessions[4], "a")
        assert kinds(await none.results()) == ["OverloadedError"] * 2
        assert kinds(await some.results()) == ["StepResult", "OverloadedError"]
        assert kinds(await waiting.results()) == ["StepResult"] * 2
        assert [session.position for session in sessions] == [1, 1, 1, 0, 0]


@pytest.mark.parametrize("positions", [[0, 1], [1, 0], [1, 1]])
async def test_a_row_whose_position_is_wrong_fails_alone(positions: list[int]) -> None:
    async with house() as it:
        sessions = [it.open(), it.open()]
        found = await it.step_rows(sessions, "ab", positions).results()
        assert kinds(found) == ["PositionConflictError" if position else "StepResult" for position in positions]
        assert [session.position for session in sessions] == [1 - position for position in positions]


async def test_rows_wait_behind_what_their_sessions_have_in_hand() -> None:
    async with house(max_piece=2) as it:
        sessions = [it.open() for _ in range(3)]
        long = it.step(sessions[1], "abcdefgabcdefgabcdefg")
        rows = [it.step_rows(sessions, "abc"), it.step_rows(sessions[:2], "de"), it.step_rows(sessions[1:], "fg")]
        behind = it.step(sessions[0], "c")
        found = [await each.results() for each in rows]
        assert [[result.position for result in some if isinstance(result, StepResult)] for some in found] == [
            [1, 22, 1],
            [2, 23],
            [24, 2],
        ]
        assert (await behind).position == 3
        assert (await long).position == 21


async def test_rows_of_several_steps_are_read_as_one_and_in_pieces() -> None:
    for max_piece, options in ((64, StepOptions()), (2, StepOptions()), (64, StepOptions(every_step=True))):
        async with house(max_piece=max_piece) as it:
            one, other = [it.open() for _ in range(3)], [it.open() for _ in range(3)]
            texts = ["abcde" * 7, "bbbbb" * 7, "gfedc" * 7]
            found = await it.step_rows(one, "".join(texts), options=options, length=35).results()
            alone = [await it.step(session, text, options=options) for session, text in zip(other, texts, strict=True)]
            assert [result._replace(session="") for result in found if isinstance(result, StepResult)] == [
                result._replace(session="") for result in alone
            ]
            assert [it.state(session) for session in one] == [it.state(session) for session in other]
            again = await it.step(one[1], texts[1], 0, options)
            assert again == found[1]


async def test_rows_of_durable_sessions_are_stored_as_one_group() -> None:
    records = Records()
    async with house(committer=records) as it:
        records.it = it
        sessions = [it.open(durable=True) for _ in range(4)]
        first = await it.step_rows(sessions, "abcd", [0] * 4).results()
        assert kinds(first) == ["StepResult"] * 4
        assert records.ended == [4]
        assert await it.step_rows(sessions, "abcd", [0] * 4).results() == first
        records.away = {"s1"}
        theirs = records.records["s2"]
        records.during = lambda: records.rewind("s2", theirs)
        found = await it.step_rows(sessions, "efga", [1] * 4).results()
        assert kinds(found) == ["StepResult", "UnavailableError", "StepResult", "StepResult"]
        assert records.ended == [4, 4, 1]
        assert (await it.step(sessions[1], "f", 1)).position == 2
        assert [session.position for session in sessions] == [2] * 4


async def test_the_last_step_may_be_repeated_and_nothing_else() -> None:
    async with house() as it:
        sessions = [it.open() for _ in range(3)]
        await it.step_rows(sessions, "abc").results()
        first = await it.step_rows(sessions, "def").results()
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
        assert it.engine.stats.num_repeats == 3


async def test_a_bad_row_fails_no_other() -> None:
    async with house() as it:
        sessions = [it.open() for _ in range(4)]
        reply, single = it.step_rows(sessions[:3], f"a{POISON}b"), it.step(sessions[3], "c")
        results = await reply.results()
        assert [type(result) for result in results] == [StepResult, InternalError, StepResult]
        assert (await single).position == 1
        assert [session.position for session in sessions] == [1, 0, 1, 1]
        again = await it.step(sessions[2], "b", position=0)
        assert again == results[2]
        assert not isinstance((await together(it, sessions[:2], "ab"))[1], TidegateError)


async def test_a_session_that_ends_while_it_waits_or_runs_fails_alone() -> None:
    async with house() as it:
        sessions = [it.open() for _ in range(4)]
        reply = it.step_rows(sessions, "abcd")
        it.end(sessions[1])
        it.runner.during[0] = lambda: it.end(sessions[3])
        results = await reply.results()
        assert [type(result) for result in results] == [StepResult, SessionEndedError] * 2
        assert [session.slot is None for session in sessions] == [False, True, False, True]
        assert [session.position for session in sessions] == [1, 0, 1, 0]


async def test_the_slot_of_a_session_that_ended_may_be_anothers_before_the_run() -> None:
    async with house(slots=3) as it:
        sessions = [it.open() for _ in range(3)]
        await it.step_rows(sessions, "abc").results()
        reply = it.step_rows(sessions, "abc")
        it.end(sessions[1])
        heir = it.open()
        assert heir.slot is not None
        results = await reply.results()
        assert isinstance(results[1], SessionEndedError)
        fresh = it.predict("d")
        assert (await it.step(heir, "d")).prediction == await fresh


async def test_a_session_that_ends_in_a_run_that_fails() -> None:
    async with house() as it:
        sessions = [it.open() for _ in range(3)]
        it.runner.during[0] = lambda: it.end(sessions[0])
        results = await it.step_rows(sessions, f"a{POISON}b").results()
        assert [type(result) for result in results] == [SessionEndedError, InternalError, StepResult]


async def test_all_sessions_end_in_a_run_that_fails() -> None:
    async with house() as it:
        sessions = [it.open() for _ in range(2)]
        it.runner.during[0] = lambda: (it.end(sessions[0]), it.end(sessions[1]))  # type: ignore[func-returns-value]
        results = await it.step_rows(sessions, f"a{POISON}").results()
        assert [type(result) for result in results] == [SessionEndedError] * 2


async def test_rows_that_nobody_waits_for_changes_nothing() -> None:
    async with house() as it:
        sessions = [it.open() for _ in range(3)]
        early = it.step_rows(sessions, "abc")
        early.cancel()
        behind = it.step(sessions[0], "a")
        assert (await behind).position == 1
        late = it.step_rows(sessions, "abc")
        it.runner.during[len(it.runner.runs)] = late.cancel
        assert (await it.step(sessions[1], "a")).position == 1
        assert [session.position for session in sessions] == [1, 1, 0]


async def test_rows_past_their_deadline_changes_nothing() -> None:
    async with house() as it:
        sessions = [it.open() for _ in range(2)]
        found = await it.step_rows(sessions, "ab", deadline=it.now).results()
        assert [type(error) for error in found] == [DeadlineExceededError] * 2
        assert [it.state(session)[0] for session in sessions] == [0, 0]


async def test_a_loop_that_stops_answers_its_rows() -> None:
    async with house() as it:
        sessions = [it.open() for _ in range(2)]
        reply = it.step_rows(sessions, "ab")
        behind = it.step(sessions[0], "c")
        await it.loop.stop()
        assert [type(error) for error in await reply.results()] == [UnavailableError] * 2
        with pytest.raises(UnavailableError):
            await behind
        with pytest.raises(UnavailableError):
            it.step_rows(sessions, "ab")


async def test_what_is_counted() -> None:
    async with house() as it:
        sessions = [it.open() for _ in range(5)]
        await asyncio.gather(it.step_rows(sessions[:4], "abcd").results(), it.step(sessions[4], "e"))
        stats, counts = it.engine.stats, it.engine.stats.snapshot()
        assert (stats.num_runs, stats.num_rows, stats.num_steps, it.engine.num_waiting) == (1, 5, 5, 0)
        assert stats.rows_per_run == {8: 1}
        assert counts.steps["step"] == 5
        assert counts.queue.num_values == 5
