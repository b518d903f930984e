"""Sequences that end by themselves, in part or while much is in flight: nothing old is met by what begins anew."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.service.fake_core import FakeCore
from tests.service.fake_sequences import row, total
from tidegate.errors import InvalidInputError, SessionEndedError
from tidegate.transports.oip.sequences import Key, Sequences, SequenceStep

FIVE = Key("m", 5)
NAME = "q~i~m~5"


def step(*rows: float, **flags: Any) -> SequenceStep:
    return SequenceStep(FIVE, "", [row(each) for each in rows], **flags)


async def totals(sequences: Sequences, *rows: float, **flags: Any) -> list[float]:
    return [total(result) for result in await asyncio.gather(*sequences.submit(step(*rows, **flags)))]


async def settle() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


async def test_a_start_with_a_position_begins_anew_what_ended_by_itself(sequences: Sequences, core: FakeCore) -> None:
    await totals(sequences, 1, start=True, position=0)
    core.ended.add(NAME)
    (result,) = sequences.submit(step(4, start=True, position=0))
    assert total(await result) == 4


async def test_where_one_row_ended_by_itself_the_others_are_closed(sequences: Sequences, core: FakeCore) -> None:
    await totals(sequences, 1, 10, start=True)
    core.ended.add(f"{NAME}~r1")
    with pytest.raises(SessionEndedError) as caught:
        await totals(sequences, 2, 20)
    assert caught.value.reason == "SESSION_IDLE"
    await settle()
    assert core.live == {}
    assert len(sequences) == 0
    assert await totals(sequences, 3, 30, start=True) == [3, 30]


async def test_why_a_batch_has_ended_is_said_once_in_the_message(sequences: Sequences, core: FakeCore) -> None:
    await totals(sequences, 1, 10, start=True)
    core.ended.add(NAME)
    (first, _) = sequences.submit(step(2, 20))
    with pytest.raises(SessionEndedError) as caught:
        await first
    told = sequences.explain(FIVE, caught.value)
    assert told.message.count("START") == 1


async def test_what_ended_by_itself_and_is_swept_away_is_closed_too(sequences: Sequences, core: FakeCore) -> None:
    for number in range(1, 1500):
        key = Key("m", number)
        (result,) = sequences.submit(SequenceStep(key, "", [row(1)], start=True))
        await result
        core.ended.add(f"q~i~m~{number}")
    await settle()
    assert len(core.live) == len(sequences)


async def test_an_old_error_told_late_does_not_end_what_was_begun_anew(sequences: Sequences) -> None:
    await totals(sequences, 1, start=True)
    late = SessionEndedError(f"session {NAME} has ended: nobody came", reason="SESSION_IDLE")
    assert "START" in sequences.explain(FIVE, late).message
    assert await totals(sequences, 2) == [3]


async def test_a_restart_waits_for_all_earlier_requests_though_the_last_was_abandoned(
    sequences: Sequences, core: FakeCore
) -> None:
    await totals(sequences, 1, start=True)
    core.is_holding = True
    (earlier,) = sequences.submit(step(2))
    (abandoned,) = sequences.submit(step(4))
    (anew,) = sequences.submit(step(8, start=True))
    abandoned.cancel()
    for _ in range(3):
        await settle()
        core.release_sequence(NAME)
    assert [total(await earlier), total(await anew)] == [3, 8]


async def test_an_end_on_another_server_is_the_end_here(core: FakeCore) -> None:
    """Both serve the sessions of one store."""
    here, there = Sequences(core), Sequences(core)
    await totals(here, 1, start=True, position=0)
    assert await totals(there, 2, end=True, position=1) == [3]
    for sequences in (here, there):
        assert await totals(sequences, 2, end=True, position=1) == [3]
    with pytest.raises(InvalidInputError, match="START"):
        await totals(there, 4, position=2)
    assert await totals(there, 4, start=True, position=0) == [4]
    assert await totals(Sequences(core), 8, position=1) == [12]
