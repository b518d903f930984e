"""Long work on the event loop, in slices: everybody else gets their turn in between.

The work is a generator that yields wherever it may be interrupted, every few microseconds to a tenth of a millisecond,
and returns its result. It knows no clock and no loop: `at_once` runs the same work for who has no others to think of.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from typing import TypeVar

from tidegate.clock import Clock
from tidegate.limits import SLICE_SECONDS

Result = TypeVar("Result")
Slices = Generator[None, None, Result]

_CLOCK = Clock().monotonic


async def in_slices(work: Slices[Result], clock: Callable[[], float] = _CLOCK) -> Result:
    """Return the result of ``work``, and let others in whenever a slice of `SLICE_SECONDS` is over."""
    end = clock() + SLICE_SECONDS
    while True:
        try:
            next(work)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]
        if clock() >= end:
            await asyncio.sleep(0)
            end = clock() + SLICE_SECONDS


class Slicer:
    """The same for long work that awaits others itself: it calls `give_way` between its parts."""

    def __init__(self, clock: Callable[[], float] = _CLOCK) -> None:
        self._clock = clock
        self._end = clock() + SLICE_SECONDS

    async def give_way(self) -> None:
        """Let others in if a slice of `SLICE_SECONDS` is over."""
        if self._clock() >= self._end:
            await asyncio.sleep(0)
            self._end = self._clock() + SLICE_SECONDS


def at_once(work: Slices[Result]) -> Result:
    """Return the result of ``work``, uninterrupted."""
    while True:
        try:
            next(work)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]
