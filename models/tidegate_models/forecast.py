"""Forecasts of a series: features with their transforms, quantile loss, baselines and held-out figures.

Knows scaling, horizons and intervals; not where a series was read from (`series`) nor how training proceeds.
Every figure is taken over all origins of a split and all horizons 1…H, with the state carried in from the past.
"""

from __future__ import annotations

import copy
import math
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor

from tidegate_models.errors import TrainingInputError
from tidegate_models.networks import QuantileHead, RecurrentNetwork
from tidegate_models.recipe import Recipe
from tidegate_models.series import Series, calendar
from tidegate_models.task import Facts
from tidegate_models.windows import Windows

Array = NDArray[np.float64]

_TRAIN, _VALIDATION = 0.7, 0.85  # where the training and the validation split end, as fractions of the series
_WARM_UP_SEASONS = 4
_NOMINAL = 0.8
_SMOOTHING = np.linspace(0.02, 1.0, 50)


@dataclass(frozen=True, slots=True)
class Standard:
    """One column: (x − mean) / scale."""

    name: str
    mean: float
    scale: float
    transform: Literal["standard"] = "standard"

    def encode(self, column: Array) -> Array:
        """[steps] → [steps, 1]."""
        return ((column - self.mean) / self.scale)[:, None]


@dataclass(frozen=True, slots=True)
class Cyclic:
    """Two columns: sine and cosine of 2πx / period."""

    name: str
    period: float
    transform: Literal["cyclic"] = "cyclic"

    def encode(self, column: Array) -> Array:
        """[steps] → [steps, 2]."""
        angle = 2 * math.pi * column / self.period
        return np.stack((np.sin(angle), np.cos(angle)), axis=1)


@dataclass(frozen=True, slots=True)
class Splits:
    """Ends of the three chronological splits, in steps."""

    train: int
    validation: int
    test: int

    @classmethod
    def of(cls, length: int) -> Splits:
        """70, 15 and 15 %."""
        return cls(int(length * _TRAIN), int(length * _VALIDATION), length)


class ForecastTask:
    """Predict quantiles of the target's next H values from the target so far and the calendar."""

    name = "forecast"
    unit = "mean pinball loss, scaled"

    def __init__(self, recipe: Recipe, series: Series) -> None:
        """Fit the scaling on the training split, encode the series, lay the training split out as streams."""
        self.recipe, self.series = recipe, series
        self.horizon, self.season = recipe.forecast.horizon, recipe.forecast.season
        self.quantiles = recipe.forecast.quantiles
        self.splits = Splits.of(len(series.values))
        self._check_length()
        trained = series.values[: self.splits.train]
        if (scale := float(trained.std())) == 0:
            raise TrainingInputError(f"{series.target} is constant over the training split: there is nothing to learn")
        self.target = Standard(series.target, float(trained.mean()), scale)
        self.features: tuple[Standard | Cyclic, ...] = (
            self.target,
            Cyclic("hour", 24.0),
            Cyclic("weekday", 7.0),
            Cyclic("yearday", 365.25),
        )
        self.naive_error = float(np.abs(trained[self.season :] - trained[: -self.season]).mean())
        if self.naive_error == 0:
            raise TrainingInputError(
                f"{series.target} repeats exactly every {self.season} steps: nothing is left to learn"
            )
        columns = (series.values, *calendar(series.times).T)
        pairs: list[tuple[Standard | Cyclic, Array]] = list(zip(self.features, columns, strict=True))
        encoded = [feature.encode(column) for feature, column in pairs]
        self.inputs = torch.tensor(np.concatenate(encoded, axis=1), dtype=torch.float32)
        self.ahead = torch.tensor(self.target.encode(series.values)[:, 0], dtype=torch.float32)
        origins = self.splits.train - self.horizon
        self.windows = Windows.batchify(
            self.inputs[:origins],
            self.ahead[1 : self.splits.train].unfold(0, self.horizon, 1),
            streams=recipe.training.streams,
            window=recipe.training.window,
            seed=recipe.seed,
        )

    @property
    def codec(self) -> Facts:
        """Raw features in order with their transforms; what the outputs are; the denominator of MASE in data units."""
        return {
            "kind": "series",
            "features": [asdict(feature) for feature in self.features],
            "target": self.target.name,
            "horizon": self.horizon,
            "quantiles": list(self.quantiles),
            "season": self.season,
            "seasonal_naive_mae": self.naive_error,
            "step_seconds": self.series.step.total_seconds(),
        }

    @property
    def data_facts(self) -> Facts:
        """Source, licence and the first timestamp of each split."""
        times = self.series.times
        starts = {"train": 0, "validation": self.splits.train, "test": self.splits.validation}
        split = {"by": "time", **{name: times[start].isoformat() for name, start in starts.items()}}
        return {**self.series.facts, "steps": len(times), "end": times[-1].isoformat(), "split": split}

    def network_arguments(self) -> Facts:
        """Arguments of `networks.quantile_network`."""
        outputs = {"horizon": self.horizon, "quantiles": list(self.quantiles)}
        return {"num_columns": self.inputs.shape[1], **outputs, **self.recipe.network.model_dump()}

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean pinball loss (Koenker & Bassett 1978) of quantiles [B, T, H, Q] against targets [B, T, H]."""
        levels = torch.tensor(self.quantiles, device=outputs.device)
        error = targets.unsqueeze(-1) - outputs
        return torch.maximum(levels * error, (levels - 1) * error).mean()

    def validate(self, network: RecurrentNetwork) -> float:
        """Mean pinball loss on the validation split."""
        outputs, targets = self._predict(network, self.splits.train, self.splits.validation)
        return float(self.loss(outputs, targets))

    def calibrated(self, network: RecurrentNetwork) -> RecurrentNetwork:
        """A copy whose intervals are stretched so that the middle 80 % cover 80 % of the validation split.

        Split conformal prediction with the interval's own half-widths as the scale (Romano et al. 2019), per horizon:
        the factor is the 80 % quantile of the errors measured in half-widths.
        """
        outputs, targets = self._predict(network, self.splits.train, self.splits.validation)
        low, middle, high = (outputs[..., self.quantiles.index(q)] for q in (0.1, 0.5, 0.9))
        error = targets - middle
        score = torch.maximum(error / (high - middle), -error / (middle - low))  # [1, origins, H]
        kept = copy.deepcopy(network)
        assert isinstance(kept.head, QuantileHead)  # this task builds no other
        kept.head.spread.mul_(score[0].quantile(_NOMINAL, dim=0))
        return kept

    def figures(self, network: RecurrentNetwork) -> Facts:
        """MASE (Hyndman & Koehler 2006) beside its baselines, and interval coverage, on both held-out splits."""
        train, validation, test = asdict(self.splits).values()
        smoothing = min(_SMOOTHING, key=lambda alpha: self._scaled_error(self._ewma(float(alpha)), train, validation))
        return {
            name: self._split_figures(network, start, end, float(smoothing))
            for name, start, end in (("validation", train, validation), ("test", validation, test))
        }

    def _split_figures(self, network: RecurrentNetwork, start: int, end: int, smoothing: float) -> Facts:
        outputs, targets = self._predict(network, start, end)
        low, middle, high = (outputs[..., self.quantiles.index(q)] for q in (0.1, 0.5, 0.9))
        absolute = float((targets - middle).abs().mean()) * self.target.scale
        inside = (targets >= low) & (targets <= high)
        return {
            "mase": absolute / self.naive_error,
            "mean_absolute_error": absolute,
            "mase_seasonal_naive": self._scaled_error(self._seasonal_naive(), start, end),
            "mase_ewma": self._scaled_error(self._ewma(smoothing), start, end),
            "ewma_smoothing": smoothing,
            "coverage_80": float(inside.double().mean()),
            "interval_80_width": float((high - low).mean()) * self.target.scale,
            "pinball": float(self.loss(outputs, targets)) * self.target.scale,
            "origins": targets.shape[1],
            "horizon": self.horizon,
        }

    @torch.no_grad()
    def _predict(self, network: RecurrentNetwork, start: int, end: int) -> tuple[Tensor, Tensor]:
        """Quantiles [1, origins, H, Q] and targets [1, origins, H], scaled, for origins whose targets end by `end`.

        The state is warmed up on the seasons before `start`, which the network has seen or could have seen.
        """
        device = next(network.parameters()).device
        begin = max(0, start - _WARM_UP_SEASONS * self.season)
        origins = end - self.horizon
        was_training = network.training
        network.eval()
        outputs, _ = network(self.inputs[None, begin:origins].to(device), network.initial_state(1, device))
        network.train(was_training)
        targets = self.ahead[start + 1 : end].unfold(0, self.horizon, 1)
        return outputs[:, start - begin :].cpu(), targets[None]

    def _scaled_error(self, forecasts: Array, start: int, end: int) -> float:
        """MASE of `forecasts` [steps, H] (row t holds the forecasts made at t) over a split's origins."""
        actual = sliding_window_view(self.series.values[start + 1 : end], self.horizon)
        return float(np.abs(forecasts[start : end - self.horizon] - actual).mean()) / self.naive_error

    def _seasonal_naive(self) -> Array:
        """The value one season before each target (several seasons where the horizon is longer than one)."""
        steps = np.arange(len(self.series.values))[:, None]
        ahead = np.arange(1, self.horizon + 1)[None]
        back = self.season * ((ahead - 1) // self.season + 1)
        forecasts: Array = self.series.values[np.maximum(steps + ahead - back, 0)]
        return forecasts

    def _ewma(self, alpha: float) -> Array:
        """A flat forecast at the exponentially weighted mean so far."""
        level, levels = float(self.series.values[0]), []
        for value in self.series.values.tolist():
            level += alpha * (value - level)
            levels.append(level)
        return np.array(levels)[:, None]

    def _check_length(self) -> None:
        """Each held-out split needs room for some origins, the training split for two seasons."""
        length, needed = len(self.series.values), max(3 * self.season, 10 * self.horizon)
        if length < needed:
            raise TrainingInputError(
                f"too little data: {length} steps; horizon {self.horizon} and season {self.season} need {needed}"
            )
