"""What was seen: latencies by kind of request, errors by reason, and exact percentiles of them.

Every latency is kept, 16 bytes each with its time, so percentiles are values that occurred and not bounds of buckets.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

TO_FIRST = "first token"
"""The kind under which a generation's time to its first token is told."""


class Latency(NamedTuple):
    """Seconds, over ``size`` requests."""

    size: int
    mean: float
    p50: float
    p90: float
    p99: float
    p999: float
    max: float


class Samples:
    """Latencies in seconds, and when each was due."""

    def __init__(self) -> None:
        self._due = array("d")
        self._latencies = array("d")

    def __len__(self) -> int:
        return len(self._latencies)

    def add(self, due: float, latency: float) -> None:
        self._due.append(due)
        self._latencies.append(latency)

    @property
    def due(self) -> NDArray[np.float64]:
        return np.array(self._due)

    @property
    def latencies(self) -> NDArray[np.float64]:
        return np.array(self._latencies)

    def latency(self) -> Latency | None:
        """The figures; None of nothing."""
        if not self._latencies:
            return None
        ordered = np.sort(self.latencies)
        shares = [percentile(ordered, share) for share in (0.5, 0.9, 0.99, 0.999, 1)]
        return Latency(len(ordered), float(ordered.mean()), *shares)


def percentile(ordered: NDArray[np.float64], share: float) -> float:
    """The least of the rising values [n] that ``share`` of all do not exceed: the nearest rank, not interpolated."""
    # Rounded, or 0.999 · 1000, a hair over 999 in binary, would be rank 1000.
    rank = math.ceil(round(share * len(ordered), 9))
    return float(ordered[max(rank, 1) - 1])


class LoadRecord:
    """What happened from ``begin`` to ``end``; both are moments of one clock.

    A latency belongs to it if its request was due inside, work if its reply came inside. So a rate counts what the
    server did in that time, and no latency is left out for being long.
    """

    def __init__(self, begin: float, end: float) -> None:
        self.begin = begin
        self.end = end
        self.samples: defaultdict[str, Samples] = defaultdict(Samples)
        self.send_lags = Samples()
        self.errors: Counter[str] = Counter()
        self.num_requests = 0
        self.num_steps = 0
        self.num_unsent = 0
        self.num_unfinished = 0

    @property
    def seconds(self) -> float:
        return max(0.0, self.end - self.begin)

    def close(self, now: float) -> None:
        """Let it end now, if it has not ended."""
        self.end = min(self.end, now)

    def sent(self, due: float, lag: float) -> None:
        """A request left ``lag`` seconds after it was due and its sender free: what the client itself is late by."""
        if self._holds(due):
            self.send_lags.add(due, lag)

    def answered(self, label: str, due: float, now: float, steps: int, first_token: float | None = None) -> None:
        if self._holds(due):
            self.samples[label].add(due, now - due)
            if first_token is not None:
                self.samples[TO_FIRST].add(due, first_token - due)
        if self._holds(now):
            self.num_requests += 1
            self.num_steps += steps

    def failed(self, due: float, reasons: Iterable[str]) -> None:
        if self._holds(due):
            self.errors.update(reasons)

    def unfinished(self, due: float) -> None:
        """A request that was cut off at the end; how long it would have taken nobody knows."""
        self.num_unfinished += self._holds(due)

    def unsent(self, dues: Iterable[float]) -> None:
        """Requests that were due, and whose sender never came to send them."""
        self.num_unsent += sum(map(self._holds, dues))

    def _holds(self, moment: float) -> bool:
        return self.begin <= moment < self.end
