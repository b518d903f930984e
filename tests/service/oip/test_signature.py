"""A model's tensors wherever its graph has its axes: rows in, outputs back, inverse to each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tidegate.bundle import Manifest, StateSpec, TensorCodec, TensorSpec
from tidegate.errors import InvalidInputError
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
