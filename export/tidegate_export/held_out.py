"""Held-out sequences of the data that a bundle was trained on, as far as that data is at hand.

Knows how to find the recipe in a bundle's provenance and to ask `tidegate_models` for the held-out splits, which needs
torch and the data's package. Where either is missing it says so; that is no error.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from tidegate.bundle import Bundle, ForecastCodec, Json, Manifest, TokenCodec
from tidegate_export.quantize_graph import Array

if TYPE_CHECKING:
    from tidegate_models.forecast import ForecastTask
    from tidegate_models.text import TextTask

MOST_STEPS = 32_768
"""Steps of one sequence that are scored: more would change the third decimal of bits per character."""

_TEXT_BLOCK = 128
"""Characters: of 16 to 256, the block whose chart finds a change in the fewest steps (docs/monitoring.md)."""
_PERIODS = (86_400, 3_600, 60)
_LEAST_PERIOD, _MOST_PERIOD = 8, 512


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Sequences as the graph takes them, [steps] or [steps, columns], and where they are from."""

    sequences: tuple[Array, ...]
    told: str


@dataclass(frozen=True, slots=True)
class Calibration(HeldOut):
    """All that was held out, and what else a chart is made of.

    ``block`` is how many steps belong together, ``ranges`` the least and greatest value of features in training.
    """

    block: int
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)


def held_out(bundle: Bundle) -> HeldOut | str:
    """Return the test split of the bundle's own data, or the reason why there is none."""
    files = {name: data for name, data in bundle.files.items() if name.endswith(".json")}
    task = _task(bundle.manifest, files)
    if isinstance(task, str):
        return task
    from tidegate_models.text import TextTask

    if isinstance(task, TextTask):
        texts = task.corpus.test
        sequences = tuple(task.vocabulary.encode(text[:MOST_STEPS]).numpy() for text in texts.values())
        return HeldOut(sequences, f"first {MOST_STEPS:,} characters of {', '.join(texts)}")
    return HeldOut((_series(task, task.splits.validation, task.splits.validation + MOST_STEPS),), "the test split")


def calibration(manifest: Manifest, files: Mapping[str, bytes]) -> Calibration | str:
    """Return all that was held out of the data of a bundle with these codec files, or the reason why there is none."""
    task = _task(manifest, files)
    if isinstance(task, str):
        return task
    from tidegate_models.text import TextTask

    if isinstance(task, TextTask):
        texts = {**task.corpus.validation, **task.corpus.test}
        sequences = tuple(task.vocabulary.encode(text).numpy() for text in texts.values())
        return Calibration(sequences, ", ".join(texts), _TEXT_BLOCK)
    trained = task.series.values[: task.splits.train]
    return Calibration(
        (_series(task, task.splits.train, task.splits.test),),
        "the validation and the test split",
        _period(task.series.step.total_seconds()),
        {task.target.name: (float(trained.min()), float(trained.max()))},
    )


def _task(manifest: Manifest, files: Mapping[str, bytes]) -> TextTask | ForecastTask | str:
    """Return what the bundle was trained on, or the reason why that is not to be had."""
    codec = manifest.codec
    if not isinstance(codec, TokenCodec | ForecastCodec) or codec.surprise is None:
        return "the model does not predict its own next input"
    if "recipe" not in manifest.provenance:
        return "the bundle does not say what it was trained on"
    task = _build(manifest.provenance["recipe"])
    if isinstance(task, str):
        return task
    if (task.name == "next_token") != isinstance(codec, TokenCodec):
        return f"the data is for the task {task.name}"
    if isinstance(codec, TokenCodec):
        tokens = json.loads(files[codec.vocabulary])["tokens"]
        if tokens != task.codec["characters"]:
            return "the data's characters are not those of the bundle"
    return task


def _build(recipe: Json) -> TextTask | ForecastTask | str:
    """Return the task of a recipe, or the reason why there is none here."""
    try:
        from pydantic import ValidationError

        from tidegate_models.errors import TrainingInputError
        from tidegate_models.forecast import ForecastTask
        from tidegate_models.recipe import Recipe
        from tidegate_models.session import build_task
        from tidegate_models.text import TextTask
    except ModuleNotFoundError as error:
        return f"{error.name} is not installed (pip install 'tidegate[train]')"
    try:
        task = build_task(Recipe.model_validate(recipe))
    except (TrainingInputError, ValidationError) as error:
        return f"the training's data is not at hand: {str(error).partition(chr(10))[0]}"
    assert isinstance(task, TextTask | ForecastTask)  # there are no others
    return task


def _series(task: ForecastTask, start: int, end: int) -> Array:
    return np.ascontiguousarray(task.inputs[start : min(end, task.splits.test)].numpy())


def _period(step_seconds: float) -> int:
    """Return how many steps make a day, or an hour, or a minute: what repeats belongs in one block."""
    for seconds in _PERIODS:
        steps = seconds / step_seconds
        if steps == round(steps) and _LEAST_PERIOD <= steps <= _MOST_PERIOD:
            return round(steps)
    return _TEXT_BLOCK
