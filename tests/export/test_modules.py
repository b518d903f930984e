"""A user's own modules: states are found, outputs are those of the untouched module, mistakes are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.export.user_modules import Classifier, Convolved, Demanding, Language, Stateful, Tagger, Wrapped
from tidegate.bundle import Manifest, TokenCodec, read_bundle
from tidegate.errors import BundleError
from tidegate.proof import ABSOLUTE, check_bundle, excess
from tidegate.replay import GraphRunner, random_inputs
from tidegate_export.candidate import export_candidate
from tidegate_export.errors import ExportError
from tidegate_export.modules import Description, module_candidate
from tidegate_export.signature import InputShape

VOCABULARY = {"tokens": ["a", "b", "c", "d"], "unknown": None}


def description(shape: str = "1,8,6", **more: Any) -> Description:
    return Description("mine", "1", InputShape.parse(shape), **more)


def exported(root: Path, module: nn.Module, about: Description) -> tuple[GraphRunner, Manifest]:
    path = export_candidate(module_candidate(module, about), root).path
    assert check_bundle(path).passed
    bundle = read_bundle(path)
    return GraphRunner(bundle.graph, bundle.manifest), bundle.manifest


def states_of(manifest: Manifest) -> dict[str, tuple[str | int, ...]]:
    return {state.input: state.axes for state in manifest.states}


def outputs_of(module: nn.Module, x: np.ndarray[Any, Any], *state: Any) -> Any:
    with torch.no_grad():
        result = module.eval()(torch.from_numpy(x), *state)
    return result[0].numpy() if isinstance(result, tuple) else result.numpy()


def test_hidden_states_of_several_layers_become_states_by_path(tmp_path: Path) -> None:
    module = Tagger()
    runner, manifest = exported(tmp_path, module, description(features=("a", "b", "c", "d", "e", "f")))
    assert states_of(manifest) == {
        "lstm.h_in": (2, "batch", 10),
        "lstm.c_in": (2, "batch", 10),
        "gru.h_in": (1, "batch", 7),
    }
    assert manifest.cell == "foreign"
    assert manifest.features == ("a", "b", "c", "d", "e", "f")
    x = random_inputs(manifest, 3, 20, np.random.default_rng(0))
    found = runner.walk(x, [1, 9, 10]).outputs["output"]
    assert excess(outputs_of(module, x["x"]), found) <= ABSOLUTE


def test_time_may_come_first_and_a_returned_state_is_no_output(tmp_path: Path) -> None:
    module = Convolved()
    runner, manifest = exported(tmp_path, module, description("time,batch,6"))
    assert states_of(manifest) == {"rnn.h_in": (3, "batch", 8)}
    assert [(spec.name, spec.axes) for spec in manifest.outputs] == [("output", ("time", "batch", 8))]
    assert manifest.cell == "rnn"
    x = random_inputs(manifest, 2, 20, np.random.default_rng(0))
    found = runner.walk(x, [5, 1, 14]).outputs["output"]
    assert excess(outputs_of(module, x["x"]), found) <= ABSOLUTE


def test_a_modules_own_state_arguments_are_states_with_their_beginning(tmp_path: Path) -> None:
    module = Stateful()
    runner, manifest = exported(tmp_path, module, description())
    assert states_of(manifest) == {
        "gru.h_in": (1, "batch", 5),
        "state.0_in": (1, "batch", 5),
        "state.1_in": (1, "batch", 5),
    }
    assert [state.initial for state in manifest.states] == [0.0, 1.0, 1.0]
    x = random_inputs(manifest, 2, 20, np.random.default_rng(0))
    found = runner.walk(x, [7, 13]).outputs["output"]
    assert excess(outputs_of(module, x["x"], module.initial_state(2)), found) <= ABSOLUTE


def test_a_layer_by_itself_is_a_module(tmp_path: Path) -> None:
    _, manifest = exported(tmp_path, nn.LSTM(6, 5, num_layers=2, batch_first=True), description())
    assert states_of(manifest) == {"h_in": (2, "batch", 5), "c_in": (2, "batch", 5)}
    assert manifest.cell == "lstm"


def test_an_output_of_the_last_step_has_no_time_axis(tmp_path: Path) -> None:
    module = Classifier()
    runner, manifest = exported(tmp_path, module, description())
    assert manifest.outputs[0].axes == ("batch", 2)
    x = random_inputs(manifest, 2, 9, np.random.default_rng(0))
    assert excess(outputs_of(module, x["x"]), runner.walk(x, [4, 5]).outputs["output"]) <= ABSOLUTE


def test_a_language_model_of_ones_own_gets_the_vocabularys_codec(tmp_path: Path) -> None:
    about = description("tokens", task="next_token", vocabulary=VOCABULARY)
    _, manifest = exported(tmp_path, Language(), about)
    assert manifest.task == "next_token"
    assert isinstance(manifest.codec, TokenCodec)
    assert manifest.codec.surprise is None
    assert (manifest.inputs[0].name, manifest.outputs[0].name) == ("tokens", "logits")
    assert json.loads(read_bundle(tmp_path / "mine" / "1").files["vocabulary.json"]) == VOCABULARY


def test_a_module_whose_rows_see_each_other_is_exported_to_run_rows_alone(tmp_path: Path) -> None:
    _, manifest = exported(tmp_path, Wrapped("mean over the batch"), description())
    assert not manifest.batch_invariant
    assert "depends on its neighbours" in (tmp_path / "mine" / "1" / "card.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (Wrapped("", nn.GRU(6, 5, bidirectional=True)), "layer is bidirectional"),
        (Wrapped("", nn.LSTM(6, 5, proj_size=3)), "layer has proj_size=3"),
        (Wrapped("", nn.LSTMCell(6, 5)), "layer is an LSTMCell: .* use nn.LSTM"),
        (nn.Linear(6, 5), "no nn.LSTM, nn.GRU or nn.RNN"),
        (Wrapped("twice"), "layer runs twice"),
        (Wrapped("packed"), "layer is called with a PackedSequence"),
        (Wrapped("unused"), "nothing to stream"),
        (Wrapped("", nn.GRU(6, 5)), "sees 5 rows of 2 steps, the input has 2 of 5: is batch_first right"),
        (Wrapped("every second step"), "axis 1 of output has sizes"),
        (Wrapped("wrong width"), r"the module fails on an input of shape \(2, 5, 6\)"),
        (Demanding(), "forward requires state: add initial_state"),
    ],
)
def test_a_module_that_cannot_stream_is_refused_with_the_reason(module: nn.Module, reason: str) -> None:
    with pytest.raises(ExportError, match=reason) as caught:
        module_candidate(module, description())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("mistake", "reason"),
    [("mean over time", "looks ahead"), ("convolution over time", "a memory that is not among the states")],
)
def test_what_shows_only_in_the_graph_is_refused_by_the_proof(tmp_path: Path, mistake: str, reason: str) -> None:
    with pytest.raises(BundleError, match=reason) as caught:
        export_candidate(module_candidate(Wrapped(mistake), description()), tmp_path)
    assert caught.value.reason == "NOT_STREAMABLE"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("about", "reason"),
    [
        (description(features=("a", "b")), "2 features are named, the input has 6"),
        (description(task="next_token"), "needs --vocabulary"),
        (description(task="next_token", vocabulary=VOCABULARY), "needs --input tokens"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(about: Description, reason: str) -> None:
    with pytest.raises(ExportError, match=reason):
        module_candidate(Tagger(), about)


def test_a_vocabulary_of_another_size_is_refused() -> None:
    about = description("tokens", task="next_token", vocabulary={"tokens": ["a", "b"], "unknown": None})
    with pytest.raises(
        ExportError, match=r"one output \['batch', 'time', 2\], the module gives \['batch', 'time', 4\]"
    ):
        module_candidate(Language(), about)


@pytest.mark.parametrize("text", ["", "8", "1,8,", "batch,8", "batch,time,time", "batch,time,0", "a,b,c"])
def test_a_shape_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ExportError, match="is no shape"):
        InputShape.parse(text)
