"""Messages by hand: what is written is what the schema's own reader reads, and what is cut off is refused."""

from __future__ import annotations

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.protobuf import block, entries, integer, integers, text

whole = st.integers(0, 2**63 - 1)


@given(name=st.text(), dims=st.lists(whole, max_size=4), dtype=st.integers(0, 2**31 - 1), raw=st.binary())
def test_fields_are_read_by_the_schema(name: str, dims: list[int], dtype: int, raw: bytes) -> None:
    tensor = onnx.TensorProto.FromString(integers(1, dims) + integer(2, dtype) + text(8, name) + block(9, raw))
    assert (list(tensor.dims), tensor.data_type, tensor.name, tensor.raw_data) == (dims, dtype, name, raw)


@given(
    numbers=st.lists(st.floats(width=32, allow_nan=False), max_size=3),
    doubles=st.lists(st.floats(allow_nan=False), max_size=3),
    name=st.text(max_size=200),
)
def test_entries_are_the_message_and_name_what_has_a_length(
    numbers: list[float], doubles: list[float], name: str
) -> None:
    attribute = onnx.AttributeProto(name=name, f=numbers[0] if numbers else 0.0, floats=numbers, i=-1)
    attribute.t.CopyFrom(onnx.TensorProto(double_data=doubles, dims=[len(doubles)]))
    message = attribute.SerializeToString()
    found = list(entries(message))
    assert b"".join(entry.encoding for entry in found) == message
    assert next(entry.content for entry in found if entry.number == 1) == name.encode()
    assert next(entry.content for entry in found if entry.number == 5) == attribute.t.SerializeToString()


@pytest.mark.parametrize(
    "broken",
    [
        block(1, b"abc")[:-1],
        b"\x80",
        b"\x0d\x00\x00",  # four bytes were announced
        b"\x09\x00",  # eight bytes were announced
        b"\x0b",  # a group, which proto3 has not
        b"\xff" * 11,
        b"\xf2\x80\x80\x80\x10\x00",  # field 14 for who reads 32 bits of it, another for who reads them all
    ],
)
def test_what_is_no_message_is_refused(broken: bytes) -> None:
    with pytest.raises(ValueError, match=r"at byte 0|beyond the message|no number"):
        list(entries(broken))
