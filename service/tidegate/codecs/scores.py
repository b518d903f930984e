"""Where in a model's inputs and outputs its quality can be read, besides by the codec: surprise, the interval that the
next input should fall into, and what no ordinary input has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tidegate.api import FloatArray, Tensor
from tidegate.bundle import Bundle, Cyclic, ForecastCodec, Scaling, Standard, TokenCodec, Vocabulary
from tidegate.errors import BundleError

BAND = "band"
"""The name under which a piece of a chunk keeps the bands of its steps, [steps, 2]."""

_LOW, _HIGH = 0.1, 0.9
_EDGE = 1e-4
"""Of a feature's range: single precision puts the greatest value of the training itself that far outside."""


@dataclass(frozen=True, slots=True)
class Band:
    """The interval that holds 80 % of the next values of the target: two quantiles of ``output`` one step ahead.

    ``column`` is the target's in the scaled input, ``low`` and ``high`` the quantiles' indices.
    """

    output: str
    column: int
    low: int
    high: int

    def cut(self, quantiles: Tensor) -> FloatArray:
        """Return the bands [..., 2] of quantiles [..., horizon, quantile]."""
        # By a slice, and copied: indices by a tuple take twice as long, and a view would keep all quantiles.
        step = self.high - self.low
        stop = self.high + step
        return np.array(quantiles[..., 0, self.low : None if stop < 0 else stop : step], np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Ranges:
    """The least and the greatest value of each column of the scaled input in training, [columns]."""

    low: FloatArray
    high: FloatArray
    _bounds: list[tuple[float, float]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_bounds", list(zip(self.low.tolist(), self.high.tolist(), strict=True)))

    def num_outside(self, rows: FloatArray) -> int:
        """Return how many values of ``rows`` [steps, columns] are outside."""
        if len(rows) == 1:  # most of what single sessions send, and arrays take four times as long
            bounds = zip(rows[0].tolist(), self._bounds, strict=True)
            return sum(value < low or value > high for value, (low, high) in bounds)
        return int(np.count_nonzero((rows < self.low) | (rows > self.high)))


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """What of a model can be scored; None and empty where it cannot.

    Attributes:
        surprise: The output that scores each input, [batch, time], in ``unit``.
        band: Where the next value of the target should be.
        unknown: The id that stands for what the vocabulary lacks.
        ranges: What is usual of each column.
    """

    surprise: str | None = None
    unit: str = ""
    band: Band | None = None
    unknown: int | None = None
    ranges: Ranges | None = None


def read_scores(bundle: Bundle) -> Scores:
    """Return what can be scored of a bundle's model.

    Raises:
        BundleError: A codec file is missing or malformed, or a calibrated feature is not there.
    """
    codec = bundle.manifest.codec
    try:
        if isinstance(codec, TokenCodec):
            vocabulary = bundle.read(codec.vocabulary, Vocabulary)
            return Scores(codec.surprise, codec.surprise_unit, unknown=vocabulary.unknown)
        if isinstance(codec, ForecastCodec):
            return _forecast_scores(bundle, codec)
    except ValueError as error:
        raise BundleError(f"{bundle.path}: what the model says cannot be scored ({error})") from error
    return Scores()


def find_band(codec: ForecastCodec, features: Sequence[str], transforms: Sequence[Standard | Cyclic]) -> Band | None:
    """Return where the 80 % interval is, None where the model does not forecast its bounds."""
    if not {_LOW, _HIGH} <= set(codec.quantiles):
        return None
    column = sum(transform.width for transform in transforms[: features.index(codec.target)])
    return Band(codec.output, column, codec.quantiles.index(_LOW), codec.quantiles.index(_HIGH))


def _forecast_scores(bundle: Bundle, codec: ForecastCodec) -> Scores:
    manifest = bundle.manifest
    transforms = bundle.read(codec.scaling, Scaling).features
    ranges = {} if manifest.drift is None else manifest.drift.ranges
    return Scores(
        codec.surprise,
        codec.surprise_unit,
        find_band(codec, manifest.features, transforms),
        ranges=_ranges(manifest.features, transforms, ranges) if ranges else None,
    )


def _ranges(
    features: Sequence[str], transforms: Sequence[Standard | Cyclic], known: Mapping[str, tuple[float, float]]
) -> Ranges:
    low, high = [], []
    for feature, transform in zip(features, transforms, strict=True):
        if feature not in known or not isinstance(transform, Standard):
            low += [-np.inf] * transform.width
            high += [np.inf] * transform.width
            continue
        bounds = (np.array(known[feature]) - transform.mean) / transform.scale
        edge = _EDGE * (bounds[1] - bounds[0])
        low.append(bounds[0] - edge)
        high.append(bounds[1] + edge)
    return Ranges(np.array(low, np.float32), np.array(high, np.float32))
