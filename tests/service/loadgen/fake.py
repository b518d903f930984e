"""Time that a test turns, and senders that take as much of it as it says."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat

from tidegate.errors import TidegateError
from tidegate.loadgen.drive import Drive, LoadReply, SendLane
from tidegate.loadgen.load import Size
from tidegate.loadgen.record import LoadRecord


class ManualClock:
    """Waiting moves it."""

    def __init__(self) -> None:
        self.now = 0.0

    def time(self) -> float:
        return self.now

    async def until(self, moment: float) -> None:
        self.now = max(self.now, moment)
        await asyncio.sleep(0)


class Scripted:
    """A sender whose requests take these seconds one after the other; an error is raised after no time."""

    def __init__(self, clock: ManualClock, answers: Iterable[float | TidegateError | LoadReply]) -> None:
        self._clock = clock
        self._answers = iter(answers)
        self.lengths: list[int] = []
        self.num_resets = 0

    async def request(self, length: int) -> LoadReply:
        self.lengths.append(length)
        answer = next(self._answers)
        if isinstance(answer, TidegateError):
            raise answer
        if isinstance(answer, LoadReply):
            return answer
        self._clock.now += answer
        return LoadReply(length)

    async def reset(self) -> None:
        self.num_resets += 1


class Hanging:
    """A sender that is never answered; ``sent`` is set when its request is under way."""

    def __init__(self) -> None:
        self.sent = asyncio.Event()
        self.num_resets = 0

    async def request(self, length: int) -> LoadReply:
        self.sent.set()
        await asyncio.Event().wait()
        raise AssertionError("nobody sets it")

    async def reset(self) -> None:
        self.num_resets += 1


def singles(label: str = "1") -> Iterator[Size]:
    return repeat(Size(label, 1))


async def drive(
    record: LoadRecord,
    clock: ManualClock,
    lanes: Sequence[SendLane],
    *,
    timeout: float = 60,  # noqa: ASYNC109 - it is the drive's own
    max_requests: int = 1000,
) -> None:
    """Drive until the record's end."""
    under_way = Drive(record, clock, timeout=timeout, max_requests=max_requests, stop=asyncio.Event())
    async with under_way.running(lanes):
        await under_way.until(record.end)
