"""Our own networks as graphs: operators, states, surprise, and the same numbers as PyTorch however they are cut."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from tidegate.bundle import ForecastCodec, Manifest
from tidegate.proof import ABSOLUTE, excess, prove
from tidegate.replay import GraphRunner, random_inputs
from tidegate_export.candidate import ExportCandidate
from tidegate_export.graph import write_graph
from tidegate_export.networks import forecast_candidate, token_candidate
from tidegate_export.parity import check_parity
from tidegate_models.networks import Cell, RecurrentNetwork, quantile_network, token_network

CELLS: tuple[Cell, ...] = ("lstm", "gru", "rnn")
TOKENS = 11
QUANTILES = (0.1, 0.5, 0.9)
TRANSFORMS: dict[str, dict[str, Any]] = {
    "hour": {"kind": "cyclic", "period": 24.0},
    "load": {"kind": "standard", "mean": 50.0, "scale": 20.0},
}


@dataclass(frozen=True)
class Case:
    """A network, what is exported of it, and its graph."""

    network: RecurrentNetwork
    candidate: ExportCandidate
    graph: bytes

    @property
    def manifest(self) -> Manifest:
        return self.candidate.manifest

    def runner(self) -> GraphRunner:
        return GraphRunner(self.graph, self.manifest)


@cache
def text(cell: Cell, layers: int) -> Case:
    torch.manual_seed(layers)
    network = token_network(
        num_tokens=TOKENS, embedding_size=5, cell=cell, hidden_size=12, num_layers=layers, dropout=0.5
    ).eval()
    vocabulary = {"tokens": list("abcdefghijk"), "unknown": 3}
    candidate = token_candidate(network, vocabulary, name="text", version="1", provenance={}, report={})
    return Case(network, candidate, write_graph(candidate.module, candidate.manifest))


@cache
def series(cell: Cell) -> Case:
    torch.manual_seed(0)
    network = quantile_network(
        num_columns=3,
        embedding_size=4,
        horizon=6,
        quantiles=QUANTILES,
        cell=cell,
        hidden_size=8,
        num_layers=2,
    ).eval()
    codec = ForecastCodec(target="load", horizon=6, quantiles=QUANTILES, seasonal_naive_error=4.0)
    candidate = forecast_candidate(network, codec, TRANSFORMS, name="load", version="2", provenance={}, report={})
    return Case(network, candidate, write_graph(candidate.module, candidate.manifest))


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("cell", CELLS)
def test_every_layer_is_one_onnx_operator_with_its_state_by_name(cell: Cell, layers: int) -> None:
    case = text(cell, layers)
    model = onnx.load_from_string(case.graph)
    assert Counter(node.op_type for node in model.graph.node)[cell.upper()] == layers
    assert {node.domain for node in model.graph.node} == {""}
    assert [state.input for state in case.manifest.states] == (["h_in", "c_in"] if cell == "lstm" else ["h_in"])
    assert all(state.axes == (layers, "batch", 12) for state in case.manifest.states)
    shapes = {item.name: _axes(item) for item in (*model.graph.input, *model.graph.output)}
    assert shapes["tokens"] == shapes["surprise"] == ["batch", "time"]
    assert shapes["logits"] == ["batch", "time", TOKENS]
    assert shapes["h_in"] == shapes["h_out"] == [layers, "batch", 12]


def _axes(item: onnx.ValueInfoProto) -> list[str | int]:
    return [axis.dim_param or axis.dim_value for axis in item.type.tensor_type.shape.dim]


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("cell", CELLS)
def test_text_networks_stream_and_compute_what_pytorch_computes(cell: Cell, layers: int) -> None:
    case = text(cell, layers)
    assert prove(case.graph, case.manifest).passed
    assert check_parity(case.candidate.module, case.graph, case.manifest).max_error <= ABSOLUTE


@pytest.mark.parametrize("cell", CELLS)
def test_forecast_networks_stream_and_compute_what_pytorch_computes(cell: Cell) -> None:
    case = series(cell)
    assert prove(case.graph, case.manifest).passed
    assert check_parity(case.candidate.module, case.graph, case.manifest).max_error <= ABSOLUTE


@given(
    cell=st.sampled_from(CELLS),
    layers=st.integers(1, 3),
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    rows=st.integers(1, 4),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_split_of_any_batch_gives_what_the_untouched_network_gives_at_once(
    cell: Cell, layers: int, lengths: list[int], rows: int, seed: int
) -> None:
    case = text(cell, layers)
    inputs = random_inputs(case.manifest, rows, sum(lengths), np.random.default_rng(seed))
    found = case.runner().walk(inputs, lengths)
    with torch.no_grad():
        logits, state = case.network(torch.from_numpy(inputs["tokens"]), case.network.initial_state(rows))
    assert excess(logits.numpy(), found.outputs["logits"]) <= ABSOLUTE
    for name, expected in zip(("h_in", "c_in"), state, strict=False):
        assert excess(expected.numpy(), found.states[name]) <= ABSOLUTE


@given(
    cell=st.sampled_from(CELLS),
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_tokens_surprise_is_what_the_state_before_it_predicted_in_bits(
    cell: Cell, lengths: list[int], seed: int
) -> None:
    case = text(cell, 2)
    tokens = random_inputs(case.manifest, 2, sum(lengths), np.random.default_rng(seed))["tokens"]
    found = case.runner().walk({"tokens": tokens}, lengths).outputs["surprise"]
    assert excess(_bits(case.network, torch.from_numpy(tokens)), found) <= ABSOLUTE


def _bits(network: RecurrentNetwork, tokens: torch.Tensor) -> Any:
    """Score [B, T] tokens one by one: predict from h, look at the token, go on."""
    state = network.initial_state(len(tokens))
    scores = []
    with torch.no_grad():
        for step in range(tokens.shape[1]):
            token = tokens[:, step]
            nats = functional.cross_entropy(network.head(state[0][-1]), token, reduction="none")
            scores.append(nats / np.log(2))
            _, state = network(token[:, None], state)
    return torch.stack(scores, dim=1).numpy()


def test_a_values_surprise_is_the_medians_error_over_the_seasonal_naive_error() -> None:
    case = series("gru")
    values = random_inputs(case.manifest, 3, 20, np.random.default_rng(1))["values"]
    found = case.runner().walk({"values": values}, [1, 12, 7])
    with torch.no_grad():
        start = case.network.head(case.network.initial_state(3)[0][-1]).numpy()[:, None]
    medians = np.concatenate((start, found.outputs["quantiles"][:, :-1]), axis=1)[:, :, 0, 1]
    # Data units: columns are sin and cos of the hour, then the load.
    forecast, observed = (50.0 + 20.0 * scaled for scaled in (medians, values[:, :, 2]))
    assert excess(np.abs(forecast - observed) / 4.0, found.outputs["surprise"]) <= ABSOLUTE


def test_the_forecast_bundle_carries_its_scaling_in_the_order_of_its_features() -> None:
    case = series("lstm")
    assert case.manifest.features == ("hour", "load")
    assert case.manifest.inputs[0].axes == ("batch", "time", 3)
    assert case.candidate.files["scaling.json"].index(b"cyclic") < case.candidate.files["scaling.json"].index(b"mean")


def test_dropout_is_off_and_the_network_itself_is_left_as_it_was() -> None:
    network = token_network(
        num_tokens=5, embedding_size=4, cell="gru", hidden_size=6, num_layers=2, dropout=0.9
    ).train()
    candidate = token_candidate(
        network, {"tokens": list("abcde"), "unknown": None}, name="n", version="1", provenance={}, report={}
    )
    graph = write_graph(candidate.module, candidate.manifest)
    assert "Dropout" not in {node.op_type for node in onnx.load_from_string(graph).graph.node}
    assert network.training
    assert isinstance(network.recurrent, torch.nn.GRU)
