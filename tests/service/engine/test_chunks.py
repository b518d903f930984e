"""Chunks of sessions: atomic, in order, and what a position means."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.service.engine.house import POISON, VOCABULARY, House, house, whole
from tidegate.api import Prediction, StepOptions, StepResult
from tidegate.engine.lifecycle import Event
from tidegate.engine.session import Session
from tidegate.errors import (
    DeadlineExceededError,
    InternalError,
    OverloadedError,
    PositionConflictError,
    SessionEndedError,
    TidegateError,
)

pytestmark = pytest.mark.usefixtures("arena")

text = st.text(VOCABULARY.replace(POISON, ""), min_size=1, max_size=60)
LONG = "abcdefgabcdefgabcdefgabcdefgabcdefg"


def same(found: Prediction, sequence: str, start: int = 0, *, top: int = 1, every_step: bool = False) -> bool:
    """Whether a chunk's prediction is that of the whole sequence from step ``start`` on."""
    outputs = whole(sequence)
    told = list(outputs["logits"][start if every_step else -1 :])
    ids = [[int(id_) for id_ in np.argsort(-step, kind="stable")[:top]] for step in told]
    assert found.next is not None
    assert found.surprise is not None
    mean = float(outputs["surprise"][start:].mean(dtype=np.float64))
    return [[candidate.id for candidate in step] for step in found.next] == ids and (
        found.length == len(sequence) - start and found.surprise.mean == pytest.approx(mean, rel=1e-6)
    )


async def test_a_chunk_answers_with_the_position_after_it() -> None:
    async with house() as it:
        session = it.open()
        first = await it.step(session, "abc")
        second = await it.step(session, "de", position=3)
    assert (first.session, first.position, second.position) == ("s0", 3, 5)
    assert same(first.prediction, "abc")
    assert same(second.prediction, "abcde", 3)


@given(
    sequences=st.lists(text, min_size=1, max_size=5),
    random=st.randoms(use_true_random=False),
    max_rows=st.integers(1, 6),
    max_steps=st.integers(1, 40),
    every_step=st.booleans(),
)
def test_any_split_in_any_mix_gives_what_the_whole_sequence_gives(
    sequences: list[str], random: Random, max_rows: int, max_steps: int, every_step: bool
) -> None:
    options = StepOptions(2, every_step)

    async def check() -> None:
        async with house(max_rows=max_rows, max_steps=max_steps) as it:
            done = [0] * len(sequences)
            sessions = [it.open() for _ in sequences]
            while live := [n for n, sequence in enumerate(sequences) if done[n] < len(sequence)]:
                n = live[random.randint(0, len(live) - 1)]
                size = random.randint(1, len(sequences[n]) - done[n])
                chunk, start = sequences[n][done[n] : done[n] + size], done[n]
                done[n] += size
                reply = it.step(sessions[n], chunk, options=options)
                alone = it.predict(sequences[n][: done[n]], options)
                if random.randint(0, 1):
                    assert same((await reply).prediction, sequences[n][: done[n]], start, top=2, every_step=every_step)
                    assert same(await alone, sequences[n][: done[n]], top=2, every_step=every_step)
            await it.loop.wait_idle()
            assert [session.position for session in sessions] == [len(sequence) for sequence in sequences]
            assert all(rows <= max_rows and rows * steps <= max_steps for rows, steps in it.runner.runs)

    asyncio.run(check())


async def test_a_sessions_chunks_run_in_order_of_arrival_whatever_their_length() -> None:
    async with house() as it:
        session = it.open()
        replies = [it.step(session, chunk) for chunk in (LONG, "a", "bcd", LONG, "e")]
        found = await asyncio.gather(*replies)
    ends = [len(LONG), len(LONG) + 1, len(LONG) + 4, 2 * len(LONG) + 4, 2 * len(LONG) + 5]
    assert [result.position for result in found] == ends
    assert same(found[-1].prediction, f"{LONG}abcd{LONG}e", ends[-2])


async def test_sessions_share_runs() -> None:
    async with house() as it:
        await asyncio.gather(*(it.step(it.open(), "a") for _ in range(20)))
        assert it.runner.runs == [(20, 1)]
        assert (it.engine.stats.num_runs, it.engine.stats.num_rows, it.engine.stats.num_steps) == (1, 20, 20)
        assert (it.engine.stats.num_failed_runs, it.engine.num_waiting) == (0, 0)
        assert it.engine.stats.rows_per_run == {32: 1}


Harm = Callable[[House, asyncio.Future[StepResult]], object]


def cancel(it: House, reply: asyncio.Future[StepResult]) -> None:
    reply.cancel()


def pass_the_deadline(it: House, reply: asyncio.Future[StepResult]) -> None:
    it.now += 10


def fail(it: House, reply: asyncio.Future[StepResult]) -> None:
    raise ArithmeticError("the graph cannot be run")


HARMS: dict[str, tuple[Harm, type[BaseException]]] = {
    "cancel": (cancel, asyncio.CancelledError),
    "deadline": (pass_the_deadline, DeadlineExceededError),
    "failure": (fail, InternalError),
}


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("run", [1, 2, 4, 5])
async def test_a_chunk_that_is_cut_off_in_any_run_leaves_the_session_as_it_was(harm: str, run: int) -> None:
    act, error = HARMS[harm]
    async with house(max_piece=2) as it:
        session = it.open()
        await it.step(session, "ab")
        before = it.state(session)
        long = it.step(session, LONG, deadline=it.now + 5)
        it.runner.during[run] = lambda: act(it, long)
        behind = it.step(session, "c", position=2)
        with pytest.raises(error):
            await long
        it.now -= 10
        after = await behind
        assert len(it.runner.runs) > run
        assert before[0] == 2
        assert after.position == 3
        assert same(after.prediction, "abc", 2)


@pytest.mark.parametrize("harm", HARMS)
async def test_what_is_cut_off_can_be_repeated_and_gives_what_it_would_have_given(harm: str) -> None:
    act, error = HARMS[harm]
    async with house(max_piece=2) as it:
        session = it.open()
        await it.step(session, "ab")
        before = it.state(session)
        long = it.step(session, LONG, position=2, deadline=it.now + 5)
        it.runner.during[3] = lambda: act(it, long)
        with pytest.raises(error):
            await long
        await it.loop.wait_idle()
        assert it.state(session) == before
        it.now -= 10
        again = await it.step(session, LONG, position=2)
        assert again.position == 2 + len(LONG)
        assert same(again.prediction, f"ab{LONG}", 2)


async def test_a_row_that_fails_its_run_fails_alone() -> None:
    async with house(max_rows=2) as it:
        sessions = [it.open() for _ in range(4)]
        replies = [it.step(session, character) for session, character in zip(sessions, f"a{POISON}bc", strict=True)]
        found = await asyncio.gather(*replies, return_exceptions=True)
        assert [type(result).__name__ for result in found] == [
            "StepResult",
            "InternalError",
            "StepResult",
            "StepResult",
        ]
        assert [session.position for session in sessions] == [1, 0, 1, 1]
        assert (await it.step(sessions[1], "ab", position=0)).position == 2
        assert it.engine.stats.num_failed_runs == 1


async def test_the_tick_survives_any_number_of_failed_runs() -> None:
    async with house(max_rows=1) as it:
        session = it.open()
        replies = [it.step(session, POISON) for _ in range(5)]
        found = await asyncio.gather(*replies, return_exceptions=True)
        assert all(isinstance(error, InternalError) for error in found)
        assert (await it.step(session, "a")).position == 1


async def test_a_full_queue_refuses_and_disturbs_nobody() -> None:
    async with house(max_queue=3) as it:
        session, other = it.open(), it.open()
        waiting = [it.step(session, "a"), it.step(session, "b"), it.step(other, "c")]
        with pytest.raises(OverloadedError, match="3 chunks are waiting") as caught:
            it.step(other, "d")
        assert (caught.value.reason, caught.value.retry_after) == ("QUEUE_FULL", 1.0)
        assert [(await reply).position for reply in waiting] == [1, 2, 1]
        assert (await it.step(other, "d", position=1)).position == 2


async def test_a_full_arena_refuses_long_work_and_disturbs_nobody() -> None:
    async with house(slots=2) as it:
        session, other = it.open(), it.open()
        before = it.state(session)[0]
        with pytest.raises(OverloadedError, match="the arena is full"):
            await it.step(session, LONG)
        with pytest.raises(OverloadedError, match="the arena is full"):
            await it.predict(LONG)
        assert session.position == before
        assert (await it.step(session, "abc")).position == 3
        it.end(other)
        assert (await it.step(session, LONG)).position == 3 + len(LONG)


async def test_an_ended_sessions_slot_goes_to_the_next_which_starts_afresh() -> None:
    async with house(slots=1) as it:
        first = it.open()
        await it.step(first, "abc")
        it.end(first)
        second = it.open()
        assert same((await it.step(second, "de")).prediction, "de")


# ---- positions


async def test_without_a_position_a_chunk_applies() -> None:
    async with house() as it:
        session = it.open()
        assert [(await it.step(session, "a")).position for _ in range(3)] == [1, 2, 3]


async def test_a_repeat_gets_the_stored_reply_and_runs_nothing() -> None:
    async with house() as it:
        session = it.open()
        await it.step(session, "xab"[1:])
        first = await it.step(session, "cde", position=2)
        runs = len(it.runner.runs)
        assert await it.step(session, "cde", position=2) is first
        assert await it.step(session, "cde", position=2) is first
        assert len(it.runner.runs) == runs
        assert session.position == 5


async def test_a_chunk_sent_without_position_can_be_repeated_with_it() -> None:
    async with house() as it:
        session = it.open()
        first = await it.step(session, "ab")
        assert await it.step(session, "ab", position=0) is first


async def test_a_repeat_that_comes_before_the_reply_gets_the_same_reply() -> None:
    async with house() as it:
        session = it.open()
        first, again = it.step(session, LONG, position=0), it.step(session, LONG, position=0)
        assert await first is await again
        assert session.position == len(LONG)


async def test_a_repeat_whose_first_try_was_abandoned_applies_once() -> None:
    async with house() as it:
        session = it.open()
        first = it.step(session, "abc", position=0)
        it.runner.during[0] = first.cancel
        again = it.step(session, "abc", position=0)
        assert (await again).position == session.position == 3


@pytest.mark.parametrize(
    ("chunk", "position", "options"),
    [
        ("ced", 2, StepOptions()),
        ("cd", 2, StepOptions()),
        ("cde", 2, StepOptions(top=2)),
        ("cde", 2, StepOptions(every_step=True)),
        ("ab", 0, StepOptions()),
        ("a", 4, StepOptions()),
        ("a", 6, StepOptions()),
        ("a", -1, StepOptions()),
    ],
    ids=["input", "shorter", "top", "every_step", "older", "inside", "ahead", "negative"],
)
async def test_neither_here_nor_a_repeat_is_a_conflict_that_names_the_position(
    chunk: str, position: int, options: StepOptions
) -> None:
    async with house() as it:
        session = it.open()
        await it.step(session, "ab")
        await it.step(session, "cde")
        before = it.state(session)
        with pytest.raises(PositionConflictError, match="at position 5") as caught:
            await it.step(session, chunk, position=position, options=options)
        assert (caught.value.position, caught.value.details) == (5, {"position": "5"})
        assert it.state(session) == before
        assert (await it.step(session, "cde", position=2)).position == 5


async def test_nothing_was_answered_so_nothing_repeats() -> None:
    async with house() as it:
        session = it.open()
        with pytest.raises(PositionConflictError, match="at position 0, not 3"):
            await it.step(session, "a", position=3)


# ---- endings


async def test_closing_a_session_fails_what_waits_and_what_runs_with_the_reason() -> None:
    async with house(max_piece=4) as it:
        session, other = it.open(), it.open()
        running, waiting, beside = it.step(session, LONG), it.step(session, "a"), it.step(other, LONG)
        it.runner.during[1] = lambda: it.end(session)
        for reply in (running, waiting):
            with pytest.raises(SessionEndedError) as caught:
                await reply
            assert caught.value.reason == "SESSION_CLOSED"
        assert same((await beside).prediction, LONG)
        assert session.slot is None


@pytest.mark.parametrize("run", [0, 1, 2])
async def test_closing_in_the_middle_of_any_run_frees_the_slot_once(run: int) -> None:
    async with house(max_piece=4, slots=4) as it:
        session = it.open()
        reply = it.step(session, LONG)
        it.runner.during[run] = lambda: it.end(session)
        with pytest.raises(SessionEndedError):
            await reply
        assert it.arena.num_used == 0


async def test_a_chunk_for_a_session_that_has_ended_is_told_so() -> None:
    async with house() as it:
        session = it.open()
        await it.step(session, "ab")
        session.end(Event.IDLE)
        it.engine.release(session)
        for reply in (it.step(session, "c"), it.step(session, "ab", position=0)):
            with pytest.raises(SessionEndedError) as caught:
                await reply
            assert caught.value.reason == "SESSION_IDLE"


@given(actions=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 3), text), max_size=40))
def test_nothing_leaks_whatever_happens(actions: list[tuple[int, int, str]]) -> None:
    async def check() -> None:
        async with house(max_rows=3, max_steps=12, max_piece=4, slots=6) as it:
            sessions = [it.open() for _ in range(4)]
            replies: list[asyncio.Future[StepResult] | asyncio.Future[Prediction]] = []
            for action, number, chunk in actions:
                session = sessions[number]
                if action == 0:
                    it.end(session)
                    sessions[number] = await reopened(it)
                elif action == 1 and replies:
                    replies[len(chunk) % len(replies)].cancel()
                elif action == 2:
                    replies.append(it.predict(chunk))
                elif action == 3:
                    replies.append(it.step(session, chunk + POISON))
                elif action == 4:
                    await asyncio.sleep(0)
                else:
                    replies.append(it.step(session, chunk, position=session.position if action == 5 else None))
            done = await asyncio.gather(*replies, return_exceptions=True)
            assert not any(isinstance(error, Exception) and not isinstance(error, TidegateError) for error in done)

    asyncio.run(check())


async def reopened(it: House) -> Session:
    if not it.engine.can_hold():
        await it.loop.wait_idle()
    return it.open()
