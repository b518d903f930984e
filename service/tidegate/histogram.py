"""Counting values by size, as cheaply as Python can: one bisection and two additions a value.

Knows buckets and sums. Knows nothing of Prometheus: `snapshot` says what a scrape is told.

The buckets are fixed, Prometheus' classic ones. Its native histograms would need none, but their text form is
experimental in prometheus_client (OpenMetrics 2.0), and Prometheus takes them by protobuf only.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

SECONDS = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0
)  # fmt: skip
"""Bounds for durations: a run of one step takes a tenth of a millisecond, a request at most minutes."""


class HistogramSnapshot(NamedTuple):
    """What was counted so far: ``counts[i]`` values in bucket i, those above the last bound in one more bucket."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float

    @property
    def num_values(self) -> int:
        return sum(self.counts)


class Histogram:
    """Values by size.

    Args:
        bounds: Upper bounds of the buckets, inclusive, rising.
    """

    __slots__ = ("_bounds", "_counts", "_total")

    def __init__(self, bounds: tuple[float, ...] = SECONDS) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def add(self, value: float) -> None:
        """Count a value, which must be a number: NaN is the caller's to count elsewhere."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    def add_all(self, values: Sequence[float]) -> None:
        """Count values, likewise."""
        counts, bounds = self._counts, self._bounds
        for value in values:
            counts[bisect_left(bounds, value)] += 1
        self._total += sum(values)

    def add_equal(self, value: float, count: int) -> None:
        """Count one value so many times."""
        self._counts[bisect_left(self._bounds, value)] += count
        self._total += value * count

    def snapshot(self) -> HistogramSnapshot:
        return HistogramSnapshot(self._bounds, tuple(self._counts), self._total)
