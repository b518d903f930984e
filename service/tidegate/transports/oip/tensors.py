"""Tensors as the protocol writes them: raw little-endian bytes, gRPC's typed contents, and lists of JSON.

Knows datatypes, shapes and sizes. Knows nothing of models: whether a tensor fits one is ``signature.py``'s to say.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from tidegate.api import Tensor
from tidegate.errors import InvalidInputError, shown
from tidegate.oip import service_pb2
from tidegate.transports.http.large_json import Pieces

Json = Any

DATATYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("<u1"),
    "INT8": np.dtype("<i1"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
"""The datatypes that a bundle's tensors can have, by the protocol's name."""

NAMES = {dtype: name for name, dtype in DATATYPES.items()}
"""The protocol's name of a dtype."""

_IS_LITTLE = sys.byteorder == "little"

# Which field of `InferTensorContents` holds a datatype's values. FP16 has none: it travels as raw bytes.
_CONTENTS = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "INT8": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}

# What JSON values a datatype takes. ``bool`` is a subclass of ``int`` in Python, and no number here.
_JSON_KINDS: dict[str, frozenset[type]] = {"b": frozenset({bool}), "f": frozenset({int, float})}
_WHOLE = frozenset({int})
_JSON_NAMES: dict[type, str] = {
    bool: "booleans", dict: "objects", float: "fractions", int: "whole numbers", list: "lists", str: "strings",
    type(None): "null", Pieces: "lists", np.ndarray: "lists",
}  # fmt: skip

# What an array of JSON's numbers holds, by its kind.
_ARRAY_KINDS: dict[str, type] = {"i": int, "f": float, "b": bool}
_ARRAYS = frozenset({Pieces, np.ndarray})

MAX_AXES = 8
_MAX_VALUES = 1 << 59


class NamedTensor(NamedTuple):
    """A tensor with its name; ``array`` has the shape that the request gave, or that the reply gives."""

    name: str
    array: Tensor


def dtype_of(name: str, datatype: str) -> np.dtype[Any]:
    """The dtype of tensor ``name``; InvalidInputError for a datatype that no model here can have."""
    dtype = DATATYPES.get(datatype)
    if dtype is None:
        known = ", ".join(DATATYPES)
        raise InvalidInputError(
            f"tensor {shown(name)}: datatype {shown(datatype)} is none of those served here: {known}",
            reason="WRONG_DATATYPE",
        )
    return dtype


def check_shape(name: str, shape: Sequence[Any]) -> tuple[int, ...]:
    """The shape as it was given, of non-negative whole numbers."""
    if len(shape) > MAX_AXES or not all(type(size) is int and size >= 0 for size in shape):
        raise InvalidInputError(
            f"tensor {shown(name)}: a shape has at most {MAX_AXES} sizes of at least 0, not {_shown(shape)}",
            reason="WRONG_SHAPE",
        )
    # Also of an empty one, whose zero hides how large the other sizes are: numpy does not take them.
    if math.prod(size for size in shape if size) > _MAX_VALUES:
        raise InvalidInputError(
            f"tensor {shown(name)}: there are no tensors as large as {_shown(shape)}", reason="WRONG_SHAPE"
        )
    return tuple(shape)


def from_raw(name: str, datatype: str, shape: Sequence[Any], raw: bytes | memoryview) -> NamedTensor:
    """Read a tensor's bytes; they are not copied.

    Raises:
        InvalidInputError: There are not as many as datatype and shape say.
    """
    dtype, sizes = dtype_of(name, datatype), check_shape(name, shape)
    expected = math.prod(sizes) * dtype.itemsize
    if len(raw) != expected:
        raise InvalidInputError(
            f"tensor {shown(name)}: {datatype} of shape {list(sizes)} has {expected} bytes, not {len(raw)}",
            reason="WRONG_SIZE",
        )
    return NamedTensor(name, np.frombuffer(raw, dtype).reshape(sizes))


def to_raw(array: Tensor) -> bytes:
    """The inverse of `from_raw`."""
    return array.tobytes() if _IS_LITTLE else array.astype(array.dtype.newbyteorder("<")).tobytes()


def from_contents(
    name: str, datatype: str, shape: Sequence[Any], contents: service_pb2.InferTensorContents
) -> NamedTensor:
    """Read gRPC's typed contents.

    Raises:
        InvalidInputError: They are in another field than the datatype's, too few or many, or out of its range.
    """
    dtype, sizes = dtype_of(name, datatype), check_shape(name, shape)
    wanted = _CONTENTS.get(datatype)
    if wanted is None:
        raise InvalidInputError(f"tensor {shown(name)}: {datatype} has no typed contents: send raw bytes")
    given = [field.name for field, _ in contents.ListFields()]
    if given not in ([wanted], []):
        raise InvalidInputError(
            f"tensor {shown(name)}: the values of {datatype} are in {wanted}, not in {', '.join(given)}",
            reason="WRONG_CONTENTS",
        )
    return NamedTensor(name, _filled(name, datatype, sizes, dtype, list(getattr(contents, wanted))))


def from_json(name: str, datatype: str, shape: Sequence[Any], data: Json) -> NamedTensor:
    """Read JSON's values, flat or nested as the shape is.

    Raises:
        InvalidInputError: They are of another kind than the datatype's, too few or many, or out of its range.
    """
    dtype, sizes = dtype_of(name, datatype), check_shape(name, shape)
    if _holds_arrays(data):
        return NamedTensor(name, _gathered(name, datatype, sizes, dtype, data))
    if type(data) is not list:
        raise InvalidInputError(f"tensor {shown(name)}: data must be a list", reason="WRONG_CONTENTS")
    values = data if type(next(iter(data), None)) is not list else list(_flat(name, data, sizes))
    _check_kinds(name, datatype, dtype, set(map(type, values)))
    return NamedTensor(name, _filled(name, datatype, sizes, dtype, values))


def _filled(
    name: str, datatype: str, shape: tuple[int, ...], dtype: np.dtype[Any], values: list[Any] | Tensor
) -> Tensor:
    expected = math.prod(shape)
    if len(values) != expected:
        raise InvalidInputError(
            f"tensor {shown(name)}: shape {list(shape)} has {expected} values, not {len(values)}", reason="WRONG_SIZE"
        )
    try:
        with np.errstate(over="ignore"):  # it is infinite then, and refused as that
            return np.array(values, dtype).reshape(shape)
    except OverflowError:
        raise InvalidInputError(f"tensor {shown(name)}: a value is out of {datatype}'s range") from None


def _check_kinds(name: str, datatype: str, dtype: np.dtype[Any], kinds: set[type]) -> None:
    if not kinds <= _JSON_KINDS.get(dtype.kind, _WHOLE):
        found = ", ".join(sorted(_JSON_NAMES[kind] for kind in kinds))
        raise InvalidInputError(f"tensor {shown(name)}: data of {datatype} cannot be {found}", reason="WRONG_CONTENTS")


def _gathered(name: str, datatype: str, shape: tuple[int, ...], dtype: np.dtype[Any], data: Json) -> Tensor:
    """Put a large tensor's values together, which are arrays already, most of them."""
    found = [np.empty(0, dtype)]
    # As the first piece is, so are the others, or they are refused.
    for values in data if type(data) is Pieces and _is_flat(data[0]) else _runs(name, data, shape):
        if isinstance(values, np.ndarray) and values.ndim != 1:
            raise _not_shaped(name, shape)
        kinds = {_ARRAY_KINDS[values.dtype.kind]} if isinstance(values, np.ndarray) else set(map(type, values))
        _check_kinds(name, datatype, dtype, kinds)
        if isinstance(values, np.ndarray) and dtype.kind in "iu" and len(values):
            range_ = np.iinfo(dtype)
            if values.min() < range_.min or values.max() > range_.max:
                raise InvalidInputError(f"tensor {shown(name)}: a value is out of {datatype}'s range")
        found.append(_filled(name, datatype, (len(values),), dtype, values))
    num_values = sum(map(len, found))
    if num_values != math.prod(shape):
        raise InvalidInputError(
            f"tensor {shown(name)}: shape {list(shape)} has {math.prod(shape)} values, not {num_values}",
            reason="WRONG_SIZE",
        )
    return np.concatenate(found).reshape(shape)


def _holds_arrays(data: Json) -> bool:
    """Whether the data was read in slices, into arrays."""
    if type(data) is not list:
        return type(data) in _ARRAYS
    kinds = set(map(type, data))
    return not kinds.isdisjoint(_ARRAYS) or (list in kinds and any(map(_holds_arrays, data)))


def _is_flat(piece: Tensor | list[Json]) -> bool:
    if isinstance(piece, np.ndarray):
        return piece.ndim == 1
    return {list, *_ARRAYS}.isdisjoint(map(type, piece))


def _runs(name: str, data: Json, shape: tuple[int, ...]) -> Iterator[Tensor | list[Json]]:
    """The values of nested lists, whose lengths must be the shape's, as flat arrays and lists."""
    pieces = data if type(data) is Pieces else (data,)
    if not shape or not all(isinstance(piece, list | np.ndarray) for piece in pieces):
        raise _not_shaped(name, shape)
    if sum(map(len, pieces)) != shape[0]:
        raise _not_shaped(name, shape)
    for piece in pieces:
        if isinstance(piece, np.ndarray):
            # What empty lists would hold, nobody knows.
            if piece.shape[1:] != shape[1 : None if piece.size else piece.ndim]:
                raise _not_shaped(name, shape)
            if piece.size:
                yield piece.ravel()
        elif len(shape) == 1:
            yield piece
        else:
            for part in piece:
                yield from _runs(name, part, shape[1:])


def _not_shaped(name: str, shape: tuple[int, ...]) -> InvalidInputError:
    return InvalidInputError(
        f"tensor {shown(name)}: its nested data has not the shape {list(shape)}", reason="WRONG_SIZE"
    )


def _flat(name: str, data: list[Json], shape: tuple[int, ...]) -> Iterable[Json]:
    """The values of nested lists, whose lengths must be the shape's."""
    if not shape or len(data) != shape[0]:
        raise InvalidInputError(
            f"tensor {shown(name)}: its nested data has not the shape {list(shape)}", reason="WRONG_SIZE"
        )
    for part in data:
        if type(part) is list:
            yield from _flat(name, part, shape[1:])
        elif len(shape) > 1:
            raise InvalidInputError(f"tensor {shown(name)}: its nested data has not the shape {list(shape)}")
        else:
            yield part


def _shown(shape: Sequence[Any]) -> str:
    return str(list(shape[: MAX_AXES + 1]))[:100]
