"""Inputs fit the model, whatever it is."""

from __future__ import annotations

import numpy as np
import pytest

from tests.service.loadgen.models import model
from tidegate.errors import ConfigurationError
from tidegate.loadgen.inputs import source_for


def test_tokens_come_from_the_whole_vocabulary() -> None:
    source = source_for(model(), longest=512, seed=0)
    drawn = [source.draw(length) for length in (1, 512, 7, 100)]
    assert [len(each.tokens or ()) for each in drawn] == [1, 512, 7, 100]
    assert set(source.draw(512).tokens or ()) <= set(range(65))
    assert len({token for each in drawn for token in each.tokens or ()}) > 60
    assert drawn[0].values is None


def test_inputs_change_from_request_to_request_and_go_on_for_ever() -> None:
    source = source_for(model(), longest=64, seed=0)
    drawn = [tuple(source.draw(64).tokens or ()) for _ in range(1000)]
    assert {len(each) for each in drawn} == {64}
    assert len(set(drawn)) > 50


@pytest.mark.parametrize(("features", "width"), [(["load", "hour"], 2), ([], 3)])
def test_values_have_the_width_of_the_features_or_of_the_input(features: list[str], width: int) -> None:
    values = source_for(model("forecast", "float32", features), longest=200, seed=0).draw(200).values
    assert values is not None
    assert values.shape == (200, width)
    assert values.dtype == np.float32
    assert np.isfinite(values).all()


def test_the_seed_decides() -> None:
    first, second, other = (source_for(model(), 64, seed).draw(64).tokens for seed in (1, 1, 2))
    assert first == second != other


def test_a_foreign_graph_of_tokens_needs_to_be_told_how_many() -> None:
    foreign = model(task="stream")
    with pytest.raises(ConfigurationError, match="--vocabulary"):
        source_for(foreign, 8, 0)
    assert set(source_for(foreign, 64, 0, vocabulary=2).draw(64).tokens or ()) == {0, 1}
