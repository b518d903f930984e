"""What an engine counts of its own work. Pure: time is an argument; how figures are told is not known here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from tidegate.api import EngineStatsSnapshot
from tidegate.engine.request import KINDS, Request
from tidegate.histogram import Histogram


class EngineStats:
    """Counters of one engine; whoever does a thing counts it.

    Attributes:
        num_runs: Runs, and ``num_rows`` and ``num_steps`` in them.
        num_failed_runs: Runs that failed.
        rows_per_run: Runs by the least power of two that holds their rows.
        steps: Steps that were run, by `Request.kind`.
    """

    def __init__(self) -> None:
        self.num_runs = self.num_rows = self.num_steps = self.num_failed_runs = 0
        self.rows_per_run: Counter[int] = Counter()
        self.steps = [0] * len(KINDS)
        self.num_repeats = self.num_conflicts = self.num_generated = 0
        self.ticks = Histogram()
        self._queue = Histogram()

    def add_plan(self, requests: Iterable[Request], now: float) -> None:
        """Count how long each row waited, of the requests whose first run this is."""
        waits = []
        for request in requests:
            arrived = request.arrived
            if arrived is not None:
                request.arrived = None
                if request.num_rows == 1:
                    waits.append(now - arrived)
                else:
                    self._queue.add_equal(now - arrived, request.num_rows)
        self._queue.add_all(waits)

    def add_run(self, num_rows: int, length: int) -> None:
        self.num_runs += 1
        self.num_rows += num_rows
        self.num_steps += num_rows * length
        self.rows_per_run[1 << (num_rows - 1).bit_length()] += 1

    def snapshot(self) -> EngineStatsSnapshot:
        return EngineStatsSnapshot(
            dict(zip(KINDS, self.steps, strict=True)),
            self.num_repeats,
            self.num_conflicts,
            self.num_generated,
            self._queue.snapshot(),
            self.ticks.snapshot(),
        )
