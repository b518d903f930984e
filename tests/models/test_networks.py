"""Networks: state in and out, splits of a sequence, heads."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tidegate_models.networks import Cell, QuantileHead, RecurrentNetwork, quantile_network, token_network

CELLS = get_args(Cell)
SHAPE = {"embedding_size": 5, "hidden_size": 7, "num_layers": 2, "dropout": 0.3}


def build(cell: Cell) -> RecurrentNetwork:
    torch.manual_seed(0)
    return token_network(num_tokens=11, cell=cell, **SHAPE).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize("cell", CELLS)
def test_shapes_and_number_of_states(cell: Cell) -> None:
    network = build(cell)
    state = network.initial_state(3)
    outputs, after = network(torch.randint(0, 11, (3, 4)), state)
    assert outputs.shape == (3, 4, 11)
    assert len(state) == len(after) == (2 if cell == "lstm" else 1)
    assert all(part.shape == (2, 3, 7) for part in (*state, *after))
    assert all(not part.any() for part in state)


@given(cell=st.sampled_from(CELLS), cuts=st.sets(st.integers(1, 19)))
def test_any_split_of_a_sequence_gives_the_whole(cell: Cell, cuts: set[int]) -> None:
    network = build(cell)
    tokens = torch.randint(0, 11, (2, 20), generator=torch.Generator().manual_seed(1))
    whole, end = network(tokens, network.initial_state(2))
    pieces, state = [], network.initial_state(2)
    for piece in tokens.tensor_split(sorted(cuts), dim=1):
        outputs, state = network(piece, state)
        pieces.append(outputs)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, atol=1e-5, rtol=1e-4)
    for got, wanted in zip(state, end, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("cell", CELLS)
def test_head_of_the_state_is_the_last_prediction(cell: Cell) -> None:
    network = build(cell)
    outputs, state = network(torch.randint(0, 11, (2, 6)), network.initial_state(2))
    torch.testing.assert_close(network.head(state[0][-1]), outputs[:, -1])


def test_forget_gates_start_open() -> None:
    network = build("lstm")
    biases = dict(network.recurrent.named_parameters())
    assert torch.equal((biases["bias_ih_l0"] + biases["bias_hh_l0"])[7:14], torch.ones(7))


@given(
    hidden=st.lists(st.floats(-50, 50), min_size=4, max_size=4),
    quantiles=st.sampled_from([(0.1, 0.5, 0.9), (0.05, 0.1, 0.25, 0.5, 0.9), (0.5, 0.9), (0.1, 0.5)]),
)
def test_quantiles_never_cross(hidden: list[float], quantiles: tuple[float, ...]) -> None:
    torch.manual_seed(0)
    outputs = QuantileHead(4, 3, quantiles)(torch.tensor([hidden]))
    assert outputs.shape == (1, 3, len(quantiles))
    assert bool((outputs.diff(dim=-1) >= 0).all())


def test_spread_stretches_intervals_about_an_unmoved_median() -> None:
    head = QuantileHead(4, 2, (0.1, 0.5, 0.9))
    hidden = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    before = head(hidden)
    head.spread.mul_(torch.tensor([2.0, 1.0]))
    after = head(hidden)
    assert torch.equal(after[..., 1], before[..., 1])
    torch.testing.assert_close(after[:, 0, 2] - after[:, 0, 1], 2 * (before[:, 0, 2] - before[:, 0, 1]))
    assert torch.equal(after[:, 1], before[:, 1])


def test_quantile_network_takes_encoded_columns() -> None:
    network = quantile_network(num_columns=7, horizon=3, quantiles=(0.1, 0.5, 0.9), cell="gru", **SHAPE)  # type: ignore[arg-type]
    outputs, _ = network(torch.zeros(2, 5, 7), network.initial_state(2))
    assert outputs.shape == (2, 5, 3, 3)
