"""Held-out sequences of the data that a bundle was trained on, as far as that data is at hand.

Knows how to find the recipe in a bundle's provenance and to ask `tidegate_models` for the test split, which needs torch
and the data's package. Where either is missing it says so; that is no error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tidegate.bundle import Bundle, ForecastCodec, TokenCodec
from tidegate_export.quantize_graph import Array

if TYPE_CHECKING:
    from tidegate_models.forecast import ForecastTask
    from tidegate_models.task import Task
    from tidegate_models.text import TextTask

MOST_STEPS = 32_768
"""Steps of one sequence that are scored: more would change the third decimal of bits per character."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Sequences as the graph takes them, [steps] or [steps, columns], and where they are from."""

    sequences: tuple[Array, ...]
    told: str


def held_out(bundle: Bundle) -> HeldOut | str:
    """Return the test split of the bundle's own data, or the reason why there is none."""
    codec = bundle.manifest.codec
    if not isinstance(codec, TokenCodec | ForecastCodec) or codec.surprise is None:
        return "the model does not predict its own next input"
    recipe = bundle.manifest.provenance.get("recipe")
    if recipe is None:
        return "the bundle does not say what it was trained on"
    try:
        from pydantic import ValidationError

        from tidegate_models.errors import TrainingInputError
        from tidegate_models.recipe import Recipe
        from tidegate_models.session import build_task
    except ModuleNotFoundError as error:
        return f"{error.name} is not installed (pip install 'tidegate[train]')"
    try:
        task = build_task(Recipe.model_validate(recipe))
    except (TrainingInputError, ValidationError) as error:
        return f"the training's data is not at hand: {' '.join(str(error).split())}"
    return _sequences(task, bundle)


def _sequences(task: Task, bundle: Bundle) -> HeldOut | str:
    from tidegate_models.forecast import ForecastTask
    from tidegate_models.text import TextTask

    if isinstance(task, TextTask):
        return _text(task, bundle)
    if isinstance(task, ForecastTask):
        return _series(task)
    return f"no held-out data is known for the task {task.name}"


def _text(task: TextTask, bundle: Bundle) -> HeldOut | str:
    codec = bundle.manifest.codec
    assert isinstance(codec, TokenCodec)
    known = bundle.read_json(codec.vocabulary)["tokens"]
    if tuple(known) != task.vocabulary.characters:
        return "the data's characters are not those of the bundle"
    sequences = tuple(task.vocabulary.encode(text[:MOST_STEPS]).numpy() for text in task.corpus.test.values())
    return HeldOut(sequences, f"first {MOST_STEPS:,} characters of {', '.join(task.corpus.test)}")


def _series(task: ForecastTask) -> HeldOut:
    test = task.inputs[task.splits.validation : task.splits.test][:MOST_STEPS].numpy()
    return HeldOut((np.ascontiguousarray(test),), "the test split")
