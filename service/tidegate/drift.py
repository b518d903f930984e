"""A control chart over surprise: is a model still as surprised as it was on the data that it was calibrated on?

An exponentially weighted moving average (Roberts 1959) of the means of blocks of consecutive steps of one sequence.
Single steps will not do: they are skewed and depend on each other. Pure: knows a bundle's calibration and numbers;
nothing of sessions, models or time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from tidegate.api import Drift, DriftReport
from tidegate.bundle import DriftCalibration

State = Literal["normal", "warning", "drift"]
STATES: tuple[State, ...] = ("normal", "warning", "drift")


def state_of(name: str) -> State:
    """Return the state of that name; ValueError where there is none."""
    return STATES[STATES.index(name)]


NOT_WHOLE = math.nan
"""The sum of a block of which something is missing: it is not charted. Every sequence begins with one, for a model
that has seen nothing yet is surprised by anything."""


class ChartState(NamedTuple):
    """Where a chart is after ``blocks`` blocks: the moving average, in units of surprise, and what it means."""

    ewma: float
    blocks: int = 0
    state: State = "normal"

    def to_drift(self) -> Drift:
        """Return it as callers are told of a session's own chart."""
        return Drift(self.state, self.ewma, self.blocks)


class ControlLimits(NamedTuple):
    """Between which averages all is well; beyond them it is not."""

    low: float
    high: float


class Chart:
    """The rules of a chart; where one is, is a `ChartState`.

    z_i = λ·x_i + (1 - λ)·z_(i-1) from z_0 = μ, with limits at μ ± L·σ·√(λ/(2 - λ)·(1 - (1 - λ)^2i)), where x_i is a
    block's mean, pulled in to μ ± ``clip``·σ: one day unlike any other is no drift. Both sides count: a sensor that is
    stuck surprises nobody. What is past a limit stays so for a while, lest an average that wanders along the limit
    tell so at each block: *drift* lasts until the average is within the warning limit, *warning* until it is within
    half of that.
    """

    def __init__(self, drift: DriftCalibration) -> None:
        self._drift = drift
        self._reach = drift.clip * drift.spread
        # (1 - (1 - λ)^2i) is 1 in double precision long before the list ends.
        growth = [1 - (1 - drift.factor) ** (2 * blocks) for blocks in range(math.ceil(20 / drift.factor) + 1)]
        scale = drift.spread * math.sqrt(drift.factor / (2 - drift.factor))
        self._sigmas = [scale * math.sqrt(share) for share in growth]

    @property
    def most(self) -> float:
        """Surprise of a step beyond which it is an outlier: a thousand spreads from the mean, or a thousand."""
        return max(1000.0, abs(self._drift.mean) + 1000 * self._drift.spread)

    @property
    def block(self) -> int:
        """Steps of a block."""
        return self._drift.block

    def start(self) -> ChartState:
        return ChartState(self._drift.mean)

    def advance(self, charted: ChartState, mean: float) -> ChartState:
        """Return the chart after one more block, whose mean surprise is a finite number."""
        drift = self._drift
        clipped = min(max(mean, drift.mean - self._reach), drift.mean + self._reach)
        ewma = charted.ewma + drift.factor * (clipped - charted.ewma)
        blocks = charted.blocks + 1
        return ChartState(ewma, blocks, self._judge(ewma, blocks, charted.state))

    def advance_all(self, charted: ChartState, means: Sequence[float]) -> ChartState:
        for mean in means:
            charted = self.advance(charted, mean)
        return charted

    def limits(self, blocks: int, kind: Literal["warning", "drift"]) -> ControlLimits:
        """Return the limits after so many blocks."""
        limit = self._drift.warning if kind == "warning" else self._drift.drift
        reach = limit.width * self._sigma(blocks)
        return ControlLimits(self._drift.mean - reach, self._drift.mean + reach)

    def report(self, charted: ChartState) -> DriftReport:
        """Return where a chart is, for whoever asks what it means."""
        drift = self._drift
        return DriftReport(
            state=charted.state,
            ewma=charted.ewma,
            blocks=charted.blocks,
            block=drift.block,
            mean=drift.mean,
            spread=drift.spread,
            warning=self.limits(charted.blocks, "warning"),
            drift=self.limits(charted.blocks, "drift"),
        )

    def _sigma(self, blocks: int) -> float:
        return self._sigmas[min(blocks, len(self._sigmas) - 1)]

    def _judge(self, ewma: float, blocks: int, before: State) -> State:
        distance, sigma = abs(ewma - self._drift.mean), self._sigma(blocks)
        warning = self._drift.warning.width * sigma
        if distance > self._drift.drift.width * sigma:
            return "drift"
        if distance > warning:
            return "drift" if before == "drift" else "warning"
        return "warning" if before != "normal" and distance > warning / 2 else "normal"


def add_steps(total: float, position: int, values: Sequence[float], block: int) -> tuple[float, list[float]]:
    """Add the surprise of consecutive steps to the blocks of a sequence, which lie at multiples of ``block``.

    Args:
        total: The sum of the block that ``position`` is in, so far; `NOT_WHOLE` where something of it is missing.
        position: Of the first step, counted from the sequence's beginning.
        values: Surprise of each step.
        block: Steps of a block.

    Returns:
        The sum of the last block, and the means of those that ended; one that is not whole, or holds a step whose
        surprise is no number, is left out.
    """
    means, start = [], 0
    while start < len(values):
        end = min(len(values), start + block - (position + start) % block)
        total += sum(values[start:end])
        if (position + end) % block == 0:
            if math.isfinite(total):
                means.append(total / block)
            total = 0.0
        start = end
    return total, means
