"""`tidegate import`: which input is a state, and which output it comes out of."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from tests.export.importing.graphs import Net, lstm
from tests.export.importing.importing import axes, by_hand, imported, pairs, refusal, walked
from tidegate.bundle import StateSpec
from tidegate.proof import check_bundle


def test_states_are_found_by_name_shape_and_dtype_and_proved(tmp_path: Path) -> None:
    bundle = imported(lstm(), tmp_path)
    assert pairs(bundle) == {"h_in": "h_out", "c_in": "c_out"}
    assert axes(bundle) == {"x": ("time", "batch", 4), "y": ("time", "batch", 3)}
    assert bundle.manifest.batch_invariant
    assert check_bundle(bundle.path) == bundle.manifest.proof
    assert "proved by streaming" in (bundle.path / "card.md").read_text()


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_without_a_hint_in_any_name_the_streaming_proof_decides(tmp_path: Path, order: tuple[int, ...]) -> None:
    net = Net()
    top = net.input("a", "p", "q", 4)
    cells = []
    for layer in range(3):
        states = [net.input(f"b{layer}{k}", 1, "q", 8) for k in (7, 8)]
        top, last = net.layer("LSTM", top, states, 8 if layer else 4, 8)
        cells.append(last)
    net.output(top, "z")
    for place in order:
        for k, source in enumerate(reversed(cells[place])):
            net.output(source, f"r{order.index(place)}{k}")
    bundle = imported(net, tmp_path)
    wanted = {f"b{layer}{7 + k}": f"r{order.index(layer)}{1 - k}" for layer in range(3) for k in range(2)}
    assert pairs(bundle) == wanted


def test_states_of_different_kinds_stand_beside_each_other(tmp_path: Path) -> None:
    """A convolution's cache, batch first, and a GRU's state, batch second."""
    net = Net()
    x = net.input("audio", "n", 4, "t")
    joined = net.add("Concat", net.input("k", "n", 4, 2), x, axis=2)
    net.output(net.add("Slice", joined, net.integers(-2), net.integers(2**31), net.integers(2)), "m")
    mixed = net.add("Conv", joined, net.random(6, 4, 3))
    top, (last,) = net.layer("GRU", net.add("Transpose", mixed, perm=[2, 0, 1]), [net.input("h", 1, "n", 8)], 6, 8)
    net.output(top, "y")
    net.output(last, "hn")
    bundle = imported(net, tmp_path)
    assert pairs(bundle) == {"k": "m", "h": "hn"}
    assert axes(bundle) == {"audio": ("batch", 4, "time"), "y": ("time", "batch", 8)}


def test_a_count_of_steps_is_a_state_of_whole_numbers(tmp_path: Path) -> None:
    net = lstm(cell="GRU")
    steps = net.add("Gather", net.add("Shape", "x"), net.constant(np.array(0)))
    net.output(
        net.add("Add", net.input("seen", "batch", dtype=TensorProto.INT64), steps), "new_seen", dtype=TensorProto.INT64
    )
    bundle = imported(net, tmp_path)
    assert pairs(bundle)["seen"] == "new_seen"
    result = walked(bundle, [5, 7])
    assert result.states["seen"].tolist() == [12]


def test_first_states_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "initial.npz"
    first = np.random.default_rng(5).normal(size=(1, 1, 8)).astype(np.float32)
    np.savez(file, h_in=first, c_in=np.full((1, 1, 8), 0.25))
    net = lstm()
    bundle = imported(net, tmp_path, initial=file)
    states = {state.input: state for state in bundle.manifest.states}
    assert states["c_in"].initial == 0.25
    assert states["begun_in"] == StateSpec(input="begun_in", output="begun_out", dtype="bool", axes=("batch",))
    x = np.random.default_rng(6).normal(size=(6, 1, 4)).astype(np.float32)
    wanted = by_hand(net, {"x": x, "h_in": first, "c_in": np.full((1, 1, 8), 0.25, np.float32)})
    for lengths in ([6], [1, 2, 3]):
        np.testing.assert_allclose(walked(bundle, lengths, {"x": x}).outputs["y"], wanted["y"], atol=1e-6)


def test_the_first_state_of_a_graph_that_takes_one_step_a_run_comes_from_a_file_too(tmp_path: Path) -> None:
    file = tmp_path / "initial.npz"
    first = np.random.default_rng(5).normal(size=(1, 1, 8)).astype(np.float32)
    np.savez(file, h_in=first)
    net = lstm(cell="GRU")
    bundle = imported(net, tmp_path, initial=file, shapes=["x=1,batch,4"], time_axes=["none"])
    x = np.random.default_rng(6).normal(size=(5, 1, 1, 4)).astype(np.float32)
    assert axes(bundle)["x"] == ("time", 1, "batch", 4)
    wanted = by_hand(net, {"x": x[:, 0], "h_in": first})
    got = walked(bundle, [2, 3], {"x": x}).outputs["y"]
    np.testing.assert_allclose(got.reshape(5, 3), wanted["y"].reshape(5, 3), atol=1e-6)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((1, 2, 8)), "the graph takes [1, 'batch', 8] (one row)"),
        (np.full((1, 1, 8), np.nan), "does not hold finite numbers"),
        (np.array(["a"]), "the graph takes"),
    ],
)
def test_first_states_that_do_not_fit_are_refused(tmp_path: Path, array: np.ndarray, reason: str) -> None:
    file = tmp_path / "initial.npz"
    np.savez(file, h_in=array)
    assert reason in refusal(lstm(), tmp_path, initial=file)


def test_a_file_of_first_states_that_is_none_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "initial.npz"
    file.write_bytes(b"PK\x03\x04 broken")
    assert "no npz file" in refusal(lstm(), tmp_path, initial=file)


def test_a_pair_that_was_said_is_taken_or_refused(tmp_path: Path) -> None:
    crossed = ["h_in:c_out", "c_in:h_out"]
    assert "cannot stream" in refusal(lstm(), tmp_path, states=crossed)
    assert "it has" in refusal(lstm(), tmp_path, states=["h_in:nowhere"])
    assert "one cannot be fed to the other" in refusal(lstm(), tmp_path, states=["h_in:y"])


def test_states_that_were_said_are_all_there_are(tmp_path: Path) -> None:
    assert "only h_in was said to be a state" in refusal(lstm(), tmp_path, states=["h_in:h_out"])
    assert "--state none says that no input is a state: leave it out" in refusal(lstm(), tmp_path, states=["none"])
    both = ["h_in:h_out", "c_in:c_out"]
    assert pairs(imported(lstm(), tmp_path, states=both)) == {"h_in": "h_out", "c_in": "c_out"}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"states": ["none", "h_in:h_out"]}, "--state none says that no input is a state"),
        ({"states": ["h_in:h_out", "h_in:c_out"]}, "h_in comes out of h_out already"),
        ({"states": ["h_in:h_out"], "data": ["h_in"]}, "--state and --data contradict each other on 'h_in'"),
        ({"states": ["h_in:h_out"], "constants": ["h_in=0"]}, "--state and --constant contradict each other"),
        ({"states": ["h_in:h_out"], "contexts": ["h_in=2"]}, "--state and --context contradict each other"),
        ({"data": ["x"], "constants": ["x=0"]}, "--data and --constant contradict each other on 'x'"),
        ({"data": ["h_im"]}, "--data: the graph has no input 'h_im'"),
        ({"states": [":"]}, "say INPUT:OUTPUT, or none"),
    ],
)
def test_what_contradicts_itself_is_told_in_one_line(
    tmp_path: Path, options: dict[str, list[str]], reason: str
) -> None:
    assert reason in refusal(lstm(), tmp_path, **options)


@pytest.mark.parametrize(
    "said",
    [
        ("state:0:h_out:0", "cell:0:c_out:0"),
        ('"state:0":"h_out:0"', "'cell:0':c_out:0"),
    ],
)
def test_names_that_hold_colons_can_be_said(tmp_path: Path, said: tuple[str, str]) -> None:
    net = lstm(names=("x:0", "state:0", "cell:0", "out:0", "h_out:0", "c_out:0"))
    assert pairs(imported(net, tmp_path, states=said)) == {"state:0": "h_out:0", "cell:0": "c_out:0"}


def test_names_that_can_be_split_in_two_ways_must_be_quoted(tmp_path: Path) -> None:
    net = lstm(names=("x", "a:b", "a", "y", "c", "b:c"))
    assert 'can be read in several ways: say \'"a":"b:c"\' or \'"a:b":"c"\'' in refusal(net, tmp_path, states=["a:b:c"])
    bundle = imported(net, tmp_path, states=['"a:b":"c"', '"a":"b:c"'])
    assert pairs(bundle) == {"a:b": "c", "a": "b:c"}


def test_where_one_run_is_one_step_and_nothing_tells_states_apart_the_caller_is_asked(tmp_path: Path) -> None:
    net = Net()
    for name in ("p", "q"):
        net.input(name, 1, 8)
    mixed = net.add("Tanh", net.linear(net.add("Concat", "p", "q", axis=1), 16, 8))
    net.output(mixed, "u")
    net.output(net.add("Tanh", net.linear(mixed, 8, 8)), "v")
    assert "equally likely: p:u, q:u; say all states, --state INPUT:OUTPUT" in refusal(
        net, tmp_path, time_axes=["none"]
    )
    bundle = imported(net, tmp_path, time_axes=["none"], states=["q:v"])
    assert pairs(bundle) == {"q": "v"}
    assert [spec.name for spec in bundle.manifest.inputs] == ["p"]


def test_a_cache_that_grows_is_no_state_of_one_size(tmp_path: Path) -> None:
    net = Net()
    x = net.input("x", "batch", "time", 4)
    keys = net.add("Concat", net.input("past", "batch", "old", 4), x, axis=1)
    net.output(keys, "present")
    net.output(net.add("ReduceMean", keys, axes=[1], keepdims=0), "y")
    assert "past → present looks like a state" in refusal(net, tmp_path)


def test_a_state_inside_a_loop_is_found(tmp_path: Path) -> None:
    """A cell written as a Loop over the steps, as exporters of Python loops write it."""
    net = Net()
    net.weights = []
    kernel = helper.make_tensor(
        "kernel", TensorProto.FLOAT, [4, 4], np.random.default_rng(0).normal(scale=0.4, size=16)
    )
    row = net.add("Gather", "x", "number", axis=0)
    after = net.add("Tanh", net.add("Add", net.add("MatMul", "before", "kernel"), row))
    told = net.add("Identity", after)
    go_on = net.add("Identity", "condition")
    body = net.body(
        "step",
        [
            helper.make_tensor_value_info("number", TensorProto.INT64, []),
            helper.make_tensor_value_info("condition", TensorProto.BOOL, []),
            helper.make_tensor_value_info("before", TensorProto.FLOAT, None),
        ],
        {go_on: TensorProto.BOOL, after: TensorProto.FLOAT, told: TensorProto.FLOAT},
    )
    net.input("x", "t", "n", 4)
    net.input("s", "n", 4)
    net.weights.append(kernel)
    count = net.add("Gather", net.add("Shape", "x"), net.constant(np.array(0)))
    last = net.add("Loop", count, net.constant(np.array(True)), "s", to="last", num_outputs=2, body=body)
    net.output(net.nodes[-1].output[1], "y")
    net.output(last, "e")
    bundle = imported(net, tmp_path)
    assert pairs(bundle) == {"s": "e"}
    assert axes(bundle) == {"x": ("time", "batch", 4), "y": ("time", "batch", 4)}


def test_branches_that_are_never_taken_are_left_out(tmp_path: Path) -> None:
    """Nested Ifs on a rate that is constant, and on whether a state was given: the layer for none hides nothing."""
    net = nested()
    assert "say its value, --constant rate=VALUE" in refusal(net, tmp_path)
    bundle = imported(net, tmp_path, constants=["rate=16000"])
    assert pairs(bundle) == {"h": "hn"}
    assert b"then_branch" not in bundle.graph


def nested() -> Net:
    net = Net()
    net.input("x", "t", "n", 4)
    net.input("h", 1, "n", 8)
    net.input("rate", dtype=TensorProto.INT64)
    branches = []
    for rate in range(2):
        inner = Net(seed=rate)
        top, (last,) = inner.layer("GRU", "x", ["h"], 4, 8)
        with_state = inner.body("given", [], {top: TensorProto.FLOAT, last: TensorProto.FLOAT})
        top, (last,) = inner.layer("GRU", "x", [], 4, 8)
        without = inner.body("not_given", [], {top: TensorProto.FLOAT, last: TensorProto.FLOAT})
        is_empty = inner.add("Equal", inner.add("Size", "h"), inner.constant(np.array(0)))
        inner.nodes.append(
            helper.make_node("If", [is_empty], ["top", "last"], then_branch=without, else_branch=with_state)
        )
        branches.append(inner.body(f"rate{rate}", [], {"top": TensorProto.FLOAT, "last": TensorProto.FLOAT}))
    is_wide = net.add("Equal", "rate", net.constant(np.array(16000)))
    net.nodes.append(helper.make_node("If", [is_wide], ["a", "b"], then_branch=branches[0], else_branch=branches[1]))
    net.output("a", "y")
    net.output("b", "hn")
    return net


def test_a_state_that_comes_out_of_a_loop_is_imported(tmp_path: Path) -> None:
    """The runtime wants shapes that it cannot tell by itself on what the loop over steps carries."""
    net = Net()
    halved = net.add("Mul", "before", net.constant(np.array(0.5, np.float32)))
    go = net.add("Identity", "go")
    parameters = [
        helper.make_tensor_value_info("i", TensorProto.INT64, []),
        helper.make_tensor_value_info("go", TensorProto.BOOL, []),
        helper.make_tensor_value_info("before", TensorProto.FLOAT, None),
    ]
    body = net.body("halve", parameters, {go: TensorProto.BOOL, halved: TensorProto.FLOAT})
    x, h = net.input("x", "batch", 4), net.input("h", "batch", 4)
    decayed = net.add("Loop", net.constant(np.array(3)), net.constant(np.array(True)), h, body=body)
    net.output(net.add("Add", decayed, net.add("Tanh", net.linear(x, 4, 4))), "h_out")
    net.output(net.add("Neg", "h_out"), "y")
    bundle = imported(net, tmp_path, states=["h:h_out"])
    got = walked(bundle, [2, 3])
    np.testing.assert_allclose(got.states["h"], -got.outputs["y"][:, -1])
