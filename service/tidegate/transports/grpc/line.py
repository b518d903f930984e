"""Replies of a stream, waiting in the order of their requests.

Between a stream's two tasks stands this line and no queue: the writer is woken when the next reply is ready, not
already when it is asked for, so a step costs each task one awakening.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Protocol


class Pending(Protocol):
    """A request whose reply is due; cancelling it leaves its sessions untouched.

    Attributes:
        method: What it is counted as.
        session: That it is about; empty where it is about none or many.
        outcome: How it ended, once `reply` has returned.
    """

    @property
    def method(self) -> str: ...
    @property
    def session(self) -> str: ...
    @property
    def outcome(self) -> str: ...
    @property
    def awaited(self) -> asyncio.Future[Any] | None:
        """What the reply mainly waits for, None where it is known."""

    async def reply(self) -> Any:
        """Return the reply, a message; it rarely has to wait for more than ``awaited``."""

    def cancel(self) -> None: ...


class Line:
    """At most ``size`` requests, first come, first answered. One task puts, one takes."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._loop = asyncio.get_running_loop()
        self._line: deque[Pending] = deque()
        self._num_inside = 0
        self._is_closed = False
        self._taker: asyncio.Future[None] | None = None
        self._putter: asyncio.Future[None] | None = None

    async def wait_for_room(self) -> None:
        """Return when one more may come in."""
        while self._num_inside >= self._size:
            self._putter = self._loop.create_future()
            await self._putter

    def put(self, pending: Pending) -> None:
        """Let a request wait. Await room first."""
        self._num_inside += 1
        self._line.append(pending)
        if pending.awaited is None:
            self._wake()
        else:
            pending.awaited.add_done_callback(self._wake)

    def close(self) -> None:
        """Say that no more will come."""
        self._is_closed = True
        self._wake()

    async def take(self) -> Pending | None:
        """Return the next request once its reply is ready; None when the line is closed and empty."""
        while not self._is_ready():
            self._taker = self._loop.create_future()
            await self._taker
        return self._line.popleft() if self._line else None

    def answered(self) -> None:
        """The request taken last is answered: its place is free."""
        self._num_inside -= 1
        if self._putter is not None and not self._putter.done():
            self._putter.set_result(None)

    def cancel(self) -> None:
        """Cancel what waits."""
        while self._line:
            self._line.popleft().cancel()

    def _is_ready(self) -> bool:
        if not self._line:
            return self._is_closed
        awaited = self._line[0].awaited
        return awaited is None or awaited.done()

    def _wake(self, _: object = None) -> None:
        if self._taker is not None and not self._taker.done() and self._is_ready():
            self._taker.set_result(None)
