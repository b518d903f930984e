"""Memory that a flood leaves free goes back to the system."""

from __future__ import annotations

import pytest

from tidegate.memory import give_back_forever


class OverError(Exception):
    """The test has seen enough."""


async def test_a_process_that_has_grown_is_trimmed_and_one_that_has_not_is_left_alone() -> None:
    sizes, trimmed, told = iter([100, 104, 104, 120, 101, 105, 105, 112, 110]), list[int](), list[int]()

    def resident() -> int:
        told.append(size := next(sizes, 0))
        return size

    async def sleep(seconds: float) -> None:
        assert seconds > 0
        if len(told) == 9:
            raise OverError

    with pytest.raises(OverError):
        await give_back_forever(resident, lambda: trimmed.append(told[-1]), sleep)
    assert trimmed == [120, 112]
