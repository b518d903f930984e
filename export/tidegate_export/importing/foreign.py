"""Runs a foreign graph as it is, and says what it declares at its edges.

Knows onnxruntime and nothing of states, bundles or sessions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, get_args

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, ValueInfoProto

from tidegate.bundle import DType
from tidegate.ort import load_session
from tidegate_export.errors import ExportError
from tidegate_export.importing.source import MOST_ELEMENTS, dtype_of

Array: TypeAlias = NDArray[Any]
Arrays: TypeAlias = dict[str, Array]


@dataclass(frozen=True, slots=True)
class Declared:
    """An input or output as the file declares it: each axis a size, or a name for one that is free."""

    name: str
    dtype: str
    dims: tuple[int | str, ...] | None


class Foreign:
    """A graph in onnxruntime on one CPU thread."""

    def __init__(self, model: onnx.ModelProto) -> None:
        """Load `model`.

        Raises:
            ExportError: onnxruntime refuses it.
        """
        try:
            self._session = load_session(model.SerializeToString())
        except Exception as error:  # onnxruntime raises a dozen unrelated types, protobuf one more
            raise ExportError(f"onnxruntime refuses the graph: {_shortened(error)}") from error
        self.outputs = [item.name for item in self._session.get_outputs()]

    def run(self, feeds: Mapping[str, Array]) -> Arrays:
        """Run once and return all outputs by name.

        Raises:
            ExportError: The graph does not run on that.
        """
        try:
            values: Sequence[Array] = self._session.run(self.outputs, dict(feeds))
        except Exception as error:  # as above
            raise ExportError(f"onnxruntime fails on {_shapes(feeds)}: {_shortened(error)}") from error
        return dict(zip(self.outputs, values, strict=True))


def declared(values: Sequence[ValueInfoProto]) -> list[Declared]:
    """Return what a graph declares of its inputs or outputs.

    Raises:
        ExportError: One is no tensor of numbers, or declares a size beyond all bounds.
    """
    return [_declared(value) for value in values]


def _declared(value: ValueInfoProto) -> Declared:
    if not value.type.HasField("tensor_type"):
        raise ExportError(f"{value.name!r} is a sequence, map or optional: a bundle holds plain tensors only")
    tensor = value.type.tensor_type
    dtype = dtype_of(tensor.elem_type)
    if tensor.elem_type == TensorProto.STRING:
        raise ExportError(
            f"{value.name!r} holds strings: import the graph behind it, and turn text into numbers before"
        )
    if dtype not in get_args(DType):
        raise ExportError(
            f"{value.name!r} is of {dtype or 'an unknown'} type: a bundle holds {', '.join(get_args(DType))}"
        )
    if not tensor.HasField("shape"):
        return Declared(value.name, dtype, None)
    dims: list[int | str] = []
    for index, dim in enumerate(tensor.shape.dim):
        has_size = dim.HasField("dim_value") and dim.dim_value >= 0
        dims.append(dim.dim_value if has_size else dim.dim_param or f"?{value.name}.{index}")
    if math.prod(dim for dim in dims if isinstance(dim, int)) > MOST_ELEMENTS:
        raise ExportError(f"{value.name!r} declares the shape {dims}: no step or state is that large")
    return Declared(value.name, dtype, tuple(dims))


def random_array(dtype: str, shape: Sequence[int], rng: np.random.Generator) -> Array:
    """Return standard normal numbers; of integers 0 and 1, which every embedding has."""
    if dtype.startswith("float"):
        return rng.standard_normal(tuple(shape)).astype(dtype)
    return rng.integers(0, 2, tuple(shape)).astype(dtype)


def _shapes(feeds: Mapping[str, Array]) -> str:
    return ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())


def _shortened(error: Exception) -> str:
    text = " ".join(str(error).split()).rpartition("Status Message: ")[2]
    return text if len(text) < 400 else f"{text[:400]}…"
