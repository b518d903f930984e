"""`tidegate import` says no: to what cannot stream or be held, and to files that are broken or hostile."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from typer import Typer
from typer.testing import CliRunner

from tests.export.importing.graphs import Net, lstm
from tests.export.importing.importing import axes, imported, pairs, refusal, said
from tidegate.errors import BundleError
from tidegate.sandbox import ResourceLimits, run_limited
from tidegate_export.importing.cli import import_

app = Typer()
app.command("import")(import_)


# ---- what cannot stream


def test_a_bidirectional_layer_is_refused_by_name(tmp_path: Path) -> None:
    net = lstm(state=(2, "batch", 8), direction="bidirectional")
    net.nodes[0].name = "rnn/both_ways"
    told = refusal(net, tmp_path)
    assert "LSTM 'rnn/both_ways' is bidirectional" in told
    assert "use a model that only runs forward" in told


def test_a_layer_that_runs_backward_is_refused(tmp_path: Path) -> None:
    told = refusal(lstm(direction="reverse"), tmp_path)
    assert "cannot stream" in told
    assert "runs backward" in told


def hidden() -> Net:
    """Two GRUs, of which one starts anew in every run."""
    net = lstm(cell="GRU")
    top, _ = net.layer("GRU", "y", [], 3, 5)
    net.nodes[-3].name = "secret"
    net.output(top, "told")
    return net


def test_what_fails_as_a_stream_is_not_made_one_by_taking_it_step_by_step(tmp_path: Path) -> None:
    """One layer runs backward along a free time axis, beside a state that is in order."""
    net = lstm(cell="GRU")
    top, _ = net.layer("GRU", "y", [], 3, 5, direction="reverse")
    net.output(top, "told")
    told = refusal(net, tmp_path, is_within_frame=True)
    assert "cannot stream" in told
    assert "runs backward" in told


def test_an_output_of_every_step_by_every_other_is_not_taken_step_by_step(tmp_path: Path) -> None:
    """x xᵀ has two axes as long as the sequence: one step at a time would give its diagonal."""
    net = lstm(x=("time", 1, 4), state=(1, 1, 8))
    rows = net.add("Reshape", "x", net.integers(-1, 4))
    net.output(net.add("MatMul", rows, net.add("Transpose", rows, perm=[1, 0])), "alike", "time", "time")
    assert "cannot stream" in refusal(net, tmp_path)


def test_where_one_run_is_one_step_a_layer_without_state_is_refused_unless_it_runs_within_the_frame(
    tmp_path: Path,
) -> None:
    options = {"shapes": ["x=1,batch,4"], "time_axes": ["none"]}
    told = refusal(hidden(), tmp_path, **options)
    assert "GRU 'secret': no state of it goes from one run to the next" in told
    assert "--within-frame" in told
    bundle = imported(hidden(), tmp_path, is_within_frame=True, **options)
    assert pairs(bundle) == {"h_in": "h_out"}


def test_a_look_at_later_steps_is_refused(tmp_path: Path) -> None:
    net = lstm()
    net.output(net.add("Sub", "y", net.add("ReduceMean", "y", axes=[0])), "centred")
    assert "cannot stream" in refusal(net, tmp_path)


def test_a_graph_without_state_is_refused(tmp_path: Path) -> None:
    net = Net()
    net.output(net.linear(net.input("x", "batch", "time", 4), 4, 2), "y")
    assert "nothing to stream" in refusal(net, tmp_path)


def test_states_alone_are_refused(tmp_path: Path) -> None:
    net = lstm(cell="GRU")
    del net.outputs[0]
    assert "every output is a state" in refusal(net, tmp_path)


def test_unknown_operators_are_refused_by_name(tmp_path: Path) -> None:
    net = lstm()
    net.output(net.add("Swizzle", "y", domain="acme"), "told")
    net.opsets.append(helper.make_opsetid("acme", 1))
    assert "is a custom operator of 'acme'" in refusal(net, tmp_path)
    net = lstm()
    net.output(net.add("Swizzle", "y"), "told")
    assert "is no operator of ONNX (opset 17)" in refusal(net, tmp_path)
    net = lstm()
    net.opsets.append(helper.make_opsetid("com.microsoft", 1))
    net.output(net.add("Swizzle", "y", domain="com.microsoft"), "told")
    assert "is no operator of 'com.microsoft' that onnxruntime" in refusal(net, tmp_path)


def test_an_operator_of_a_newer_opset_is_refused_with_the_opset_that_has_it(tmp_path: Path) -> None:
    net = lstm()
    net.output(net.add("CausalConvWithState", "y", net.random(3, 1, 2), num_outputs=2), "told")
    assert "came with opset 27, and the file says opset 17" in refusal(net, tmp_path)


def test_a_file_of_an_opset_that_the_runtime_does_not_know_is_refused(tmp_path: Path) -> None:
    assert "the file is of opset 99, onnxruntime" in refusal(lstm(opset=99), tmp_path)


def test_an_operator_that_is_a_local_function_is_known(tmp_path: Path) -> None:
    """With an opset of its own."""
    net = lstm()
    net.output(net.add("Twice", "y", domain="acme"), "told")
    net.opsets.append(helper.make_opsetid("acme", 1))
    model = net.model()
    double = helper.make_node("Add", ["v", "v"], ["w"])
    model.functions.append(helper.make_function("acme", "Twice", ["v"], ["w"], [double], [helper.make_opsetid("", 17)]))
    file = tmp_path / "functions.onnx"
    file.write_bytes(model.SerializeToString())
    assert "told" in axes(imported(file, tmp_path))


def test_strings_are_refused_with_what_to_do(tmp_path: Path) -> None:
    net = lstm()
    net.output(net.input("words", "batch", dtype=TensorProto.STRING), "told", "batch", dtype=TensorProto.STRING)
    assert "'words' holds strings: import the graph behind it" in refusal(net, tmp_path)


@pytest.mark.parametrize("kind", [TensorProto.UINT16, TensorProto.COMPLEX64])
def test_types_that_no_bundle_holds_are_refused(tmp_path: Path, kind: int) -> None:
    net = lstm()
    net.output(net.input("odd", "batch", dtype=kind), "told", "batch", dtype=kind)
    assert "'odd' is of" in refusal(net, tmp_path)


# ---- files that are broken or hostile


def file_of(root: Path, content: bytes) -> Path:
    path = root / "foreign.onnx"
    path.write_bytes(content)
    return path


def model_bytes() -> bytes:
    return lstm().model().SerializeToString()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a model",
        b"\x00" * 100,
        b"\xff" * 100,
        b'{"ir_version": 8}',
        b"PK\x03\x04",
        model_bytes()[:-7],
        model_bytes()[:40],
    ],
)
def test_what_is_no_onnx_file_or_cut_off_is_refused(tmp_path: Path, content: bytes) -> None:
    told = refusal(file_of(tmp_path, content), tmp_path)
    assert "is not an ONNX" in told
    assert "cut off" in told


def test_a_file_that_is_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    whole = model_bytes()
    for end in range(0, len(whole), 97):
        assert refusal(file_of(tmp_path, whole[:end]), tmp_path)


def imported_apart(file: Path, root: Path, seconds: float = 60) -> str:
    """Import in a process of its own; return what is told."""
    try:
        told, _ = run_limited("tidegate_export.importing.importer:run", said(file, root), ResourceLimits(4096, seconds))
    except BundleError as error:
        return error.message
    return str(told)


def test_a_file_of_which_any_byte_is_damaged_never_crashes_this_process(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    whole = bytearray(model_bytes())
    for _ in range(4):
        broken = whole.copy()
        broken[int(rng.integers(200))] ^= 0xFF
        assert imported_apart(file_of(tmp_path, bytes(broken)), tmp_path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    assert "cannot be read" in refusal(tmp_path / "none.onnx", tmp_path)
    assert "is not a file" in refusal(tmp_path, tmp_path)


def external(root: Path, **entries: str) -> Path:
    """A model whose first weight lies in another file."""
    model = lstm().model()
    tensor = model.graph.initializer[0]
    (root / "weights.bin").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "weights.bin", **entries}.items():
        tensor.external_data.add(key=key, value=value)
    return file_of(root, model.SerializeToString())


def test_external_data_beside_the_model_is_taken_into_the_bundle(tmp_path: Path) -> None:
    source = external(tmp_path)
    bundle = imported(source, tmp_path)
    assert {path.name for path in bundle.path.iterdir()} == {"model.onnx", "manifest.json", "card.md"}
    assert not any(item.external_data for item in onnx.load_from_string(bundle.graph).graph.initializer)


@pytest.mark.parametrize("location", ["../weights.bin", "/etc/passwd", "a/../../weights.bin", "~/weights.bin", "."])
def test_external_data_elsewhere_is_refused(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "weights.bin").write_bytes(bytes(100_000))
    told = refusal(external(folder, location=location), tmp_path)
    assert "outside the model's folder" in told or "not beside the model" in told


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(100_000))
    source = external(folder, location="link.bin")
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    assert "outside the model's folder" in refusal(source, tmp_path)


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"offset": "100000"}, "the file is cut off"),
        ({"length": "100000"}, "the file is cut off"),
        ({"offset": "-5"}, "the file is cut off"),
        ({"length": "all"}, "at no number"),
        ({"length": "16"}, "its data is of another size"),
    ],
)
def test_external_data_that_does_not_add_up_is_refused(tmp_path: Path, entries: dict[str, str], reason: str) -> None:
    assert reason in refusal(external(tmp_path, **entries), tmp_path)


@pytest.mark.parametrize("dims", [(10**12, 10**12), (-1, 4), (2**40,), (2**62, 2), (3, 3)])
def test_a_constant_that_says_another_size_than_it_has_is_refused(tmp_path: Path, dims: tuple[int, ...]) -> None:
    model = lstm().model()
    model.graph.initializer[0].dims[:] = dims
    assert "the file is damaged" in refusal(file_of(tmp_path, model.SerializeToString()), tmp_path)


@pytest.mark.parametrize("size", [10**6, 10**12, 2**62])
def test_huge_declared_shapes_are_refused_before_anything_is_made_of_them(tmp_path: Path, size: int) -> None:
    told = refusal(lstm(x=("time", "batch", size, 1000), state=(size, "batch", 1000)), tmp_path)
    assert "no step or state is that large" in told or "onnxruntime refuses" in told


def test_a_graph_that_asks_for_all_memory_ends_within_its_limit(tmp_path: Path) -> None:
    net = lstm()
    big = net.add("ConstantOfShape", net.integers(1 << 20, 1 << 20))
    net.output(net.add("ReduceMax", big, keepdims=0), "all")
    assert "memory" in imported_apart(net.save(tmp_path / "foreign.onnx"), tmp_path)


def endless() -> Net:
    """A Loop without a number of turns whose condition stays true."""
    net = lstm()
    net.constant(np.array(True))
    outside = (net.nodes, net.weights)
    net.nodes, net.weights = [], []
    on, turns = net.add("Identity", "go"), net.add("Identity", "i")
    parameters = [
        helper.make_tensor_value_info("i", TensorProto.INT64, []),
        helper.make_tensor_value_info("go", TensorProto.BOOL, []),
        helper.make_tensor_value_info("before", TensorProto.INT64, []),
    ]
    forever = net.body("forever", parameters, {on: TensorProto.BOOL, turns: TensorProto.INT64})
    net.nodes, net.weights = outside
    last = net.add("Loop", "", net.constant(np.array(True)), net.constant(np.array(0)), body=forever)
    net.output(last, "turns", dtype=TensorProto.INT64)
    return net


def test_a_graph_that_never_ends_is_ended(tmp_path: Path) -> None:
    file = endless().save(tmp_path / "foreign.onnx")
    assert "does not come to an end within 4 seconds" in imported_apart(file, tmp_path, seconds=4)


# ---- the command


def test_the_command_tells_what_was_found_and_ends_with_0(tmp_path: Path) -> None:
    file = lstm().save(tmp_path / "my model.onnx")
    done = CliRunner().invoke(app, [str(file), "--out", str(tmp_path / "bundles")], catch_exceptions=False)
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert lines[0] == f"{tmp_path}/bundles/my-model/1: stream, 64 bytes of state per session"
    assert "h_in    state   [1, batch, 8]     h_out  proved by streaming" in lines
    assert "time: an axis of the graph" in lines


def test_the_command_tells_why_not_in_one_line_and_ends_with_2(tmp_path: Path) -> None:
    file = file_of(tmp_path, b"nothing")
    done = CliRunner().invoke(app, [str(file), "--out", str(tmp_path)], catch_exceptions=False)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1


def test_a_version_with_other_content_is_refused(tmp_path: Path) -> None:
    imported(lstm(), tmp_path, version=1)
    told = CliRunner().invoke(
        app,
        [
            str(lstm(cell="GRU").save(tmp_path / "b.onnx")),
            "--name",
            "model",
            "--version",
            "1",
            "--out",
            str(tmp_path / "bundles"),
        ],
    )
    assert "exists with other content" in told.stderr
