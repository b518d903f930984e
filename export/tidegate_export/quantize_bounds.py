"""Bounds of a graph's tensors that hold for every input: an LSTM's output lies in -1 … 1, a table's row in its range.

Follows the nodes in order and gives up, tensor by tensor, where nothing certain is known. Knows nothing of rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import onnx

from tidegate.bundle import StateSpec
from tidegate_export.quantize_graph import Array, attribute


class Bounds(NamedTuple):
    """The least and the greatest value that a tensor can have."""

    low: float
    high: float


UNIT = Bounds(-1.0, 1.0)

_KEEP_VALUES = frozenset(
    {"Transpose", "Squeeze", "Unsqueeze", "Slice", "Reshape", "Identity", "Gather", "Flatten", "Expand", "Split"}
)
_RANGES = {"Tanh": UNIT, "Sigmoid": Bounds(0.0, 1.0), "Softmax": Bounds(0.0, 1.0)}


def find_bounds(
    graph: onnx.GraphProto, constants: Mapping[str, Array], states: Sequence[StateSpec]
) -> dict[str, Bounds]:
    """Return the bounds of every tensor that has certain ones.

    A state has those of what the graph gives for it, provided that it begins inside them.
    """
    fixed = {name: _range(value) for name, value in constants.items() if value.dtype.kind == "f" and value.size}
    after = _follow(graph, fixed)
    kept = {state.input: after[state.output] for state in states if _begins_inside(state, after.get(state.output))}
    return _follow(graph, fixed | kept)


def _begins_inside(state: StateSpec, bounds: Bounds | None) -> bool:
    return bounds is not None and bounds.low <= state.initial <= bounds.high


def _follow(graph: onnx.GraphProto, known: dict[str, Bounds]) -> dict[str, Bounds]:
    bounds = dict(known)
    for node in graph.node:
        for index, output in enumerate(node.output):
            found = _bounds_of(node, index, bounds)
            if output and found is not None:
                bounds[output] = found
    return bounds


def _bounds_of(node: onnx.NodeProto, index: int, bounds: Mapping[str, Bounds]) -> Bounds | None:
    if node.op_type in _RANGES:
        return _RANGES[node.op_type]
    if node.op_type == "LSTM":
        # h = o·tanh(c) whatever c is; c itself, the third output, may grow without end.
        return UNIT if is_plain(node) and index < 2 else None
    if node.op_type in _KEEP_VALUES:
        return bounds.get(node.input[0])
    if node.op_type == "Concat":
        parts = [bounds.get(name) for name in node.input]
        known = [part for part in parts if part is not None]
        if len(known) == len(parts):
            return Bounds(min(part.low for part in known), max(part.high for part in known))
    return None


def is_plain(node: onnx.NodeProto) -> bool:
    """Whether an LSTM operator computes what it does by default: no other activations, clipping or coupled gates."""
    return not attribute(node, "input_forget", 0) and all(
        attribute(node, name) is None for name in ("activations", "clip")
    )


def _range(value: Array) -> Bounds:
    return Bounds(float(np.min(value)), float(np.max(value)))
