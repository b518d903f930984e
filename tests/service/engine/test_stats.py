"""What an engine counts of its own work."""

from __future__ import annotations

import asyncio

import pytest

from tests.service.engine.house import house
from tidegate.api import Sampling
from tidegate.engine.request import Request
from tidegate.engine.stats import EngineStats
from tidegate.errors import InternalError, PositionConflictError


async def test_steps_are_counted_by_kind() -> None:
    async with house() as it:
        session = it.open()
        await asyncio.gather(it.step(session, "abc"), it.step(session, "d"), it.predict("abcde"))
        await it.generate(session, "ab", Sampling(max_tokens=4)).reply
        await it.generate(None, "a", Sampling(max_tokens=2)).reply
        read = it.engine.stats.snapshot()
    assert read.steps == {"step": 4, "prompt": 3, "predict": 5, "generated": 6}
    assert read.num_generated == 6


async def test_repeats_and_conflicts_are_counted_and_are_no_steps() -> None:
    async with house() as it:
        session = it.open()
        await it.step(session, "abc", position=0)
        await it.step(session, "abc", position=0)
        for position in (1, 7):
            with pytest.raises(PositionConflictError):
                await it.step(session, "abc", position=position)
        read = it.engine.stats.snapshot()
    assert (read.num_repeats, read.num_conflicts, read.steps["step"]) == (1, 2, 3)


async def test_each_work_waits_once_whatever_it_runs_in() -> None:
    """A long chunk has many runs, a generation one a token: only the first was waited for."""
    async with house(max_piece=2) as it:
        await it.step(it.open(), "abcdefg" * 4)
        await it.generate(it.open(), "a", Sampling(max_tokens=5)).reply
        read = it.engine.stats.snapshot()
        assert it.engine.stats.num_runs > 6
    assert read.queue.num_values == 2
    assert read.ticks.num_values == len(it.runner.runs)


async def test_rows_of_a_failed_run_are_no_steps() -> None:
    async with house() as it:
        with pytest.raises(InternalError):
            await it.step(it.open(), "h")
        assert it.engine.stats.snapshot().steps["step"] == 0


def test_waiting_is_from_arrival_to_the_first_plan() -> None:
    stats = EngineStats()
    request = Request.__new__(Request)
    request.arrived, request.num_rows = 10.0, 1
    stats.add_plan([request], 10.5)
    stats.add_plan([request], 99.0)
    assert stats.snapshot().queue.total == 0.5
