"""Tensors written and read again are the same, in each of the three forms."""

from __future__ import annotations

import json
from typing import Any

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.errors import InvalidInputError
from tidegate.oip import service_pb2
from tidegate.slices import at_once
from tidegate.transports.http import large_json
from tidegate.transports.oip.tensors import (
    DATATYPES,
    NAMES,
    from_contents,
    from_json,
    from_raw,
    to_raw,
)

shapes = arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)


def any_tensor(*, is_finite: bool) -> st.SearchStrategy[Any]:
    elements: dict[str, Any] = {"allow_nan": not is_finite, "allow_infinity": not is_finite}
    return st.sampled_from(list(DATATYPES.values())).flatmap(
        lambda dtype: arrays.arrays(
            dtype, shapes, elements=arrays.from_dtype(dtype, **(elements if dtype.kind == "f" else {}))
        )
    )


@given(any_tensor(is_finite=False))
def test_raw(array: Any) -> None:
    read = from_raw("x", NAMES[array.dtype], list(array.shape), to_raw(array))
    assert read.array.dtype == array.dtype
    np.testing.assert_array_equal(read.array, array)


@given(any_tensor(is_finite=True))
def test_json(array: Any) -> None:
    flat = array.ravel().tolist()
    for data in (flat, array.tolist() if array.ndim else flat):
        document = json.dumps(data).encode()
        for read_back in (data, at_once(large_json.read(document)), at_once(large_json.read(document, 10))):
            np.testing.assert_array_equal(from_json("x", NAMES[array.dtype], list(array.shape), read_back).array, array)


@given(any_tensor(is_finite=True))
def test_typed_contents(array: Any) -> None:
    fields = {"b": "bool_contents", "u": "uint_contents", "i": "int_contents"}
    wide = {"int64": "int64_contents", "float32": "fp32_contents", "float64": "fp64_contents"}
    if array.dtype.name == "float16":
        return
    contents = service_pb2.InferTensorContents()
    field = wide.get(array.dtype.name) or fields[array.dtype.kind]
    getattr(contents, field).extend(array.ravel().tolist())
    read = from_contents("x", NAMES[array.dtype], list(array.shape), contents)
    np.testing.assert_array_equal(read.array, array)


def test_typed_values_out_of_range_are_refused() -> None:
    contents = service_pb2.InferTensorContents(int_contents=[300])
    with pytest.raises(InvalidInputError, match="out of INT8's range"):
        from_contents("x", "INT8", [1], contents)


@pytest.mark.parametrize(
    ("datatype", "shape", "data", "why"),
    [
        ("FP32", [3], [1.5, "a", 2], "cannot be"),
        ("INT64", [3], [1, 2, 2.5], "cannot be"),
        ("BOOL", [3], [True, False, 1], "cannot be"),
        ("FP32", [2], [1, [2, 3]], "cannot be|not the shape"),
        ("FP32", [2], [[1], 2], "cannot be|not the shape"),
        ("INT8", [4], [1, 2, 3, 300], "out of INT8's range"),
        ("INT64", [5], [1, 2, 3, 4], "5 values, not 4"),
        ("FP32", [2, 2], [[1, 2], [3, 4], [5, 6]], "not the shape"),
        ("FP32", [3, 2], [[1, 2], [3, 4], [5]], "not the shape"),
        ("FP32", [2, 1, 2], [[[1, 2]], [[3], [4]]], "not the shape"),
        ("FP32", [2, 2], [[1, 2], 3], "not the shape"),
    ],
)
def test_what_does_not_fit_is_refused_however_it_was_read(datatype: str, shape: list[int], data: Any, why: str) -> None:
    document = json.dumps(data).encode()
    for read_back in (data, at_once(large_json.read(document)), at_once(large_json.read(document, 4))):
        with pytest.raises(InvalidInputError, match=why):
            from_json("x", datatype, shape, read_back)
