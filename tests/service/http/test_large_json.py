"""Large JSON is read and written as the small is, whatever its windows cut."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import from_json

from tidegate.errors import InvalidInputError, TooLargeError
from tidegate.limits import MAX_JSON_DEPTH, MAX_JSON_ITEMS, MAX_STEPS
from tidegate.slices import at_once
from tidegate.transports.http.exchange import dump
from tidegate.transports.http.large_json import Pieces, read, write

Json = Any

numbers = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.text(), inner) | st.lists(st.lists(numbers, min_size=2, max_size=2))
    ),
    max_leaves=60,
)


def plain(value: Json) -> Json:
    """The value without arrays and pieces."""
    if isinstance(value, Pieces):
        return [plain(each) for piece in value for each in piece]
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, list):
        return [plain(each) for each in value]
    return {key: plain(each) for key, each in value.items()} if isinstance(value, dict) else value


def found(data: bytes, window: int = 1000) -> Json:
    return plain(at_once(read(data, window)))


@given(values, st.sampled_from([None, 1]), st.integers(1, 64))
def test_what_is_read_in_slices_is_what_is_read_at_once(value: Json, indent: int | None, window: int) -> None:
    data = json.dumps(value, indent=indent, ensure_ascii=False).encode("utf-8", "surrogatepass")
    try:
        expected = from_json(data)
    except ValueError:  # a lone surrogate
        with pytest.raises(InvalidInputError):
            found(data, window)
    else:
        assert found(data, window) == expected


LONG = {
    "tokens": [*range(1000)],
    "whole and not": [1] * 500 + [0.5] * 500,
    "beyond 64 bits": [1] * 1000 + [2**70],
    "flags": [True, False] * 500,
    "flags among numbers": [1, True] * 500,
    "words": ["a", "b"] * 1000,
    "nothing": [None] * 1000,
    "rows": [[1, 2.5]] * 500,
    "rows of whole numbers": [[1, 2]] * 500,
    "ragged rows": [[1]] * 500 + [[1, 2]] * 500,
    "rows of rows": [[[1, 2]] * 100] * 10,
    "long rows": [[0.25] * 300] * 3,
    "rows that are none": [[1, 2]] * 500 + [{"a": [1]}] + [[3]] * 5,
    "empty rows": [[]] * 1000,
    "rows of flags": [[True, False]] * 500,
    "rows of flags and numbers": [[True, 2]] * 500,
    "objects": [{"text": "},]["}] * 300,
    "a long text": '\\"\n€' * 50_000,
}


@pytest.mark.parametrize("name", LONG)
@pytest.mark.parametrize("separators", [(",", ":"), (" ,\n", " : ")])
def test_long_values_are_read_whole(name: str, separators: tuple[str, str]) -> None:
    data = json.dumps({"before": 1, name: LONG[name], "after": [2]}, separators=separators).encode()
    assert found(data) == {"before": 1, name: LONG[name], "after": [2]}


def test_short_lists_of_rows_are_not_read_row_by_row() -> None:
    value = [[[1, 2]] * 100] * 1000
    document = at_once(read(json.dumps(value).encode()))
    assert plain(document) == value
    assert {each.shape for each in document} == {(100, 2)}


def test_long_lists_of_numbers_are_arrays() -> None:
    document = at_once(read(json.dumps(LONG).encode(), 1000))
    for name, dtype in (
        ("tokens", np.int64),
        ("flags", np.bool_),
        ("rows", np.float64),
        ("rows of whole numbers", np.int64),
    ):
        assert {piece.dtype for piece in document[name]} == {np.dtype(dtype)}


DAMAGED = b'{"a":[[1],[2,3],[]],"b":"x\\"]},","c":[1,2.5e3,-1,true,null],"d":[{"e":[[1,2],[3,4]]},[[[1]]]],"f":{}}'
MORE = [b"", b"]", b",", b"[", b'"', b"}", b"1", b" "]


@given(st.integers(0, len(DAMAGED)), st.sampled_from(MORE), st.integers(1, 40))
def test_what_is_cut_short_or_damaged_is_refused(place: int, more: bytes, window: int) -> None:
    for damaged in (DAMAGED[:place] + more, DAMAGED[:place] + more + DAMAGED[place:]):
        try:
            expected = from_json(damaged)
        except ValueError:
            with pytest.raises(InvalidInputError) as caught:
                found(damaged, window)
            assert caught.value.reason == "INVALID_JSON"
        else:
            assert found(damaged, window) == expected


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b" ",
        b"[1,]",
        b"[,1]",
        b'{"a":1,}',
        b'{"a"}',
        b"{1:2}",
        b"01",
        b"+1",
        b"1 2",
        b"[1}",
        b"nul",
        b'"\x01"',
        b"[1 2]",
    ],
)
def test_what_is_no_json_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidInputError):
        found(data)


def test_what_is_nested_deeper_or_has_more_parts_than_it_may_is_refused() -> None:
    assert found(b"[" * MAX_JSON_DEPTH + b"]" * MAX_JSON_DEPTH, 1)
    with pytest.raises(InvalidInputError, match="nested deeper"):
        found(b"[" * (MAX_JSON_DEPTH + 1) + b"]" * (MAX_JSON_DEPTH + 1), 1)
    assert len(found(b"[" + b",".join([b"{}"] * (MAX_JSON_ITEMS - 1)) + b"]")) == MAX_JSON_ITEMS - 1
    for data in (b"[" + b",".join([b"{}"] * MAX_JSON_ITEMS) + b"]", b'"' + b"\\n" * 6 * (MAX_STEPS + 1) + b'"'):
        with pytest.raises(TooLargeError) as caught:
            found(data)
        assert caught.value.reason == "REQUEST_TOO_LARGE"


@pytest.mark.parametrize("unit", [b"[1],[1,2]", b"1,[2]", b"[null]", b"[1,true]", b"[[],[1]]"])
def test_lists_that_are_no_rows_of_one_length_count(unit: bytes) -> None:
    """Each is an object of Python: a million of them would take a second of the garbage collector's time."""
    with pytest.raises(TooLargeError):
        at_once(read(b"[" + b",".join([unit] * MAX_JSON_ITEMS) + b"]"))


@pytest.mark.parametrize("unit", [b"[1,2]", b"[]", b"[0.5]", b"[true]"])
def test_rows_of_one_length_do_not_count(unit: bytes) -> None:
    value = at_once(read(b"[" + b",".join([unit] * (MAX_JSON_ITEMS + 1)) + b"]"))
    assert value.num_entries == MAX_JSON_ITEMS + 1


# ---- writing


@given(values)
def test_what_is_written_in_slices_is_what_is_written_at_once(value: Json) -> None:
    assert at_once(write(value)) == dump(value)


def lazily(value: Json) -> Iterator[Json]:
    yield from value


@pytest.mark.parametrize("length", [0, 1, 31, 32, 33, 5000])
def test_iterators_and_arrays_are_lists(length: int) -> None:
    rows = np.arange(3.0 * length, dtype=np.float32).reshape(length, 3)
    value = {
        "rows": rows,
        "each": lazily([{"a": 1}] * length),
        "wide": np.zeros((2, length)),
        "inner": lazily([{"b": rows}, 1]),
    }
    expected = {
        "rows": rows.tolist(),
        "each": [{"a": 1}] * length,
        "wide": [[0.0] * length] * 2,
        "inner": [{"b": rows.tolist()}, 1],
    }
    assert at_once(write(value)) == dump(expected)


def test_what_json_has_no_number_for_is_null() -> None:
    assert at_once(write({"a": np.array([1, np.nan, np.inf])})) == b'{"a":[1.0,null,null]}'
