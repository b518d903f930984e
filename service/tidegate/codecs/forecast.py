"""Task ``forecast``: rows of features in data units in, quantiles of the target out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tidegate.api import FloatArray, Forecast, Input, Prediction, Predictions, Rows, StepOptions, Surprise, Tensor
from tidegate.bundle import Bundle, Cyclic, ForecastCodec, Manifest, Scaling, Standard
from tidegate.codecs.rows import (
    FEW,
    check_input,
    check_output,
    check_rows,
    kind_of,
    mean_surprise,
    told,
)
from tidegate.codecs.scores import BAND, find_band
from tidegate.errors import BundleError, InvalidInputError

_VALUE_BYTES = 20


class Forecasts:
    """Scales features on the way in and the target's quantiles on the way out."""

    kept_output: str | None = None

    def __init__(self, features: Sequence[str], transforms: Sequence[Standard | Cyclic], spec: ForecastCodec) -> None:
        self._features = tuple(features)
        self._transforms = tuple(transforms)
        self._spec = spec
        self.surprise_unit = spec.surprise_unit if spec.surprise else ""
        self._band = find_band(spec, self._features, self._transforms)
        target = self._transforms[self._features.index(spec.target)]
        if not isinstance(target, Standard):
            raise ValueError(f"the target {spec.target!r} is cyclic: nothing scales its forecast back")  # noqa: TRY004
        self._mean, self._scale = np.float32(target.mean), np.float32(target.scale)

    @classmethod
    def load(cls, bundle: Bundle, spec: ForecastCodec) -> Forecasts:
        try:
            scaling = bundle.read(spec.scaling, Scaling)
            _check_scaling(scaling, bundle.manifest, spec)
            return cls(bundle.manifest.features, scaling.features, spec)
        except ValueError as error:
            raise BundleError(f"{bundle.path}/{spec.scaling}: not a scaling file ({error})") from error

    def encode(self, source: Input) -> tuple[Tensor, ...]:
        if kind_of(source) != "values" or source.values is None:
            raise InvalidInputError("this model takes values, not text or tokens", reason="WRONG_KIND")
        rows = check_rows(source.values, self._features, len(self._features))
        columns = [
            column for index, transform in enumerate(self._transforms) for column in _encode(rows[:, index], transform)
        ]
        return (np.stack(columns, axis=1).astype(np.float32),)

    def reply_bytes(self, length: int, options: StepOptions) -> int:
        steps = length if options.every_step else 1
        return steps * (64 + self._spec.horizon * len(self._spec.quantiles) * _VALUE_BYTES)

    def read(self, outputs: Mapping[str, Tensor], rows: slice | Sequence[int], length: int, top: int) -> Predictions:
        spec = self._spec
        forecast = self._scaled(outputs[spec.output][rows, -1])
        means = None if spec.surprise is None else outputs[spec.surprise].mean(axis=1)[rows]
        return Predictions(length, quantiles=spec.quantiles, forecast=forecast, surprise=means)

    def split(self, predictions: Predictions) -> list[Prediction]:
        assert predictions.forecast is not None
        length, unit, quantiles = predictions.length, self.surprise_unit, predictions.quantiles
        if predictions.forecast[0].size > FEW:
            return self._split_large(predictions, predictions.forecast)
        forecasts = [Forecast(quantiles, values) for values in predictions.forecast.tolist()]
        if predictions.surprise is None:
            return [Prediction(length, forecast=[forecast]) for forecast in forecasts]
        return [
            Prediction(length, forecast=[forecast], surprise=Surprise(mean, unit))
            for forecast, mean in zip(forecasts, predictions.surprise.tolist(), strict=True)
        ]

    def _split_large(self, predictions: Predictions, forecasts: Tensor) -> list[Prediction]:
        length, unit, found = predictions.length, self.surprise_unit, []
        means = [None] * len(forecasts) if predictions.surprise is None else predictions.surprise.tolist()
        for row, mean in enumerate(means):
            rows = Rows(self._forecasts, forecasts[row : row + 1].copy())
            surprise = None if mean is None else Surprise(mean, unit)
            found.append(Prediction(length, forecast=rows, surprise=surprise))
        return found

    def cut(self, outputs: Mapping[str, Tensor], row: int, options: StepOptions, *, is_last: bool) -> dict[str, Tensor]:
        quantiles = outputs[self._spec.output][row]
        steps = quantiles if options.every_step else quantiles[-1:] if is_last else quantiles[:0]
        piece = {"quantiles": steps.copy()}
        if self._spec.surprise is not None:
            piece[self._spec.surprise] = outputs[self._spec.surprise][row].copy()
        if self._band is not None:
            piece[BAND] = self._band.cut(quantiles)
        return piece

    def join(self, pieces: Sequence[Mapping[str, Tensor]], length: int, options: StepOptions) -> Prediction:
        values = self._scaled(np.concatenate([piece["quantiles"] for piece in pieces]))
        rows = told(self._forecasts, values)
        surprise = mean_surprise(pieces, self._spec.surprise, self.surprise_unit, options)
        return Prediction(length, options.every_step, forecast=rows, surprise=surprise)

    def _forecasts(self, values: Tensor) -> list[Forecast]:
        """Return a forecast for each step of ``values`` [steps, horizon, quantile], in data units."""
        return [Forecast(self._spec.quantiles, rows) for rows in values.tolist()]

    def _scaled(self, quantiles: Tensor) -> FloatArray:
        """Return quantiles in data units."""
        values: FloatArray = quantiles.astype(np.float32, copy=False) * self._scale + self._mean
        return values


def _check_scaling(scaling: Scaling, manifest: Manifest, spec: ForecastCodec) -> None:
    """Raise ValueError unless the columns are those that the graph takes and the forecast is the one that it gives."""
    if len(scaling.features) != len(manifest.features):
        raise ValueError(f"{len(scaling.features)} transforms for {len(manifest.features)} features")
    check_input(manifest, "float32", (sum(transform.width for transform in scaling.features),))
    axes, wanted = check_output(manifest, spec.output, 2), (spec.horizon, len(spec.quantiles))
    if any(isinstance(axis, int) and axis != size for axis, size in zip(axes, wanted, strict=True)):
        raise ValueError(f"{spec.output} gives {list(axes)} a step, the codec reads [horizon, quantile] {list(wanted)}")
    if spec.surprise is not None:
        check_output(manifest, spec.surprise, 0)


def _encode(column: FloatArray, transform: Standard | Cyclic) -> tuple[FloatArray, ...]:
    if isinstance(transform, Standard):
        return ((column - transform.mean) / transform.scale,)
    angle = column * (2 * np.pi / transform.period)
    return np.sin(angle), np.cos(angle)
