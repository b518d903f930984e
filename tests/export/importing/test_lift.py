"""`tidegate import`: memory inside a graph is taken out, and gives what the file gives for whole sequences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from tests.export.importing.graphs import GATES, Net
from tests.export.importing.importing import axes, by_hand, imported, pairs, refusal, walked
from tidegate.bundle import Bundle

Array = NDArray[Any]
CUTS = ([9], [1] * 9, [4, 1, 4])
STEPS = 9


def assert_streams_as_the_file(net: Net, bundle: Bundle, x: Array, **more: Array) -> None:
    """Compare one chunk, single steps and pieces with the file's run of the whole sequence."""
    wanted = by_hand(net, {"x": x, **more})
    for cut in CUTS:
        got = walked(bundle, cut, {"x": x}).outputs
        for name, values in wanted.items():
            np.testing.assert_allclose(got[name], values, rtol=1e-4, atol=1e-5, err_msg=f"{name} {cut}")


def random(*shape: int) -> Array:
    return np.random.default_rng(7).normal(size=shape).astype(np.float32)


def lifted(bundle: Bundle) -> int:
    return sum(state.input.startswith("lifted.") for state in bundle.manifest.states)


def repeated(net: Net, value: Array, x: str = "x", axis: int = 1, of: int = 1) -> str:
    """A first state [1, rows, n] of a constant, as large as axis `axis` of x says."""
    size = net.add("Gather", net.add("Shape", x), net.integers(axis), axis=0)
    shape = net.add("Concat", net.integers(1), net.add("Mul", size, net.integers(of)), net.integers(-1), axis=0)
    one = net.add("ConstantOfShape", net.add("Abs", shape), value=helper.make_tensor("v", TensorProto.FLOAT, [1], [1]))
    return net.add("Mul", one, net.constant(value))


# ---- recurrent layers


@pytest.mark.parametrize("cell", GATES)
def test_the_state_of_layers_without_state_tensors_is_lifted_out(tmp_path: Path, cell: str) -> None:
    net = Net()
    top = net.input("x", "time", "batch", 4)
    for layer in range(2):
        top, _ = net.layer(cell, top, [], 8 if layer else 4, 8)
    net.output(net.linear(top, 8, 3), "y")
    bundle = imported(net, tmp_path)
    assert lifted(bundle) == len(bundle.manifest.states) == (4 if cell == "LSTM" else 2)
    assert {state.axes for state in bundle.manifest.states} == {(1, "batch", 8)}
    assert bundle.manifest.batch_invariant
    assert f"lifted out of {cell}" in (bundle.path / "card.md").read_text()
    assert_streams_as_the_file(net, bundle, random(STEPS, 2, 4))


@pytest.mark.parametrize("value", [0.0, 0.25, None])
def test_a_constant_first_state_becomes_the_first_state_of_a_session(tmp_path: Path, value: float | None) -> None:
    net = Net()
    net.input("x", "time", "batch", 4)
    first = random(1, 1, 8) if value is None else np.full((1, 1, 8), value, np.float32)
    top, _ = net.layer("GRU", "x", [repeated(net, first)], 4, 8)
    net.output(top, "y")
    bundle = imported(net, tmp_path)
    states = {state.input: state for state in bundle.manifest.states}
    assert ("begun_in" in states) == (value is None)
    assert states["lifted.0.h_in"].initial == (value or 0.0)
    assert_streams_as_the_file(net, bundle, random(STEPS, 2, 4))


def test_layers_beside_one_that_has_its_state_as_tensors_are_lifted(tmp_path: Path) -> None:
    net = Net()
    top, (last,) = net.layer("GRU", net.input("x", "time", "batch", 4), [net.input("h", 1, "batch", 8)], 4, 8)
    net.output(net.layer("RNN", top, [], 8, 5)[0], "y")
    net.output(last, "hn")
    bundle = imported(net, tmp_path)
    assert pairs(bundle) == {"h": "hn", "lifted.0.h_in": "lifted.0.h_out"}


def test_an_lstm_of_which_one_state_is_a_tensor_gives_the_other(tmp_path: Path) -> None:
    net = Net()
    top, (last, _) = net.layer("LSTM", net.input("x", "time", "batch", 4), [net.input("h", 1, "batch", 8)], 4, 8)
    net.output(top, "y")
    net.output(last, "hn")
    assert pairs(imported(net, tmp_path)) == {"h": "hn", "lifted.0.c_in": "lifted.0.c_out"}


def test_peepholes_and_activations_are_kept(tmp_path: Path) -> None:
    net = Net()
    weights = [net.random(1, 32, 4), net.random(1, 32, 8), net.random(1, 64), "", "", "", net.random(1, 24)]
    y = net.add("LSTM", net.input("x", "time", "batch", 4), *weights, hidden_size=8, clip=0.7, input_forget=1)
    net.output(net.add("Squeeze", y, net.integers(1)), "y")
    bundle = imported(net, tmp_path)
    assert lifted(bundle) == 2
    assert_streams_as_the_file(net, bundle, random(STEPS, 2, 4))


def test_lengths_of_rows_stay_an_input(tmp_path: Path) -> None:
    net = Net()
    net.input("x", "time", "batch", 4)
    weights = [net.random(1, 24, 4), net.random(1, 24, 8), net.random(1, 48)]
    lengths = net.input("x_len", "batch", dtype=TensorProto.INT32)
    net.output(net.add("Squeeze", net.add("GRU", "x", *weights, lengths, hidden_size=8), net.integers(1)), "y")
    bundle = imported(net, tmp_path)
    assert bundle.manifest.lengths == "x_len"
    assert_streams_as_the_file(net, bundle, random(STEPS, 2, 4), x_len=np.full(2, STEPS, np.int32))


@pytest.mark.parametrize("cell", GATES)
def test_a_layer_that_takes_the_batch_first_gives_what_onnx_says(tmp_path: Path, cell: str) -> None:
    """onnxruntime refuses layout=1, so the reference is onnx's own evaluator."""
    net = Net()
    rows = {"LSTM": 32, "GRU": 24, "RNN": 8}[cell]
    weights = [net.random(1, rows, 4), net.random(1, rows, 8), net.random(1, 2 * rows)]
    y = net.add(cell, net.input("x", "batch", "time", 4), *weights, hidden_size=8, layout=1)
    net.output(net.add("Squeeze", y, net.integers(2)), "y")
    bundle = imported(net, tmp_path)
    x = random(2, STEPS, 4)
    (wanted,) = np.asarray(ReferenceEvaluator(net.model()).run(None, {"x": x}))
    for cut in CUTS:
        np.testing.assert_allclose(walked(bundle, cut, {"x": x}).outputs["y"], wanted, atol=1e-5)


def test_layers_of_a_branch_that_is_always_taken_are_lifted(tmp_path: Path) -> None:
    net = Net()
    net.input("x", "time", "batch", 4)
    branches = []
    for seed, cell in enumerate(("GRU", "RNN")):
        inner = Net(seed=seed)
        top, _ = inner.layer(cell, "x", [], 4, 8)
        branches.append(inner.body(cell, [], {top: TensorProto.FLOAT}))
    yes = net.constant(np.array(True))
    net.output(net.add("If", yes, then_branch=branches[0], else_branch=branches[1]), "y")
    bundle = imported(net, tmp_path)
    assert lifted(bundle) == 1
    assert_streams_as_the_file(net, bundle, random(STEPS, 2, 4))


def test_a_layer_across_each_frame_stays_where_it_is(tmp_path: Path) -> None:
    """One GRU runs over five bands of every step, rows and steps side by side; another along time, for each band."""
    net = Net()
    x = net.input("x", "batch", "time", 5, 4)
    bands = net.add("Transpose", net.add("Reshape", x, net.integers(-1, 5, 4)), perm=[1, 0, 2])
    across = net.add("Transpose", net.layer("GRU", bands, [], 4, 6)[0], perm=[1, 0, 2])  # [batch·time, 5, 6]
    shape = net.add("Shape", x)
    sizes = [net.add("Gather", shape, net.integers(axis)) for axis in (0, 1)]
    back = net.add("Reshape", across, net.add("Concat", *sizes, net.integers(5, 6), axis=0))
    steps = net.add("Transpose", back, perm=[1, 0, 2, 3])
    folded = net.add("Reshape", steps, net.add("Concat", sizes[1], net.integers(-1, 6), axis=0))  # [time, batch·5, 6]
    along, _ = net.layer("GRU", folded, [], 6, 3)
    split = net.add("Reshape", along, net.add("Concat", sizes[1], sizes[0], net.integers(5, 3), axis=0))
    net.output(net.add("Transpose", split, perm=[1, 0, 2, 3]), "y")
    bundle = imported(net, tmp_path)
    assert [state.axes for state in bundle.manifest.states] == [(1, "batch", 5, 3)]
    assert bundle.manifest.batch_invariant
    assert_streams_as_the_file(net, bundle, random(2, STEPS, 5, 4))


def test_layers_are_left_alone_where_one_run_is_one_step(tmp_path: Path) -> None:
    net = Net()
    net.output(net.layer("GRU", net.input("x", "time", "batch", 4), [], 4, 8)[0], "y")
    assert "lifted" not in refusal(net, tmp_path, time_axes=["none"])


def test_a_file_that_fixes_its_number_of_steps_is_freed(tmp_path: Path) -> None:
    net = Net()
    moved = net.add("Transpose", net.input("x", "batch", STEPS, 4), perm=[1, 0, 2])
    top = net.add("Transpose", net.layer("LSTM", moved, [], 4, 8)[0], perm=[1, 0, 2])
    last = net.add("Gather", top, net.constant(np.array(-1)), axis=1)
    net.output(net.linear(last, 8, 3), "y", "batch", 3)
    bundle = imported(net, tmp_path)
    assert axes(bundle) == {"x": ("batch", "time", 4), "y": ("batch", 3)}
    assert f"the file takes {STEPS} steps at once" in (bundle.path / "card.md").read_text()
    assert_streams_as_the_file(net, bundle, random(2, STEPS, 4))


# ---- operators of newer opsets, and loops


def linear_attention(net: Net) -> str:
    x = net.input("x", "batch", "time", 4)
    heads = [net.linear(x, 4, size) for size in (8, 8, 6)]
    decay, beta = net.add("Neg", net.add("Abs", net.linear(x, 4, 8))), net.add("Sigmoid", net.linear(x, 4, 2))
    return net.add("LinearAttention", *heads, "", decay, beta, num_outputs=2, q_num_heads=2, kv_num_heads=2)


def causal_conv(net: Net) -> str:
    moved = net.add("Transpose", net.input("x", "batch", "time", 4), perm=[0, 2, 1])
    return net.add("CausalConvWithState", moved, net.random(4, 1, 3), net.random(4), num_outputs=2, activation="silu")


@pytest.mark.parametrize("block", [linear_attention, causal_conv])
def test_recurrent_operators_of_opset_27_give_their_state(tmp_path: Path, block: Any) -> None:
    net = Net(opset=27)
    net.output(block(net), "y")
    bundle = imported(net, tmp_path)
    assert lifted(bundle) == 1
    assert_streams_as_the_file(net, bundle, random(2, STEPS, 4))


def test_the_states_of_a_scan_are_lifted_its_counter_too(tmp_path: Path) -> None:
    """A leaky sum beside a count of steps that decides how much goes in."""
    net = Net()
    parameters = [
        helper.make_tensor_value_info("before", TensorProto.FLOAT, None),
        helper.make_tensor_value_info("count", TensorProto.INT64, [1]),
        helper.make_tensor_value_info("step", TensorProto.FLOAT, None),
    ]
    kept = net.add("Mul", "before", net.constant(np.array(0.5, np.float32)))
    odd = net.add("Mod", "count", net.integers(2))
    net.nodes.append(helper.make_node("Cast", [odd], ["part"], to=TensorProto.FLOAT))
    after = net.add("Add", kept, net.add("Mul", "step", "part"))
    number = net.add("Add", "count", net.integers(1))
    told = net.add("Identity", after)
    body = net.body("leak", parameters, {after: TensorProto.FLOAT, number: TensorProto.INT64, told: TensorProto.FLOAT})
    net.input("x", "time", 4)
    net.add("Scan", net.constant(np.zeros(4, np.float32)), net.integers(3), "x", body=body, num_scan_inputs=1)
    net.nodes[-1].output.extend(["numbers", "all"])
    net.output("all", "y")
    bundle = imported(net, tmp_path)
    assert [(state.dtype, state.initial) for state in bundle.manifest.states] == [("float32", 0.0), ("int64", 3.0)]
    assert_streams_as_the_file(net, bundle, random(STEPS, 4))


# ---- paddings in front


def padded(net: Net, x: str) -> str:
    front = net.add("Pad", x, net.integers(0, 0, 6, 0, 0, 0), net.constant(np.array(0.5, np.float32)))
    return net.add("Conv", front, net.random(5, 4, 4), kernel_shape=[4], dilations=[2])


def pads_of_conv(net: Net, x: str) -> str:
    return net.add("Conv", x, net.random(5, 4, 3), kernel_shape=[3], pads=[2, 0])


def chomped(net: Net, x: str) -> str:
    """As temporal convolutional networks are written: padded on both sides, then cut."""
    both = net.add("Conv", x, net.random(5, 4, 3), kernel_shape=[3], dilations=[2], pads=[4, 4])
    return net.add("Slice", both, net.integers(0), net.integers(-4), net.integers(2))


def shifted(net: Net, x: str) -> str:
    """The step before, beside each."""
    return net.add("Concat", x, net.add("Pad", x, net.integers(0, 0, 1, 0, 0, -1)), axis=1)


def joined(net: Net, x: str) -> str:
    blank = net.constant(np.zeros((1, 4, 2), np.float32))
    rows = net.add("Gather", net.add("Shape", x), net.integers(0))
    blanks = net.add("Expand", blank, net.add("Concat", rows, net.integers(4, 2), axis=0))
    early = net.add("Slice", x, net.integers(0), net.integers(-2), net.integers(2))
    return net.add("Add", x, net.add("Concat", blanks, early, axis=2))


def summed(net: Net, x: str) -> str:
    return net.add("CumSum", x, net.constant(np.array(2)), exclusive=1)


@pytest.mark.parametrize("block", [padded, pads_of_conv, chomped, shifted, joined, summed])
def test_what_is_put_in_front_of_the_steps_becomes_a_cache(tmp_path: Path, block: Any) -> None:
    net = Net()
    net.output(block(net, net.input("x", "batch", 4, "time")), "y")
    bundle = imported(net, tmp_path)
    assert lifted(bundle) == len(bundle.manifest.states) == 1
    assert bundle.manifest.batch_invariant
    assert_streams_as_the_file(net, bundle, random(2, 4, STEPS))


def test_convolutions_and_layers_in_a_row_are_lifted_together(tmp_path: Path) -> None:
    net = Net()
    x = net.input("x", "batch", "time", 4)
    mixed = net.add("Relu", pads_of_conv(net, net.add("Transpose", x, perm=[0, 2, 1])))
    deeper = net.add("Conv", mixed, net.random(6, 5, 2), kernel_shape=[2], dilations=[4], pads=[4, 0])
    top, _ = net.layer("GRU", net.add("Transpose", deeper, perm=[2, 0, 1]), [], 6, 8)
    net.output(net.add("Transpose", top, perm=[1, 0, 2]), "y")
    bundle = imported(net, tmp_path)
    assert lifted(bundle) == 3
    assert_streams_as_the_file(net, bundle, random(2, STEPS, 4))


def test_a_padding_that_repeats_the_first_step_is_named(tmp_path: Path) -> None:
    net = Net()
    front = net.add("Pad", net.input("x", "batch", 4, "time"), net.integers(0, 0, 2, 0, 0, 0), mode="edge")
    net.nodes[-1].name = "edges"
    net.output(net.add("Conv", front, net.random(5, 4, 3), kernel_shape=[3]), "y")
    assert "Pad 'edges' pads 2 steps in front by mode edge" in refusal(net, tmp_path)


# ---- random stacks


@pytest.mark.parametrize("seed", range(12))
def test_a_random_stack_of_layers_gives_what_the_file_gives(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    net, width = Net(seed=seed), 4
    is_time_first = bool(rng.integers(2))
    top = net.input("x", *(("time", "batch", 4) if is_time_first else ("batch", "time", 4)))
    top = top if is_time_first else net.add("Transpose", top, perm=[1, 0, 2])
    for _ in range(rng.integers(1, 4)):
        hidden = int(rng.integers(2, 7))
        kind = rng.choice(["LSTM", "GRU", "RNN", "conv", "shift"])
        if kind in GATES:
            firsts = [""] * (2 if kind == "LSTM" else 1)
            if rng.integers(2):
                value = rng.normal(size=(1, 1, hidden)).astype(np.float32)
                firsts = [repeated(net, value, axis=1 if is_time_first else 0) for _ in firsts]
            new, _ = net.layer(str(kind), top, firsts, width, hidden)
        elif kind == "conv":
            size, spread = int(rng.integers(1, 4)), int(rng.integers(1, 3))
            front = net.add("Transpose", top, perm=[1, 2, 0])
            options: dict[str, Any] = {"kernel_shape": [size], "dilations": [spread], "pads": [(size - 1) * spread, 0]}
            mixed = net.add("Conv", front, net.random(hidden, width, size), **options)
            new = net.add("Tanh", net.add("Transpose", mixed, perm=[2, 0, 1]))
        else:
            new, hidden = net.add("Pad", top, net.integers(2, 0, 0, -2, 0, 0)), width
        top, width = (net.add("Concat", top, new, axis=2), width + hidden) if rng.integers(2) else (new, hidden)
    # One layer at least, so that there is something to lift.
    top, _ = net.layer("GRU", top, [], width, 3)
    net.output(top if is_time_first else net.add("Transpose", top, perm=[1, 0, 2]), "y")
    bundle = imported(net, tmp_path)
    assert lifted(bundle) >= 1
    assert_streams_as_the_file(net, bundle, random(*((STEPS, 2, 4) if is_time_first else (2, STEPS, 4))))


def test_the_graph_of_the_bundle_is_valid(tmp_path: Path) -> None:
    net = Net()
    net.output(net.layer("LSTM", net.input("x", "time", "batch", 4), [], 4, 8)[0], "y")
    onnx.checker.check_model(onnx.load_from_string(imported(net, tmp_path).graph), full_check=True)
