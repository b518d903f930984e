"""Calibrates the control chart of a bundle: how surprised is the model where all is well, and how far may the moving
average of its surprise go before that means something?

Knows the chart (`tidegate.drift`), how to stream held-out data through a graph, and the bootstrap. Blocks of
text or load depend on each other however long they are, so no formula gives the limits: they are those whose false
alarms, on held-out data, are as rare as wanted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tidegate.bundle import DriftCalibration, ForecastCodec, Limit, Manifest, TokenCodec
from tidegate.drift import add_steps
from tidegate.replay import GraphRunner
from tidegate_export.held_out import Calibration
from tidegate_export.quantize_graph import Array

Means = NDArray[np.float64]

FACTOR = 0.1
"""Weight of the newest block, as in most of the literature: shifts of one spread and less are found soonest with it."""
RUN_LENGTHS: dict[Literal["warning", "drift"], int] = {"warning": 100, "drift": 1000}
"""Blocks between two false alarms, at least, on the average."""

_LEAST_BLOCKS = 100
_LEAST_BLOCK = 8
_SEGMENT = 50
"""Blocks that the bootstrap leaves together, on the average: several times what the moving average remembers."""
_STREAMS = 400
_TIMES = 8
"""Streams are so many times as long as the run length that is sought: one in 3,000 lasts longer."""
_WIDEST, _STEP = 40.0, 0.005
_CHUNK = 1024


@dataclass(frozen=True, slots=True)
class Learned:
    """Means of blocks where all is well, one array a sequence, without each sequence's first block."""

    sequences: tuple[Means, ...]
    block: int

    @property
    def means(self) -> Means:
        return np.concatenate(self.sequences)


def calibrate(graph: bytes, manifest: Manifest, data: Calibration) -> DriftCalibration | str:
    """Return the chart of the model on the held-out ``data``, or the reason why there can be none."""
    learned = learn(surprises(graph, manifest, data.sequences), data.block)
    if isinstance(learned, str):
        return learned
    return chart_of(learned, data.told).model_copy(update={"ranges": dict(data.ranges)})


def surprises(graph: bytes, manifest: Manifest, sequences: Sequence[Array]) -> list[Array]:
    """Return the surprise of every step of each sequence, streamed from the initial state to its end."""
    codec = manifest.codec
    assert isinstance(codec, TokenCodec | ForecastCodec)
    assert codec.surprise is not None
    runner = GraphRunner(graph, manifest)
    return [np.concatenate(list(_stream(runner, sequence, codec.surprise))) for sequence in sequences]


def learn(values: Sequence[Array], block: int) -> Learned | str:
    """Return the means of blocks of ``block`` steps, of shorter blocks where the data would be too few of them."""
    while block >= _LEAST_BLOCK:
        sequences = tuple(np.array(add_steps(0.0, 0, each.tolist(), block)[1][1:]) for each in values)
        if sum(map(len, sequences)) >= _LEAST_BLOCKS:
            return Learned(tuple(each for each in sequences if len(each)), block)
        block //= 2
    return f"{sum(map(len, values)):,} held-out steps are too few"


def chart_of(learned: Learned, told: str) -> DriftCalibration:
    """Return the chart whose false alarms on what was learned are as rare as `RUN_LENGTHS` wants them."""
    means = learned.means
    drift = DriftCalibration(
        block=learned.block,
        factor=FACTOR,
        mean=float(means.mean()),
        spread=float(means.std()),
        warning=Limit(width=1, run_length=1),
        drift=Limit(width=1, run_length=1),
        autocorrelation=_autocorrelation(learned.sequences, float(means.mean())),
        blocks=len(means),
        data=told,
    )
    limits: dict[str, Limit] = {kind: _limit(drift, learned, length) for kind, length in RUN_LENGTHS.items()}
    return drift.model_copy(update=limits)


class Passages:
    """When the moving average of each of many resampled streams first goes how far from the mean.

    Streams are made by the stationary bootstrap (Politis & Romano 1994): blocks as they followed each other, and now
    and then a jump to anywhere, so that what depends on each other stays together.
    """

    def __init__(self, drift: DriftCalibration, learned: Learned, length: int, seed: int) -> None:
        """Follow `_STREAMS` streams of ``length`` blocks of the in-control mean and spread of ``drift``."""
        random = np.random.default_rng(seed)
        means, following = learned.means, _following(learned.sequences)
        scaled = np.clip((means - drift.mean) / drift.spread, -drift.clip, drift.clip)
        # In standard deviations of the average after so many blocks, as the chart's limits are.
        factor, blocks = drift.factor, np.arange(1, length + 1)
        sigmas = np.sqrt(factor / (2 - factor) * (1 - (1 - factor) ** (2 * blocks)))
        self._furthest = np.empty((length, _STREAMS), np.float32)
        ewma, furthest = np.zeros(_STREAMS), np.zeros(_STREAMS)
        at = random.integers(len(means), size=_STREAMS)
        for index, sigma in enumerate(sigmas):
            ewma += factor * (scaled[at] - ewma)
            np.maximum(furthest, np.abs(ewma) / sigma, out=furthest)
            self._furthest[index] = furthest
            jumps = random.random(_STREAMS) < 1 / _SEGMENT
            at = np.where(jumps, random.integers(len(means), size=_STREAMS), following[at])

    def run_length(self, width: float) -> float:
        """Return how many blocks it takes to pass limits at ``width``, on the average; a stream that never does counts
        with its length.
        """
        blocks_within = (self._furthest <= width).sum(axis=0)
        return float(np.minimum(blocks_within + 1, len(self._furthest)).mean())


def _following(sequences: Sequence[Means]) -> NDArray[np.intp]:
    """Return which block follows each; the last is followed by its sequence's first."""
    starts = np.cumsum([0, *map(len, sequences)])
    return np.concatenate([np.roll(np.arange(start, end), -1) for start, end in pairwise(starts)])


def _limit(drift: DriftCalibration, learned: Learned, wanted: int) -> Limit:
    """Return the narrowest limit that is passed every ``wanted`` blocks or less often.

    It is found on some streams and told as measured on others.
    """
    found, measured = (Passages(drift, learned, _TIMES * wanted, seed) for seed in (0, 1))
    low, high = 0.0, _WIDEST
    while high - low > _STEP:
        width = (low + high) / 2
        low, high = (low, width) if found.run_length(width) >= wanted else (width, high)
    width = math.ceil(high * 100) / 100  # never narrower: one rare day can make the difference
    return Limit(width=width, run_length=round(measured.run_length(width)))


def _autocorrelation(sequences: Sequence[Means], mean: float) -> float:
    """Return the correlation of neighbouring blocks."""
    products = sum(float(((each[1:] - mean) * (each[:-1] - mean)).sum()) for each in sequences)
    squares = sum(float(((each - mean) ** 2).sum()) for each in sequences)
    return products / squares


def _stream(runner: GraphRunner, sequence: Array, surprise: str) -> Iterator[Array]:
    (spec,) = runner.manifest.inputs
    inputs, states = {spec.name: sequence[None]}, runner.initial(1)
    for start in range(0, len(sequence), _CHUNK):
        result = runner.run(runner.cut(inputs, start, min(start + _CHUNK, len(sequence))), states)
        states = result.states
        yield result.outputs[surprise][0]
