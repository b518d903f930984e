"""One reading of a server's ``/metrics``, and what happened between two: rates, means and quantiles.

Knows Prometheus' text and how counters behave. Knows none of our metrics.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import httpx
from prometheus_client.parser import text_string_to_metric_families

Labels = dict[str, str]
Key = tuple[tuple[str, str], ...]

READ_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Scrape:
    """Samples by name, then by labels; ``at`` is when they were read, monotonic seconds."""

    at: float
    samples: dict[str, dict[Key, float]]

    def of(self, name: str, **labels: str) -> Iterator[tuple[Labels, float]]:
        """The samples of a name that have these labels."""
        for key, value in self.samples.get(name, {}).items():
            found = dict(key)
            if labels.items() <= found.items():
                yield found, value

    def total(self, name: str, **labels: str) -> float:
        return sum(value for _, value in self.of(name, **labels))


class Reader:
    """Reads a server's metrics.

    Args:
        client: Whose base URL is the server's.
        clock: Monotonic seconds.

    Attributes:
        failure: Why the last reading failed, in the words of the library.
    """

    def __init__(self, client: httpx.Client, clock: Callable[[], float]) -> None:
        self._client = client
        self._clock = clock
        self.failure = ""

    def read(self) -> Scrape | None:
        """Return what the server says now; None where it says nothing that can be understood."""
        try:
            reply = self._client.get("/metrics", timeout=READ_SECONDS)
            reply.raise_for_status()
            return parse(reply.text, self._clock())
        except (httpx.HTTPError, ValueError) as error:
            self.failure = str(error)
            return None


def parse(text: str, at: float) -> Scrape:
    """Read Prometheus' text; ValueError."""
    samples: dict[str, dict[Key, float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = float(sample.value)
    return Scrape(at, samples)


class ScrapeDelta:
    """What was counted between two readings of a server. One that was started anew in between counts from nothing."""

    def __init__(self, before: Scrape, now: Scrape) -> None:
        self.seconds = max(now.at - before.at, 1e-9)
        self.now = now
        self._before = before

    def rate(self, name: str, **labels: str) -> float:
        """How much a second a counter rose."""
        return self.rise(name, **labels) / self.seconds

    def rise(self, name: str, **labels: str) -> float:
        """How much a counter rose, all its series together."""
        return sum(
            _rise(self._before.samples.get(name, {}).get(tuple(sorted(found.items())), 0.0), value)
            for found, value in self.now.of(name, **labels)
        )

    def mean(self, name: str, **labels: str) -> float | None:
        """The mean of a histogram's values; None where there were none."""
        return self.ratio(f"{name}_sum", f"{name}_count", **labels)

    def ratio(self, name: str, by: str, **labels: str) -> float | None:
        """How much a counter rose for each one of another; None where that did not rise."""
        count = self.rise(by, **labels)
        return self.rise(name, **labels) / count if count else None

    def quantile(self, share: float, name: str, **labels: str) -> float | None:
        """A quantile of a histogram's values, found as Prometheus' ``histogram_quantile`` finds it."""
        bounds = sorted({float(found["le"]) for found, _ in self.now.of(f"{name}_bucket", **labels)})
        counts = [self._at_most(bound, name, labels) for bound in bounds]
        if not counts or not counts[-1]:
            return None
        rank = share * counts[-1]
        index = next(index for index, count in enumerate(counts) if count >= rank)
        if math.isinf(bounds[index]):
            return bounds[index - 1] if index else None
        low, below = (bounds[index - 1], counts[index - 1]) if index else (0.0, 0.0)
        return low + (bounds[index] - low) * (rank - below) / max(counts[index] - below, 1e-9)

    def _at_most(self, bound: float, name: str, labels: Labels) -> float:
        written = {found["le"] for found, _ in self.now.of(f"{name}_bucket", **labels) if float(found["le"]) == bound}
        return sum(self.rise(f"{name}_bucket", **labels, le=each) for each in written)


def _rise(before: float, now: float) -> float:
    return now - before if now >= before else now
