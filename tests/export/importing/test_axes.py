"""`tidegate import`: where the batch and the time are, or that there is none; settings; contexts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from tests.export.importing.graphs import Net, lstm
from tests.export.importing.importing import axes, by_hand, imported, pairs, refusal, walked
from tidegate.proof import check_bundle


@pytest.mark.parametrize(
    ("x", "state"),
    [
        (("time", "batch", 4), (1, "batch", 8)),
        (("T", "N", 4), (1, "N", 8)),
        (("seq_len", "bs", 4), (1, "bs", 8)),
        (("dyn0", "dyn1", 4), (1, "dyn1", 8)),
        ((None, None, 4), (1, None, 8)),
        ((None, None, 4), (1, 1, 8)),
        (("time", 1, 4), (1, 1, 8)),
        ((1, "batch", 4), (1, "batch", 8)),
        ((1, 1, 4), (1, 1, 8)),
    ],
)
def test_axes_are_found_whatever_they_are_called_and_freed_where_they_are_fixed_at_one(
    tmp_path: Path, x: tuple[int | str | None, ...], state: tuple[int | str | None, ...]
) -> None:
    bundle = imported(lstm(x, state), tmp_path)
    assert axes(bundle) == {"x": ("time", "batch", 4), "y": ("time", "batch", 3)}
    assert {spec.axes for spec in bundle.manifest.states} == {(1, "batch", 8)}
    assert bundle.manifest.batch_invariant


def batch_first(x: tuple[int | str, ...], state: tuple[int | str, ...], shape: tuple[int, ...]) -> Net:
    """A GRU over [batch, time, 4], with a Reshape in which the exporter wrote the sizes of its example."""
    net = Net()
    moved = net.add("Transpose", net.input("x", *x), perm=[1, 0, 2])
    first = net.add("Transpose", net.input("h", *state), perm=[1, 0, 2])
    top, (last,) = net.layer("GRU", moved, [first], 4, 8)
    net.output(net.add("Reshape", net.add("Transpose", top, perm=[1, 0, 2]), net.integers(*shape)), "y")
    net.output(net.add("Transpose", last, perm=[1, 0, 2]), "hn")
    return net


def test_the_batch_that_an_exporter_wrote_into_a_reshape_is_freed_too(tmp_path: Path) -> None:
    bundle = imported(batch_first((1, "time", 4), (1, 1, 8), (1, -1, 8)), tmp_path)
    assert axes(bundle) == {"x": ("batch", "time", 4), "y": ("batch", "time", 8)}


def test_a_reshape_that_fixes_batch_and_time_is_freed_axis_by_axis(tmp_path: Path) -> None:
    """As an exporter writes it that was shown one row of one step: two layers with a constant shape between them."""
    net = Net()
    top, (first,) = net.layer("GRU", net.input("x", 1, 1, 4), [net.input("h0", 1, 1, 8)], 4, 8)
    flat = net.add("Reshape", top, net.integers(1, 1, 8))
    top, (second,) = net.layer("GRU", flat, [net.input("h1", 1, 1, 8)], 8, 8)
    net.output(top, "y")
    net.output(first, "r0")
    net.output(second, "r1")
    bundle = imported(net, tmp_path)
    assert axes(bundle) == {"x": ("time", "batch", 4), "y": ("time", "batch", 8)}
    assert pairs(bundle) == {"h0": "r0", "h1": "r1"}


def test_one_token_a_run_is_a_token_a_step(tmp_path: Path) -> None:
    net = Net()
    embedded = net.add("Gather", net.random(5, 4), net.input("token", 1, 1, dtype=TensorProto.INT64))
    top, (last,) = net.layer("GRU", embedded, [net.input("h", 1, 1, 8)], 4, 8)
    net.output(top, "y")
    net.output(last, "hn")
    bundle = imported(net, tmp_path)
    assert axes(bundle)["token"] == ("time", "batch")


def test_a_batch_that_cannot_be_freed_leaves_rows_one_by_one(tmp_path: Path) -> None:
    """A mean over the batch does nothing to one row."""
    net = lstm(("time", 1, 4), (1, 1, 8))
    mean = net.add("ReduceMean", "y", axes=[1])
    net.output(net.add("Add", "y", mean), "told")
    bundle = imported(net, tmp_path)
    assert axes(bundle) == {"x": ("time", 1, 4), "y": ("time", 1, 3), "told": ("time", 1, 3)}
    assert not bundle.manifest.is_batchable


def test_a_batch_of_which_rows_see_each_other_is_said_to_be_so(tmp_path: Path) -> None:
    net = lstm()
    mean = net.add("ReduceMean", "y", axes=[1])
    net.output(net.add("Add", "y", mean), "told")
    bundle = imported(net, tmp_path)
    assert bundle.manifest.is_batchable
    assert not bundle.manifest.batch_invariant


def test_a_graph_without_any_batch_runs_rows_one_by_one(tmp_path: Path) -> None:
    net = Net()
    x = net.add("Unsqueeze", net.input("x", "time", 4), net.integers(1))
    first = net.add("Unsqueeze", net.input("h", 8), net.integers(0, 1))
    top, (last,) = net.layer("GRU", x, [first], 4, 8)
    net.output(net.add("Squeeze", top, net.integers(1)), "y")
    net.output(net.add("Squeeze", last, net.integers(0, 1)), "hn")
    bundle = imported(net, tmp_path)
    assert axes(bundle) == {"x": ("time", 4), "y": ("time", 8)}
    assert not bundle.manifest.is_batchable
    assert "rows run one by one" in (bundle.path / "card.md").read_text()


def test_the_batch_may_be_the_last_axis(tmp_path: Path) -> None:
    net = Net()
    x = net.add("Transpose", net.input("x", "time", 4, "batch"), perm=[0, 2, 1])
    first = net.add("Transpose", net.input("h", 1, 8, "batch"), perm=[0, 2, 1])
    top, (last,) = net.layer("GRU", x, [first], 4, 8)
    net.output(net.add("Transpose", top, perm=[0, 2, 1]), "y")
    net.output(net.add("Transpose", last, perm=[0, 2, 1]), "hn")
    bundle = imported(net, tmp_path)
    assert axes(bundle) == {"x": ("time", 4, "batch"), "y": ("time", 8, "batch")}
    assert bundle.manifest.states[0].axes == (1, 8, "batch")


def test_axes_that_were_said_are_taken(tmp_path: Path) -> None:
    net = lstm(("p", "q", 4), (1, "q", 8))
    bundle = imported(net, tmp_path, time_axes=["0"], batch_axes=["1"])
    assert axes(bundle)["x"] == ("time", "batch", 4)
    bundle = imported(net, tmp_path, time_axes=["x=0"], batch_axes=["x=1", "h_in=1"], version=2)
    assert axes(bundle)["x"] == ("time", "batch", 4)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"shapes": ["z=batch,4"]}, "the graph has no input 'z'"),
        ({"shapes": ["x=time,batch,5"]}, "contradicts the file's"),
        ({"shapes": ["x=time,batch"]}, "contradicts the file's"),
        ({"shapes": ["x=time,rows,4"]}, "'rows' is neither batch nor time nor a size"),
        ({"batch_axes": ["x=7"]}, "it has 3 axes, counted from 0"),
        ({"batch_axes": ["first"]}, "say an axis by its number from 0, or none"),
        ({"constants": ["sr"]}, "say NAME=VALUE"),
        ({"constants": ["sr=1"]}, "the graph has no 'sr'"),
        ({"contexts": ["x=none"]}, "say how many of the last elements"),
        ({"states": ["h_in"]}, "say INPUT:OUTPUT"),
        ({"states": ["h_in:h_out", "c_in:h_out"]}, "two states cannot come out of one output"),
        ({"name": "a/b"}, "name: String should match pattern"),
    ],
)
def test_what_was_said_wrongly_is_refused_in_one_line(tmp_path: Path, options: dict[str, object], reason: str) -> None:
    assert reason in refusal(lstm(), tmp_path, **options)


def frames(opset: int = 17) -> Net:
    """One run takes five rows of a spectrogram: a fixed time."""
    net = Net(opset=opset)
    x = net.add("Transpose", net.input("x", 1, 5, 4), perm=[1, 0, 2])
    top, (last,) = net.layer("GRU", x, [net.input("h", 1, 1, 8)], 4, 8)
    net.output(net.add("Transpose", top, perm=[1, 0, 2]), "y", 1, 5, 8)
    net.output(last, "hn", 1, 1, 8)
    return net


@pytest.mark.parametrize("opset", [9, 11, 17, 21])
def test_a_fixed_time_makes_one_run_one_step(tmp_path: Path, opset: int) -> None:
    bundle = imported(frames(opset), tmp_path)
    assert axes(bundle) == {"x": ("batch", "time", 5, 4), "y": ("batch", "time", 5, 8)}
    assert bundle.manifest.is_batchable
    assert check_bundle(bundle.path).passed
    x = np.random.default_rng(0).normal(size=(1, 3, 5, 4)).astype(np.float32)
    h = np.zeros((1, 1, 8), np.float32)
    got = walked(bundle, [1, 2], {"x": x}).outputs["y"]
    for step in range(3):
        alone = by_hand(frames(opset), {"x": x[:, step], "h": h})
        np.testing.assert_allclose(got[:, step], alone["y"], atol=1e-6)
        h = alone["hn"]


def test_an_opset_without_loops_cannot_take_one_step_a_run(tmp_path: Path) -> None:
    assert "export with opset 9 or later" in refusal(frames(opset=8), tmp_path)


def test_an_output_that_is_not_per_step_is_the_value_after_the_last(tmp_path: Path) -> None:
    net = lstm()
    net.output(net.linear(net.add("Squeeze", net.outputs[1].name, net.integers(0)), 8, 2), "score")
    bundle = imported(net, tmp_path)
    assert axes(bundle)["score"] == ("batch", 2)
    assert "not per step" in (bundle.path / "card.md").read_text()


def test_a_setting_must_be_said_and_is_put_into_the_graph(tmp_path: Path) -> None:
    net = lstm()
    gain = net.input("gain", dtype=TensorProto.FLOAT)
    net.output(net.add("Mul", "y", gain), "loud")
    assert "say its value, --constant gain=VALUE" in refusal(net, tmp_path)
    bundle = imported(net, tmp_path, constants=["gain=2.5"])
    result = walked(bundle, [4]).outputs
    np.testing.assert_allclose(result["loud"], 2.5 * result["y"], rtol=1e-6)
    assert "- gain = 2.5" in (bundle.path / "card.md").read_text()


@pytest.mark.parametrize(
    ("value", "reason"), [("much", "is no int64"), ("1.5", "cannot hold that"), ("[1, 2]", "is no")]
)
def test_a_setting_that_does_not_fit_is_refused(tmp_path: Path, value: str, reason: str) -> None:
    net = lstm()
    net.output(
        net.add("Mul", "y", net.add("Gather", net.random(2), net.input("rate", dtype=TensorProto.INT64))), "told"
    )
    assert reason in refusal(net, tmp_path, constants=[f"rate={value}"])


def test_a_setting_for_every_row_follows_the_batch(tmp_path: Path) -> None:
    net = lstm()
    column = net.add("Unsqueeze", net.input("gains", "batch"), net.integers(0, 2))
    net.output(net.add("Mul", "y", column), "loud")
    bundle = imported(net, tmp_path, constants=["gains=3"])
    assert bundle.manifest.is_batchable
    result = walked(bundle, [4]).outputs
    np.testing.assert_allclose(result["loud"], 3 * result["y"], rtol=1e-6)


def test_the_lengths_of_rows_are_an_input_of_their_own(tmp_path: Path) -> None:
    net = Net()
    net.input("x", "time", "batch", 4)
    net.input("x_lens", "batch", dtype=TensorProto.INT32)
    net.input("h", 1, "batch", 8)
    weights = [net.random(1, 24, 4), net.random(1, 24, 8)]
    net.nodes.append(helper.make_node("GRU", ["x", *weights, "", "x_lens", "h"], ["all", "last"], hidden_size=8))
    net.output(net.add("Squeeze", "all", net.integers(1)), "y")
    net.output("last", "hn")
    bundle = imported(net, tmp_path)
    assert bundle.manifest.lengths == "x_lens"
    assert pairs(bundle) == {"h": "hn"}


def test_what_belongs_to_the_whole_session_comes_with_every_step(tmp_path: Path) -> None:
    """A speaker's vector has no time axis: one run of one step becomes a step."""
    net = lstm()
    net.output(net.add("Add", "y", net.linear(net.input("voice", "batch", 2), 2, 3)), "told")
    bundle = imported(net, tmp_path)
    assert axes(bundle)["voice"] == ("batch", "time", 2)
    assert axes(bundle)["x"] == ("time", "batch", 4)
    assert pairs(bundle) == {"h_in": "h_out", "c_in": "c_out"}


def test_the_end_of_the_frame_before_is_kept_for_the_graph(tmp_path: Path) -> None:
    net = Net()
    moved = net.add("Unsqueeze", net.input("wave", "batch", 12), net.integers(0))
    top, (last,) = net.layer("GRU", moved, [net.input("h", 1, "batch", 8)], 12, 8)
    net.output(net.add("Squeeze", top, net.integers(0)), "y")
    net.output(last, "hn")
    bundle = imported(net, tmp_path, contexts=["wave=4"])
    assert axes(bundle) == {"wave": ("batch", "time", 8), "y": ("batch", "time", 8)}
    assert pairs(bundle) == {"h": "hn", "wave.context_in": "wave.context_out"}
    assert bundle.manifest.codec.model_dump()["context"] == {"wave": 4}
    wave = np.random.default_rng(0).normal(size=(1, 5, 8)).astype(np.float32)
    padded = np.concatenate([np.zeros((1, 4), np.float32), wave.reshape(1, -1)], axis=1)
    h = np.zeros((1, 1, 8), np.float32)
    got = walked(bundle, [2, 3], {"wave": wave}).outputs["y"]
    for step in range(5):
        alone = by_hand(net, {"wave": padded[:, 8 * step : 8 * step + 12], "h": h})
        np.testing.assert_allclose(got[:, step], alone["y"], atol=1e-6)
        h = alone["hn"]


def test_the_end_of_the_frame_before_is_kept_where_frames_have_a_time_axis(tmp_path: Path) -> None:
    net = Net()
    top, (last,) = net.layer("GRU", net.input("wave", "time", "batch", 12), [net.input("h", 1, "batch", 8)], 12, 8)
    net.output(top, "y")
    net.output(last, "hn")
    bundle = imported(net, tmp_path, contexts=["wave=4"])
    assert axes(bundle) == {"wave": ("time", "batch", 8), "y": ("time", "batch", 8)}
    wave = np.random.default_rng(0).normal(size=(5, 1, 8)).astype(np.float32)
    padded = np.concatenate([np.zeros(4, np.float32), wave.ravel()])
    whole = np.stack([padded[8 * step : 8 * step + 12] for step in range(5)])[:, None]
    wanted = by_hand(net, {"wave": whole, "h": np.zeros((1, 1, 8), np.float32)})["y"]
    np.testing.assert_allclose(walked(bundle, [2, 3], {"wave": wave}).outputs["y"], wanted, atol=1e-6)


def test_steps_that_a_convolution_wants_again_are_a_context_along_time(tmp_path: Path) -> None:
    net = Net()
    mixed = net.add(
        "Conv", net.add("Transpose", net.input("x", "batch", "time", 4), perm=[0, 2, 1]), net.random(6, 4, 3)
    )
    top, (last,) = net.layer("GRU", net.add("Transpose", mixed, perm=[2, 0, 1]), [net.input("h", 1, "batch", 8)], 6, 8)
    net.output(net.add("Transpose", top, perm=[1, 0, 2]), "y")
    net.output(last, "hn")
    assert "--context x=2@time" in refusal(net, tmp_path)
    bundle = imported(net, tmp_path, contexts=["x=2@time"])
    assert axes(bundle) == {"x": ("batch", "time", 4), "y": ("batch", "time", 8)}
    assert {state.axes for state in bundle.manifest.states} == {(1, "batch", 8), ("batch", 2, 4)}


@pytest.mark.parametrize("context", ["x=4", "x=5"])
def test_a_context_as_large_as_the_input_is_refused(tmp_path: Path, context: str) -> None:
    assert "the graph takes 4 elements in all" in refusal(lstm(), tmp_path, contexts=[context])


def counted(axis: str, *, is_by_position: bool) -> Net:
    """Rows or steps beside a counter: nothing but the axis's name says which."""
    net = Net()
    x = net.input("x", axis, 4)
    if is_by_position:
        num = net.add("Squeeze", net.add("Shape", x, start=0, end=1))
        zero, one = net.constant(np.array(0, np.int64)), net.constant(np.array(1, np.int64))
        places = net.add("CastLike", net.add("Range", zero, num, one), "x")
        x = net.add("Add", x, net.add("Unsqueeze", places, net.integers(1)))
    seen = net.add("Add", net.input("count", 1), net.constant(np.ones(1, np.float32)))
    net.output(net.add("Add", net.linear(x, 4, 3), seen), "y", axis, 3)
    net.output(seen, "count_out", 1)
    return net


@pytest.mark.parametrize("is_by_position", [True, False])
def test_a_free_axis_that_no_state_and_no_name_calls_the_batch_may_be_the_time(
    tmp_path: Path, *, is_by_position: bool
) -> None:
    told = refusal(counted("unk__1", is_by_position=is_by_position), tmp_path)
    asked = "if the free axis is the batch, and one run is one step, say --time-axis none"
    assert ("counts steps from the beginning of each run" if is_by_position else asked) in told


@pytest.mark.parametrize(("axis", "options"), [("batch", {}), ("unk__1", {"time_axes": ["none"]})])
def test_a_free_axis_that_is_said_to_be_the_batch_is(tmp_path: Path, axis: str, options: dict[str, list[str]]) -> None:
    bundle = imported(counted(axis, is_by_position=False), tmp_path, **options)
    assert axes(bundle)["x"] == ("batch", "time", 4)
