"""Forecasts: scaling, alignment of targets, baselines against direct formulas, calibration."""

from __future__ import annotations

import math
from datetime import datetime, timedelta

import numpy as np
import pytest
import torch

from tidegate_models.errors import TrainingInputError
from tidegate_models.forecast import ForecastTask
from tidegate_models.networks import RecurrentNetwork, quantile_network
from tidegate_models.recipe import Recipe, load_recipe
from tidegate_models.series import Series

HORIZON, SEASON = 6, 24


def small_recipe() -> Recipe:
    recipe = load_recipe("forecast")
    training = recipe.training.model_copy(update={"streams": 2, "window": 24, "steps": 4, "evaluate_every": 2})
    forecast = recipe.forecast.model_copy(update={"horizon": HORIZON, "season": SEASON})
    network = recipe.network.model_copy(update={"hidden_size": 8, "embedding_size": 4})
    return recipe.model_copy(update={"training": training, "forecast": forecast, "network": network})


def small_series(length: int = 600) -> Series:
    start = datetime(2024, 1, 1)  # noqa: DTZ001 - local clock of the series
    random = np.random.default_rng(0)
    values = 100 + 20 * np.sin(np.arange(length) * 2 * math.pi / SEASON) + random.normal(0, 3, length)
    return Series("load", tuple(start + timedelta(hours=hour) for hour in range(length)), values, {"source": "test"})


@pytest.fixture
def task() -> ForecastTask:
    return ForecastTask(small_recipe(), small_series())


@pytest.fixture
def network(task: ForecastTask) -> RecurrentNetwork:
    torch.manual_seed(0)
    return quantile_network(**task.network_arguments()).eval()


def test_scaling_is_fitted_on_the_training_split_alone(task: ForecastTask) -> None:
    trained = small_series().values[:420]
    load = task.codec["features"][0]
    assert (load["name"], load["transform"]) == ("load", "standard")
    assert load["mean"] == pytest.approx(trained.mean())
    assert load["scale"] == pytest.approx(trained.std())
    assert task.codec["seasonal_naive_mae"] == pytest.approx(np.abs(trained[SEASON:] - trained[:-SEASON]).mean())


def test_the_codec_reproduces_the_inputs_from_raw_features(task: ForecastTask) -> None:
    when = small_series().times[77]
    raw = {"load": small_series().values[77], "hour": when.hour, "weekday": when.weekday(), "yearday": 78 // 24 + 1}
    columns: list[float] = []
    for feature in task.codec["features"]:
        value = float(raw[feature["name"]])
        if feature["transform"] == "standard":
            columns.append((value - feature["mean"]) / feature["scale"])
        else:
            angle = 2 * math.pi * value / feature["period"]
            columns += [math.sin(angle), math.cos(angle)]
    assert task.inputs[77].tolist() == pytest.approx(columns, abs=1e-6)


def test_targets_are_the_next_values(task: ForecastTask) -> None:
    batch = task.windows.at(0)
    assert batch.targets.shape == (2, 24, HORIZON)
    for ahead in range(1, HORIZON):
        assert torch.equal(batch.targets[:, :-ahead, 0][:, 1:], batch.inputs[:, 1:, 0][:, 1:][:, : 23 - ahead])
        assert torch.equal(batch.targets[:, ahead:, 0], batch.targets[:, :-ahead, ahead])


def test_no_training_target_lies_in_a_held_out_split(task: ForecastTask) -> None:
    last = task.windows.targets[-1, -1, -1]
    held_out = {round(float(value), 5) for value in task.ahead[420:]}
    assert round(float(last), 5) not in held_out


def test_loss_is_the_pinball_loss(task: ForecastTask) -> None:
    outputs = torch.zeros(1, 1, HORIZON, 7)
    targets = torch.ones(1, 1, HORIZON)
    assert float(task.loss(outputs, targets)) == pytest.approx(float(np.mean(task.quantiles)))
    assert float(task.loss(outputs, -targets)) == pytest.approx(1 - float(np.mean(task.quantiles)))


def test_figures_equal_their_definitions(task: ForecastTask, network: RecurrentNetwork) -> None:
    figures = task.figures(network)["test"]
    values, scale = small_series().values, task.codec["seasonal_naive_mae"]
    with torch.no_grad():
        outputs, _ = network(task.inputs[None, 510 - 4 * SEASON :], network.initial_state(1))
    median = outputs[0, 4 * SEASON :, :, 3].double().numpy() * task.target.scale + task.target.mean
    errors, naive, flat = [], [], []
    level = values[0]
    for t in range(600 - HORIZON):
        level += figures["ewma_smoothing"] * (values[t] - level)
        for h in range(1, HORIZON + 1):
            if t >= 510:
                errors.append(abs(values[t + h] - median[t - 510, h - 1]))
                naive.append(abs(values[t + h] - values[t + h - SEASON]))
                flat.append(abs(values[t + h] - level))
    assert figures["origins"] * HORIZON == len(errors)
    assert figures["mase"] == pytest.approx(np.mean(errors) / scale, rel=1e-4)
    assert figures["mase_seasonal_naive"] == pytest.approx(np.mean(naive) / scale)
    assert figures["mase_ewma"] == pytest.approx(np.mean(flat) / scale)


def test_calibration_makes_the_validation_coverage_nominal(task: ForecastTask, network: RecurrentNetwork) -> None:
    before = network.head.state_dict()["spread"].clone()
    kept = task.calibrated(network)
    assert torch.equal(network.head.state_dict()["spread"], before)
    assert task.figures(kept)["validation"]["coverage_80"] == pytest.approx(0.8, abs=0.02)


def test_splits_are_in_time_order(task: ForecastTask) -> None:
    split = task.data_facts["split"]
    assert split["train"] < split["validation"] < split["test"] < task.data_facts["end"]


def test_too_short_a_series_says_what_is_needed() -> None:
    with pytest.raises(TrainingInputError, match="too little data: 71 steps; horizon 6 and season 24 need 72"):
        ForecastTask(small_recipe(), small_series(71))


def test_a_constant_series_is_refused() -> None:
    series = small_series()
    flat = Series("load", series.times, np.ones(600), {})
    with pytest.raises(TrainingInputError, match="load is constant"):
        ForecastTask(small_recipe(), flat)
