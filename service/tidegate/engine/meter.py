"""What an engine counts of its own work. Pure: time is an argument; how figures are told is not known here."""

from __future__ import annotations

from collections.abc import Iterable

from tidegate.api import EngineStatsSnapshot
from tidegate.engine.cohort import Cohort
from tidegate.engine.work import KINDS, Work
from tidegate.histogram import Histogram


class Meter:
    """Counters of one engine; whoever does a thing counts it."""

    def __init__(self) -> None:
        self.steps = [0] * len(KINDS)  # by `Work.kind`
        self.num_repeats = self.num_conflicts = self.num_generated = 0
        self.ticks = Histogram()
        self._queue = Histogram()

    def planned(self, works: Iterable[Work], now: float) -> None:
        """Count how long each waited, of those whose first run this is."""
        waits = []
        for work in works:
            arrived = work.arrived
            if arrived is not None:
                waits.append(now - arrived)
                work.arrived = None
        self._queue.add_all(waits)

    def planned_together(self, cohort: Cohort, now: float) -> None:
        """Likewise of a cohort, whose lanes waited together."""
        if cohort.arrived is not None:
            self._queue.add_equal(now - cohort.arrived, cohort.num_rows)
            cohort.arrived = None

    def snapshot(self) -> EngineStatsSnapshot:
        steps = dict(zip(KINDS, self.steps, strict=True))
        return EngineStatsSnapshot(
            steps,
            self.num_repeats,
            self.num_conflicts,
            self.num_generated,
            self._queue.snapshot(),
            self.ticks.snapshot(),
        )
