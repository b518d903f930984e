"""The method: what is compared runs in turns, a ratio for each round, the median of the ratios with their spread.

Knows numbers and the rows they become. Knows nothing of servers or of what is measured.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Generic, NamedTuple, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and how often to measure, and with which flags a row's server runs beyond the row's own."""

    seconds: float = 3
    rounds: int = 5
    warmup: float = 0.5
    is_quick: bool = False
    flags: Mapping[str, str] = field(default_factory=dict)

    @property
    def load(self) -> dict[str, float | str | Sequence[float | str]]:
        """Options of the load client."""
        return {"warmup": self.warmup, "seconds": self.seconds}

    def flags_of(self, row: str) -> list[str]:
        return shlex.split(self.flags.get(row, ""))


class Spread(NamedTuple):
    """The median of some figures, and the least and the greatest of them."""

    median: float
    low: float
    high: float


class Rounds(Generic[T]):
    """What was measured, round by round, under the names of what was measured."""

    def __init__(self, results: Mapping[str, Sequence[T]]) -> None:
        self._results = results

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._results)

    def spread(self, name: str, figure: Callable[[T], float]) -> Spread:
        return spread([figure(result) for result in self._results[name]])

    def median(self, name: str, figure: Callable[[T], float]) -> float:
        return self.spread(name, figure).median

    def ratio(self, above: str, below: str, figure: Callable[[T], float]) -> Spread:
        """Of each round the ratio of two figures that were measured one after the other."""
        pairs = zip(self._results[above], self._results[below], strict=True)
        return spread([figure(over) / figure(under) for over, under in pairs])


def interleaved(rounds: int, measurements: Mapping[str, Callable[[], T]]) -> Rounds[T]:
    """Measure A, B, …, A, B, …: what disturbs the machine for a while disturbs all of them."""
    results: dict[str, list[T]] = {name: [] for name in measurements}
    for _ in range(rounds):
        for name, measure in measurements.items():
            results[name].append(measure())
    return Rounds(results)


def spread(figures: Sequence[float]) -> Spread:
    return Spread(median(figures), min(figures), max(figures))


class Goal(NamedTuple):
    """What a row's ratio, or its value where it has no floor, must reach: at least, or at most, ``limit``."""

    text: str
    limit: float
    is_least: bool = True

    def is_met(self, figure: float) -> bool:
        return figure >= self.limit if self.is_least else figure <= self.limit

    def share(self, figure: float) -> float:
        """How much of the goal is reached: 1 is all of it, more is better, and 100 the most that is told."""
        share = figure / self.limit if self.is_least else self.limit / max(figure, 1e-9)
        return min(share, 100.0)


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table.

    Attributes:
        row: Its name.
        value: What was measured, in ``unit``; None where nothing was.
        floor: What it is held against, in the same unit; None where the target is absolute.
        ratio: Of the value to its floor, the median of the rounds; None where there is no floor.
        spread: The least and the greatest of ``ratio``, or of ``value`` where there is no ratio.
        target: What is wanted, in words.
        met: Whether it is reached; None where it was not measured.
        share: How much of the target is reached, 1 is all of it; None where it was not measured.
        details: Further figures by name.
        note: What a reader must know, by which of two rules it was met for example.
    """

    row: str
    value: float | None
    unit: str
    floor: float | None
    ratio: float | None
    spread: tuple[float, float] | None
    target: str
    met: bool | None
    share: float | None
    details: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""


def skipped(row: str, unit: str, target: str, why: str) -> Row:
    """A row of which nothing can be measured now."""
    return Row(row, None, unit, None, None, None, target, None, None, note=f"not measured: {why}")


def failed(row: str, why: str) -> Row:
    """A row that could not be measured though it should: that counts as missed."""
    return Row(row, None, "", None, None, None, "to be measured at all", False, 0.0, note=f"failed: {why}")


def absolute(row: str, unit: str, goal: Goal, figures: Spread, **details: Any) -> Row:
    """A row without a floor."""
    is_met, share = goal.is_met(figures.median), goal.share(figures.median)
    bounds = (figures.low, figures.high)
    return Row(row, figures.median, unit, None, None, bounds, goal.text, is_met, share, details)


def compared(row: str, unit: str, goal: Goal, value: float, floor: float, ratio: Spread, **details: Any) -> Row:
    """A row that is held against a floor."""
    is_met, share = goal.is_met(ratio.median), goal.share(ratio.median)
    bounds = (ratio.low, ratio.high)
    return Row(row, value, unit, floor, ratio.median, bounds, goal.text, is_met, share, details)


def against(
    row: str,
    unit: str,
    goal: Goal,
    rounds: Rounds[T],
    names: tuple[str, str],
    figure: Callable[[T], float],
    **details: Any,
) -> Row:
    """The row of a figure of two measurements, the first of ``names`` held against the second."""
    above, below = names
    value, floor = rounds.median(above, figure), rounds.median(below, figure)
    return compared(row, unit, goal, value, floor, rounds.ratio(above, below, figure), **details)
