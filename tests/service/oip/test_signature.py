"""A model's tensors wherever its graph has its axes: rows in, outputs back, inverse to each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tidegate.bundle import Manifest, SettingSpec, StateSpec, TensorCodec, TensorSpec
from tidegate.errors import InvalidInputError
from tidegate.transports.oip import documents
from tidegate.transports.oip.signature import Signature
from tidegate.transports.oip.tensors import NamedTensor

Array = NDArray[Any]


def signature(inputs: dict[str, tuple[Any, ...]], outputs: dict[str, tuple[Any, ...]]) -> Signature:
    manifest = Manifest(
        name="m",
        version="1",
        task="stream",
        cell="foreign",
        inputs=tuple(TensorSpec(name=name, dtype="float32", axes=axes) for name, axes in inputs.items()),
        outputs=tuple(TensorSpec(name=name, dtype="float32", axes=axes) for name, axes in outputs.items()),
        states=(StateSpec(input="h_in", output="h_out", dtype="float32", axes=(1, 4)),),
        codec=TensorCodec(outputs=tuple(outputs)),
    )
    return Signature(manifest, max_rows=8, max_reply=1 << 20)


def ramp(*shape: int) -> Array:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


AXES = {
    "batch and time first": (("batch", "time", 3), (2, 5, 3), 8),
    "time first": (("time", "batch", 3), (5, 2, 3), 0),
    "batch last": ((3, "time", "batch"), (3, 5, 2), 0),
    "no batch": (("time", 3), (5, 3), 0),
    "no time": (("batch", 3), (2, 3), 8),
    "neither": ((3,), (3,), 0),
    "a named axis": (("batch", "time", "width"), (2, 5, 7), 8),
}


@pytest.mark.parametrize("case", AXES)
def test_rows_and_outputs_are_inverse(case: str) -> None:
    axes, shape, max_batch = AXES[case]
    found = signature({"x": axes}, {"y": axes})
    assert found.max_batch == max_batch
    assert found.inputs[0].shape == tuple(size if isinstance(size, int) else -1 for size in axes)
    array = ramp(*shape)
    rows = found.rows([NamedTensor("x", array)])
    assert len(rows) == (2 if "batch" in axes else 1)
    assert all(len(row[0]) == (5 if "time" in axes else 1) for row in rows)
    (output,) = found.collect(found.wanted([]), [{"y": row[0]} for row in rows])
    np.testing.assert_array_equal(output.array, array)


def test_an_output_that_is_not_per_step_is_the_last_one() -> None:
    found = signature({"x": ("batch", "time")}, {"y": ("batch", 3)})
    (output,) = found.collect(found.wanted([]), [{"y": ramp(1, 3)}, {"y": ramp(1, 3) + 9}])
    np.testing.assert_array_equal(output.array, [[0, 1, 2], [9, 10, 11]])


def test_inputs_come_in_any_order_and_go_to_the_graph_in_its_own() -> None:
    found = signature({"a": ("batch", "time"), "b": ("batch", "time", 2)}, {"y": ("batch", "time")})
    ((first, second),) = found.rows([NamedTensor("b", ramp(1, 4, 2)), NamedTensor("a", ramp(1, 4))])
    assert (first.shape, second.shape) == ((4,), (4, 2))


@pytest.mark.parametrize("shape", [(1, 3, 2), (2, 4, 2)])
def test_inputs_of_different_length_are_refused(shape: tuple[int, ...]) -> None:
    found = signature({"a": ("batch", "time"), "b": ("batch", "time", 2)}, {"y": ("batch", "time")})
    with pytest.raises(InvalidInputError, match="differ in batch or time"):
        found.rows([NamedTensor("a", ramp(1, 4)), NamedTensor("b", ramp(*shape))])


SETTINGS = (
    SettingSpec(name="limit", dtype="float32", axes=("batch",), default=(6.0,)),
    SettingSpec(name="speaker", dtype="float32", axes=("batch", 2), default=(0.0, 1.0)),
    SettingSpec(name="language", dtype="int64", axes=(), default=(3,)),
)


def tuned(*, settings: tuple[SettingSpec, ...] = SETTINGS) -> Signature:
    manifest = Manifest(
        name="m",
        version="1",
        task="stream",
        cell="foreign",
        inputs=(TensorSpec(name="x", dtype="float32", axes=("batch", "time", 3)),),
        outputs=(TensorSpec(name="y", dtype="float32", axes=("batch", "time", 3)),),
        states=(StateSpec(input="h_in", output="h_out", dtype="float32", axes=("batch", 4)),),
        settings=settings,
        codec=TensorCodec(outputs=("y",)),
    )
    return Signature(manifest, max_rows=8, max_reply=1 << 20)


def test_settings_are_inputs_that_may_be_left_out() -> None:
    x = NamedTensor("x", ramp(2, 5, 3))
    rows = tuned().rows([x, NamedTensor("limit", np.array([[1], [2]], np.float32))])
    assert [[value.tolist() for value in row[1:]] for row in rows] == [[1.0, [0.0, 1.0], 3], [2.0, [0.0, 1.0], 3]]
    rows = tuned().rows([x, NamedTensor("speaker", ramp(1, 2)), NamedTensor("language", np.array([4], np.int64))])
    assert [[value.tolist() for value in row[1:]] for row in rows] == [[6.0, [0.0, 1.0], 4]] * 2
    assert all(isinstance(value, np.ndarray) for value in rows[0])


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (NamedTensor("limit", ramp(3)), "WRONG_SHAPE"),
        (NamedTensor("speaker", ramp(2)[:1]), "WRONG_SHAPE"),
        (NamedTensor("limit", np.array([1], np.int64)), "WRONG_DATATYPE"),
        (NamedTensor("limit", np.array([np.inf], np.float32)), "NOT_FINITE"),
        (NamedTensor("limt", ramp(1)), "UNKNOWN_TENSOR"),
    ],
)
def test_a_setting_that_does_not_fit_is_refused(tensor: NamedTensor, reason: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        tuned().rows([NamedTensor("x", ramp(2, 5, 3)), tensor])
    assert caught.value.reason == reason


def test_settings_are_shown_as_optional_inputs() -> None:
    metadata = documents.model_metadata("m", ["1"], tuned())
    assert [(each["name"], each["shape"]) for each in metadata["inputs"]] == [
        ("x", [-1, -1, 3]),
        ("limit", [-1, 1]),
        ("speaker", [-1, 2]),
        ("language", [-1, 1]),
    ]
    config = documents.model_config("m", "1", tuned(), None, has_sequences=False)
    assert [(each["name"], each["dims"], each.get("optional", False)) for each in config["input"]] == [
        ("x", [-1, 3], False),
        ("limit", [1], True),
        ("speaker", [2], True),
        ("language", [1], True),
    ]
