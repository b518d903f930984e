"""Begin, step, end, restart, repeat, rows, order: sequences over a core whose sessions are counters."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.service.fake_core import FakeCore
from tests.service.fake_sequences import FakeSession, row, total
from tidegate.errors import (
    DeadlineExceededError,
    InvalidInputError,
    OverloadedError,
    PositionConflictError,
    SessionEndedError,
)
from tidegate.transports.oip.sequences import Key, Sequences, SequenceStep, session_ids

FIVE = Key("m", 5)
NAME = "q~i~m~5"


def step(*values: float, key: Key = FIVE, **flags: Any) -> SequenceStep:
    return SequenceStep(key, flags.pop("version", ""), [row(*values)], **flags)


async def run(sequences: Sequences, *values: float, **flags: Any) -> float:
    (result,) = sequences.submit(step(*values, **flags))
    return total(await result)


async def settle() -> None:
    """Let everything that can go on go on."""
    for _ in range(50):
        await asyncio.sleep(0)


async def test_a_sequence_begins_steps_and_ends(sequences: Sequences, core: FakeCore) -> None:
    assert await run(sequences, 1, start=True) == 1
    assert await run(sequences, 2) == 3
    assert sequences.version(FIVE) == "1"
    assert await run(sequences, 3, end=True) == 6
    await settle()
    assert core.closed == [(NAME, False)]
    assert len(sequences) == 0


async def test_a_number_and_the_string_of_it_are_two_sequences_and_models_have_their_own(sequences: Sequences) -> None:
    others = [Key("m", "5"), Key("n", 5)]
    assert await run(sequences, 1, start=True) == 1
    for key in others:
        assert await run(sequences, 10, key=key, start=True) == 10
    assert [await run(sequences, 1, key=key) for key in (FIVE, *others)] == [2, 11, 11]


async def test_an_unknown_sequence_must_be_started(sequences: Sequences) -> None:
    with pytest.raises(InvalidInputError, match="must specify the START flag") as caught:
        await run(sequences, 1)
    assert caught.value.reason == "SEQUENCE_NOT_STARTED"
    await settle()
    assert len(sequences) == 0


async def test_after_its_end_a_sequence_is_unknown(sequences: Sequences) -> None:
    assert await run(sequences, 1, start=True, end=True) == 1
    with pytest.raises(InvalidInputError, match="must specify the START flag"):
        await run(sequences, 1)


async def test_start_on_a_running_sequence_ends_it_and_begins_anew(sequences: Sequences, core: FakeCore) -> None:
    assert await run(sequences, 1, start=True) == 1
    assert await run(sequences, 5, start=True) == 5
    assert core.closed == [(NAME, True)]


async def test_requests_in_flight_are_applied_in_order_of_arrival_whatever_they_begin_or_end(
    sequences: Sequences, core: FakeCore
) -> None:
    core.is_holding = True
    flags: list[dict[str, Any]] = [{"start": True}, {}, {"start": True}, {}, {"end": True}, {"start": True}, {}]
    results = [sequences.submit(step(1 + index, **each))[0] for index, each in enumerate(flags)]
    for _ in results:
        await settle()
        core.release_sequence(NAME)
    assert [total(await result) for result in results] == [1, 3, 3, 7, 12, 6, 13]
    assert core.closed == [(NAME, True), (NAME, False)]


async def test_a_sequence_waits_for_no_other(sequences: Sequences, core: FakeCore) -> None:
    core.is_holding = True
    (held,) = sequences.submit(step(1, start=True))
    await settle()
    (other,) = sequences.submit(step(2, key=Key("m", 6), start=True))
    await settle()
    core.release_sequence("q~i~m~6")
    assert total(await other) == 2
    assert not held.done()
    core.release_sequence(NAME)
    await held


async def test_where_the_start_fails_what_follows_it_is_told_to_start(sequences: Sequences, core: FakeCore) -> None:
    core.sequence_failures[NAME] = [DeadlineExceededError("too late")]
    first, second = sequences.submit(step(1, start=True))[0], sequences.submit(step(2))[0]
    with pytest.raises(DeadlineExceededError):
        await first
    with pytest.raises(InvalidInputError, match="START"):
        await second
    assert core.live == {}


async def test_where_the_end_fails_the_sequence_goes_on(sequences: Sequences, core: FakeCore) -> None:
    await run(sequences, 1, start=True)
    core.sequence_failures[NAME] = [OverloadedError("full")]
    with pytest.raises(OverloadedError):
        await run(sequences, 2, end=True)
    assert await run(sequences, 2, end=True) == 3


async def test_where_no_session_can_be_opened_nothing_is_left(sequences: Sequences, core: FakeCore) -> None:
    core.open_failure = OverloadedError("the arena is full")
    with pytest.raises(OverloadedError):
        await run(sequences, 1, start=True)
    await settle()
    assert len(sequences) == 0


async def test_a_request_that_is_cancelled_before_its_turn_is_not_applied(sequences: Sequences, core: FakeCore) -> None:
    core.is_holding = True
    (first,) = sequences.submit(step(1, start=True))
    (second,) = sequences.submit(step(2))
    (third,) = sequences.submit(step(4))
    second.cancel()
    for _ in range(3):
        await settle()
        core.release_sequence(NAME)
    assert [total(await first), total(await third)] == [1, 5]


async def test_cancelling_a_result_abandons_the_step_in_the_core(sequences: Sequences, core: FakeCore) -> None:
    core.is_holding = True
    (first,) = sequences.submit(step(1, start=True))
    await settle()
    first.cancel()
    await settle()
    assert core.live == {}, "its start was not applied, so nothing is left"


async def test_a_sequence_that_ended_by_itself_is_told_why_once(sequences: Sequences, core: FakeCore) -> None:
    await run(sequences, 1, start=True)
    core.ended.add(NAME)
    with pytest.raises(SessionEndedError, match=r"nobody came; to begin it anew .* START flag") as caught:
        await run(sequences, 2)
    assert caught.value.reason == "SESSION_IDLE"
    core.ended.clear()
    with pytest.raises(InvalidInputError, match="START"):
        await run(sequences, 2)


async def test_sequences_that_ended_by_themselves_are_forgotten_as_the_table_grows(
    sequences: Sequences, core: FakeCore
) -> None:
    for number in range(1, 2000):
        await run(sequences, 1, key=Key("m", number), start=True)
        core.ended.add(f"q~i~m~{number}")
    assert len(sequences) < 1100


async def test_the_version_of_a_running_sequence_stays(sequences: Sequences) -> None:
    await run(sequences, 1, start=True, version="2")
    assert await run(sequences, 1) == 2
    assert await run(sequences, 1, version="2") == 3
    with pytest.raises(InvalidInputError, match="runs on version 2, not 3"):
        await run(sequences, 1, version="3")


# ---- rows


def batch(*values: float, **flags: Any) -> SequenceStep:
    return SequenceStep(FIVE, "", [row(value) for value in values], **flags)


async def totals(sequences: Sequences, wanted: SequenceStep) -> list[float]:
    return [total(result) for result in await asyncio.gather(*sequences.submit(wanted))]


async def test_each_row_of_a_batch_has_a_state_of_its_own(sequences: Sequences, core: FakeCore) -> None:
    assert await totals(sequences, batch(1, 10, start=True)) == [1, 10]
    assert sorted(core.live) == [NAME, f"{NAME}~r1"]
    assert await totals(sequences, batch(2, 20)) == [3, 30]
    assert await totals(sequences, batch(3, 30, end=True)) == [6, 60]
    await settle()
    assert core.live == {}


async def test_the_batch_of_a_sequence_is_that_of_its_start(sequences: Sequences) -> None:
    await totals(sequences, batch(1, 10, start=True))
    with pytest.raises(InvalidInputError, match="started with a batch of 2 rows, this one has 3"):
        await totals(sequences, batch(1, 2, 3))
    assert await totals(sequences, batch(1, 1, 1, start=True)) == [1, 1, 1]


async def test_a_sequence_of_which_only_some_rows_took_a_step_has_ended(sequences: Sequences, core: FakeCore) -> None:
    await totals(sequences, batch(1, 10, start=True))
    core.sequence_failures[f"{NAME}~r1"] = [OverloadedError("full")]
    with pytest.raises(OverloadedError):
        await totals(sequences, batch(2, 20))
    with pytest.raises(InvalidInputError, match="START"):
        await totals(sequences, batch(2, 20))


async def test_with_a_position_a_repeat_brings_the_rows_together_again(sequences: Sequences, core: FakeCore) -> None:
    await totals(sequences, batch(1, 10, start=True, position=0))
    core.sequence_failures[f"{NAME}~r1"] = [OverloadedError("full")]
    with pytest.raises(OverloadedError):
        await totals(sequences, batch(2, 20, position=1))
    assert await totals(sequences, batch(2, 20, position=1)) == [3, 30]


# ---- positions


async def test_a_step_with_a_position_is_applied_once(sequences: Sequences, core: FakeCore) -> None:
    await run(sequences, 1, start=True, position=0)
    assert [await run(sequences, 2, position=1) for _ in range(3)] == [3, 3, 3]
    with pytest.raises(PositionConflictError):
        await run(sequences, 4, position=1)
    assert core.live[NAME].steps == [1, 2]


async def test_a_start_that_is_repeated_is_answered_again_and_another_begins_anew(
    sequences: Sequences, core: FakeCore
) -> None:
    assert [await run(sequences, 1, start=True, position=0) for _ in range(2)] == [1, 1]
    assert core.closed == []
    assert await run(sequences, 5, start=True, position=0) == 5
    assert core.closed == [(NAME, True)]


async def test_a_sequence_starts_at_position_zero(sequences: Sequences) -> None:
    with pytest.raises(InvalidInputError, match="starts at position 0, not 3"):
        await run(sequences, 1, start=True, position=3)


async def test_an_end_that_is_repeated_is_answered_again(sequences: Sequences, core: FakeCore) -> None:
    await run(sequences, 1, start=True, position=0)
    assert [await run(sequences, 2, end=True, position=1) for _ in range(2)] == [3, 3]
    with pytest.raises(InvalidInputError, match="START"):
        await run(sequences, 4, position=2)
    with pytest.raises(InvalidInputError, match="START"):
        await run(sequences, 4)
    assert await run(sequences, 7, start=True) == 7
    assert core.closed == [(NAME, False)]


async def test_a_whole_sequence_in_one_request_is_repeated_too(sequences: Sequences) -> None:
    assert [await run(sequences, 2, start=True, end=True, position=0) for _ in range(2)] == [2, 2]


async def test_an_ended_sequence_is_not_kept_here(sequences: Sequences, core: FakeCore) -> None:
    await run(sequences, 1, start=True, end=True, position=0)
    await settle()
    assert core.live == {}
    assert len(sequences) == 0


async def test_only_the_last_request_is_repeated_after_the_end(sequences: Sequences, core: FakeCore) -> None:
    await run(sequences, 1, start=True, position=0)
    await run(sequences, 2, position=1)
    await run(sequences, 3, end=True, position=2)
    for values, position in ((2.0, 1), (4.0, 2), (3.0, 3)):
        with pytest.raises(InvalidInputError, match="START"):
            await run(sequences, values, end=True, position=position)
    assert await run(sequences, 3, end=True, position=2) == 6
    assert core.live == {}


async def test_a_start_that_does_not_end_is_no_repeat_of_one_that_did(sequences: Sequences) -> None:
    await run(sequences, 2, start=True, end=True, position=0)
    assert await run(sequences, 2, start=True, position=0) == 2
    assert await run(sequences, 3, position=1) == 5


async def test_the_end_that_repeats_a_step_ends_the_sequence(sequences: Sequences, core: FakeCore) -> None:
    await run(sequences, 1, start=True, position=0)
    assert await run(sequences, 1, start=True, end=True, position=0) == 1
    await settle()
    assert (core.live, len(sequences)) == ({}, 0)


@pytest.mark.parametrize("row", [0, 1])
@pytest.mark.parametrize("here", [True, False])
async def test_an_end_that_reached_some_rows_is_brought_to_the_others_by_its_repeat(
    core: FakeCore, row: int, here: bool
) -> None:
    sequences = Sequences(core)
    await totals(sequences, batch(1, 10, start=True, position=0))
    core.sequence_failures[[NAME, f"{NAME}~r1"][row]] = [OverloadedError("full")]
    with pytest.raises(OverloadedError):
        await totals(sequences, batch(2, 20, end=True, position=1))
    assert len(core.live) == 1
    other = sequences if here else Sequences(core)
    with pytest.raises(InvalidInputError, match="START"):
        await totals(Sequences(core), batch(7, 7, end=True, position=1))
    for _ in range(2):
        assert await totals(other, batch(2, 20, end=True, position=1)) == [3, 30]
        assert core.live == {}


# ---- kept by a store


async def test_a_sequence_that_a_store_has_kept_goes_on(sequences: Sequences, core: FakeCore) -> None:
    core.stored[NAME] = FakeSession("3", [1, 2])
    core.stored[f"{NAME}~r1"] = FakeSession("3", [10, 20])
    assert await totals(sequences, batch(3, 30)) == [6, 60]
    assert sequences.version(FIVE) == "3"


async def test_start_on_a_sequence_that_a_store_has_kept_begins_anew(sequences: Sequences, core: FakeCore) -> None:
    core.stored[NAME] = FakeSession("3", [1, 2])
    assert await run(sequences, 4, start=True) == 4
    assert core.closed == [(NAME, True)]


async def test_stop_leaves_no_task_and_no_request_without_an_answer(sequences: Sequences, core: FakeCore) -> None:
    core.is_holding = True
    (first,) = sequences.submit(step(1, start=True))
    (second,) = sequences.submit(step(1))
    await settle()
    await sequences.stop()
    assert second.cancelled()
    core.release_sequence(NAME)
    await settle()
    assert first.done()


# ---- ids


def first_id(key: Key) -> str:
    return next(session_ids(key))


def test_session_ids_are_allowed_and_different() -> None:
    keys = [Key("m", 5), Key("m", "5"), Key("m", "a b"), Key("m", "a~20b"), Key("m", "é"), Key("m", "x" * 500)]
    keys += [Key("m" * 128, 2**64 - 1), Key("m", "x" * 501), Key("m", "\ud800")]
    ids = list(map(first_id, keys))
    assert ids[:3] == ["q~i~m~5", "q~s~m~5", "q~s~m~a~20b"]
    assert len(set(ids)) == len(ids)
    assert all(len(each) <= 120 and each.isascii() for each in ids)
