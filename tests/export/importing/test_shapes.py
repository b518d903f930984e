"""`tidegate import` of graphs whose free axes each have a name of their own: the graph says which are the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from tests.export.importing.graphs import Dims, Net
from tests.export.importing.importing import axes, by_hand, imported, pairs, refusal, walked
from tidegate_export.importing.foreign import declared
from tidegate_export.importing.shapes import read_shapes


def converted(num_layers: int, *, is_time_first: bool, names: str = "unk") -> Net:
    """LSTMs as tf2onnx writes them: windows of three rows, every free axis under a name of its own."""

    def free(number: int) -> str | None:
        return f"unk__{number}" if names == "unk" else None

    net = Net()
    mean = net.add("ReduceMean", net.linear(net.input("input_1", free(1), 3, 4), 4, 6), axes=[1], keepdims=0)
    top = net.add("Unsqueeze", mean, net.integers(1 if is_time_first else 0))
    for layer in range(num_layers):
        names_in = [f"input_{2 * layer + k}" for k in (2, 3)]
        states = [net.add("Unsqueeze", net.input(name, free(20), 6), net.integers(0)) for name in names_in]
        net.nodes.append(
            helper.make_node(
                "LSTM",
                [top, net.random(1, 24, 6), net.random(1, 24, 6), "", "", *states],
                [f"all{layer}", f"h{layer}", f"c{layer}"],
                hidden_size=6,
            )
        )
        for source, name in zip(("h", "c"), names_in, strict=True):
            last = net.add("Squeeze", f"{source}{layer}", net.integers(0))
            net.output(last, name.replace("input", "output"), free(60), 6)
        top = net.add("Squeeze", f"all{layer}", net.integers(1))
    net.output(net.linear(net.add("Transpose", top, perm=[1, 0, 2]), 6, 1), "output_1", free(4), free(5), 1)
    return net


@pytest.mark.parametrize("names", ["unk", "none"])
def test_axes_of_names_of_their_own_are_the_time_and_no_batch_where_the_graph_says_so(
    tmp_path: Path, names: str
) -> None:
    net = converted(2, is_time_first=True, names=names)
    bundle = imported(net, tmp_path)
    assert axes(bundle) == {"input_1": ("time", 3, 4), "output_1": (1, "time", 1)}
    assert pairs(bundle) == {f"input_{k}": f"output_{k}" for k in (2, 3, 4, 5)}
    x = np.random.default_rng(0).normal(size=(5, 3, 4)).astype(np.float32)
    wanted = by_hand(net, {"input_1": x, **{f"input_{k}": np.zeros((1, 6), np.float32) for k in (2, 3, 4, 5)}})
    got = walked(bundle, [2, 3], {"input_1": x}).outputs["output_1"]
    np.testing.assert_allclose(got, wanted["output_1"], atol=1e-6)


def test_ten_states_with_axes_of_names_of_their_own_share_one_batch(tmp_path: Path) -> None:
    bundle = imported(converted(5, is_time_first=False), tmp_path)
    assert axes(bundle) == {"input_1": ("batch", "time", 3, 4), "output_1": ("batch", "time", 1, 1)}
    assert pairs(bundle) == {f"input_{k}": f"output_{k}" for k in range(2, 12)}
    assert bundle.manifest.batch_invariant


def test_an_axis_is_no_width_because_a_weight_behind_a_reshape_is_wide(tmp_path: Path) -> None:
    """Windows of 3 by 4 become rows of 12 for the layer: the free axis in front is the time, not 12."""
    net = Net()
    net.input("input_1", "unk__1", 3, 4)
    rows = net.add("Reshape", "input_1", net.integers(-1, 1, 12))
    first = net.add("Unsqueeze", net.input("input_2", "unk__2", 6), net.integers(0))
    top, (last,) = net.layer("GRU", rows, [first], 12, 6)
    net.output(net.linear(net.add("Squeeze", top, net.integers(1)), 6, 1), "output_1", "unk__4", 1)
    net.output(net.add("Squeeze", last, net.integers(0)), "output_2", "unk__6", 6)
    bundle = imported(net, tmp_path)
    assert axes(bundle) == {"input_1": ("time", 3, 4), "output_1": ("time", 1)}
    assert bundle.manifest.states[0].axes == (1, 6)


def test_an_example_of_sizes_names_an_input_and_fits_its_axes(tmp_path: Path) -> None:
    """A frame whose length the file leaves open, and no weight tells it."""
    net = Net()
    net.input("wave", "a", "b", "c")
    frame = net.add("Reshape", "wave", net.integers(1, 1, 40))
    top, (last,) = net.layer("GRU", frame, [net.input("h", 1, 1, 8)], 40, 8)
    net.output(top, "y")
    net.output(last, "hn")
    assert "--shape wave=batch,time,512" in refusal(net, tmp_path)
    assert axes(imported(net, tmp_path, shapes=["wave=1,1,40"]))["wave"] == ("batch", "time", 1, 40)


def sizes(net: Net, *outputs: str) -> dict[str, list[object]]:
    """Return of each input what is known of its axes: a size, or a letter for those that must be equal."""
    for name in outputs:
        net.output(name, f"{name}_out")
    model = net.model()
    inputs = declared(model.graph.input)
    found: dict[str, list[object]] = {item.name: list(item.dims or ()) for item in inputs}
    letters = iter("abcdefgh")
    for axis in read_shapes(model, inputs).sure.axes:
        known = next(letters) if axis.size is None else axis.size
        for name, place in axis.places:
            found[name][place] = known
    return found


@pytest.mark.parametrize(
    ("operator", "dims", "others", "attributes", "wanted"),
    [
        ("MatMul", (None, None), (4, 6), {}, ["a", 4]),
        ("Gemm", (None, None), (6, 4), {"transB": 1}, ["a", 4]),
        ("Conv", (None, None, None), (6, 4, 3), {}, ["a", 4, "b"]),
        ("Einsum", (None, None), (4, 6), {"equation": "bi,io->bo"}, ["a", 4]),
    ],
)
def test_weights_tell_the_width_of_what_meets_them(
    operator: str, dims: Dims, others: tuple[int, ...], attributes: dict[str, Any], wanted: list[object]
) -> None:
    net = Net()
    net.add(operator, net.input("x", *dims), net.random(*others), to="y", **attributes)
    assert sizes(net, "y")["x"] == wanted


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        ((-1, 12), ["a", 3, 4]),  # rows of 12
        ((0, 0, -1), ["a", 3, 4]),
        ((1, 1, 12), [1, 3, 4]),
        ((2, 6), [1, 3, 4]),
        ((-1, 24), ["a", 3, 4]),  # two rows to one: nothing is sure
    ],
)
def test_a_reshape_tells_only_what_follows_from_the_number_of_elements(
    shape: tuple[int, ...], wanted: list[object]
) -> None:
    net = Net()
    net.add("Reshape", net.input("x", None, 3, 4), net.integers(*shape), to="y")
    assert sizes(net, "y")["x"] == wanted


def test_a_shape_that_is_read_at_run_time_is_followed() -> None:
    """x is given the rows of z: Shape, Gather, Concat, Reshape."""
    net = Net()
    rows = net.add("Gather", net.add("Shape", net.input("z", None, 5)), net.integers(0))
    shape = net.add("Concat", rows, net.integers(6), axis=0)
    net.add("Reshape", net.input("x", None, 2, 3), shape, to="y")
    assert sizes(net, "y") == {"z": ["a", 5], "x": ["a", 2, 3]}


def test_a_state_has_the_rows_of_the_sequence_that_its_layer_takes() -> None:
    net = Net()
    moved = net.add("Transpose", net.input("x", None, None, None), perm=[1, 0, 2])
    first = net.add("Squeeze", net.input("h", None, None, None, None), net.integers(0))
    top, (last,) = net.layer("GRU", moved, [first], 4, 8)
    assert sizes(net, top, last) == {"x": ["a", "b", 4], "h": [1, 1, "a", 8]}


def test_what_is_joined_has_equal_sizes_but_along_the_joint() -> None:
    net = Net()
    net.add("Concat", net.input("a", None, None), net.input("b", None, 3), axis=1, to="y")
    assert sizes(net, "y") == {"a": ["a", "b"], "b": ["a", 3]}


def test_the_branches_and_bodies_of_a_graph_are_read_too() -> None:
    """A weight inside a Scan tells the width of the sequence outside."""
    net = Net()
    net.input("x", None, None, None)
    net.input("s", None, None)
    net.add("Tanh", net.add("Add", net.linear("row", 4, 6), "before"), to="after")
    net.add("Identity", "after", to="told")
    row, before = (helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("row", "before"))
    body = net.body("step", [before, row], {"after": TensorProto.FLOAT, "told": TensorProto.FLOAT})
    net.nodes.append(helper.make_node("Scan", ["s", "x"], ["last", "y"], body=body, num_scan_inputs=1))
    found = sizes(net, "y", "last")
    assert found["x"][2] == 4


def test_an_axis_that_the_file_leaves_free_is_not_one_step_because_it_does_not_stream(tmp_path: Path) -> None:
    """Every second row, and a mean over all: neither is one a step, though a run of one row would give one."""
    for version, kind in enumerate(("rate", "mean"), 1):
        net = Net()
        net.input("input_1", "unk__1", "unk__2", 4)
        top, (last,) = net.layer("GRU", "input_1", [net.input("input_2", 1, "unk__3", 8)], 4, 8)
        if kind == "rate":
            ends = (net.integers(0), net.integers(2**31), net.integers(0), net.integers(2))
            net.output(net.add("Slice", top, *ends), "output_1")
        else:
            net.output(net.add("Sub", top, net.add("ReduceMean", top, axes=[0])), "output_1")
        net.output(last, "output_2")
        told = refusal(net, tmp_path, version=version)
        assert "input" in told


def test_a_cache_that_grows_beside_a_layer_is_refused_whatever_its_axes_are_called(tmp_path: Path) -> None:
    net = Net()
    top, (last,) = net.layer("GRU", net.input("x", "u1", "u2", 4), [net.input("h", 1, "u3", 8)], 4, 8)
    moved = net.add("Transpose", "x", perm=[1, 0, 2])
    net.output(net.add("Concat", net.input("keys", "u4", "u5", 4), moved, axis=1), "keys_out", "u6", "u7", 4)
    net.output(top, "y")
    net.output(last, "hn")
    told = refusal(net, tmp_path)
    assert "a cache that grows cannot be one" in told or "not one a step" in told
