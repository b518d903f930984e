"""One request's share of a model's queue: what more it holds waits inside it, and not in everybody's way."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from tidegate.limits import QUEUE_SHARE


class Share:
    """Counts what of a request waits in the queue.

    Attributes:
        has_failed: Whether any of it ended with an error, or was cancelled.
    """

    def __init__(self, max_queue: int) -> None:
        self._size = max(1, max_queue // QUEUE_SHARE)
        self._num_held = 0
        self._waiter: asyncio.Future[None] | None = None
        self.has_failed = False

    async def room(self, num_rows: int = 1) -> None:
        """Return when ``num_rows`` more may be submitted; what is larger than the whole share goes alone."""
        while self._num_held and self._num_held + num_rows > self._size:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter

    def take(self, result: asyncio.Future[Any], num_rows: int = 1) -> None:
        """Take note of rows that were submitted and wait until ``result`` is there."""
        self._num_held += num_rows
        result.add_done_callback(partial(self._give_back, num_rows))

    def _give_back(self, num_rows: int, result: asyncio.Future[Any]) -> None:
        self._num_held -= num_rows
        if result.cancelled() or result.exception() is not None:
            self.has_failed = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
