"""`tidegate import`: a graph that cannot stream is refused with the reason that its owner can act on, in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from tests.export.importing.graphs import Net
from tests.export.importing.importing import imported, refusal


def along_time() -> tuple[Net, str]:
    """A layer without state tensors over x [batch, time, 4]; return it as [batch, 8, time]."""
    net = Net(opset=18)
    moved = net.add("Transpose", net.input("x", "batch", "time", 4), perm=[1, 0, 2])
    top, _ = net.layer("GRU", moved, [], 4, 8)
    return net, net.add("Transpose", top, perm=[1, 2, 0])


@pytest.mark.parametrize(("direction", "words"), [("bidirectional", "is bidirectional"), ("reverse", "runs backward")])
@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
def test_a_layer_that_reads_backwards_is_named_though_it_has_no_state_tensors(
    tmp_path: Path, cell: str, direction: str, words: str
) -> None:
    net = Net()
    top, _ = net.layer(cell, net.input("x", "time", "batch", 4), [], 4, 8, direction=direction)
    net.nodes[0].name = "both"
    net.output(top, "y")
    told = refusal(net, tmp_path)
    assert f"{cell} 'both' {words}: that reads the sequence backwards" in told
    assert "export" not in told


def test_what_turns_a_sequence_around_for_a_layer_is_named(tmp_path: Path) -> None:
    net, x = along_time()
    bounds = [net.integers(value) for value in (-1, -(2**31), 2, -1)]
    turned = net.add("Transpose", net.add("Slice", x, *bounds), perm=[2, 0, 1])
    top, _ = net.layer("GRU", turned, [], 8, 5)
    net.output(top, "y")
    assert "turns the sequence around: that reads the sequence backwards" in refusal(net, tmp_path)


@pytest.mark.parametrize("operator", ["RandomNormalLike", "RandomUniformLike", "Bernoulli"])
def test_what_draws_random_numbers_is_named(tmp_path: Path, operator: str) -> None:
    net, x = along_time()
    noise = net.add(operator, net.add("Sigmoid", x))
    net.nodes[-1].name = "noise"
    net.output(net.add("Add", x, noise), "y")
    assert f"{operator} 'noise' draws random numbers, so two runs of one sequence differ" in refusal(net, tmp_path)


def dropout(*, is_active: bool, ratio: float) -> Net:
    net, x = along_time()
    net.output(net.add("Dropout", x, net.constant(np.array(ratio, np.float32)), net.constant(np.array(is_active))), "y")
    return net


def test_dropout_in_training_mode_is_refused_unless_it_drops_nothing(tmp_path: Path) -> None:
    assert "is in training mode: it drops random elements" in refusal(dropout(is_active=True, ratio=0.5), tmp_path)
    imported(dropout(is_active=True, ratio=0.0), tmp_path)
    imported(dropout(is_active=False, ratio=0.5), tmp_path, name="off")


def test_statistics_over_a_batch_are_refused(tmp_path: Path) -> None:
    net, x = along_time()
    vectors = [net.constant(np.ones(8, np.float32)) for _ in range(4)]
    net.output(net.add("BatchNormalization", x, *vectors, num_outputs=3, training_mode=1), "y")
    assert "it takes mean and variance over all rows and steps of a run" in refusal(net, tmp_path)


@pytest.mark.parametrize("behind", [1, 3])
def test_a_convolution_that_looks_ahead_is_named_with_the_number_of_steps(tmp_path: Path, behind: int) -> None:
    net, x = along_time()
    mixed = net.add("Conv", x, net.random(5, 8, 4), kernel_shape=[4], pads=[3 - behind, behind])
    net.nodes[-1].name = "centred"
    net.output(mixed, "y")
    steps = "1 step" if behind == 1 else "3 steps"
    told = refusal(net, tmp_path)
    assert f"the output of a step hangs on {steps} after it (Conv 'centred' looks {steps} ahead)" in told
    assert "cannot stream" in told


def test_a_mean_over_all_steps_is_named(tmp_path: Path) -> None:
    net, x = along_time()
    mean = net.add("ReduceMean", x, net.integers(2))
    net.nodes[-1].name = "mean"
    net.output(net.add("Sub", x, mean), "y")
    told = refusal(net, tmp_path)
    assert "to the end of the sequence (ReduceMean 'mean' is taken over all steps): cannot stream" in told


def test_attention_over_all_steps_is_named(tmp_path: Path) -> None:
    net, x = along_time()
    keys = net.add("Transpose", x, perm=[0, 2, 1])
    weights = net.add("Softmax", net.add("MatMul", keys, x), axis=-1)
    net.output(net.add("MatMul", weights, keys), "y")
    assert "Softmax" in (told := refusal(net, tmp_path))
    assert "to the end of the sequence" in told


def test_a_graph_with_fewer_outputs_than_steps_says_how_many_it_has(tmp_path: Path) -> None:
    net, x = along_time()
    net.output(net.add("Conv", x, net.random(5, 8, 2), kernel_shape=[2], strides=[2]), "y")
    assert "output 'y' has not one row for each step, but one for every 2 steps" in refusal(net, tmp_path)


def test_positions_counted_in_each_run_are_named(tmp_path: Path) -> None:
    net, x = along_time()
    count = net.add("Gather", net.add("Shape", x), net.constant(np.array(2)))
    numbers = net.add("Range", net.constant(np.array(0)), count, net.constant(np.array(1)))
    net.nodes[-1].name = "positions"
    net.nodes.append(helper.make_node("Cast", [numbers], ["floats"], to=TensorProto.FLOAT))
    net.output(net.add("Add", x, "floats"), "y")
    assert "(Range 'positions' counts steps from the beginning of each run)" in refusal(net, tmp_path)


def test_a_branch_that_is_chosen_by_the_number_of_steps_is_not_taken_for_settled(tmp_path: Path) -> None:
    net, x = along_time()
    count = net.add("Gather", net.add("Shape", x), net.constant(np.array(2)))
    is_long = net.add("Greater", count, net.constant(np.array(100)))
    outside = (net.nodes, net.weights)
    branches = []
    for operator in ("Neg", "Identity"):
        net.nodes, net.weights = [], []
        branches.append(net.body(operator, [], {net.add(operator, x): TensorProto.FLOAT}))
    net.nodes, net.weights = outside
    net.output(net.add("If", is_long, then_branch=branches[0], else_branch=branches[1]), "y")
    assert "decides by how many steps a run has" in refusal(net, tmp_path)
