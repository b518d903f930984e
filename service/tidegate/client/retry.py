"""How long and how often a request is tried again while its server is away. What may be tried again, others know."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from tidegate.errors import TidegateError


@dataclass(frozen=True, slots=True)
class Retry:
    """At most ``attempts`` in all, the last of them within ``total`` seconds of the first failure.

    Between them lie pauses, in seconds, whose bounds double from ``initial`` up to ``longest``. Each pause is drawn
    evenly from nothing to its bound, so that clients that failed together do not return together ("full jitter": M.
    Brooker, Exponential Backoff and Jitter, AWS Architecture Blog, 2015). A server that says when to return is heeded,
    but never for longer than ``longest``.
    """

    attempts: int = 50
    initial: float = 0.05
    longest: float = 2.0
    total: float = 30.0

    def begin(self, clock: Callable[[], float] = time.monotonic) -> Tries:
        """A request has failed for the first time; ``clock`` tells seconds."""
        return Tries(self, clock)


class Tries:
    """What one failed request has left of its `Retry`."""

    def __init__(self, retry: Retry, clock: Callable[[], float]) -> None:
        self._retry = retry
        self._clock = clock
        self._num_left = retry.attempts - 1
        self._bound = min(retry.longest, retry.initial)
        self._end = clock() + retry.total

    def next_pause(self, error: TidegateError) -> float | None:
        """Seconds to wait after ``error`` before the next try; None where there shall be none."""
        pause = min(self._retry.longest, max(random.uniform(0, self._bound), error.retry_after or 0))
        if self._num_left <= 0 or self._clock() + pause > self._end:
            return None
        self._num_left -= 1
        self._bound = min(self._retry.longest, self._bound * 2)
        return pause

    @property
    def patience(self) -> float:
        """Seconds that the next try may wait for a connection."""
        return min(self._retry.longest, max(0.0, self._end - self._clock()))
