"""Inputs that callers may set: found again in the bundle, whatever their shape, and proved at other values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from tests.export.importing.graphs import Net
from tests.export.importing.importing import by_hand, imported, refusal
from tidegate.bundle import BATCH, Bundle
from tidegate.codecs.settings import default_of
from tidegate.replay import GraphRunner, random_inputs

Array = NDArray[Any]
FRAME, HIDDEN = 6, 4


def limited(*dims: int | str, state: str = "batch", steps: str | None = "time") -> tuple[Net, str]:
    """Return a GRU over frames, its state a tensor, and the output that a setting of these dims is still to bound."""
    net = Net()
    axes: list[int | str] = [state, steps, FRAME] if steps else [state, FRAME]
    x = net.input("x", *axes)
    h = net.input("h", 1, state, HIDDEN)
    first = net.add("Transpose", x, perm=[1, 0, 2]) if steps else net.add("Unsqueeze", x, net.integers(0))
    y, (last,) = net.layer("GRU", first, [h], FRAME, HIDDEN)
    net.output(last, "hn", 1, state, HIDDEN)
    net.input("limit", *dims)
    return net, net.add("Transpose", y, perm=[1, 0, 2]) if steps else net.add("Squeeze", y, net.integers(0))


def finished(net: Net, y: str) -> Net:
    net.output(y, "y")
    return net


SHAPES: dict[str, tuple[tuple[int | str, ...], bool]] = {
    "a number": ((), True),
    "a list of one": ((1,), True),
    "one a row": (("batch",), True),
    "one a row, as a column": (("batch", 1), True),
    "a vector": ((HIDDEN,), True),
    "a vector a row": (("batch", HIDDEN), True),
}


@pytest.mark.parametrize("kind", ["along time", "a step a run"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_setting_is_given_for_each_row(tmp_path: Path, shape: str, kind: str) -> None:
    dims, is_by_row = SHAPES[shape]
    net, y = limited(*dims, steps="time" if kind == "along time" else None)
    limit = "limit"
    if dims[:1] == ("batch",):
        ranks = [0, 1, -1] if kind == "along time" else [0, -1]
        limit = net.add(
            "Reshape", limit, net.integers(*(ranks if len(dims) == 2 and dims[1] != 1 else [-1, *ranks[1:-1], 1]))
        )
    bundle = imported(finished(net, net.add("Min", y, limit)), tmp_path, settings=["limit=0.25"], states=["h:hn"])
    (setting,) = bundle.manifest.settings
    assert (setting.name, setting.default, setting.dtype) == ("limit", (0.25,), "float32")
    assert (BATCH in setting.axes) == is_by_row
    assert [spec.name for spec in bundle.manifest.inputs] == ["x"]
    assert bundle.manifest.is_batchable
    check_rows(net, bundle, dims)


def check_rows(net: Net, bundle: Bundle, dims: tuple[int | str, ...]) -> None:
    """Rows with limits of their own, together over three steps, give what the file gives of each, run by hand."""
    inputs = random_inputs(bundle.manifest, 3, 3, np.random.default_rng(1))
    assert len(set(inputs["limit"].reshape(3, -1)[:, 0].tolist())) == 3
    found = GraphRunner(bundle.graph, bundle.manifest).walk(inputs, [2, 1])
    for row in range(3):
        state = np.zeros((1, 1, HIDDEN), np.float32)
        limit = np.asarray(inputs["limit"][row]).reshape([1 if dim == "batch" else int(dim) for dim in dims])
        for step in range(3):
            x = inputs["x"][row : row + 1, step : step + 1]
            has_time = len(net.inputs[0].type.tensor_type.shape.dim) == 3
            told = by_hand(net, {"x": x if has_time else x[:, 0], "h": state, "limit": limit})
            np.testing.assert_allclose(told["y"].ravel(), found.outputs["y"][row, step].ravel(), atol=1e-6)
            state = told["hn"]


def test_values_of_rows_do_not_follow_another_axis_of_as_many_elements(tmp_path: Path) -> None:
    net, y = limited(1)
    # Three features, as many as the rows that are tried; and what is tried near the default changes nothing.
    projected = net.add("MatMul", y, net.random(HIDDEN, 3))
    net = finished(net, net.add("Mul", projected, net.add("Floor", "limit")))
    bundle = imported(net, tmp_path, settings=["limit=5"], states=["h:hn"])
    assert bundle.manifest.settings[0].axes == (BATCH, 1)
    check_rows(net, bundle, (1,))


def test_a_setting_that_no_row_can_have_for_itself_makes_rows_run_alone(tmp_path: Path) -> None:
    net, y = limited()
    whole = net.add("ReduceSum", "limit", keepdims=0)  # over all that is there
    net = finished(net, net.add("Min", y, whole))
    bundle = imported(net, tmp_path, settings=["limit=0.25"], states=["h:hn"])
    assert bundle.manifest.settings[0].axes == ()
    assert not bundle.manifest.is_batchable


@pytest.mark.parametrize("is_by_row", [True, False])
def test_rows_have_whole_numbers_of_their_own_or_run_alone(tmp_path: Path, is_by_row: bool) -> None:
    net, y = limited(1)
    net.input("language", "batch", dtype=TensorProto.INT64)
    chosen = "language" if is_by_row else net.add("Slice", "language", *(net.integers(at) for at in (0, 1)))
    added = net.add("Unsqueeze", net.add("Gather", net.random(3, HIDDEN), chosen), net.integers(1))
    net = finished(net, net.add("Add", net.add("Min", y, "limit"), added))
    bundle = imported(net, tmp_path, settings=["limit=0.25", "language=1"], states=["h:hn"])
    assert bundle.manifest.batch_invariant == is_by_row


def test_what_a_setting_decides_is_no_settled_question(tmp_path: Path) -> None:
    net, y = limited()
    is_on = net.add("Greater", "limit", net.constant(np.array(0.3, np.float32)))
    net.nodes, rest = [], net.nodes
    weights, net.weights = net.weights, []
    then = net.body("then", [], {net.add("Neg", y): TensorProto.FLOAT})
    other = net.body("other", [], {net.add("Identity", y): TensorProto.FLOAT})
    net.nodes, net.weights = rest, weights
    net.nodes.append(helper.make_node("If", [is_on], ["chosen"], then_branch=then, else_branch=other))
    bundle = imported(finished(net, "chosen"), tmp_path, settings=["limit=0.25"], states=["h:hn"])
    runner = GraphRunner(bundle.graph, bundle.manifest)
    inputs = random_inputs(bundle.manifest, 1, 2, np.random.default_rng(0))
    off, on = (
        runner.walk({**inputs, "limit": np.full_like(inputs["limit"], at)}, [2]).outputs["y"] for at in (0.2, 0.4)
    )
    np.testing.assert_array_equal(on, -off)


def test_a_setting_stands_beside_states_that_are_lifted_out(tmp_path: Path) -> None:
    net = Net()
    x = net.input("x", "batch", "time", FRAME)
    limit = net.input("limit", 1)
    y, _ = net.layer("GRU", net.add("Transpose", x, perm=[1, 0, 2]), [], FRAME, HIDDEN)
    net.output(net.add("Min", net.add("Transpose", y, perm=[1, 0, 2]), limit), "y")
    bundle = imported(net, tmp_path, settings=["limit=0.25"])
    assert bundle.manifest.is_batchable
    assert [setting.name for setting in bundle.manifest.settings] == ["limit"]


def test_a_default_may_be_a_vector_or_of_another_kind(tmp_path: Path) -> None:
    net, y = limited(HIDDEN)
    net.input("language", dtype=TensorProto.INT64)
    net.input("is_loud", 1, dtype=TensorProto.BOOL)
    table = net.add("Gather", net.random(3, HIDDEN), "language")
    loud = net.add("Where", "is_loud", net.constant(np.array(2.0, np.float32)), net.constant(np.array(1.0, np.float32)))
    mixed = net.add("Add", net.add("Min", y, "limit"), net.add("Mul", table, loud))
    settings = ["limit=[0.1, 0.2, 0.3, 0.4]", "language=2", "is_loud=true"]
    bundle = imported(finished(net, mixed), tmp_path, settings=settings, states=["h:hn"])
    values = {spec.name: default_of(spec).tolist() for spec in bundle.manifest.settings}
    assert values == {"limit": pytest.approx([0.1, 0.2, 0.3, 0.4]), "language": 2, "is_loud": [True]}
    assert bundle.manifest.provenance["import"]["settings"]["language"] == "2"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"settings": ["limt=1"]}, "--setting: the graph has no input 'limt'"),
        ({"settings": ["limit=loud"]}, "--setting limit=loud is no float32 of shape [1]"),
        (
            {"settings": ["limit=1"], "constants": ["limit=1"]},
            "--setting and --constant contradict each other",
        ),
        ({"settings": ["h=0"], "states": ["h:hn"]}, "--setting and --state contradict each other on 'h'"),
        ({"settings": ["x=0"], "data": ["x"]}, "--setting and --data contradict each other on 'x'"),
        ({}, "--constant limit=VALUE, or, if callers may change it, --setting limit=DEFAULT"),
    ],
)
def test_what_contradicts_or_does_not_fit_is_refused(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    net, y = limited(1)
    assert words in refusal(finished(net, net.add("Min", y, "limit")), tmp_path, **options)


def test_a_bundle_says_what_its_signal_and_tensors_are(tmp_path: Path) -> None:
    net, y = limited(1)
    bundle = imported(
        finished(net, net.add("Min", y, "limit")),
        tmp_path,
        settings=["limit=0.25"],
        sample_rate=16000.0,
        frame_length=FRAME,
        units=["limit=dB"],
        descriptions=["x=waveform, full scale = ±1", "limit=at most so much is taken away"],
    )
    manifest = bundle.manifest
    assert (manifest.sample_rate, manifest.frame_length) == (16000.0, FRAME)
    assert manifest.meanings["limit"].model_dump() == {"unit": "dB", "description": "at most so much is taken away"}
    card = bundle.files["card.md"].decode()
    assert "- signal: 16000 samples a second, 6 a step" in card
    assert "- x: waveform, full scale = ±1" in card
    assert "- setting limit float32 [batch, 1]: 0.25 where no request and no session says another" in card


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"units": ["z=dB"]}, "--unit: there is no input, output or feature 'z'"),
        ({"descriptions": ["speech"]}, "--describe speech: say NAME=TEXT"),
        ({"units": ["x=a", "x=b"]}, "--unit: x is said twice, 'a' and 'b'"),
        ({"units": [f"x={'a' * 300}"]}, "--unit or --describe: String should have at most 256 characters"),
    ],
)
def test_what_is_said_of_nothing_is_refused(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    net, y = limited(1)
    assert words in refusal(finished(net, net.add("Min", y, "limit")), tmp_path, settings=["limit=1"], **options)
