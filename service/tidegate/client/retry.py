"""When and how often a call is repeated that found no server."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from tidegate.errors import UnavailableError


@dataclass(frozen=True, slots=True)
class Retry:
    """At most ``attempts`` in all, with pauses in seconds that double from ``initial`` up to ``longest``.

    Each pause is drawn evenly from nothing to its bound, so that clients that failed together do not return together
    ("full jitter": M. Brooker, Exponential Backoff and Jitter, AWS Architecture Blog, 2015).
    """

    attempts: int = 4
    initial: float = 0.05
    longest: float = 2.0

    def bounds(self) -> Iterator[float]:
        """The bound of each pause, one fewer than attempts."""
        for repeat in range(self.attempts - 1):
            yield min(self.longest, self.initial * 2.0**repeat)

    def pause(self, bound: float, error: UnavailableError) -> float:
        """Seconds to wait after ``error``: what the server asks for, where it does, but never over ``longest``."""
        return min(self.longest, max(random.uniform(0, bound), error.retry_after or 0))
