"""How busy this process is: a load generator that has no time left measures itself."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

SCHEDSTAT = Path("/proc/self/schedstat")
"""Linux: nanoseconds on a core, nanoseconds ready and waiting for one, turns; of the main thread (sched-stats.rst)."""


class Usage(NamedTuple):
    """Since the process started, or as shares of a time.

    Args:
        cpu: Seconds of processor time, of all threads.
        waiting: Seconds in which the event loop's thread could have run and other processes had the cores; 0 where the
            system does not tell.
    """

    cpu: float
    waiting: float

    def share_since(self, before: Usage, seconds: float) -> Usage:
        """What was used in ``seconds``, in cores: 1.0 is one core all the time."""
        if seconds <= 0:
            return Usage(0, 0)
        return Usage((self.cpu - before.cpu) / seconds, (self.waiting - before.waiting) / seconds)


def read_usage() -> Usage:
    """To be called in the main thread."""
    waiting = 0.0
    with suppress(OSError, ValueError, IndexError):
        waiting = int(SCHEDSTAT.read_text().split()[1]) / 1e9
    return Usage(time.process_time(), waiting)
