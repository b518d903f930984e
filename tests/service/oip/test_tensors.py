"""Tensors written and read again are the same, in each of the three forms."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.errors import InvalidInputError
from tidegate.oip import service_pb2
from tidegate.transports.oip.bodies import compress, decompress
from tidegate.transports.oip.tensors import (
    DATATYPES,
    NAMES,
    from_contents,
    from_json,
    from_raw,
    to_json,
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
    for data in (to_json(array), array.tolist() if array.ndim else to_json(array)):
        np.testing.assert_array_equal(from_json("x", NAMES[array.dtype], list(array.shape), data).array, array)


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


@given(st.binary(), st.sampled_from(["gzip", "deflate"]))
def test_compression(content: bytes, encoding: str) -> None:
    assert decompress(compress(content, encoding), encoding, len(content)) == content


@given(st.binary(max_size=200), st.sampled_from(["gzip", "deflate"]))
def test_any_bytes_are_a_body_or_refused(content: bytes, encoding: str) -> None:
    with suppress(InvalidInputError):
        decompress(content, encoding, 1000)


def test_typed_values_out_of_range_are_refused() -> None:
    contents = service_pb2.InferTensorContents(int_contents=[300])
    with pytest.raises(InvalidInputError, match="out of INT8's range"):
        from_contents("x", "INT8", [1], contents)
