"""The one source of time in a server: times that are compared are read from the same `Clock`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple


class Clock(NamedTuple):
    """Two clocks: seconds that only rise, and seconds since the epoch.

    Deadlines are seconds of ``monotonic``. The event loop has a clock of its own: its timers are given seconds to wait,
    never a moment of this clock, and nobody asks it what time it is (tests/test_repository.py).
    """

    monotonic: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time

    def nanoseconds(self) -> int:
        """Return ``monotonic`` as whole nanoseconds, for sums that must not lose any."""
        return round(self.monotonic() * 1e9)
