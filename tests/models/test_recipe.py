"""Recipes: the packaged ones parse, mistakes are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from tidegate_models.errors import TrainingInputError
from tidegate_models.recipe import dump_recipe, load_recipe, packaged_recipes, parse_recipe


@pytest.mark.parametrize("name", packaged_recipes())
def test_packaged_recipes_parse_and_survive_writing(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert parse_recipe(dump_recipe(recipe), "copy") == recipe


def test_the_ready_made_models_have_two_layers_of_256() -> None:
    for cell in ("lstm", "gru"):
        network = load_recipe(f"shakespeare-{cell}").network
        assert (network.cell, network.num_layers, network.hidden_size) == (cell, 2, 256)


def test_a_recipe_is_read_from_a_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(dump_recipe(load_recipe("text")), "utf-8")
    assert load_recipe(str(path)) == load_recipe("text")


def test_an_unknown_name_lists_what_there_is() -> None:
    with pytest.raises(TrainingInputError, match=r"no recipe 'novel': .*shakespeare-gru"):
        load_recipe("novel")


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("seed = 1", "speed = 1", r"speed: Extra inputs are not permitted"),
        ("steps = 3000", "steps = 0", r"training\.steps: .*greater than or equal to 1"),
        ('cell = "lstm"', 'cell = "lstn"', r"network\.cell: "),
        ("seed = 1", "seed = ", r"not valid TOML"),
        ("seed = 1", 'seed = 1\n[data]\nsource = "electricity"', r"electricity is no data for the task next_token"),
        ("seed = 1", "seed = 1\n[forecast]\nquantiles = [0.5, 0.1, 0.9]", r"forecast\.quantiles: .*must ascend"),
    ],
)
def test_mistakes_are_named(before: str, after: str, message: str) -> None:
    text = dump_recipe(load_recipe("text").model_copy(update={"data": load_recipe("text").data}))
    text = text.split("[data]")[0] + "[network]" + text.split("[network]")[1].split("[forecast]")[0]
    assert before in text
    with pytest.raises(TrainingInputError, match=message):
        parse_recipe(text.replace(before, after), "r.toml")
