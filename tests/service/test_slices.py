"""Long work gives way to everybody else."""

from __future__ import annotations

import asyncio

import pytest

from tidegate.limits import SLICE_SECONDS
from tidegate.slices import Slicer, Slices, at_once, in_slices


def counting(steps: int, seen: list[int]) -> Slices[str]:
    for step in range(steps):
        seen.append(step)
        yield
    return "done"


async def test_others_have_their_turn_after_each_slice() -> None:
    now, seen, others = 0.0, list[int](), list[int]()

    def clock() -> float:
        nonlocal now
        now += SLICE_SECONDS / 4
        return now

    async def look_on() -> None:
        while True:
            others.append(len(seen))
            await asyncio.sleep(0)

    looking = asyncio.create_task(look_on())
    assert await in_slices(counting(12, seen), clock) == "done"
    looking.cancel()
    assert others == [4, 8, 12]


async def test_others_have_their_turn_between_the_parts_of_work_that_awaits() -> None:
    now, done, others = 0.0, list[int](), list[int]()

    async def look_on() -> None:
        while True:
            others.append(len(done))
            await asyncio.sleep(0)

    looking = asyncio.create_task(look_on())
    slicer = Slicer(lambda: now)
    for part in range(8):
        done.append(part)
        now += SLICE_SECONDS / 4
        await slicer.give_way()
    looking.cancel()
    assert others == [4, 8]


async def test_who_asks_for_nothing_long_is_not_put_off() -> None:
    seen, others = list[int](), list[int]()
    asyncio.get_running_loop().call_soon(lambda: others.append(len(seen)))
    assert await in_slices(counting(100, seen), lambda: 0.0) == "done"
    assert others == []


def test_the_same_work_at_once() -> None:
    seen: list[int] = []
    assert at_once(counting(3, seen)) == "done"
    assert seen == [0, 1, 2]


async def test_an_error_of_the_work_is_told() -> None:
    def failing() -> Slices[None]:
        yield
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await in_slices(failing())
