"""`tidegate import --context`: what a graph wants again is a memory, along any axis, alone or beside states."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from tests.export.importing.graphs import Net
from tests.export.importing.importing import Array, axes, by_hand, imported, pairs, refusal, walked
from tidegate.bundle import Bundle
from tidegate.proof import check_bundle

HALF, INT64, BOOL = TensorProto.FLOAT16, TensorProto.INT64, TensorProto.BOOL


def window(*dims: int | str, dtype: int = TensorProto.FLOAT, opset: int = 17) -> Net:
    """A classifier of a whole window, its memory its input alone: [N, 16, 4] to one score [N, 1]."""
    net = Net(opset=opset)
    flat = net.add("Flatten", net.input("win", *dims, dtype=dtype))
    if dtype != TensorProto.FLOAT:
        flat = cast(net, flat, TensorProto.FLOAT)
    width = int(np.prod([dim for dim in dims[1:] if isinstance(dim, int)]))
    score = net.add("Sigmoid", net.linear(net.add("Relu", net.linear(flat, width, 8)), 8, 1))
    if dtype == HALF:
        score = cast(net, score, HALF)
    net.output(score, "score", dims[0], 1, dtype=HALF if dtype == HALF else TensorProto.FLOAT)
    return net


def cast(net: Net, source: str, dtype: int) -> str:
    net.nodes.append(helper.make_node("Cast", [source], [f"{source}/cast"], to=dtype))
    return f"{source}/cast"


def rows(steps: int, *shape: int, dtype: str = "float32", seed: int = 0) -> Array:
    values: Array = np.random.default_rng(seed).normal(size=(steps, *shape))
    return (values > 0 if dtype == "bool" else values * (10 if dtype == "int64" else 1)).astype(dtype)


def windows(new: Array, context: int, first: NDArray[np.generic] | float = 0) -> Array:
    """Return the window of each step of [steps, hop, …]: the `context` rows before it, and its own."""
    steps, hop = new.shape[:2]
    history = np.zeros((context, *new.shape[2:]), new.dtype)
    history[:] = first
    history = np.concatenate([history, new.reshape(-1, *new.shape[2:])])
    return np.stack([history[step * hop : step * hop + context + hop] for step in range(steps)])


def scores(net: Net, whole: Array, name: str = "win") -> Array:
    """Run the file on one window after the other, as a program does that holds the window by hand."""
    return np.concatenate([by_hand(net, {name: each[None]})["score"] for each in whole])


def test_a_window_of_rows_is_state_enough(tmp_path: Path) -> None:
    net = window(1, 16, 4)
    bundle = imported(net, tmp_path, contexts=["win=15@1"])
    assert axes(bundle) == {"win": ("batch", "time", 4), "score": ("batch", "time", 1)}
    assert [state.axes for state in bundle.manifest.states] == [("batch", 15, 4)]
    assert pairs(bundle) == {"win.context_in": "win.context_out"}
    assert bundle.manifest.batch_invariant
    assert bundle.manifest.state_bytes == 15 * 4 * 4
    assert check_bundle(bundle.path).passed
    new = rows(40, 1, 4)
    for lengths in ([40], [1] * 40, [7, 1, 32]):
        got = walked(bundle, lengths, {"win": new.reshape(1, 40, 4)}).outputs["score"]
        np.testing.assert_allclose(got[0], scores(net, windows(new, 15)), atol=1e-6)


@pytest.mark.parametrize("context", ["win=15@time", "win=15@1"])
def test_the_axis_of_one_new_row_is_the_time(tmp_path: Path, context: str) -> None:
    bundle = imported(window(1, 16, 4), tmp_path, contexts=[context], shapes=["win=batch,time,4"])
    assert axes(bundle)["win"] == ("batch", "time", 4)


@pytest.mark.parametrize("shape", ["batch,4", "1,4"])
def test_the_axis_of_one_new_row_may_be_left_out(tmp_path: Path, shape: str) -> None:
    bundle = imported(window(1, 16, 4), tmp_path, contexts=["win=15@1"], shapes=[f"win={shape}"])
    assert axes(bundle)["win"] == ("batch", "time", 4)


def test_the_axis_of_one_row_stays_where_the_caller_says_so(tmp_path: Path) -> None:
    bundle = imported(window(1, 16, 4), tmp_path, contexts=["win=15@1"], shapes=["win=batch,1,4"])
    assert axes(bundle)["win"] == ("batch", "time", 1, 4)


@pytest.mark.parametrize("dims", [(1, 16, 4), ("batch", 16, 4), ("N", "frames", 4), (None, 16, 4)])
@pytest.mark.parametrize("hop", [1, 3, 8, 13])
def test_a_step_may_bring_several_rows(tmp_path: Path, dims: tuple[int | str, ...], hop: int) -> None:
    net, context = window(1, 16, 4), 16 - hop
    file = window(*dims)
    file.weights = net.weights
    shapes = [f"win=batch,{hop},4"] if "frames" in dims else []
    bundle = imported(file, tmp_path, contexts=[f"win={context}@1"], shapes=shapes)
    new = rows(20, hop, 4)
    shape = [20 if axis == "time" else 1 if axis == "batch" else axis for axis in axes(bundle)["win"]]
    got = walked(bundle, [9, 1, 10], {"win": new.reshape([int(str(size)) for size in shape])}).outputs["score"]
    np.testing.assert_allclose(got.reshape(20, 1), scores(net, windows(new, context)), atol=1e-6)


@pytest.mark.parametrize(("dtype", "numpy"), [(HALF, "float16"), (INT64, "int64"), (BOOL, "bool")])
@pytest.mark.parametrize("hop", [1, 5])
def test_windows_of_any_dtype(tmp_path: Path, dtype: int, numpy: str, hop: int) -> None:
    net = window(1, 16, 4, dtype=dtype)
    bundle = imported(net, tmp_path, contexts=[f"win={16 - hop}@1"])
    new = rows(20, hop, 4, dtype=numpy)
    shape = (1, 20, 4) if hop == 1 else (1, 20, hop, 4)
    got = walked(bundle, [3, 17], {"win": new.reshape(shape)}).outputs["score"]
    np.testing.assert_allclose(got[0], scores(net, windows(new, 16 - hop)), atol=2e-3 if numpy == "float16" else 1e-6)


@pytest.mark.parametrize("opset", [9, 12, 13])
def test_windows_in_old_opsets(tmp_path: Path, opset: int) -> None:
    bundle = imported(window(1, 16, 4, opset=opset), tmp_path, contexts=["win=15@1"])
    assert axes(bundle)["win"] == ("batch", "time", 4)


def decoder(blank: int = 0) -> Net:
    """A transducer's stateless decoder: the last two tokens y [N, 2] to [N, 6]."""
    del blank
    net = Net()
    embedded = net.add("Gather", net.random(20, 5), net.input("y", "N", 2, dtype=INT64))
    net.output(net.linear(net.add("Flatten", embedded), 10, 6), "decoder_out", "N", 6)
    return net


@pytest.mark.parametrize("first", [None, 7])
def test_tokens_of_a_stateless_decoder(tmp_path: Path, first: int | None) -> None:
    net, options = decoder(), {}
    if first is not None:
        np.savez(tmp_path / "blank.npz", y=first)
        options["initial"] = tmp_path / "blank.npz"
    bundle = imported(net, tmp_path, contexts=["y=1@1"], **options)
    assert axes(bundle) == {"y": ("batch", "time"), "decoder_out": ("batch", "time", 6)}
    (state,) = bundle.manifest.states
    assert (state.dtype, state.axes, state.initial) == ("int64", ("batch", 1), first or 0)
    tokens = np.random.default_rng(0).integers(0, 20, (1, 9))
    before = np.concatenate([[first or 0], tokens[0]])
    wanted = [by_hand(net, {"y": before[None, step : step + 2]})["decoder_out"][0] for step in range(9)]
    np.testing.assert_allclose(walked(bundle, [4, 1, 4], {"y": tokens}).outputs["decoder_out"][0], wanted, atol=1e-6)


@pytest.mark.parametrize("dims", [(1, 16, 4), ("N", 16, 4)])
def test_a_first_context_that_is_no_single_number(tmp_path: Path, dims: tuple[int | str, ...]) -> None:
    net, first = window(*dims), rows(15, 4, seed=5)
    np.savez(tmp_path / "first.npz", win=first[None])
    bundle = imported(net, tmp_path, contexts=["win=15@1"], initial=tmp_path / "first.npz")
    new = rows(20, 1, 4)
    got = walked(bundle, [1, 19], {"win": new.reshape(1, 20, 4)}).outputs["score"]
    np.testing.assert_allclose(got[0], scores(net, windows(new, 15, first)), atol=1e-6)


def encoder() -> Net:
    """A streaming encoder with overlapping frames and a cache: x [N, 45, 6] and h to [N, 8]."""
    net = Net()
    moved = net.add("Transpose", net.input("x", "N", 45, 6), perm=[0, 2, 1])
    halved = net.add("Conv", moved, net.random(4, 6, 14), strides=[2])
    top, (last,) = net.layer("GRU", net.add("Transpose", halved, perm=[2, 0, 1]), [net.input("h", 1, "N", 8)], 4, 8)
    net.output(net.add("Transpose", top, perm=[1, 0, 2]), "encoder_out", "N", 16, 8)
    net.output(last, "new_h")
    return net


def test_overlapping_frames_beside_a_state(tmp_path: Path) -> None:
    net = encoder()
    bundle = imported(net, tmp_path, contexts=["x=13@1"])
    assert axes(bundle) == {"x": ("batch", "time", 32, 6), "encoder_out": ("batch", "time", 16, 8)}
    assert pairs(bundle) == {"h": "new_h", "x.context_in": "x.context_out"}
    new, h = rows(6, 32, 6), np.zeros((1, 1, 8), np.float32)
    got = walked(bundle, [2, 4], {"x": new[None]}).outputs["encoder_out"]
    for step, frame in enumerate(windows(new, 13)):
        alone = by_hand(net, {"x": frame[None], "h": h})
        np.testing.assert_allclose(got[:, step], alone["encoder_out"], atol=1e-5)
        h = alone["new_h"]


def two_windows() -> Net:
    net = Net()
    left = net.linear(net.add("Flatten", net.input("audio", 1, 8, 3)), 24, 5)
    right = net.linear(net.add("Flatten", net.input("video", 1, 2, 6)), 12, 5)
    net.output(net.add("Add", left, right), "score", 1, 5)
    return net


def test_each_of_several_inputs_has_its_own_context(tmp_path: Path) -> None:
    net = two_windows()
    bundle = imported(net, tmp_path, contexts=["audio=6@1", "video=1@1"])
    assert axes(bundle) == {
        "audio": ("batch", "time", 2, 3),
        "video": ("batch", "time", 6),
        "score": ("batch", "time", 5),
    }
    audio, video = rows(9, 2, 3), rows(9, 1, 6, seed=1)
    got = walked(bundle, [4, 5], {"audio": audio[None], "video": video.reshape(1, 9, 6)}).outputs["score"]
    both = zip(windows(audio, 6), windows(video, 1), strict=True)
    wanted = [by_hand(net, {"audio": a[None], "video": b[None]})["score"][0] for a, b in both]
    np.testing.assert_allclose(got[0], wanted, atol=1e-6)


def convolution(*dims: int | str | None, time: int = 1, opset: int = 17) -> Net:
    """Two convolutions over a free time axis that yield 6 rows fewer than they take."""
    net = Net(opset=opset)
    x, forth = net.input("x", *dims), {1: [0, 2, 1], 0: [1, 2, 0]}[time]
    back = [forth.index(place) for place in range(3)]
    first = net.add("Tanh", net.add("Conv", net.add("Transpose", x, perm=forth), net.random(5, 4, 3), dilations=[2]))
    second = net.add("Conv", first, net.random(3, 5, 3))
    net.output(net.add("Transpose", second, perm=back), "y")
    return net


@pytest.mark.parametrize("context", ["x=6@time", "x=6@{time}"])
@pytest.mark.parametrize(
    ("dims", "time"), [(("N", "T", 4), 1), (("T", "N", 4), 0), ((1, "T", 4), 1), ((None, None, 4), 1)]
)
def test_a_convolution_along_a_free_time_axis(
    tmp_path: Path, dims: tuple[int | str | None, ...], time: int, context: str
) -> None:
    net = convolution(*dims, time=time)
    bundle = imported(net, tmp_path, contexts=[context.format(time=time)])
    assert axes(bundle)["x"] == (("batch", "time", 4) if time else ("time", "batch", 4))
    assert bundle.manifest.state_bytes == 6 * 4 * 4
    x = rows(30, 4)
    whole = by_hand(net, {"x": np.expand_dims(np.concatenate([np.zeros((6, 4), np.float32), x]), 1 - time)})["y"]
    got = walked(bundle, [1, 1, 20, 8], {"x": np.expand_dims(x, 1 - time)}).outputs["y"]
    np.testing.assert_allclose(got, whole, atol=1e-6)


def test_a_context_along_time_where_steps_run_one_by_one(tmp_path: Path) -> None:
    """A speaker's vector comes with every step, so one run is one step, of one row and the six before."""
    net = convolution("N", "T", 4)
    net.outputs.clear()
    net.nodes[-1].output[0] = "mixed"
    net.output(net.add("Add", "mixed", net.add("Unsqueeze", net.input("voice", "N", 3), net.integers(1))), "y")
    bundle = imported(net, tmp_path, contexts=["x=6@time"])
    assert axes(bundle)["x"] == ("batch", "time", 4)
    x, voice = rows(9, 4), rows(9, 3, seed=2)
    got = walked(bundle, [4, 5], {"x": x[None], "voice": voice[None]}).outputs["y"]
    wanted = [
        by_hand(net, {"x": each[None], "voice": voice[None, step]})["y"][0, 0]
        for step, each in enumerate(windows(x[:, None], 6))
    ]
    np.testing.assert_allclose(got.reshape(9, 3), wanted, atol=1e-6)


@pytest.mark.parametrize("hop", [1, 2, 5, 12])
@pytest.mark.parametrize("opset", [9, 17])
def test_frames_with_a_context_along_a_free_time_axis(tmp_path: Path, hop: int, opset: int) -> None:
    """Frames [time, 12] in one run, as many as there are: the context may reach back over several of them."""
    net = Net(opset=opset)
    moved = net.add("Reshape", net.input("win", "time", 12), net.integers(-1, 1, 12))
    top, (last,) = net.layer("GRU", moved, [net.input("h", 1, 1, 8)], 12, 8)
    net.output(net.add("Reshape", top, net.integers(-1, 8)), "y")
    net.output(last, "hn")
    context = 12 - hop
    if not context:
        assert "the graph takes 12 elements in all" in refusal(net, tmp_path, contexts=["win=12@1"])
        return
    first = rows(context, seed=4)
    np.savez(tmp_path / "first.npz", win=first)
    bundle = imported(net, tmp_path, contexts=[f"win={context}@1"], initial=tmp_path / "first.npz")
    assert axes(bundle)["win"] == (("time",) if hop == 1 else ("time", hop))
    new = rows(20, hop)
    wanted = by_hand(net, {"win": windows(new, context, first), "h": np.zeros((1, 1, 8), np.float32)})["y"]
    got = walked(bundle, [1, 7, 1, 11], {"win": new.reshape(20) if hop == 1 else new}).outputs["y"]
    np.testing.assert_allclose(got, wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("dims", "context", "reason"),
    [
        ((1, 16, 4), "win=16@1", "takes 16 elements in all along axis 1; it can have 1 to 15 along axis 1 or 1 to 3"),
        ((1, 16, 4), "win=15@3", "it has the axes 0 to 2; it can have 1 to 15 along axis 1"),
        ((1, 16, 4), "win=1@0", "the graph takes 1 elements in all along axis 0"),
        ((1, 16, 4), "win=4", "the graph takes 4 elements in all along axis 2"),
        ((1, 16, 4), "win=7@time", "it has no free axis: say the axis by its number; it can have 1 to 15"),
        ((1, 16, 4), "win=0@1", "win=15@1"),
        ((1, 16, 4), "win=15@-1", "win=15@1"),
        ((1, 16, 4), "win=15@rows", "win=15@1"),
        ((1, 16, 4), "won=15@1", "the graph has no input 'won'"),
    ],
)
def test_a_context_that_does_not_fit_is_told_what_does(
    tmp_path: Path, dims: tuple[int, ...], context: str, reason: str
) -> None:
    assert reason in refusal(window(*dims), tmp_path, contexts=[context])


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"contexts": ["win=15@1", "win=12@1"]}, "is said twice"),
        ({"contexts": ["win=15@1"], "constants": ["win=1"]}, "contradict each other"),
        ({"contexts": ["win=15@1"], "states": ["win:score"]}, "contradict each other"),
        ({"contexts": ["win=15@1"], "batch_axes": ["win=1"]}, "axis 1 is the batch"),
        ({"contexts": ["win=12@1"], "shapes": ["win=batch,2,4"]}, "with 2 as --shape says it makes 14 of 16"),
        ({"contexts": ["win=12@1"], "shapes": ["win=batch,time,4"]}, "it makes 13 of 16"),
    ],
)
def test_a_context_that_contradicts_is_told_so(tmp_path: Path, options: dict[str, list[str]], reason: str) -> None:
    assert reason in refusal(window(1, 16, 4), tmp_path, **options)


@pytest.mark.parametrize(
    ("first", "reason"),
    [
        (np.zeros((1, 14, 4)), "its context is [1, 15, 4]"),
        (np.full((1, 15, 4), np.nan), "cannot hold"),
        (np.zeros((2, 15, 4)), "(one row)"),
    ],
)
def test_a_first_context_that_does_not_fit_is_refused(tmp_path: Path, first: Array, reason: str) -> None:
    np.savez(tmp_path / "first.npz", win=first)
    told = refusal(window(1, 16, 4), tmp_path, contexts=["win=15@1"], initial=tmp_path / "first.npz")
    assert reason in told


@pytest.mark.parametrize(
    ("net", "hint"),
    [
        (window(1, 16, 4), "win [1, 16, 4]: if each run wants the last 15 rows again, --context win=15@1"),
        (window("N", 16, 4), "win [N, 16, 4]: if each run wants the last 15 rows again, --context win=15@1"),
        (window("batch", 16, 4), "win [batch, 16, 4]: if each run wants"),
        (decoder(), "y [N, 2]: if each run wants the last 1 elements again, --context y=1@1"),
        (window(1, 512), "win [1, 512]: if each run wants the last 64 elements again, --context win=64@1"),
        (two_windows(), "--context audio=7@1"),
        (convolution("N", "T", 4), "has 6 rows fewer than there are steps"),
        (convolution("N", "T", 4), "--context x=6@time"),
    ],
)
def test_a_window_without_its_context_is_told_which(tmp_path: Path, net: Net, hint: str) -> None:
    assert hint in refusal(net, tmp_path)


@pytest.mark.parametrize(("said", "wrong"), [(4, "2 rows fewer"), (9, "3 rows more")])
def test_a_context_of_the_wrong_number_of_steps_is_told_the_right_one(tmp_path: Path, said: int, wrong: str) -> None:
    told = refusal(convolution("N", "T", 4), tmp_path, contexts=[f"x={said}@time"])
    assert wrong in told
    assert "--context x=6@time" in told


def test_a_graph_that_pads_as_well_is_refused(tmp_path: Path) -> None:
    """It has one row a step with a smaller context than it reaches back over: the rest is a memory."""
    net = Net()
    moved = net.add("Transpose", net.input("x", "N", "T", 4), perm=[0, 2, 1])
    mixed = net.add("Conv", moved, net.random(3, 4, 4), pads=[2, 0])
    net.output(net.add("Transpose", mixed, perm=[0, 2, 1]), "y")
    assert "cannot stream" in refusal(net, tmp_path, contexts=["x=1@time"])


def test_a_likely_state_beside_a_context_is_asked_about(tmp_path: Path) -> None:
    """An input with a context is the data, so another that could be a state is not the data for want of one."""
    net = Net()
    wave, mem, last = net.input("wave", "batch", 6), net.input("mem_2", "batch", 4), net.input("s", "batch", 3)
    mixed = net.add("Tanh", net.add("Add", net.linear(wave, 6, 4), net.linear(mem, 4, 4)))
    kept = net.add("Tanh", net.add("Add", net.linear(wave, 6, 3), net.linear(last, 3, 3)))
    net.output(mixed, "new_mem", "batch", 4)
    net.output(kept, "s_out", "batch", 3)
    net.output(net.linear(mixed, 4, 2), "y", "batch", 2)
    assert "--state" in refusal(net, tmp_path, contexts=["wave=5@1"])
    said = ["mem_2:new_mem", "s:s_out"]
    assert len(imported(net, tmp_path, contexts=["wave=5@1"], states=said).manifest.states) == 3


def named(bundle: Bundle) -> list[str]:
    return [state.input for state in bundle.manifest.states]


def test_an_input_with_a_context_is_never_a_state_whatever_it_is_called(tmp_path: Path) -> None:
    net = Net()
    net.output(net.linear(net.input("feats_in", 1, 5, 4), 4, 4), "feats_out", 1, 5, 4)
    bundle = imported(net, tmp_path, contexts=["feats_in=4@1"])
    assert named(bundle) == ["feats_in.context_in"]
