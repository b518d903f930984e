"""The clock that tests turn by hand, and where it begins: at 1,000 s, unless the variable CLOCK_START says else.

The suite passes wherever it begins, and however long the machine has run: `.ci/run` shows it at both ends.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from tidegate.clock import Clock

START = float(os.environ.get("CLOCK_START", "1000"))
"""Monotonic seconds."""

EPOCH = 1e9
"""What the wall clock is ahead of the monotonic one, in seconds."""


@dataclass
class ManualClock:
    """Time stands still until a test moves it; or each look at the monotonic clock takes ``pace`` seconds."""

    now: float = START
    pace: float = 0.0

    def clock(self) -> Clock:
        return Clock(monotonic=self._look, wall=lambda: EPOCH + self.now)

    def _look(self) -> float:
        self.now += self.pace
        return self.now
