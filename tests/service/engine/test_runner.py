"""onnxruntime behind canonical arrays, wherever a graph has its axes. The graphs are made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tidegate.bundle import GRAPH, Axis, Bundle, Manifest, StateSpec, TensorCodec, TensorSpec
from tidegate.engine.runner import Runner, check_provider
from tidegate.errors import BundleError, ConfigurationError, InvalidInputError


def bundle(
    folder: Path,
    body: str,
    axes: Sequence[tuple[Axis, ...]],
    *,
    lengths: str | None = None,
    extra: str = "",
) -> Bundle:
    """Return a bundle of one input x, one output y and one state h with the axes given."""
    x, y, h = (f"float[{','.join(map(str, some))}]" for some in axes)
    text = f'<ir_version: 10, opset_import: ["" : 21]> g ({x} x, {h} h{extra}) => ({y} y, {h} h_out) {{ {body} }}'
    model = onnx.parser.parse_model(text)
    onnx.checker.check_model(model)
    manifest = Manifest(
        name="hand-made",
        version="1",
        task="stream",
        cell="foreign",
        inputs=(TensorSpec(name="x", dtype="float32", axes=axes[0]),),
        outputs=(TensorSpec(name="y", dtype="float32", axes=axes[1]),),
        states=(StateSpec(input="h", output="h_out", dtype="float32", axes=axes[2]),),
        codec=TensorCodec(outputs=("y",)),
        lengths=lengths,
    )
    return Bundle(folder, manifest, "", {GRAPH: model.SerializeToString()})


def some(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def test_batch_and_time_first_are_passed_as_they_are(tmp_path: Path) -> None:
    axes: list[tuple[Axis, ...]] = [("batch", "time", 2), ("batch", "time", 2), ("batch", 1, 2)]
    runner = Runner(bundle(tmp_path, "y = Add(x, h) h_out = Add(h, h)", axes))
    outputs, (state,) = runner.run([some(3, 4, 2)], [some(3, 1, 2)])
    np.testing.assert_array_equal(outputs["y"], some(3, 4, 2) + some(3, 1, 2))
    np.testing.assert_array_equal(state, 2 * some(3, 1, 2))


def test_time_may_come_first_and_the_states_batch_second(tmp_path: Path) -> None:
    axes: list[tuple[Axis, ...]] = [("time", "batch", 2), ("time", 2, "batch"), (1, "batch", 2)]
    runner = Runner(bundle(tmp_path, "z = Add(x, h) y = Transpose<perm=[0, 2, 1]>(z) h_out = Add(h, h)", axes))
    outputs, (state,) = runner.run([some(3, 4, 2)], [some(1, 3, 2)])
    np.testing.assert_array_equal(outputs["y"], some(3, 4, 2) + some(3, 1, 2))
    np.testing.assert_array_equal(state, 2 * some(1, 3, 2))


def test_without_a_batch_there_is_one_row(tmp_path: Path) -> None:
    axes: list[tuple[Axis, ...]] = [("time", 2), ("time", 2), (1, 2)]
    runner = Runner(bundle(tmp_path, "y = Add(x, h) h_out = Add(h, h)", axes))
    outputs, (state,) = runner.run([some(1, 4, 2)], [some(1, 1, 2)])
    np.testing.assert_array_equal(outputs["y"], some(1, 4, 2) + some(1, 1, 2))
    np.testing.assert_array_equal(state, 2 * some(1, 1, 2))


def test_an_output_may_be_of_the_last_step_only(tmp_path: Path) -> None:
    axes: list[tuple[Axis, ...]] = [("batch", "time", 2), ("batch", 2), ("batch", 2)]
    runner = Runner(bundle(tmp_path, "y = Add(h, h) z = ReduceSum(x) h_out = Add(h, z)", axes))
    outputs, _ = runner.run([some(3, 4, 2)], [some(3, 2)])
    np.testing.assert_array_equal(outputs["y"], 2 * some(3, 2))


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_a_lengths_input_is_told_how_long_each_row_is(tmp_path: Path, dtype: str) -> None:
    axes: list[tuple[Axis, ...]] = [("batch", "time", 2), ("batch",), ("batch", 2)]
    body = "y = Cast<to=1>(n) h_out = Add(h, h)"
    runner = Runner(bundle(tmp_path, body, axes, lengths="n", extra=f", {dtype}[batch] n"))
    outputs, _ = runner.run([some(3, 4, 2)], [some(3, 2)])
    np.testing.assert_array_equal(outputs["y"], [4, 4, 4])


def test_a_lengths_input_that_is_not_there_is_refused(tmp_path: Path) -> None:
    axes: list[tuple[Axis, ...]] = [("batch", "time", 2), ("batch", "time", 2), ("batch", 1, 2)]
    with pytest.raises(BundleError, match="no input n"):
        Runner(bundle(tmp_path, "y = Add(x, h) h_out = Add(h, h)", axes, lengths="n"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": (TensorSpec(name="z", dtype="float32", axes=("batch", "time", 2)),)}, r"inputs are \['h', 'x'\]"),
        ({"outputs": (TensorSpec(name="z", dtype="float32", axes=("batch", "time", 2)),)}, "no output z"),
        ({"inputs": (TensorSpec(name="x", dtype="int64", axes=("batch", "time", 2)),)}, "x is float32 in the graph"),
        ({"outputs": (TensorSpec(name="y", dtype="int64", axes=("batch", "time", 2)),)}, "y is float32 in the graph"),
        ({"inputs": (TensorSpec(name="x", dtype="float32", axes=("batch", "time", 3)),)}, "x is .* 2\\] in the graph"),
        (
            {"states": (StateSpec(input="h", output="h_out", dtype="float32", axes=("batch", 2)),)},
            "h is .* in the graph",
        ),
        (
            {"states": (StateSpec(input="h", output="h_out", dtype="float32", axes=(1, "batch", 2)),)},
            r"h is \['batch', 1, 2\] in the graph, \[1, 'batch', 2\] in the manifest",
        ),
    ],
)
def test_a_graph_that_is_not_what_the_manifest_says_is_refused_before_it_runs(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    axes: list[tuple[Axis, ...]] = [("batch", "time", 2), ("batch", "time", 2), ("batch", 1, 2)]
    sound = bundle(tmp_path, "y = Add(x, h) h_out = Add(h, h)", axes)
    with pytest.raises(BundleError, match=message):
        Runner(replace(sound, manifest=sound.manifest.model_copy(update=changes)))


def test_an_input_that_the_manifest_does_not_know_is_never_guessed(tmp_path: Path) -> None:
    axes: list[tuple[Axis, ...]] = [("batch", "time", 2), ("batch", 2), ("batch", 2)]
    body = "y = ReduceMax<keepdims=0>(x, axis) h_out = Add(h, y)"
    with pytest.raises(BundleError, match="'axis'"):
        Runner(bundle(tmp_path, body, axes, extra=", int64[1] axis"))


def test_what_is_no_graph_is_refused_with_its_file(tmp_path: Path) -> None:
    axes: list[tuple[Axis, ...]] = [("batch", "time", 2), ("batch", "time", 2), ("batch", 1, 2)]
    broken = bundle(tmp_path, "y = Add(x, h) h_out = Add(h, h)", axes)
    with pytest.raises(BundleError, match=r"model\.onnx: onnxruntime refuses it") as caught:
        Runner(replace(broken, files={GRAPH: b"not a graph"}))
    assert caught.value.reason == "GRAPH_REFUSED"


def test_a_provider_that_is_not_there_is_fatal() -> None:
    assert check_provider("cpu") == "CPUExecutionProvider"
    with pytest.raises(ConfigurationError, match=r"install tidegate\[cuda\]"):
        check_provider("cuda")


def test_what_the_graph_refuses_is_told_without_the_runtimes_words(tmp_path: Path) -> None:
    body = "i = Cast<to=7>(x) z = Gather<axis=1>(x, i) y = Squeeze(z) h_out = Add(h, h)"
    axes: list[tuple[Axis, ...]] = [("batch", "time", 1), ("batch", "time"), ("batch", 1, 1)]
    runner = Runner(bundle(tmp_path, body, axes))
    with pytest.raises(InvalidInputError) as caught:
        runner.run([np.full((1, 2, 1), 9, np.float32)], [some(1, 1, 1)])
    assert (caught.value.message, caught.value.reason) == (
        "the model's graph refuses the input's values",
        "REFUSED_BY_MODEL",
    )
