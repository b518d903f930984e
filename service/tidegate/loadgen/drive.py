"""Drives senders: a task each, in a closed loop or by due times, until time, requests or the user's patience end.

Knows nothing of transports. Time comes from a `SendClock`, so that tests turn it by hand.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from itertools import chain, takewhile
from typing import Any, NamedTuple, Protocol

from tidegate.errors import DeadlineExceededError, TidegateError
from tidegate.loadgen.load import Size
from tidegate.loadgen.record import LoadRecord

PAUSE = 0.1
"""Seconds that a sender of a closed loop waits after an error: a dead server is not asked as fast as it refuses."""


class SendClock(Protocol):
    """Seconds that rise."""

    def time(self) -> float: ...

    async def until(self, moment: float) -> None:
        """Return at that moment; at once where it has passed."""


class RealSendClock:
    """The finest clock there is: that of a uvloop knows milliseconds only."""

    def time(self) -> float:
        return time.perf_counter()

    async def until(self, moment: float) -> None:
        if (delay := moment - time.perf_counter()) > 0:
            await asyncio.sleep(delay)


class LoadReply(NamedTuple):
    """What one request achieved: its steps, the reasons of what failed in it, when a generation's first token came."""

    steps: int
    failed: tuple[str, ...] = ()
    first_token: float | None = None


class Sender(Protocol):
    """One client of the server, with one request in flight at most."""

    async def request(self, length: int) -> LoadReply:
        """Send ``length`` steps and wait for the answer; raises TidegateError."""

    async def reset(self) -> None:
        """Forget what a failed request has left, so that the next one starts afresh. Does no I/O that can fail."""


class SendLane(NamedTuple):
    """A sender, the sizes of its requests, and when they are due; None: whenever the last one is answered."""

    sender: Sender
    sizes: Iterator[Size]
    due: Iterator[float] | None = None


class Drive:
    """A load under way. What it sees goes into ``record``, whose end it keeps to.

    Args:
        record: Takes what happens.
        clock: Of the record's moments.
        timeout: Seconds for one request.
        max_requests: After that many, warm-up included, no more are sent and the record ends.
        stop: Set by whoever has seen enough.
    """

    def __init__(
        self, record: LoadRecord, clock: SendClock, *, timeout: float, max_requests: int, stop: asyncio.Event
    ) -> None:
        self._record = record
        self._clock = clock
        self._timeout = timeout
        self._num_left = max_requests
        self._stop = stop
        self._resting: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def running(self, lanes: Sequence[SendLane]) -> AsyncIterator[None]:
        """Drive during the block; after it the record ends, and what is in flight may finish within the timeout."""
        tasks = [asyncio.create_task(self._send_all(lane)) for lane in lanes]
        self._over = {
            asyncio.create_task(asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)),
            asyncio.create_task(self._stop.wait()),
        }
        try:
            yield
            self._record.close(self._clock.time())
            for task in self._resting:
                task.cancel()
            await self._wait(self._timeout)
        finally:
            self._record.close(self._clock.time())
            ends = await _cancelled(tasks)
            await _cancelled(self._over)
        for end in ends:
            if isinstance(end, Exception):
                raise end

    async def until(self, moment: float) -> None:
        """Return at that moment, or when the load has ended before."""
        await self._wait(moment - self._clock.time())

    async def _wait(self, seconds: float) -> None:
        await asyncio.wait(self._over, timeout=max(0, seconds), return_when=asyncio.FIRST_COMPLETED)

    async def _send_all(self, lane: SendLane) -> None:
        if lane.due is not None:
            await self._send_when_due(lane, lane.due)
            return
        while self._admit(due := self._clock.time()):
            if not await self._send(lane, due):
                await self._rest(self._clock.time() + PAUSE)

    async def _send_when_due(self, lane: SendLane, dues: Iterator[float]) -> None:
        left = dues
        try:
            for due in dues:
                free = self._clock.time()
                if due < self._record.end:
                    await self._rest(due)
                if not self._admit(max(due, free)):
                    # Out of time it is owed; out of requests it was never promised.
                    left = chain([due], dues) if self._num_left else iter(())
                    return
                self._record.sent(due, self._clock.time() - max(due, free))
                await self._send(lane, due)
        finally:
            self._record.unsent(takewhile(lambda due: due < self._record.end, left))

    async def _rest(self, moment: float) -> None:
        """Wait until that moment; the end of the load cuts this short, unlike a request."""
        task = asyncio.current_task()
        assert task is not None
        self._resting.add(task)
        await self._clock.until(moment)
        self._resting.discard(task)

    def _admit(self, moment: float) -> bool:
        """Whether a request that was due or possible at that moment may be sent; counts it."""
        if moment >= self._record.end:
            return False
        if self._num_left == 0:
            self._record.close(self._clock.time())
            return False
        self._num_left -= 1
        return True

    async def _send(self, lane: SendLane, due: float) -> bool:
        """One request; returns whether it was answered."""
        label, length = next(lane.sizes)
        try:
            reply = await self._answer(lane.sender, length)
        except TidegateError as error:
            self._record.failed(due, [error.reason])
            await lane.sender.reset()
            return False
        except asyncio.CancelledError:
            self._record.unfinished(due)
            raise
        self._record.answered(label, due, self._clock.time(), reply.steps, reply.first_token)
        self._record.failed(due, reply.failed)
        return True

    async def _answer(self, sender: Sender, length: int) -> LoadReply:
        try:
            async with asyncio.timeout(self._timeout):
                return await sender.request(length)
        except TimeoutError:
            raise DeadlineExceededError(f"no reply within {self._timeout:g} s") from None


async def _cancelled(tasks: Collection[asyncio.Task[Any]]) -> list[Any]:
    """Cancel them and return how each ended: its result or its exception."""
    for task in tasks:
        task.cancel()
    return await asyncio.gather(*tasks, return_exceptions=True)
