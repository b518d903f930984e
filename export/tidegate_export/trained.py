"""Candidates made of training runs: the network of a run directory with its codec, report and recipe.

Knows the facts that `tidegate_models` stores beside weights, and how they become codec files and provenance.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from tidegate.bundle import ForecastCodec
from tidegate_export.candidate import ExportCandidate
from tidegate_export.networks import forecast_candidate, token_candidate
from tidegate_models.runs import RunFolder, TrainedRun, load_run

Facts = dict[str, Any]


def trained_candidate(folder: Path, *, name: str | None, version: str) -> ExportCandidate:
    """Return the candidate of the run in `folder`, named as the run where `name` is None.

    Raises:
        TrainingInputError: `folder` holds no trained network.
    """
    run = load_run(folder)
    report = run.report or {}
    recipe = tomllib.loads(RunFolder(folder).recipe.read_text("utf-8"))
    facts: Facts = {
        "name": name or run.name,
        "version": version,
        "provenance": {"recipe": recipe, **{key: report[key] for key in _KEPT if key in report}},
        "report": report,
    }
    if run.task == "next_token":
        vocabulary = {"tokens": run.codec["characters"], "unknown": run.codec["unknown"]}
        return token_candidate(run.network, vocabulary, **facts)
    facts["provenance"]["series"] = {key: run.codec[key] for key in ("season", "step_seconds")}
    transforms = {feature["name"]: _transform(feature) for feature in run.codec["features"]}
    return forecast_candidate(run.network, _forecast_codec(run), transforms, **facts)


def trained_name(folder: Path) -> str:
    """Return the name that the run gives itself."""
    return load_run(folder).name


_KEPT = ("held_out", "data", "training")


def _forecast_codec(run: TrainedRun) -> ForecastCodec:
    codec = run.codec
    return ForecastCodec(
        target=codec["target"],
        horizon=codec["horizon"],
        quantiles=tuple(codec["quantiles"]),
        seasonal_naive_error=codec["seasonal_naive_mae"],
    )


def _transform(feature: Facts) -> Facts:
    if feature["transform"] == "cyclic":
        return {"kind": "cyclic", "period": feature["period"]}
    return {"kind": "standard", "mean": feature["mean"], "scale": feature["scale"]}
